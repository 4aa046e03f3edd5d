"""Judging one run or several: means, differences and their tests, slices, depths, counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import pandas as pd

from rankmill.errors import ConfigError, InputError
from rankmill.evaluate.depth import Depths, parse_depths
from rankmill.evaluate.judged import JudgedRun, best_grades, read_judged
from rankmill.evaluate.measures import METRICS, Floats, measure, parse
from rankmill.evaluate.significance import Tests, compare
from rankmill.evaluate.slices import Slices, read_values, slice_queries
from rankmill.qrels import Ints, TableSource, column_names, read_judgements

# What a single run is called beside a baseline.
ONLY = "ranked"


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
    """What `evaluate` found. The counts, `metrics` and `baseline` are the first run's.

    `metrics` maps each metric's name to its mean over judged queries. `per_query` has a row a
    judged query, in the order of the judgements: `query_id` (text), a float64 column a metric, and
    `METRIC:NAME` for the baseline and each further run.

    Differences are from `reference`: the baseline if there is one, otherwise the first of several
    runs. A frame with them has the columns `difference` (value - reference), its 95 % interval
    `low, high`, `p_value` (randomisation test), `p_bootstrap`, `effect_size`, and the numbers of
    queries that are `better, equal, worse`; `significance.compare` defines them, and `tests` names
    them. `baseline` has a row a metric: `metric`, the means `baseline` and `ranked`, differences.
    `runs` has a row a run and metric: `run, metric, value, reference`, differences. `slices` has
    the same for each slice, after `by, slice, queries`; `depths` for each depth (text; `all`: the
    run as it is), after `run, depth, pairs` (how many would be scored). All of them are None where
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
    tests: Tests

    def to_json(self) -> dict[str, object]:
        """Numbers, text, lists, dicts and None only."""
        counts = {field.name: getattr(self, field.name) for field in fields(Counts)}
        baseline = None
        if self.baseline is not None:
            baseline = {row.pop("metric"): row for row in _records(self.baseline)}
        return {
            "metrics": dict(self.metrics),
            "counts": counts,
            "reference": self.reference,
            "baseline": baseline,
            "runs": None if self.runs is None else self._runs_json(),
            "slices": None if self.slices is None else _records(self.slices),
            "depths": None if self.depths is None else _records(self.depths),
            "tests": None if self.reference is None else self.tests.to_json(self.queries_judged),
        }

    def _runs_json(self) -> dict[str, object]:
        assert self.runs is not None, "there are several runs"
        found: dict[str, dict[str, object]] = {}
        for row in _records(self.runs):
            one = found.setdefault(
                str(row.pop("run")), {"metrics": {}, "counts": {}, "differences": {}}
            )
            name, value = row.pop("metric"), row.pop("value")
            one["metrics"] |= {name: value}  # type: ignore[operator]
            if row["difference"] is not None:
                one["differences"] |= {name: row}  # type: ignore[operator]
        for name, counts in self.run_counts.items():
            found[name]["counts"] = asdict(counts)
        return dict(found)


def evaluate(
    ranked: TableSource | Mapping[str, TableSource],
    qrels: TableSource,
    *,
    metrics: Sequence[str] | str = METRICS,
    baseline: str | None = None,
    by: Sequence[str] | str = (),
    queries: TableSource | None = None,
    depths: Sequence[int] | str = (),
    prefix: str = "rerank_",
    ids: tuple[str, str] = ("query_id", "doc_id"),
    resamples: int = 10_000,
    seed: int = 0,
) -> Evaluation:
    """Measure a ranked table against judgements, by the rules of `rankmill.evaluate`.

    `ranked` is a frame, a table, or Parquet files, folders or globs (local or URLs), with the two
    columns that `ids` names and `{prefix}rank` (ascending) or, without it, `{prefix}score`
    (descending; ties by input order); or several such by name: then the others are compared with
    the first. `qrels` is a frame, a table or Parquet with `query_id, doc_id, relevance`, or a text
    file: TREC qrels (query, iteration, document, relevance) or BEIR's (query, document, relevance
    between tabs, under a header). `metrics` are names like `ndcg@10` or `map`, in a sequence or
    joined by commas.

    `baseline` names a column of (the first) `ranked` with another order of the same rows:
    ascending if the name ends in `rank`, otherwise descending (ties by a hash of the document).
    Every run is then compared with it. Documents that a run cut (`output.top_k`) are in neither
    order: compare where all candidates were kept.

    `by` names columns to slice queries by: of `queries`, a table with a row a query, or of (the
    first) `ranked` where they are the same in all rows of a query. `depths` says what the measures
    would be if only so many candidates of the baseline's order had been reranked, and the others
    kept below. `resamples` and `seed` are the tests'.

    Raises `ConfigError` for an unknown metric or impossible settings; `InputError` for a missing
    or mistyped column, unreadable, empty or contradictory judgements, and when no query or no
    document is in both.
    """
    measures, tests = parse(metrics), Tests(resamples, seed)
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
    sources = dict(ranked) if isinstance(ranked, Mapping) else {ONLY: ranked}
    if not sources or baseline in sources:
        raise ConfigError(f"The runs are named {', '.join(sources) or 'not at all'}.", "Rename.")
    judged = read_judgements(qrels)
    values = {} if queries is None else read_values(queries, judged.queries, ids[0], by)
    from_rows = [name for name in by if name not in values]
    _refuse_unknown(from_rows, next(iter(sources.values())), queries)

    best = best_grades(judged)
    found: dict[str, Floats] = {}
    counts: dict[str, Counts] = {}
    reference: Floats | None = None
    deep: list[pd.DataFrame] = []

    def measured(run: JudgedRun, order: Ints) -> Floats:
        return measure(run.lists(order), best, len(judged.queries), measures)

    for name, source in sources.items():
        is_first = not found
        run = read_judged(
            source,
            judged,
            prefix=prefix,
            ids=ids,
            orders=[baseline] if baseline is not None and (is_first or wanted) else [],
            by=from_rows if is_first else [],
        )
        order = run.order(run.own)
        found[name], counts[name] = measured(run, order), _counts(run, order, len(judged.queries))
        if is_first:
            values |= run.values
        if is_first and baseline is not None:
            reference = measured(run, run.order(baseline))
        if baseline is not None and wanted:
            candidates = Depths(run, baseline)
            orders = {depth: candidates.order(depth) for depth in [0, *wanted, None]}
            by_depth = {
                "all" if depth is None else str(depth): measured(run, each)
                for depth, each in orders.items()
            }
            frame = _against(by_depth, by_depth["0"], names, tests).rename(columns={"run": "depth"})
            frame.insert(0, "run", name)
            pairs = [candidates.pairs(depth) for depth in orders]
            frame.insert(2, "pairs", np.repeat(pairs, len(names)))
            deep.append(frame)

    several = len(sources) > 1
    if reference is None and several:
        reference = next(iter(found.values()))
    whole = _against(found, reference, names, tests)
    cut = [slice_queries(name, values[name], len(judged.queries)) for name in by]
    first = next(iter(found))
    others = ({} if baseline is None else {baseline: reference}) | found
    return Evaluation(
        **asdict(counts[first]),
        metrics=dict(zip(names, found[first].mean(axis=0).tolist(), strict=True)),
        per_query=_per_query(judged.queries.to_pylist(), names, first, others),
        reference=baseline if baseline is not None else first if several else None,
        baseline=None if baseline is None else _baseline(whole, first),
        runs=whole if several else None,
        slices=_sliced(cut, found, reference, names, tests) if cut else None,
        depths=pd.concat(deep, ignore_index=True) if deep else None,
        run_counts=counts,
        tests=tests,
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
    found = int((run.grade[order] >= 0).sum())
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


def _against(
    found: dict[str, Floats], reference: Floats | None, names: list[str], tests: Tests
) -> pd.DataFrame:
    """A row a run and metric: run, metric, value; with a reference its mean, and differences.

    The reference itself, where it is one of the runs, has none.
    """
    stacked = np.hstack(list(found.values()))
    runs = np.repeat(list(found), len(names))
    frame = pd.DataFrame({"run": runs, "metric": names * len(found), "value": stacked.mean(axis=0)})
    if reference is None:
        return frame
    differing = np.flatnonzero(np.repeat([v is not reference for v in found.values()], len(names)))
    repeated = np.hstack([reference] * len(found))
    frame["reference"] = repeated.mean(axis=0)
    differences = compare(stacked[:, differing], repeated[:, differing], tests)
    return frame.join(differences.set_index(differing))


def _baseline(whole: pd.DataFrame, first: str) -> pd.DataFrame:
    frame = whole[whole["run"] == first].drop(columns="run")
    baseline = frame.pop("reference")
    frame = frame.rename(columns={"value": "ranked"})
    frame.insert(1, "baseline", baseline)
    return frame.reset_index(drop=True)


def _sliced(
    cut: list[Slices],
    found: dict[str, Floats],
    reference: Floats | None,
    names: list[str],
    tests: Tests,
) -> pd.DataFrame:
    frames = []
    for slices in cut:
        for code, label in enumerate(slices.labels):
            rows = np.flatnonzero(slices.code == code)
            inside = {name: value[rows] for name, value in found.items()}
            # The reference stays itself, so that it is not compared with itself.
            own = next((n for n, value in found.items() if value is reference), None)
            other = None if reference is None else reference[rows]
            frame = _against(inside, other if own is None else inside[own], names, tests)
            frame.insert(0, "by", slices.by)
            frame.insert(1, "slice", label)
            frame.insert(2, "queries", len(rows))
            frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _per_query(
    queries: list[str], names: list[str], first: str, others: Mapping[str, Floats | None]
) -> pd.DataFrame:
    columns: dict[str, object] = {"query_id": queries}
    for name in (first, *(other for other in others if other != first)):
        values = others[name]
        assert values is not None, "every order was measured"
        for at, metric in enumerate(names):
            columns[metric if name == first else f"{metric}:{name}"] = values[:, at]
    return pd.DataFrame(columns)


def _records(frame: pd.DataFrame) -> list[dict[str, object]]:
    """Rows as plain values; None where there is none."""
    plain = frame.astype(object).where(frame.notna(), None)
    return [
        {name: getattr(value, "item", lambda v=value: v)() for name, value in row.items()}
        for row in plain.to_dict("records")
    ]
