"""How alike two scorings of the same pairs are, as far as ranking goes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rankmill.tokens import Float32, Int32

_BEST = 10


@dataclass(frozen=True)
class Agreement:
    """Scores found against exact ones.

    lists: candidate lists of at least two pairs. Where there is none, all pairs count as one.
    kendall_tau: the mean over lists of Kendall's tau-b (1: the same order; ties count in
    neither's favour); kendall_tau_lowest: of the list that agrees least. overlap_at_10: the mean
    share of a list's ten best that are among the ten best found; None where no list is longer.
    score_rms_difference: root mean square over all pairs, beside the largest. score_spread:
    standard deviation of the exact scores.
    """

    pairs: int
    lists: int
    kendall_tau: float
    kendall_tau_lowest: float
    overlap_at_10: float | None
    score_rms_difference: float
    score_largest_difference: float
    score_spread: float


def measure(exact: Float32, found: Float32, list_: Int32) -> Agreement:
    """Compare scores, float32 [pairs]. list_: int32 [pairs], the candidate list of each.

    A score found that is not finite makes every measure of its list as bad as can be.
    """
    places = [np.flatnonzero(list_ == number) for number in np.unique(list_)]
    lists = [place for place in places if len(place) > 1]
    compared = lists or [np.arange(len(exact))]
    taus = [kendall_tau(exact[place], found[place]) for place in compared]
    overlaps = [_overlap(exact[place], found[place]) for place in compared if len(place) > _BEST]
    difference = np.abs(found.astype(np.float64) - exact)
    difference[~np.isfinite(difference)] = np.inf
    return Agreement(
        pairs=len(exact),
        lists=len(lists),
        kendall_tau=float(np.mean(taus)),
        kendall_tau_lowest=float(np.min(taus)),
        overlap_at_10=float(np.mean(overlaps)) if overlaps else None,
        score_rms_difference=float(np.sqrt(np.mean(difference**2))),
        score_largest_difference=float(difference.max()),
        score_spread=float(exact.std(dtype=np.float64)),
    )


def kendall_tau(first: npt.NDArray[np.floating], second: npt.NDArray[np.floating]) -> float:
    """Kendall's tau-b (Kendall 1945) of two orders of the same items, from -1 to 1.

    1 where both tie all items; -1 where a value is not finite, or one alone ties all.
    """
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return -1.0
    from scipy.stats import kendalltau  # late: a second that other commands do not need

    constant = [bool((values[1:] == values[:-1]).all()) for values in (first, second)]
    if any(constant):
        return 1.0 if all(constant) else -1.0
    return float(kendalltau(first, second).statistic)


def _overlap(exact: Float32, found: Float32) -> float:
    best, others = (set(np.argsort(-scores, kind="stable")[:_BEST]) for scores in (exact, found))
    return len(best & others) / _BEST
