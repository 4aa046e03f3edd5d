"""A scorer that costs nothing, to measure everything around it. A test double, not an option."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rankmill.profile import Profile
from rankmill.tokenizer import PairTokenizer
from rankmill.tokens import (
    Int32,
    PairRules,
    Template,
    TokenBatch,
    TokenizedPairs,
    TokenizedTexts,
)

_TEMPLATE = Template((1,), (2,), (2,), (0, 0, 0, 1, 1), False, 0, False)
_TOKENS_A_TEXT = 8


class StandInTokenizer(PairTokenizer):
    """Gives every text eight tokens without looking at it."""

    def __init__(self, rules: PairRules) -> None:
        self._prefix = ""
        self.rules = rules
        self.template = _TEMPLATE
        self.fixed_tokens = _TEMPLATE.special

    def encode(self, texts: Sequence[str]) -> TokenizedTexts:
        """Made-up ids."""
        ids = np.arange(_TOKENS_A_TEXT * len(texts), dtype=np.int32) % 1000
        return TokenizedTexts(ids, np.arange(len(texts) + 1, dtype=np.int64) * _TOKENS_A_TEXT)

    def pairs(self, texts: TokenizedTexts, query: Int32, document: Int32) -> TokenizedPairs:
        """All of both texts."""
        kept = np.full(len(query), _TOKENS_A_TEXT, np.int32)
        return TokenizedPairs(texts, query, document, kept, kept, _TEMPLATE.special)


class StandInModel:
    """Scores a pair by the sum of its ids."""

    def score(self, batch: TokenBatch) -> npt.NDArray[np.float32]:
        """float32 [batch]."""
        return batch.input_ids.sum(axis=1).astype(np.float32)


@dataclass(frozen=True)
class StandIn:
    """Describes the stand-in as a model of `operations_per_token` operations."""

    digest: str = "stand-in"
    operations_per_token: float = 1e6
    takes_instruction: bool = False
    is_int8: bool = False

    def max_length(self, wanted: int) -> int:
        """No limit."""
        return wanted

    def check(self, rules: PairRules) -> PairTokenizer:
        """Nothing can be wrong."""
        return self.tokenizer(rules)

    def fetch(self) -> None:
        """Nothing to fetch."""

    def prepare(self, profile: Profile) -> None:
        """Nothing to convert."""

    def tokenizer(self, rules: PairRules) -> PairTokenizer:
        """The double's tokenizer."""
        return StandInTokenizer(rules)

    def load(self, profile: Profile) -> StandInModel:
        """The double's model."""
        return StandInModel()

    def to_json(self) -> dict[str, Any]:
        """As stored."""
        return {"name": "stand-in", "digest": self.digest}
