"""Batches under a token budget: a pure function of the pairs' lengths and the profile."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt


def pad_widths(
    lengths: npt.NDArray[np.int32], multiple: int, longest: int
) -> npt.NDArray[np.int32]:
    """What each pair takes in a batch of its like, int32 [pairs], in tokens.

    Its length, rounded up to a multiple, but not beyond the longest input allowed, of which alone
    it is known that the model has positions for it.
    """
    rounded = -(-lengths // np.int32(multiple)) * np.int32(multiple)
    return np.maximum(lengths, np.minimum(rounded, np.int32(longest)))


def make_batches(
    widths: npt.NDArray[np.int32], token_budget: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Yield index arrays that cover all pairs once, widest pairs first.

    A batch holds as many consecutive pairs of that order as fit when padded to its widest
    (pairs x widest <= token_budget), and at least one. Widest first, because a batch that
    does not fit in memory should fail at the start. Ties keep their input order.
    """
    order = np.argsort(-widths.astype(np.int64), kind="stable")
    start = 0
    while start < len(order):
        widest = max(int(widths[order[start]]), 1)
        stop = start + max(token_budget // widest, 1)
        yield order[start:stop]
        start = stop
