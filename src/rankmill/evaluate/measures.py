"""The measures of trec_eval over ranked lists, for all queries at once.

A document is relevant from grade 1 on. nDCG takes the grade itself as gain (not 2^grade - 1) and
log2(rank + 1) as discount. `map@k` is trec_eval's map_cut: precision at each relevant document of
the first k, divided by all relevant documents of the query, also where there are more than k.
`mrr@k` is recip_rank, 0 where the first relevant document stands below rank k. `precision@k` is
divided by k also where the list is shorter. Without a cut, `precision` and `recall` are trec_eval's
set_P and set_recall; a hit rate it has with a cut only (success_k).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rankmill.errors import ConfigError
from rankmill.qrels import Ints

Floats = npt.NDArray[np.float64]

METRICS = ("ndcg@10", "map@10", "mrr@10", "hit@10", "recall@100")

_KINDS = ("ndcg", "map", "mrr", "hit", "recall", "precision")
_UNCUT = tuple(kind for kind in _KINDS if kind != "hit")
# Names that others give to them.
_ALIASES = {
    "ndcg_cut": "ndcg",
    "map_cut": "map",
    "ap": "map",
    "recip_rank": "mrr",
    "rr": "mrr",
    "success": "hit",
    "hits": "hit",
    "hit_rate": "hit",
    "r": "recall",
    "set_recall": "recall",
    "p": "precision",
    "set_p": "precision",
}


class Measure(NamedTuple):
    """A measure by the name that the user gave it. cut: the last rank that counts, None for all."""

    name: str
    kind: str
    cut: int | None


@dataclass(frozen=True, eq=False)
class Lists:
    """Ranked lists of numbered queries, one after the other, best first.

    query: int64 [documents], ascending; grade: int64 [documents], 0 where not relevant.
    """

    query: Ints
    grade: Ints


def parse(metrics: Sequence[str] | str) -> list[Measure]:
    """Measures by name, each once, in order; a text is split at commas.

    Raises `ConfigError` for one that is not known, naming the nearest.
    """
    names = metrics.split(",") if isinstance(metrics, str) else metrics
    found = [_measure(name) for name in dict.fromkeys(name.strip() for name in names)]
    if not found:
        raise ConfigError("No metric was named.", f"The default is {','.join(METRICS)}.")
    return found


def _measure(name: str) -> Measure:
    match = re.fullmatch(r"([a-z]+)(?:@([1-9][0-9]{0,6}))?", name)
    if match is not None and match[1] in (_UNCUT if match[2] is None else _KINDS):
        return Measure(name, match[1], None if match[2] is None else int(match[2]))
    accepted = ", ".join(f"{kind}@10" for kind in _KINDS)
    close = _nearest(name)
    raise ConfigError(
        f"The metric {name!r} is not known; {accepted} are, at any rank, and "
        f"{', '.join(_UNCUT)} without a cut.",
        f"Did you mean {close}?" if close else None,
    )


def _nearest(name: str) -> str | None:
    kind, cut = re.fullmatch(r"(.*?)[@._ ]?([0-9]*)", name.lower().strip(), re.DOTALL).groups()  # type: ignore[union-attr]
    kind = _ALIASES.get(kind, kind)
    close = difflib.get_close_matches(kind, _KINDS, n=1)
    if not close:
        return None
    cut = cut.lstrip("0")
    return f"{close[0]}@{cut or 10}" if cut or name.endswith("@") or close[0] == "hit" else close[0]


def measure(lists: Lists, judged: Lists, queries: int, measures: Sequence[Measure]) -> Floats:
    """float64 [queries, measures]; a query without a list has 0.

    judged: the grades above 0 of every query, highest first; each query has one at least.
    """
    position, ideal_position = positions(lists.query), positions(judged.query)
    relevant = lists.grade > 0
    # Relevant documents up to each place, within the query.
    seen = np.cumsum(relevant)
    seen -= np.repeat((seen - relevant)[position == 0], _lengths(lists.query))
    gain = lists.grade / np.log2(position + 2.0)
    ideal_gain = judged.grade / np.log2(ideal_position + 2.0)
    all_relevant = np.bincount(judged.query, minlength=queries)

    def total(weights: Floats, cut: int | None) -> Floats:
        within = weights if cut is None else np.where(position < cut, weights, 0.0)
        return np.asarray(np.bincount(lists.query, within, minlength=queries), np.float64)

    def one(kind: str, cut: int | None) -> Floats:
        if kind == "ndcg":
            counted = ideal_gain if cut is None else np.where(ideal_position < cut, ideal_gain, 0.0)
            return total(gain, cut) / np.bincount(judged.query, counted, minlength=queries)
        if kind == "map":
            return total(relevant * seen / (position + 1.0), cut) / all_relevant
        if kind == "mrr":
            return total((relevant & (seen == 1)) / (position + 1.0), cut)
        if kind == "hit":
            return total((relevant & (seen == 1)).astype(np.float64), cut)
        found = total(relevant.astype(np.float64), cut)
        if kind == "recall":
            return found / all_relevant
        retrieved = np.bincount(lists.query, minlength=queries)
        return found / (np.maximum(retrieved, 1) if cut is None else cut)

    return np.column_stack([one(kind, cut) for _, kind, cut in measures])


def positions(query: Ints) -> Ints:
    """The place of each row in its query's list, from 0."""
    starts = np.flatnonzero(np.diff(query, prepend=-1))
    return np.arange(len(query)) - np.repeat(starts, _lengths(query))


def _lengths(query: Ints) -> Ints:
    starts = np.flatnonzero(np.diff(query, prepend=-1))
    return np.diff(starts, append=len(query))
