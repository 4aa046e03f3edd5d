"""The measures of trec_eval over ranked lists, computed by pytrec_eval some queries at a time.

A document is relevant from grade 1 on. nDCG takes the grade itself as gain (not 2^grade - 1).
`map@k` is trec_eval's map_cut: precision at each relevant document of the first k, divided by all
relevant documents of the query, also where there are more than k. `mrr@k` is recip_rank, which
trec_eval does not cut: a first relevant document below rank k counts 0. `precision@k` is divided
by k also where the list is shorter. Without a cut, `precision` and `recall` are trec_eval's set_P
and set_recall; a hit rate it has with a cut only (success).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytrec_eval

from rankmill.errors import ConfigError
from rankmill.qrels import Ints, Judgements

Floats = npt.NDArray[np.float64]

METRICS = ("ndcg@10", "map@10", "mrr@10", "hit@10", "recall@100")

# Our name of a measure, and trec_eval's with a cut and without.
_TREC = {
    "ndcg": ("ndcg_cut", "ndcg"),
    "map": ("map_cut", "map"),
    "mrr": ("recip_rank", "recip_rank"),
    "hit": ("success", None),
    "recall": ("recall", "set_recall"),
    "precision": ("P", "set_P"),
}
_UNCUT = [name for name, (_, uncut) in _TREC.items() if uncut is not None]
# What others call them, beside trec_eval's names.
_ALIASES = {"ap": "map", "rr": "mrr", "hits": "hit", "hit_rate": "hit", "r": "recall"}
_ALIASES |= {trec.lower(): name for name, both in _TREC.items() for trec in both if trec}
# Python's dicts of a chunk take some 100 bytes a document: 100 MB for lists of a thousand.
_CHUNK = 1_000


class Measure(NamedTuple):
    """A measure by the name that the user gave it, and by trec_eval's. cut: the last rank that
    counts, None for all."""

    name: str
    trec: str
    cut: int | None


class Lists(NamedTuple):
    """Ranked lists of judged queries, one after the other, best first.

    query: int64 [documents], ascending numbers of queries; judgement: int64 [documents], the
    number of the document's judgement for the query, -1 without one.
    """

    query: Ints
    judgement: Ints


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
    if match is not None and match[1] in (_UNCUT if match[2] is None else _TREC):
        with_cut, uncut = _TREC[match[1]]
        if match[2] is None:
            return Measure(name, str(uncut), None)
        cuts = "" if with_cut == uncut else f".{match[2]}"
        return Measure(name, with_cut + cuts, int(match[2]))
    accepted = ", ".join(f"{known}@10" for known in _TREC)
    close = _nearest(name)
    raise ConfigError(
        f"The metric {name!r} is not known; {accepted} are, at any rank, and "
        f"{', '.join(_UNCUT)} without a cut.",
        f"Did you mean {close}?" if close else None,
    )


def _nearest(name: str) -> str | None:
    kind, cut = re.fullmatch(r"(.*?)[@._ ]?([0-9]*)", name.lower().strip(), re.DOTALL).groups()  # type: ignore[union-attr]
    close = difflib.get_close_matches(_ALIASES.get(kind, kind), _TREC, n=1)
    if not close:
        return None
    cut = cut.lstrip("0")
    return f"{close[0]}@{cut or 10}" if cut or name.endswith("@") or close[0] == "hit" else close[0]


def measure(lists: Lists, judged: Judgements, measures: Sequence[Measure]) -> Floats:
    """float64 [judged queries, measures]; a query without a list has 0."""
    names = [each.trec.replace(".", "_") for each in measures]
    values = np.zeros((len(judged.queries), len(measures)))
    # What stands below the deepest cut changes nothing.
    cuts = [each.cut for each in measures if each.cut is not None]
    depth = max(cuts) if len(cuts) == len(measures) else None
    ranked = _by_query(lists.query, len(values))
    by_query = np.argsort(judged.query, kind="stable")
    judgements = _by_query(judged.query[by_query], len(values))
    for start in range(0, len(values), _CHUNK):
        queries = range(start, min(start + _CHUNK, len(values)))
        # Numbers stand in for ids: trec_eval reads ids as C strings, which real ones need not be.
        grades = {
            str(q): {str(j): int(judged.grade[j]) for j in by_query[judgements[q]].tolist()}
            for q in queries
        }
        run = {str(q): dict(_scores(lists.judgement[ranked[q]][:depth])) for q in queries}
        trec = pytrec_eval.RelevanceEvaluator(grades, {each.trec for each in measures})
        for query, found in trec.evaluate({q: list_ for q, list_ in run.items() if list_}).items():
            values[int(query)] = [found[name] for name in names]
    for column, each in zip(values.T, measures, strict=True):
        if each.trec == "recip_rank" and each.cut is not None:
            column[column < 1 / each.cut] = 0.0
    return values


def _scores(judgements: Ints) -> Iterator[tuple[str, float]]:
    """A list as trec_eval takes it: it sorts by score and breaks ties by id, so every rank gets a
    score of its own."""
    for rank, judgement in enumerate(judgements.tolist()):
        yield str(judgement) if judgement >= 0 else f"unjudged {rank}", -float(rank)


def _by_query(query: Ints, queries: int) -> list[slice]:
    """Where each query's rows lie in an ascending column."""
    ends = np.searchsorted(query, np.arange(queries), side="right").tolist()
    return [slice(start, end) for start, end in zip([0, *ends], ends)]
