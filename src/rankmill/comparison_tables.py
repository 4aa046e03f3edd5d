"""What a person sees of a comparison. Nothing is decided here."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rankmill.cells import cell
from rankmill.compare import Comparison
from rankmill.compare.spread import Spread

_SPREADS = {
    "correlation": "rank correlation",
    "rank_change": "ranks moved",
    "drift": "score difference",
}
_EXAMPLES = {
    "documents": "Documents that moved most",
    "queries": "Queries whose order changed most",
    "new_documents": "New documents, best ranked first",
    "gone_documents": "Gone documents, best ranked first",
    "new_queries": "New queries, some of them",
    "gone_queries": "Gone queries, some of them",
}
# Characters that the numbers beside a query and a document take; texts have what is left.
_NUMBERS_WIDTH = 40


def print_comparison(out: Console, found: Comparison) -> None:
    """Counts, agreement, drift, and the largest movers."""
    out.print(cell(f"a: {found.run_a.url}"), soft_wrap=True)
    out.print(cell(f"b: {found.run_b.url}"), soft_wrap=True)
    for name, (a, b) in found.settings().items():
        out.print(cell(f"{name}: {a} → {b}"), soft_wrap=True)
    out.print()
    out.print(_counts(found.changes.counts))
    out.print()
    out.print(_spreads(found.changes.spreads))
    out.print()
    for line in _drift(found.changes.counts, found.changes.spreads["drift"]):
        out.print(line)
    for name, title in _EXAMPLES.items():
        examples = [example.told for example in found.changes.examples[name]]
        if examples:
            out.print(f"\n[bold]{title}[/]")
            out.print(_examples(examples, max(12, (out.width - _NUMBERS_WIDTH) // 2)))


def _counts(counts: Mapping[str, int]) -> Table:
    table = _table("", "a", "b", "in both", "gone", "new", "in both, changed")
    names = ("a", "b", "common", "gone", "new")
    queries = [counts[f"queries_{name}"] for name in names]
    queries.append(counts["queries_common"] - counts["queries_unchanged"])
    table.add_row("queries", *(f"{count:,}" for count in queries))
    shared = (counts[f"documents_{name}"] for name in ("common", "gone", "new", "moved"))
    rows = (counts["rows_a"], counts["rows_b"], *shared)
    table.add_row("rows", *(f"{count:,}" for count in rows))
    for name, told in (("duplicates", "  doubled"), ("without_id", "  without an id")):
        sides = [counts[f"{name}_{side}"] for side in "ab"]
        if any(sides):
            table.add_row(told, *(f"{count:,}" for count in sides))
    return table


def _spreads(spreads: Mapping[str, Spread]) -> Table:
    table = _table("", "of", "mean", "least", "5 %", "median", "95 %", "most")
    overlaps = {
        name: f"first {name.partition('@')[2]} in common" for name in spreads if "@" in name
    }
    titles = _SPREADS | overlaps
    for name in ("correlation", *overlaps, "rank_change", "drift"):
        one = spreads[name]
        if one.mean is not None:
            shares = (one.quantile(share) for share in (0.0, 0.05, 0.5, 0.95, 1.0))
            numbers = (one.mean, *shares)
            table.add_row(titles[name], f"{one.count:,}", *map(_number, numbers))
    return table


def _drift(counts: Mapping[str, int], drift: Spread) -> list[str]:
    if drift.rms is None:
        return ["No pair has a score in both runs."]
    equal, share = counts["scores_equal"], counts["scores_equal"] / drift.count
    return [
        f"Scores, b less a: r.m.s. {_number(drift.rms)}; {equal:,} of {drift.count:,} pairs "
        f"({share:.1%}) have equal scores."
    ]


def _examples(examples: list[dict[str, object]], width: int) -> Table:
    names = [name for name in examples[0] if name not in ("query_text", "document_text")]
    table = _table(*(name.replace("_", " ") for name in names), width=width)
    for told in examples:
        table.add_row(*(_cell(_with_text(told, name)) for name in names))
    return table


def _with_text(told: Mapping[str, object], name: str) -> object:
    """A value; an id before the text that was asked for, as only ids can be looked up."""
    value, text = told[name], told.get(f"{name}_text")
    if not text or text == value:
        return value
    return text if value is None else f"{value}: {text}"


def _table(*columns: str, width: int | None = None) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in columns:
        if name in ("query", "document"):
            table.add_column(name, no_wrap=True, overflow="ellipsis", max_width=width)
        elif not name:
            table.add_column(name, no_wrap=True)
        else:
            table.add_column(name, justify="right", no_wrap=True)
    return table


def _cell(value: object) -> Text:
    if isinstance(value, float):
        return Text(_number(value))
    if isinstance(value, int):
        return Text(f"{value:,}")
    # A document of many lines is told in one.
    return cell("-" if value is None else " ".join(str(value).split()))


def _number(value: float) -> str:
    if 0 < abs(value) < 0.001:
        return f"{value:.0e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
