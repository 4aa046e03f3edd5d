"""A comparison as one HTML file without scripts, in the dress of a run's report."""

from __future__ import annotations

from rankmill.compare import charts
from rankmill.compare.comparison import Comparison, facts
from rankmill.report.page import render_page


def render(found: Comparison) -> bytes:
    """The page as a file. Ids and texts that the runs brought along stay text on it."""
    counts, spreads = found.changes.counts, found.changes.spreads
    runs = [facts(run) for run in (found.run_a, found.run_b)]
    names = _names(*(str(run["output"]) for run in runs))
    return render_page(
        __package__ or "",
        "comparison.html",
        title=f"{names[0]} → {names[1]}",
        names=names,
        runs=runs,
        settings=found.settings(),
        counts=counts,
        means={name: one.mean for name, one in spreads.items()},
        drift=spreads["drift"],
        examples={
            name: [example.told for example in examples]
            for name, examples in found.changes.examples.items()
        },
        charts={
            "overlaps": charts.draw_overlaps(spreads),
            "correlation": charts.draw_correlation(spreads["correlation"]),
            "rank_change": charts.draw_rank_change(spreads["rank_change"]),
            "drift": charts.draw_drift(spreads["drift"]),
        },
    )


def _names(a: str, b: str) -> tuple[str, str]:
    """The shortest endings of two paths that tell them apart."""
    parts = [path.rstrip("/").split("/") for path in (a, b)]
    for depth in range(1, min(map(len, parts))):
        one, other = ("/".join(names[-depth:]) for names in parts)
        if one != other:
            return one, other
    return a, b
