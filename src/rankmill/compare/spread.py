"""How numbers are distributed: sums, and counts of rounded values. Parts add up to the whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
# Values are counted to so many significant digits: a quantile is off by 1 in 2,000 at most, and
# numbers of one decimal magnitude need 9,000 counts at most, however many they are.
_DIGITS = 4


@dataclass(frozen=True, eq=False)
class Spread:
    """values: float64 [rounded, distinct], ascending; counts: int64, parallel."""

    count: int
    total: float
    squares: float
    low: float
    high: float
    values: Floats
    counts: npt.NDArray[np.int64]

    @classmethod
    def of(cls, numbers: Floats) -> Spread:
        """The spread of finite numbers, float64 [count]."""
        rounded = _rounded(numbers)
        values, counts = np.unique(rounded, return_counts=True)
        return cls(
            len(numbers),
            float(numbers.sum()),
            float((numbers**2).sum()),
            float(numbers.min(initial=np.inf)),
            float(numbers.max(initial=-np.inf)),
            values,
            counts,
        )

    def quantile(self, share: float) -> float:
        """The least value that at least such a share of the numbers does not exceed."""
        if share <= 0:
            return self.low
        reached = np.cumsum(self.counts) >= share * self.count
        value = float(self.values[int(np.argmax(reached))])
        return min(max(value, self.low), self.high)

    @property
    def mean(self) -> float | None:
        """None where there is no number."""
        return self.total / self.count if self.count else None

    @property
    def rms(self) -> float | None:
        """Root mean square; None where there is no number."""
        return (self.squares / self.count) ** 0.5 if self.count else None

    def to_json(self) -> dict[str, object]:
        """count, mean, rms (root mean square), quantiles by name; None where there is no number."""
        if not self.count:
            return {"count": 0, "mean": None, "rms": None, "quantiles": None}
        return {
            "count": self.count,
            "mean": self.mean,
            "rms": self.rms,
            "quantiles": {f"{share:g}": self.quantile(share) for share in QUANTILES},
        }


def _rounded(numbers: Floats) -> Floats:
    size = np.abs(numbers)
    # Of what is next to nothing, fewer digits.
    digits = _DIGITS - 1 - np.floor(np.log10(np.where(size < 1e-30, 1.0, size)))
    scale = 10.0 ** np.abs(digits)
    # Dividing by a power of ten gives the decimal number itself, as near as float64 has it.
    up, down = np.rint(numbers * scale) / scale, np.rint(numbers / scale) * scale
    return np.where(digits >= 0, up, down)


def add(spreads: Iterable[Spread]) -> Spread:
    """The spread of all their numbers."""
    found = [Spread.of(np.empty(0)), *spreads]
    values, place = np.unique(np.concatenate([one.values for one in found]), return_inverse=True)
    counts = np.zeros(len(values), np.int64)
    np.add.at(counts, place, np.concatenate([one.counts for one in found]))
    return Spread(
        sum(one.count for one in found),
        sum(one.total for one in found),
        sum(one.squares for one in found),
        min(one.low for one in found),
        max(one.high for one in found),
        values,
        counts,
    )
