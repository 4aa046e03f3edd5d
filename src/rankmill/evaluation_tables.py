"""What a person sees of an evaluation. Nothing is decided here."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rankmill.evaluate import Evaluation

_DIFFERENCE = ("difference", "95 % interval", "p rand.", "p boot.")
# Columns of a table with a row for every metric; one of means takes so many characters.
_MEAN_WIDTH = 14
# Slices of a column that are shown; --json has them all.
_SLICES = 20


def print_evaluation(out: Console, found: Evaluation) -> None:
    """Means, differences, slices, depths, and what they stand on."""
    out.print(evaluation_table(found) if found.runs is None else _runs_table(found, found.runs))
    if found.slices is not None:
        for by, frame in found.slices.groupby("by", sort=False):
            out.print()
            for table in _slice_tables(str(by), frame, found, out.width):
                out.print(table)
    if found.depths is not None:
        for run, frame in found.depths.groupby("run", sort=False):
            of = f" of {run}" if found.runs is not None else ""
            title = f"If only the first candidates by {found.reference} had been scored{of}"
            out.print()
            for table in _depth_tables(title, frame, found, out.width):
                out.print(table)
    out.print()
    for line in lines(found):
        out.print(line, markup=False)


def evaluation_table(found: Evaluation) -> Table:
    """Metrics, beside the baseline's where there is one."""
    if found.baseline is None:
        table = _table(metric="left", value="right")
        for name, value in found.metrics.items():
            table.add_row(name, _mean(value))
        return table
    columns = dict.fromkeys(("baseline", "ranked", *_DIFFERENCE), "right")
    table = _table(metric="left", **columns)
    for row in found.baseline.to_dict("records"):
        means = (_mean(row["baseline"]), _mean(row["ranked"]))
        table.add_row(row["metric"], *means, *_differences(row))
    return table


def counts_line(found: Evaluation) -> str:
    """What the (first run's) means stand on."""
    return (
        f"{found.queries_judged:,} judged queries ({found.queries_missing:,} missing from the "
        f"ranking count 0), {found.queries_unjudged:,} queries without judgements left out; "
        f"{found.documents_unjudged:,} of "
        f"{found.documents_judged + found.documents_unjudged:,} ranked documents unjudged, "
        f"{found.duplicates:,} doubled, {found.not_ranked:,} rows not ranked."
    )


def lines(found: Evaluation) -> Iterator[str]:
    """What the tables stand on, and what their columns are."""
    yield counts_line(found)
    for name, counts in found.run_counts.items() if found.runs is not None else ():
        unjudged, all_of = counts.documents_unjudged, counts.documents_judged
        yield (
            f"{name}: {counts.queries_missing:,} judged queries missing, {unjudged:,} of "
            f"{unjudged + all_of:,} documents unjudged."
        )
    if found.reference is not None:
        yield (
            f"Differences from {found.reference}. p rand.: paired randomisation test, p boot.: "
            f"paired bootstrap test, both two-sided; interval: percentile bootstrap; "
            f"{found.tests.resamples:,} draws each, seed {found.tests.seed}."
        )


def _runs_table(found: Evaluation, runs: pd.DataFrame) -> Table:
    columns = dict.fromkeys(("mean", *_DIFFERENCE), "right")
    table = _table(metric="left", run="left", **columns)
    for metric in found.metrics:
        rows = runs[runs["metric"] == metric].to_dict("records")
        if found.baseline is not None:
            baseline = _mean(rows[0]["reference"])
            table.add_row(metric, escape(str(found.reference)), baseline, *[""] * 4)
        for at, row in enumerate(rows):
            shown = metric if at == 0 and found.baseline is None else ""
            run = escape(str(row["run"]))
            table.add_row(shown, run, _mean(row["value"]), *_differences(row))
        table.add_section()
    return table


def _slice_tables(
    by: str, frame: pd.DataFrame, found: Evaluation, width: int
) -> Iterator[Table | str]:
    sizes = frame.drop_duplicates("slice").sort_values("queries", ascending=False, kind="stable")
    hidden = list(sizes["slice"][_SLICES:])
    frame = frame[~frame["slice"].isin(hidden)]
    if found.reference is None:
        for metrics in _chunks(list(found.metrics), width - 26):
            table = _table(
                **{f"by {by}": "left", "queries": "right"} | dict.fromkeys(metrics, "right")
            )
            for (label, queries), rows in frame.groupby(["slice", "queries"], sort=False):
                values = rows.set_index("metric")["value"]
                means = (_mean(values[name]) for name in metrics)
                table.add_row(escape(str(label)), f"{queries:,}", *means)
            yield table
    else:
        run = {} if found.runs is None else {"run": "left"}
        columns = dict.fromkeys(("mean", "difference", "p rand.", "p boot."), "right")
        table = _table(**{f"by {by}": "left", "queries": "right", "metric": "left"} | run | columns)
        for (label, queries), rows in frame.groupby(["slice", "queries"], sort=False):
            shown = (escape(str(label)), f"{queries:,}")
            for row in rows.sort_values("metric", key=_order(found), kind="stable").to_dict(
                "records"
            ):
                difference, _, *p_values = _differences(row)
                named = (row["metric"], *([escape(row["run"])] if run else []))
                table.add_row(*shown, *named, _mean(row["value"]), difference, *p_values)
                shown = ("", "")
            table.add_section()
        yield table
    if hidden:
        yield f"… and {len(hidden):,} smaller slices (--json shows all)"


def _depth_tables(
    title: str, frame: pd.DataFrame, found: Evaluation, width: int
) -> Iterator[Table]:
    for metrics in _chunks(list(found.metrics), width - 24):
        table = _table(depth="right", **{"pairs scored": "right"} | dict.fromkeys(metrics, "right"))
        table.title, table.title_justify = escape(title), "left"
        for (depth, pairs), rows in frame.groupby(["depth", "pairs"], sort=False):
            values = rows.set_index("metric")["value"]
            table.add_row(depth, f"{pairs:,}", *(_mean(values[name]) for name in metrics))
        yield table


def _order(found: Evaluation):  # noqa: ANN202 - a key for sort_values
    places = {name: at for at, name in enumerate(found.metrics)}
    return lambda metrics: metrics.map(places)


def _chunks(names: list[str], width: int) -> Iterator[list[str]]:
    """As many metrics side by side as there is room for."""
    fit = max(1, width // _MEAN_WIDTH)
    yield from (names[at : at + fit] for at in range(0, len(names), fit))


def _table(**columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for name, justify in columns.items():
        numeric = justify == "right"
        overflow = "fold" if not numeric else "ellipsis"
        table.add_column(
            escape(name),
            justify=justify,
            no_wrap=numeric,
            overflow=overflow,  # type: ignore[arg-type]
        )
    return table


def _mean(value: float) -> str:
    return f"{value:.4f}"


def _differences(row: dict[str, float]) -> tuple[str, str, str, str]:
    """difference, interval and both p-values; nothing for the reference itself."""
    if math.isnan(row["difference"]):
        return ("", "", "", "")
    interval = f"{row['low']:+.4f} to {row['high']:+.4f}"
    return (f"{row['difference']:+.4f}", interval, _p(row["p_value"]), _p(row["p_bootstrap"]))


def _p(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"
