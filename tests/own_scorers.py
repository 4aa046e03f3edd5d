"""Scorers that a run's workers can import, as they can everything beside the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rankmill import Profile, TokenBatch


class Unbuildable:
    """Fails where it is built."""

    def __init__(self, folder: Path, profile: Profile) -> None:
        raise ValueError("the head has no weights")

    def score(self, batch: TokenBatch) -> np.ndarray:
        return np.zeros(len(batch.input_ids), np.float32)


class Columns:
    """Gives a column of scores for a batch."""

    def __init__(self, folder: Path, profile: Profile) -> None:
        self.profile = profile

    def score(self, batch: TokenBatch) -> np.ndarray:
        return np.zeros((len(batch.input_ids), 1), np.float32)
