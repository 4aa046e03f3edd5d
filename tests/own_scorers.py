"""Scorers that a run's workers can import, as they can everything beside the tests."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
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


SECRET = "what the texts say"


def fail() -> None:
    raise ValueError(SECRET)


def run_out_of_memory() -> None:
    raise MemoryError


FAULTS: dict[str, Callable[[], object]] = {
    "exit": lambda: os._exit(3),
    "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "hang": lambda: threading.Event().wait(),
    "memory": run_out_of_memory,
    "error": fail,
    "sys.exit": lambda: exit(7),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
}


class Poisoned:
    """Scores pairs, but for those that hold tokens with a fault.

    poison.json in its folder gives such tokens their faults. "switch" in it names a file without
    which there are none; with "once", it is gone after the first. Scores differ in the last bits
    with the size of a batch, as a matrix product's do.
    """

    def __init__(self, folder: Path, profile: Profile) -> None:
        self.faults = json.loads((folder / "poison.json").read_text())
        self.switch = self.faults.pop("switch", None)
        self.once = self.faults.pop("once", False)

    def score(self, batch: TokenBatch) -> np.ndarray:
        ids = batch.input_ids
        found = [fault for token, fault in self.faults.items() if (ids == int(token)).any()]
        on = self.switch is None or Path(self.switch).exists()
        if self.once and found and on:
            Path(self.switch).unlink()
        for fault in found if on else []:
            if fault != "nan":
                FAULTS[fault]()
        real = np.ones_like(ids) if batch.mask is None else batch.mask
        places = np.arange(ids.shape[1]) % 7 + 1
        scores = np.sin((ids * real * places).sum(axis=1)) + len(ids) * 1e-6
        for token, fault in self.faults.items():
            if fault == "nan" and on:
                scores[(ids == int(token)).any(axis=1)] = np.nan
        return scores.astype(np.float32)


@dataclass(frozen=True)
class SeveralAtOnce:
    """Describes a `Poisoned` that is given batches ahead; it works on them when asked."""

    folder: Path

    def load(self, profile: Profile) -> FlyingPoisoned:
        return FlyingPoisoned(self.folder, profile)


class FlyingPoisoned(Poisoned):
    """Has three batches in flight."""

    in_flight = 3

    def start(self, batch: TokenBatch) -> Flying:
        return Flying(self, batch)


@dataclass(frozen=True)
class Flying:
    model: FlyingPoisoned
    batch: TokenBatch

    def result(self) -> np.ndarray:
        return self.model.score(self.batch)
