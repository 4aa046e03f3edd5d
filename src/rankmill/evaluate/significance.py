"""Is a difference between two orders of the same queries more than chance?

Both tests are paired by query, two-sided, and of scipy.stats. They share their seed, so that equal
values give equal figures, whatever else is measured.

- Randomisation: Fisher's, by random signs (Smucker, Allan and Carterette, CIKM 2007). The share of
  sign flips whose mean difference is as far from 0 as the observed one; of few queries, all flips.
- Bootstrap: queries drawn with replacement (Efron and Tibshirani 1993). Percentiles of the drawn
  means are the 95 % interval; the p-value is the share of drawn means, moved to a mean of 0, that
  are as far from 0 as the observed one (the shift method, Smucker et al.).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from rankmill.evaluate.measures import Floats

# A p-value of 0.05 then has a standard error of 0.002.
RESAMPLES = 10_000
_SEED = 0
# Cells of a resampling array held at once (32 MiB of float64).
_CELLS = 2**22
# Means in another order of summing differ in the last bits; "as far" includes equal ones.
_EQUAL = 1e-12
COUNTED = ("better", "equal", "worse")
COLUMNS = ("difference", "low", "high", "p_value", "p_bootstrap", *COUNTED)
TESTS = {
    "p_value": "paired randomisation test (random signs), two-sided",
    "p_bootstrap": "paired bootstrap test (shift method), two-sided",
    "interval": "percentile bootstrap, 95 %",
    "resamples": RESAMPLES,
}


def compare(values: Floats, reference: Floats) -> pd.DataFrame:
    """Paired comparison of two arrays [queries, columns], a row a column of them.

    `difference` is the mean of values - reference, `low, high` its interval, `p_value` that of the
    randomisation test, `p_bootstrap` the bootstrap's; `better, equal, worse` count queries. Where
    the differences do not vary, drawing them says nothing: then `p_bootstrap` is 1 if all are 0,
    and otherwise NaN. Of one query alone nothing can be tested: all but the counts are NaN then.
    """
    difference = values - reference
    mean = difference.mean(axis=0)
    low, high, p_value, p_bootstrap = _tests(difference)
    varies, zero = np.ptp(difference, axis=0) > _EQUAL, np.abs(mean) <= _EQUAL
    columns = (
        *(mean, low, high, p_value, np.where(varies | zero, p_bootstrap, np.nan)),
        *((difference > _EQUAL).sum(axis=0), (np.abs(difference) <= _EQUAL).sum(axis=0)),
        (difference < -_EQUAL).sum(axis=0),
    )
    return pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))


def _tests(difference: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """The interval's ends and both p-values of each column."""
    if len(difference) < 2 or difference.shape[1] == 0:
        nothing = np.full(difference.shape[1], np.nan)
        return nothing, nothing, nothing, nothing
    from scipy import stats  # late: a second that other commands do not need

    batch = max(1, _CELLS // difference.size)
    flipped = stats.permutation_test(
        (difference,),
        lambda drawn, axis: np.abs(drawn.mean(axis=axis)),
        permutation_type="samples",
        alternative="greater",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=batch,
        rng=_SEED,
    )
    drawn = stats.bootstrap(
        (difference,),
        np.mean,
        method="percentile",
        n_resamples=RESAMPLES,
        batch=batch,
        rng=_SEED,
    )
    mean = difference.mean(axis=0)
    shifted = np.abs(drawn.bootstrap_distribution - mean[:, None]) >= np.abs(mean)[:, None] - _EQUAL
    # What was observed is one of the possible outcomes (Phipson and Smyth 2010): hence the ones.
    p_bootstrap = (1 + shifted.sum(axis=1)) / (1 + RESAMPLES)
    low, high = drawn.confidence_interval
    return low, high, flipped.pvalue, p_bootstrap
