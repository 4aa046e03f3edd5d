"""Models: finding one, describing it, loading it.

`describe` turns a name into a `Description`, a small picklable value that travels to workers;
each worker builds the tokenizer or the model from it. Nothing here runs or unpickles anything
from a model repository.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rankmill.profile import Profile
from rankmill.tokenizer import PairTokenizer
from rankmill.tokens import PairRules, TokenBatch


class ScorerModel(Protocol):
    """A loaded model. `model.scorer` may name a class of your own that has this method.

    Such a class is built on every worker as `Class(folder: pathlib.Path, profile: Profile)`.
    """

    def score(self, batch: TokenBatch) -> npt.NDArray[np.float32]:
        """Raw scores, float32 [batch], of padded pairs.

        A score that is not finite sends its rows to quarantine. Raises `MemoryError` when the
        batch does not fit; it is then halved.
        """
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

    def tokenizer(self, rules: PairRules) -> PairTokenizer:
        """The tokenizer with its pair template."""
        ...

    def load(self, profile: Profile) -> ScorerModel:
        """The model, ready to score. Verifies the digest."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Name, revision, digest, licence and shape, as stored in run.json and part files."""
        ...
