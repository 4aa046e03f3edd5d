"""What scoring will cost, before anything is read: tokens that a model sees, operations it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rankmill.tokens import PairRules


@dataclass(frozen=True)
class Load:
    """One of a run's models, as far as its work goes.

    operations_per_token: floating-point operations for a token. rules: tokens that it sees of a
    pair. fixed_tokens: of every input, special ones or a prompt's. best: how many pairs of each
    list it sees; None: all.
    """

    operations_per_token: float
    rules: PairRules
    fixed_tokens: int = 0
    best: int | None = None

    def share(self, pairs: float, lists: int) -> float:
        """The share of all pairs that it sees, as if all lists were of one length."""
        if self.best is None or pairs <= 0:
            return 1.0
        return min(self.best * lists / pairs, 1.0)

    def seen_tokens(self, tokens: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """About how many tokens it sees of pairs whose texts have so many.

        Those fixed in every input and the repeats of windows are included.
        """
        rules, fixed = self.rules, self.fixed_tokens
        room = max(rules.max_length - fixed, 1)
        if rules.overflow == "truncate":
            return np.minimum(tokens, room) + fixed
        if rules.max_document_tokens is not None:
            tokens = np.minimum(tokens, max(rules.max_document_tokens, room))
        new = room - min(rules.stride, room // 2)
        return (np.minimum(tokens, room) + fixed) * (1 + np.maximum(tokens - room, 0) / new)


@dataclass(frozen=True)
class Estimate:
    """What a model is expected to do in a whole run. operations: floating-point ones."""

    pairs: int
    tokens: int
    operations: float


def shares(estimates: Sequence[Estimate]) -> list[float]:
    """Each model's share of the work; equal ones where no operations are known."""
    whole = sum(one.operations for one in estimates)
    if whole <= 0:
        return [1 / len(estimates)] * len(estimates)
    return [one.operations / whole for one in estimates]
