"""Is a difference between two orders of the same queries more than chance?

Both tests are paired by query and two-sided; they share their seed, so that equal values give equal
figures, whatever else is measured.

- Randomisation: Fisher's, by random signs (Smucker, Allan and Carterette, CIKM 2007). The share of
  sign flips whose mean difference is as far from 0 as the observed one.
- Bootstrap: queries drawn with replacement (Efron and Tibshirani 1993). Percentiles of the drawn
  means are the 95 % interval; the p-value is the share of drawn means, moved to a mean of 0, that
  are as far from 0 as the observed one (the shift method, Smucker et al.).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from rankmill.errors import ConfigError
from rankmill.evaluate.measures import Floats

# Cells of a resampling matrix held at once (32 MiB of float64).
_CELLS = 2**22
COLUMNS = (
    *("difference", "low", "high", "p_value", "p_bootstrap"),
    *("effect_size", "better", "equal", "worse"),
)


@dataclass(frozen=True)
class Tests:
    """How often is drawn, and from where. At 10,000 a p-value of 0.05 has a standard error of
    0.002."""

    resamples: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples < 1 or self.seed < 0:
            raise ConfigError(
                f"resamples is {self.resamples} and seed {self.seed}; at least 1 and 0 are needed."
            )

    def to_json(self, queries: int) -> dict[str, object]:
        """What was tested, by the names of the tests."""
        return {
            "p_value": "paired randomisation test (random signs), two-sided",
            "p_bootstrap": "paired bootstrap test (shift method), two-sided",
            "interval": "percentile bootstrap, 95 %",
            "effect_size": "mean difference / standard deviation of the differences",
            "queries": queries,
            "resamples": self.resamples,
            "seed": self.seed,
        }


def compare(values: Floats, reference: Floats, tests: Tests) -> pd.DataFrame:
    """Paired comparison of two arrays [queries, columns], a row a column of them.

    `difference` is the mean of values - reference, `low, high` its interval, `p_value` that of the
    randomisation test, `p_bootstrap` the bootstrap's, `effect_size` the difference in standard
    deviations of the differences (Cohen's d_z); `better, equal, worse` count queries. Where the
    differences do not vary, resampling them says nothing: then `p_bootstrap` is 1 if all are 0, and
    it and the effect size are otherwise NaN.
    """
    difference = values - reference
    queries = len(difference)
    mean = difference.mean(axis=0)
    drawn_means, flipped_means = _resample(difference, tests)
    low, high = np.quantile(drawn_means, [0.025, 0.975], axis=0)
    # Sums in another order differ in the last bits; "as extreme" must include equal ones.
    limit = np.abs(mean) - 1e-12
    # What was observed is one of the possible outcomes (Phipson and Smyth 2010): hence the ones.
    p_value = (1 + (np.abs(flipped_means) >= limit).sum(axis=0)) / (1 + tests.resamples)
    shifted = np.abs(drawn_means - mean) >= limit
    p_bootstrap = (1 + shifted.sum(axis=0)) / (1 + tests.resamples)
    spread = difference.std(axis=0, ddof=1) if queries > 1 else np.zeros(len(mean))
    varies, zero = spread > 1e-12, np.abs(mean) <= 1e-12
    effect_size = np.divide(mean, spread, out=np.where(zero, 0.0, np.nan), where=varies)
    columns = (
        *(mean, low, high, p_value, np.where(varies | zero, p_bootstrap, np.nan), effect_size),
        *((difference > 1e-12).sum(axis=0), (np.abs(difference) <= 1e-12).sum(axis=0)),
        (difference < -1e-12).sum(axis=0),
    )
    return pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))


def _resample(difference: Floats, tests: Tests) -> tuple[Floats, Floats]:
    """Means [resamples, columns] of drawn queries, and of all queries with random signs."""
    queries = len(difference)
    rng = np.random.default_rng(tests.seed)
    step = max(1, _CELLS // queries)
    drawn_means, flipped_means = [], []
    for draws in (min(step, tests.resamples - at) for at in range(0, tests.resamples, step)):
        drawn = rng.integers(0, queries, (draws, queries)) + queries * np.arange(draws)[:, None]
        times = np.bincount(drawn.ravel(), minlength=draws * queries).reshape(draws, queries)
        drawn_means.append(times @ difference / queries)
        flipped_means.append(
            (1.0 - 2.0 * rng.integers(0, 2, (draws, queries))) @ difference / queries
        )
    return np.concatenate(drawn_means), np.concatenate(flipped_means)
