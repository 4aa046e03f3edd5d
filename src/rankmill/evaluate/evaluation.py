"""Judging one run or several: means, differences and their tests, slices, depths, counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import pandas as pd
import pyarrow as pa

from rankmill.errors import ConfigError, InputError
from rankmill.evaluate.depth import Depths, parse_depths
from rankmill.evaluate.judged import JudgedRun, read_judged
from rankmill.evaluate.measures import METRICS, Floats, measure, parse
from rankmill.evaluate.origin import find_origin, prefix_of
from rankmill.evaluate.significance import COUNTED, TESTS, compare
from rankmill.evaluate.slices import read_values, slice_queries
from rankmill.qrels import Ints, TableSource, column_names, read_judgements

# What a single run is called beside a baseline.
_ONLY = "ranked"
_CUT = (
    "what is missing is missing from the baseline's order, too, and its figures are not the first "
    "stage's. Compare on a run without that."
)


@dataclass(frozen=True)
class Counts:
    """What a run's means stand on.

    Its rows of judged queries are documents_judged + documents_unjudged + duplicates + not_ranked.
    queries_missing: judged, and not in the table; queries_unjudged: in the table, and not judged.
    """

    queries_judged: int
    queries_missing: int
    queries_unjudged: int
    documents_judged: int
    documents_unjudged: int
    duplicates: int
    not_ranked: int


@dataclass(frozen=True, eq=False)
class Evaluation(Counts):
    """What `evaluate` found. Of several runs the counts, `metrics` and `baseline` are the first's.

    `metrics` maps each metric's name to its mean over judged queries. `per_query` has a row a
    judged query, in the order of the judgements: `query_id` (text), a float64 column a metric, and
    `METRIC:NAME` for the baseline and each further run.

    Differences are from `reference`: the baseline if there is one, otherwise the first of several
    runs. A frame with them has the columns `difference` (value - reference), its 95 % interval
    `low, high`, `p_value` (randomisation test), `p_bootstrap`, and the numbers of queries that are
    `better, equal, worse`; `evaluate.significance` defines them. `baseline` has a row a metric:
    `metric`, the means `baseline` and `ranked`, differences. `runs` has a row a run and metric:
    `run, metric, value, reference`, differences. `slices` has the same for each slice, after
    `by, slice, queries`. `depths` has a row a run, depth (text; `all`: the run as it is) and
    metric: `run, depth, pairs` (how many would be scored), `metric, value`. They are None where
    they were not asked for. `run_counts`: by run.
    """

    metrics: dict[str, float]
    per_query: pd.DataFrame
    reference: str | None
    baseline: pd.DataFrame | None
    runs: pd.DataFrame | None
    slices: pd.DataFrame | None
    depths: pd.DataFrame | None
    run_counts: dict[str, Counts]

    def to_json(self) -> dict[str, object]:
        """Numbers, text, lists, dicts and None only."""
        baseline = None
        if self.baseline is not None:
            baseline = {row.pop("metric"): row for row in _records(self.baseline)}
        return {
            "metrics": dict(self.metrics),
            "counts": {field.name: getattr(self, field.name) for field in fields(Counts)},
            "reference": self.reference,
            "baseline": baseline,
            "runs": None if self.runs is None else self._runs_json(self.runs),
            "slices": None if self.slices is None else _records(self.slices),
            "depths": None if self.depths is None else _records(self.depths),
            "tests": None if self.reference is None else dict(TESTS),
        }

    def _runs_json(self, runs: pd.DataFrame) -> dict[str, object]:
        found: dict[str, object] = {}
        for run, frame in runs.groupby("run", sort=False):
            rows = {row.pop("metric"): row for row in _records(frame.drop(columns="run"))}
            found[str(run)] = {
                "metrics": {name: row.pop("value") for name, row in rows.items()},
                "counts": asdict(self.run_counts[str(run)]),
                "differences": {n: r for n, r in rows.items() if r["difference"] is not None},
            }
        return found


def evaluate(
    ranked: TableSource | Mapping[str, TableSource],
    qrels: TableSource,
    *,
    metrics: Sequence[str] | str = METRICS,
    baseline: str | None = None,
    by: Sequence[str] | str = (),
    queries: TableSource | None = None,
    depths: Sequence[int] | str = (),
    prefix: str | None = None,
    ids: tuple[str, str] = ("query_id", "doc_id"),
) -> Evaluation:
    """Measure a ranked table against judgements, by the rules of `rankmill.evaluate`.

    `ranked` is a frame, a table, or Parquet files, folders or globs (local or URLs), with the two
    columns that `ids` names and `{prefix}rank` (ascending) or, without it, `{prefix}score`
    (descending; ties by input order); or several such by name: then the others are compared with
    the first. `prefix`, unless given, is that of the run whose output a table is, and otherwise
    `rerank_`. `qrels` is a frame, a table or Parquet with `query_id, doc_id, relevance`, or a text
    file: TREC qrels (query, iteration, document, relevance) or BEIR's (query, document, relevance
    between tabs, under a header). `metrics` are names like `ndcg@10` or `map`, in a sequence or
    joined by commas.

    `baseline` names a column of (the first) `ranked` with another order of the same rows:
    ascending if the name ends in `rank`, otherwise descending (ties by a hash of the document).
    Every run is then compared with it. Documents that a run cut (`output.top_k`) are in neither
    order, of which a warning is logged: compare where all candidates were kept. So is one of an
    output folder without `_SUCCESS`.

    `by` names columns to slice queries by: of `queries`, a table with a row a query, or of (the
    first) `ranked` where they are the same in all rows of a query. `depths` says what the measures
    would be if only so many candidates of the baseline's order had been reranked, and the others
    kept below.

    Raises `ConfigError` for an unknown metric or impossible settings; `InputError` for a missing
    or mistyped column, unreadable, empty or contradictory judgements, and when no query or no
    document is in both.
    """
    measures = parse(metrics)
    names = [one.name for one in measures]
    by = [by] if isinstance(by, str) else list(dict.fromkeys(by))
    wanted = parse_depths(depths) if depths else []
    if wanted and baseline is None:
        raise ConfigError(
            "Quality against depth needs the order of the first stage.",
            "Name its column with baseline, for example bm25_rank.",
        )
    if queries is not None and not by:
        raise ConfigError("A table of queries was given, and no column of it.", "Name one with by.")
    sources = dict(ranked) if isinstance(ranked, Mapping) else {_ONLY: ranked}
    if not sources or baseline in sources:
        raise ConfigError(
            f"A run and the baseline are both named {baseline}." if sources else "There is no run.",
            "Give each run a name of its own.",
        )
    judged = read_judgements(qrels)
    values = {} if queries is None else read_values(queries, judged.queries, ids[0], by)
    from_rows = [name for name in by if name not in values]
    _refuse_unknown(from_rows, next(iter(sources.values())), queries)

    orders: dict[str, Floats] = {}
    counts: dict[str, Counts] = {}
    deep: list[dict[str, object]] = []
    for name, source in sources.items():
        is_first = not counts
        beside = [baseline] if baseline is not None and (is_first or wanted) else []
        origin = find_origin(source)
        if origin is not None:
            origin.warn_of_missing()
            if beside:
                origin.warn_of_cuts(_CUT)
        run = read_judged(
            source,
            judged,
            prefix=prefix_of(origin, prefix),
            ids=ids,
            orders=beside,
            by=from_rows if is_first else [],
            where="ranked table" if len(sources) == 1 else f"ranked table {name}",
        )
        if is_first:
            values |= run.values
            if baseline is not None:
                orders[baseline] = measure(run.lists(run.order(baseline)), judged, measures)
        order = run.order(run.own)
        orders[name] = measure(run.lists(order), judged, measures)
        counts[name] = _counts(run, order, len(judged.queries))
        if baseline is not None and wanted:
            first_stage = Depths(run, baseline)
            for depth in (0, *wanted, None):
                found = measure(run.lists(first_stage.order(depth)), judged, measures)
                told = {
                    "run": name,
                    "depth": "all" if depth is None else str(depth),
                    "pairs": first_stage.pairs(depth),
                }
                means = zip(names, found.mean(axis=0).tolist(), strict=True)
                deep += [told | {"metric": each, "value": mean} for each, mean in means]

    first = next(iter(sources))
    reference = next(iter(orders)) if len(orders) > 1 else None
    whole = _against(orders, reference, names)
    several = len(sources) > 1
    return Evaluation(
        **asdict(counts[first]),
        metrics=dict(zip(names, orders[first].mean(axis=0).tolist(), strict=True)),
        per_query=_per_query(judged.queries.to_pylist(), names, first, orders),
        reference=reference,
        baseline=None if baseline is None else _baseline(whole, first),
        runs=whole[whole["run"] != baseline].reset_index(drop=True) if several else None,
        slices=_sliced(by, values, orders, reference, baseline, names) if by else None,
        depths=pd.DataFrame(deep) if deep else None,
        run_counts=counts,
    )


def _refuse_unknown(by: list[str], ranked: TableSource, queries: TableSource | None) -> None:
    """Raise `InputError` for a column to slice by that no table has."""
    there = column_names(ranked)
    missing = [name for name in by if name not in there]
    if missing:
        known = ""
        if queries is not None:
            known = f"; the table of queries has {', '.join(column_names(queries))}"
        raise InputError(
            f"There is no column {', '.join(missing)} to slice by.",
            f"The ranked table has {', '.join(there)}{known}.",
        )


def _counts(run: JudgedRun, order: Ints, judged: int) -> Counts:
    found = int((run.judgement[order] >= 0).sum())
    not_ranked = int(np.isnan(run.keys[run.own]).sum())
    return Counts(
        queries_judged=judged,
        queries_missing=judged - len(np.unique(run.query[order])),
        queries_unjudged=run.queries_unjudged,
        documents_judged=found,
        documents_unjudged=len(order) - found,
        duplicates=len(run.pair) - not_ranked - len(order),
        not_ranked=not_ranked,
    )


def _against(orders: dict[str, Floats], reference: str | None, names: list[str]) -> pd.DataFrame:
    """A row an order and metric: run, metric, value; with a reference its mean, and differences.

    The reference itself has none.
    """
    stacked = np.hstack(list(orders.values()))
    runs = np.repeat(list(orders), len(names))
    means = stacked.mean(axis=0)
    frame = pd.DataFrame({"run": runs, "metric": names * len(orders), "value": means})
    if reference is None:
        return frame
    differing = np.flatnonzero(runs != reference)
    repeated = np.hstack([orders[reference]] * len(orders))
    frame["reference"] = repeated.mean(axis=0)
    differences = compare(stacked[:, differing], repeated[:, differing])
    differences = differences.astype(dict.fromkeys(COUNTED, "Int64")).set_index(differing)
    return frame.join(differences)


def _baseline(whole: pd.DataFrame, first: str) -> pd.DataFrame:
    frame = whole[whole["run"] == first].drop(columns="run")
    baseline = frame.pop("reference")
    frame = frame.rename(columns={"value": "ranked"})
    frame.insert(1, "baseline", baseline)
    return frame.reset_index(drop=True)


def _sliced(
    by: list[str],
    values: Mapping[str, pa.Table],
    orders: dict[str, Floats],
    reference: str | None,
    baseline: str | None,
    names: list[str],
) -> pd.DataFrame:
    frames = []
    for column in by:
        slices = slice_queries(column, values[column], len(orders[next(iter(orders))]))
        for code, label in enumerate(slices.labels):
            rows = np.flatnonzero(slices.code == code)
            inside = {name: value[rows] for name, value in orders.items()}
            frame = _against(inside, reference, names)
            frame = frame[frame["run"] != baseline]
            frame.insert(0, "by", column)
            frame.insert(1, "slice", label)
            frame.insert(2, "queries", len(rows))
            frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _per_query(
    queries: list[str], names: list[str], first: str, orders: Mapping[str, Floats]
) -> pd.DataFrame:
    columns: dict[str, object] = {"query_id": queries}
    for name in (first, *(other for other in orders if other != first)):
        for at, metric in enumerate(names):
            columns[metric if name == first else f"{metric}:{name}"] = orders[name][:, at]
    return pd.DataFrame(columns)


def _records(frame: pd.DataFrame) -> list[dict[str, object]]:
    """Rows as plain values; None where there is none."""
    plain = frame.astype(object).where(frame.notna(), None)
    return [
        {name: getattr(value, "item", lambda v=value: v)() for name, value in row.items()}
        for row in plain.to_dict("records")
    ]
