"""Ranking quality against judgements, in the measures of trec_eval, and a paired test.

- A query is judged when it has at least one judgement of relevance above 0. Means are over judged
  queries; one that the ranked table lacks counts 0. Queries without judgements are only counted.
- A document is relevant from relevance 1 on; one without a judgement is not. nDCG takes the
  relevance itself as gain (not 2^relevance - 1), as trec_eval does.
- `map@k` is trec_eval's map_cut: precision at each relevant document of the first k, divided by
  all relevant documents of the query, also where there are more than k of them.
- Ids are compared as text, so the integer 1 and the text "1" are one id.
- Of rows with the same query and document the best ranked counts; the others are taken out and
  what is below moves up. A row without a document id is a document without a judgement.
- A row whose order column is null or NaN was not ranked: it is left out.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytrec_eval

from rankmill.errors import ConfigError, InputError
from rankmill.qrels import (
    Ints,
    TableSource,
    column_names,
    ids_of,
    number_documents,
    numbers,
    read_columns,
    read_judgements,
)

Floats = npt.NDArray[np.float64]
Grades: TypeAlias = dict[str, dict[str, int]]

METRICS = ("ndcg@10", "map@10", "mrr@10", "hit@10", "recall@100")

# Our name of a measure and trec_eval's.
_TREC = {
    "ndcg": "ndcg_cut",
    "map": "map_cut",
    "mrr": "recip_rank",
    "hit": "success",
    "recall": "recall",
    "precision": "P",
}
# A p-value of 0.05 then has a standard error of 0.002.
_RESAMPLES, _SEED = 10_000, 0
# Cells of a resampling matrix held at once (32 MiB of float64).
_CELLS = 2**22


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What `evaluate` found.

    `metrics` maps each metric's name to its mean over judged queries. `per_query` has a row a
    judged query, in the order of the judgements: `query_id` (text) and a float64 column a metric.
    `baseline`, if asked for, has a row a metric: `metric`, the means `baseline` and `ranked`,
    `difference` (ranked - baseline), its 95 % interval `low, high`, `p_value` (two-sided).

    Rows of judged queries are documents_judged + documents_unjudged + duplicates + not_ranked.
    """

    metrics: dict[str, float]
    per_query: pd.DataFrame
    baseline: pd.DataFrame | None
    queries_judged: int
    queries_missing: int
    queries_unjudged: int
    documents_judged: int
    documents_unjudged: int
    duplicates: int
    not_ranked: int

    def to_json(self) -> dict[str, object]:
        """Numbers, text, dicts and None only: means, counts, and the baseline by metric."""
        counts = {name: value for name, value in vars(self).items() if isinstance(value, int)}
        compared = self.baseline
        baseline = None if compared is None else compared.set_index("metric").to_dict("index")
        return {"metrics": dict(self.metrics), "counts": counts, "baseline": baseline}


class _Measure(NamedTuple):
    name: str  # as the user writes it
    trec: str  # as trec_eval does
    cut: int


def evaluate(
    ranked: TableSource,
    qrels: TableSource,
    *,
    metrics: Sequence[str] | str = METRICS,
    baseline: str | None = None,
    prefix: str = "rerank_",
    ids: tuple[str, str] = ("query_id", "doc_id"),
) -> Evaluation:
    """Measure a ranked table against judgements, by the rules at the top of this module.

    `ranked` is a frame, a table, or Parquet files, folders or globs, with the two columns that
    `ids` names and `{prefix}rank` (ascending) or, without it, `{prefix}score` (descending; ties by
    input order). `qrels` is a frame, a table or Parquet with `query_id, doc_id, relevance`, or a
    text file: TREC qrels (query, iteration, document, relevance) or BEIR's (query, document,
    relevance between tabs, under a header). `metrics` are names like `ndcg@10`, in a sequence or
    joined by commas.

    `baseline` names a column of `ranked` with another order of the same rows: ascending if the
    name ends in `rank`, otherwise descending. A percentile bootstrap over queries (Efron and
    Tibshirani 1993) gives the interval of the difference, Fisher's randomisation test by random
    signs (Smucker, Allan and Carterette 2007) the p-value; both have a fixed seed. Documents that
    a run cut (`output.top_k`) are in neither order: compare where all candidates were kept.

    Raises `ConfigError` for an unknown metric; `InputError` for a missing or mistyped column,
    unreadable, empty or contradictory judgements, and when no query is in both.
    """
    measures = _measures(metrics)
    table, orders = _read_ranked(ranked, prefix, baseline, ids)
    judged = read_judgements(qrels)
    query_ids = ids_of(table, ids[0], "ranked table")
    unjudged = _unjudged_queries(query_ids, judged.queries)
    query = numbers(query_ids, judged.queries)
    rows = np.flatnonzero(query >= 0)
    query = query[rows]
    doc_ids = ids_of(table, ids[1], "ranked table").take(pa.array(rows))
    document, judged_document = number_documents(doc_ids, judged.document)
    # Numbers stand in for ids: trec_eval reads ids as C strings, which real ones need not be.
    grades: Grades = {str(number): {} for number in range(len(judged.queries))}
    for number, doc, grade in zip(judged.query, judged_document, judged.grade, strict=True):
        grades[str(number)][str(doc)] = int(grade)

    keys = [_order_key(table, column)[rows] for column in orders]
    bests = [_best_first(query, document, key) for key in keys]
    values = [_values(grades, query[best], document[best], measures) for best in bests]
    key, best, value = keys[0], bests[0], values[0]
    not_ranked = int(np.isnan(key).sum())
    pairs = zip(query[best].tolist(), document[best].tolist(), strict=True)
    found = sum(str(doc) in grades[str(number)] for number, doc in pairs)
    by_metric = {measure.name: value[:, at] for at, measure in enumerate(measures)}
    return Evaluation(
        metrics={name: float(column.mean()) for name, column in by_metric.items()},
        per_query=pd.DataFrame({"query_id": judged.queries.to_pylist()} | by_metric),
        baseline=_compare(value, values[1], list(by_metric)) if baseline is not None else None,
        queries_judged=len(grades),
        queries_missing=len(grades) - len(np.unique(query[best])),
        queries_unjudged=unjudged,
        documents_judged=found,
        documents_unjudged=len(best) - found,
        duplicates=len(rows) - not_ranked - len(best),
        not_ranked=not_ranked,
    )


def _measures(metrics: Sequence[str] | str) -> list[_Measure]:
    names = metrics.split(",") if isinstance(metrics, str) else metrics
    measures = []
    for name in dict.fromkeys(name.strip() for name in names):
        match = re.fullmatch(r"([a-z]+)@([1-9][0-9]{0,6})", name)
        if match is None or match[1] not in _TREC:
            accepted = [f"{known}@10" for known in _TREC]
            close = difflib.get_close_matches(name.lower(), accepted, n=1)
            raise ConfigError(
                f"The metric {name!r} is not known; {', '.join(accepted)} are, at any rank.",
                f"Did you mean {close[0]}?" if close else None,
            )
        trec = _TREC[match[1]] if match[1] == "mrr" else f"{_TREC[match[1]]}.{match[2]}"
        measures.append(_Measure(name, trec, int(match[2])))
    if not measures:
        raise ConfigError("No metric was named.", f"The default is {','.join(METRICS)}.")
    return measures


def _read_ranked(
    source: TableSource, prefix: str, baseline: str | None, ids: tuple[str, str]
) -> tuple[pa.Table, list[str]]:
    """The columns that are needed, and those of them that order: the ranking's, the baseline's."""
    names = column_names(source)
    rank, score = f"{prefix}rank", f"{prefix}score"
    order = next((name for name in (rank, score) if name in names), f"{rank} or {score}")
    orders = [order] if baseline is None else [order, baseline]
    return read_columns(source, [*ids, *orders], names, "ranked table"), orders


def _unjudged_queries(ranked: pa.Array, judged: pa.Array) -> int:
    """How many ranked queries have no judgement. Raises `InputError` when that is all of them."""
    queries = pc.unique(ranked.drop_null())
    unjudged = int((numbers(queries, judged) < 0).sum())
    if unjudged == len(queries):
        raise InputError(
            f"None of the {len(queries)} ranked queries is among the {len(judged)} judged ones: "
            f"their ids are like {queries[:1].to_pylist()} and like {judged[:1].to_pylist()}.",
            "Check that both are of one collection and name its queries alike.",
        )
    return unjudged


def _order_key(table: pa.Table, column: str) -> Floats:
    """Ascending sort key, best first; NaN where the row was not ranked."""
    order = table.column(column)
    if not (pa.types.is_integer(order.type) or pa.types.is_floating(order.type)):
        raise InputError(f"The order column {column} is {order.type}; it must hold numbers.")
    key = np.asarray(pc.cast(order, pa.float64(), safe=False).to_numpy(), np.float64)
    return key if column.endswith("rank") else -key


def _best_first(query: Ints, document: Ints, key: Floats) -> Ints:
    """The numbers of the rows, by query, then rank; of a (query, document) the best alone."""
    ranked = np.flatnonzero(~np.isnan(key))
    # lexsort is stable, so ties keep the order of the input.
    order = ranked[np.lexsort((key[ranked], query[ranked]))]
    pairs = query[order] * (document.max(initial=0) + 1) + document[order]
    _, first = np.unique(pairs, return_index=True)
    return order[np.sort(first)]


def _values(grades: Grades, query: Ints, document: Ints, measures: list[_Measure]) -> Floats:
    """Values of shape (queries, measures) for rows sorted best first; 0 for absent queries."""
    trec = pytrec_eval.RelevanceEvaluator(grades, {measure.trec for measure in measures})
    values = np.zeros((len(grades), len(measures)))
    # Nothing below the deepest cut-off changes a measure.
    depth = max(measure.cut for measure in measures)
    present, starts = np.unique(query, return_index=True)
    for number, documents in zip(present, np.split(document, starts[1:]), strict=True):
        # trec_eval sorts by score and breaks ties by id, so every rank gets a score of its own.
        run = {str(doc): -float(rank) for rank, doc in enumerate(documents[:depth].tolist())}
        found = trec.evaluate({str(number): run})[str(number)]
        values[number] = [found[measure.trec.replace(".", "_")] for measure in measures]
    for column, measure in zip(values.T, measures, strict=True):
        if measure.trec == "recip_rank":
            # trec_eval has no cut-off here: a first relevant document below rank k counts 0.
            column[column < 1 / measure.cut] = 0.0
    return values


def _compare(ranked: Floats, baseline: Floats, names: list[str]) -> pd.DataFrame:
    """Paired comparison of two (queries, metrics) arrays, a row a metric."""
    difference = ranked - baseline
    queries = len(difference)
    rng = np.random.default_rng(_SEED)
    step = max(1, _CELLS // queries)
    resampled, flipped = [], []
    for draws in (min(step, _RESAMPLES - at) for at in range(0, _RESAMPLES, step)):
        drawn = rng.integers(0, queries, (draws, queries)) + queries * np.arange(draws)[:, None]
        times = np.bincount(drawn.ravel(), minlength=draws * queries).reshape(draws, queries)
        resampled.append(times @ difference / queries)
        flipped.append((1.0 - 2.0 * rng.integers(0, 2, (draws, queries))) @ difference / queries)
    low, high = np.quantile(np.concatenate(resampled), [0.025, 0.975], axis=0)
    # Sums in another order differ in the last bits; "as extreme" must include equal ones.
    extreme = np.abs(np.concatenate(flipped)) >= np.abs(difference.mean(axis=0)) - 1e-12
    # The observed signs are one of the possible flips (Phipson and Smyth 2010): hence the ones.
    p_value = (1 + extreme.sum(axis=0)) / (1 + _RESAMPLES)
    means = {"baseline": baseline, "ranked": ranked, "difference": difference}
    columns = {"metric": names} | {name: each.mean(axis=0) for name, each in means.items()}
    return pd.DataFrame(columns | {"low": low, "high": high, "p_value": p_value})
