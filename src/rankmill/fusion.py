"""The first stage's score joins the model's: one number a row, by which its query is ordered.

The fused score is weight * model + (1 - weight) * first stage, once both are on one scale. That is
made of the scored rows of one query at a time:

- minmax: (x - lowest) / (highest - lowest); 0 for all where they are equal.
- zscore: (x - mean) / standard deviation, both over those rows; 0 for all where they are equal.
- rrf: 1 / (k + place), reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009). Equal
  values share the best of their places.

The first stage may not know a row (null, NaN): it then counts as much as the worst that it knows
of that query. Of a query of which it knows nothing, all rows count the same, so the model decides.
Infinities count as the highest and the lowest finite value. All of it is computed in float64 and
rounded once; equal rows have equal fused scores, whatever their order.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rankmill.errors import InputError
from rankmill.rank import Float32
from rankmill.rank_settings import FuseConfig

Float64 = npt.NDArray[np.float64]
Groups = npt.NDArray[np.intp]


def refuse_unfit(pairs: pa.Schema, rule: FuseConfig) -> None:
    """Raise `InputError` when a table of pairs has no such column, or one that is not of numbers.

    What is null in all rows is no fault: the first stage may be missing where others have it.
    """
    if rule.column not in pairs.names:
        raise InputError(
            f"rank.fuse.column names {rule.column}, which the input does not have.",
            f"Its columns are {', '.join(pairs.names)}.",
        )
    _refuse_no_numbers(pairs.field(rule.column).type, rule.column)


def first_stage(column: pa.ChunkedArray, name: str) -> Float64:
    """float64 [rows], higher is better, NaN where the first stage does not know the row.

    Raises `InputError` for a column that is not of numbers.
    """
    _refuse_no_numbers(column.type, name)
    value = np.asarray(pc.cast(column, pa.float64(), safe=False).to_numpy(), np.float64)
    return -value if name.endswith("rank") else value


def fuse(
    query: npt.NDArray[np.integer], score: Float32, first: Float64, rule: FuseConfig
) -> Float32:
    """float32 [rows], NaN where a row has no score.

    query: [rows], equal for the rows of a query, which may lie apart; score: float32 [rows], the
    model's, NaN where it did not score; first: float64 [rows], as `first_stage` gives it.
    """
    fused = np.full(len(query), np.nan, np.float32)
    scored = np.flatnonzero(~np.isnan(score))
    _, group = np.unique(query[scored], return_inverse=True)
    both = (
        _on_one_scale(_known(values[scored], group), group, rule)
        for values in (score.astype(np.float64), first)
    )
    model, other = both
    fused[scored] = rule.weight * model + (1 - rule.weight) * other
    return fused


def _refuse_no_numbers(found: pa.DataType, column: str) -> None:
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_null)
    if not any(fits(found) for fits in kinds):
        raise InputError(
            f"The column {column}, which is to be fused with the model's score, is {found}.",
            "Name one of integers or floating-point numbers.",
        )


def _known(values: Float64, group: Groups) -> Float64:
    """Finite values for all: what is not known counts as the lowest of its group that is."""
    finite = np.isfinite(values)
    low, high = _bounds(values[finite], group[finite], int(group.max(initial=-1)) + 1)
    knows = low <= high
    low, high = np.where(knows, low, 0.0), np.where(knows, high, 0.0)
    return np.where(finite, values, np.where(values == np.inf, high[group], low[group]))


def _bounds(values: Float64, group: Groups, groups: int) -> tuple[Float64, Float64]:
    low, high = np.full(groups, np.inf), np.full(groups, -np.inf)
    np.minimum.at(low, group, values)
    np.maximum.at(high, group, values)
    return low, high


def _on_one_scale(values: Float64, group: Groups, rule: FuseConfig) -> Float64:
    if rule.method == "rrf":
        return 1 / (rule.k + _shared_places(values, group))
    scaled = _minmax(values, group)
    return scaled if rule.method == "minmax" else _zscore(scaled, group)


def _minmax(values: Float64, group: Groups) -> Float64:
    low, high = _bounds(values, group, int(group.max(initial=-1)) + 1)
    # Halves: the difference of two finite values may be infinite.
    above, spread = values / 2 - low[group] / 2, (high / 2 - low / 2)[group]
    return np.divide(above, spread, out=np.zeros_like(values), where=spread > 0)


def _zscore(values: Float64, group: Groups) -> Float64:
    """Of values from 0 to 1: no sum overflows, and the result is that of any linear scale."""
    count = np.bincount(group)
    # bincount adds up in the order of the rows, on every processor.
    mean = np.bincount(group, values) / count
    apart = values - mean[group]
    spread = np.sqrt(np.bincount(group, apart**2) / count)[group]
    return np.divide(apart, spread, out=np.zeros_like(values), where=spread > 0)


def _shared_places(values: Float64, group: Groups) -> npt.NDArray[np.int64]:
    order = np.lexsort((-values, group))
    ordered, its_group = values[order], group[order]
    at = np.arange(len(order))
    opens = np.diff(its_group, prepend=-1) != 0
    fresh = opens | (np.diff(ordered, prepend=np.nan) != 0)
    first_equal, first_of_group = (
        np.maximum.accumulate(np.where(m, at, 0)) for m in (fresh, opens)
    )
    places = np.empty(len(order), np.int64)
    places[order] = first_equal - first_of_group + 1
    return places
