"""What a person sees of an evaluation. Nothing is decided here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rankmill.cells import cell
from rankmill.evaluate import Evaluation
from rankmill.evaluate.significance import RESAMPLES

_DIFFERENCE = ("difference", "95 % interval", "p rand.", "p boot.")
# A mean takes so many characters at least, the space between columns among them.
_MEAN_WIDTH = 8
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
            out.print()
            out.print(
                cell(f"If only the first candidates by {found.reference} had been scored{of}:")
            )
            for table in _depth_tables(frame, found, out.width):
                out.print(table)
    out.print()
    for line in lines(found):
        out.print(cell(line))


def evaluation_table(found: Evaluation) -> Table:
    """Metrics, beside the baseline's where there is one."""
    if found.baseline is None:
        table = _table("metric", "value")
        for name, value in found.metrics.items():
            table.add_row(name, _mean(value))
        return table
    table = _table("metric", "baseline", "ranked", *_DIFFERENCE)
    for row in found.baseline.to_dict("records"):
        means = (_mean(row["baseline"]), _mean(row["ranked"]))
        table.add_row(row["metric"], *means, *differences(row))
    return table


def lines(found: Evaluation) -> Iterator[str]:
    """What the tables stand on, and what their columns are."""
    yield (
        f"{found.queries_judged:,} judged queries; those missing from a ranking count 0, as do "
        "those without a relevant document."
    )
    for name, counts in found.run_counts.items():
        documents = counts.documents_judged + counts.documents_unjudged
        yield (
            f"{name}: {counts.queries_missing:,} judged queries missing, "
            f"{counts.queries_unjudged:,} queries without judgements left out; "
            f"{counts.documents_unjudged:,} of {documents:,} documents unjudged, "
            f"{counts.duplicates:,} doubled, {counts.not_ranked:,} not ranked."
        )
    if found.reference is not None:
        yield (
            f"Differences from {found.reference}. p rand.: paired randomisation test, p boot.: "
            f"paired bootstrap test, both two-sided; interval: percentile bootstrap; "
            f"{RESAMPLES:,} draws each."
        )


def _runs_table(found: Evaluation, runs: pd.DataFrame) -> Table:
    table = _table("metric", "run", "mean", *_DIFFERENCE)
    for metric in found.metrics:
        rows = runs[runs["metric"] == metric].to_dict("records")
        if found.baseline is not None:
            baseline = _mean(rows[0]["reference"])
            table.add_row(metric, cell(found.reference), baseline, *[""] * 4)
        for at, row in enumerate(rows):
            shown = metric if at == 0 and found.baseline is None else ""
            run = cell(row["run"])
            table.add_row(shown, run, _mean(row["value"]), *differences(row))
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
            table = _table(f"by {by}", "queries", *metrics)
            for (label, queries), rows in frame.groupby(["slice", "queries"], sort=False):
                values = rows.set_index("metric")["value"]
                means = (_mean(values[name]) for name in metrics)
                table.add_row(cell(label), f"{queries:,}", *means)
            yield table
    else:
        run = [] if found.runs is None else ["run"]
        shown_columns = ("mean", "difference", "p rand.", "p boot.")
        table = _table(f"by {by}", "queries", "metric", *run, *shown_columns)
        for (label, queries), rows in frame.groupby(["slice", "queries"], sort=False):
            shown: tuple[str | Text, str] = (cell(label), f"{queries:,}")
            last = ""
            for row in rows.sort_values("metric", key=_order(found), kind="stable").to_dict(
                "records"
            ):
                difference, _, *p_values = differences(row)
                named = (
                    "" if row["metric"] == last else row["metric"],
                    *([cell(row["run"])] if run else []),
                )
                last = row["metric"]
                table.add_row(*shown, *named, _mean(row["value"]), difference, *p_values)
                shown = ("", "")
            table.add_section()
        yield table
    if hidden:
        yield f"… and {len(hidden):,} smaller slices (--json shows all)"


def _depth_tables(frame: pd.DataFrame, found: Evaluation, width: int) -> Iterator[Table]:
    for metrics in _chunks(list(found.metrics), width - 24):
        table = _table("depth", "pairs scored", *metrics)
        for (depth, pairs), rows in frame.groupby(["depth", "pairs"], sort=False):
            values = rows.set_index("metric")["value"]
            table.add_row(depth, f"{pairs:,}", *(_mean(values[name]) for name in metrics))
        yield table


def _order(found: Evaluation) -> Callable[[pd.Series], pd.Series]:
    places = {name: at for at, name in enumerate(found.metrics)}
    return lambda metrics: metrics.map(places)


def _chunks(names: list[str], width: int) -> Iterator[list[str]]:
    """As many metrics side by side as there is room for."""
    chunk: list[str] = []
    left = width
    for name in names:
        needed = max(_MEAN_WIDTH, len(name) + 2)
        if chunk and left < needed:
            yield chunk
            chunk, left = [], width
        chunk.append(name)
        left -= needed
    yield chunk


def _table(*columns: str) -> Table:
    """Text on the left; numbers, which are never cut, on the right."""
    table = Table(box=None, pad_edge=False)
    for name in columns:
        if name in ("metric", "run") or name.startswith("by "):
            table.add_column(cell(name), overflow="fold")
        else:
            table.add_column(cell(name), justify="right", no_wrap=True)
    return table


def _mean(value: float) -> str:
    return f"{value:.4f}"


def _signed(value: float) -> str:
    return f"{round(value, 4) + 0.0:+.4f}"  # a zero has no sign


def differences(row: dict[str, float]) -> tuple[str, str, str, str]:
    """Difference, interval and both p-values as shown; nothing for the reference itself."""
    if math.isnan(row["difference"]):
        return ("", "", "", "")
    interval = f"{_signed(row['low'])} to {_signed(row['high'])}"
    return (_signed(row["difference"]), interval, _p(row["p_value"]), _p(row["p_bootstrap"]))


def _p(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"
