"""Models: finding one, describing it, loading it.

`describe` turns a name into a `Description`, a small picklable value that travels to workers;
each worker builds the tokenizer or the model from it. Nothing here runs or unpickles anything
from a model repository.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from rankmill.profile import Profile
from rankmill.tokenizer import PairTokenizer
from rankmill.tokens import PairRules, TokenBatch


class ScorerModel(Protocol):
    """A loaded model."""

    def score(self, batch: TokenBatch) -> npt.NDArray[np.float32]:
        """Raw scores, float32 [batch], of padded pairs."""
        ...


class Pending(Protocol):
    """A batch that was started."""

    def result(self) -> npt.NDArray[np.float32]:
        """Raw scores, float32 [batch]; waits for them. Raises `MemoryError` for no room."""
        ...


@runtime_checkable
class AsyncModel(ScorerModel, Protocol):
    """A model with threads of its own, which works on several batches at once.

    in_flight: how many may be started before the first result is taken.
    """

    in_flight: int

    def start(self, batch: TokenBatch) -> Pending:
        """Begin with a batch, and do not wait for it."""
        ...


class Description(Hashable, Protocol):
    """What is known of a model without loading it. Equal values give equal scores."""

    @property
    def digest(self) -> str:
        """SHA-256 over everything that makes the scores: config, tokenizer, weights."""
        ...

    @property
    def operations_per_token(self) -> float:
        """Floating-point operations of the encoder for one token, attention scores left out."""
        ...

    def max_length(self, wanted: int) -> int:
        """The length that is used when `wanted` tokens are asked for."""
        ...

    def check(self, rules: PairRules) -> None:
        """Raise what would fail in a worker: `ModelError` for keys, class or tokenizer,
        `ConfigError` for rules that leave a document no room."""
        ...

    def fetch(self) -> None:
        """Make the files present on this node."""
        ...

    def prepare(self, profile: Profile) -> None:
        """Make ready on this node what the profile's backend needs beside the files.

        Raises `BackendUnfit` when that backend cannot score the model here.
        """
        ...

    def tokenizer(self, rules: PairRules) -> PairTokenizer:
        """The tokenizer with its pair template."""
        ...

    def load(self, profile: Profile) -> ScorerModel:
        """The model, ready to score. Verifies the digest."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Name, revision, digest, licence and shape, as stored in run.json and part files."""
        ...
