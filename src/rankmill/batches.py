"""Batches under a token budget: a pure function of the pairs' lengths and the profile."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt


def make_batches(
    lengths: npt.NDArray[np.int32], token_budget: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Yield index arrays that cover all pairs once, longest pairs first.

    A batch holds as many consecutive pairs of that order as fit when padded to its longest
    (pairs x longest <= token_budget), and at least one. Longest first, because a batch that
    does not fit in memory should fail at the start. Ties keep their input order.
    """
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    start = 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        stop = start + max(token_budget // longest, 1)
        yield order[start:stop]
        start = stop
