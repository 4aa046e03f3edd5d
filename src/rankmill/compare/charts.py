"""The charts of a comparison, one function each. None where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from markupsafe import Markup

from rankmill.compare.spread import Spread
from rankmill.report.charts import draw_correlations, percents, whole_numbers
from rankmill.report.figure import FIRST, LINE, MUTED, SECOND, drawing
from rankmill.report.flow import percent
from rankmill.summary import CORRELATION_BINS

_BINS = 40
# Moves are shown in groups; these are the first places of each: 0, 1, 2, 3 to 5, …
_MOVES = np.array([0, 1, 2, 3, 6, 11, 21, 51, 101, 501])


def draw_overlaps(spreads: Mapping[str, Spread]) -> Markup | None:
    """The mean overlap of the first k, a bar each k."""
    found = {name.removeprefix("overlap@"): one for name, one in spreads.items() if "@" in name}
    shares = [one.total / one.count for one in found.values()]
    with drawing("overlaps", height=24 + 34 * len(found)) as drawn:
        at = np.arange(len(found))
        drawn.axes.barh(at, 1.0, 0.5, color=LINE, alpha=0.6)
        bars = drawn.axes.barh(at, shares, 0.5, color=SECOND)
        told = [percent(share, 1.0) for share in shares]
        names = [f"first {k}" for k in found]
        drawn.tell_each(list(bars), [f"{n}: {t} in both" for n, t in zip(names, told)])
        for place, share in zip(at.tolist(), told):
            drawn.axes.text(1.02, place, share, color=MUTED, va="center")
        drawn.axes.set(xlim=(0, 1.18), ylim=(len(found) - 0.5, -0.5))
        drawn.axes.set_yticks(at, names)
        drawn.axes.set_xticks([])
        drawn.axes.grid(visible=False)
        drawn.axes.spines["bottom"].set_visible(False)
        return drawn.svg(", ".join(f"{name}: {share}" for name, share in zip(names, told)))


def draw_correlation(found: Spread) -> Markup | None:
    """Queries by the correlation of both orders."""
    if not found.count:
        return None
    counts, _ = np.histogram(found.values, CORRELATION_BINS, (-1.0, 1.0), weights=found.counts)
    return draw_correlations(counts.astype(int).tolist(), "Queries by the correlation of both runs")


def draw_rank_change(found: Spread) -> Markup | None:
    """Common documents by how many ranks they moved."""
    if not found.count:
        return None
    group = np.searchsorted(_MOVES, found.values, side="right") - 1
    counts = np.bincount(group, found.counts)
    names = [_from_to(at) for at in range(len(counts))]
    with drawing("rank-change") as drawn:
        at = np.arange(len(counts))
        bars = drawn.axes.bar(at, counts / found.count, 0.7, color=FIRST, alpha=0.85)
        drawn.tell_each(
            list(bars),
            [
                f"{percent(n, found.count)} of the documents ({n:,.0f}) moved by {name}"
                for n, name in zip(counts.tolist(), names)
            ],
        )
        drawn.axes.set(xlabel="ranks moved, up or down", ylabel="documents")
        drawn.axes.set_xticks(at, names)
        drawn.axes.yaxis.set_major_formatter(percents)
        return drawn.svg("Documents of both runs by how many ranks they moved")


def _from_to(at: int) -> str:
    first = int(_MOVES[at])
    if at + 1 == len(_MOVES):
        return f"{first}+"
    last = int(_MOVES[at + 1]) - 1
    return f"{first}" if first == last else f"{first}–{last}"


def draw_drift(found: Spread) -> Markup | None:
    """Pairs by how much their score changed, all but a thousandth at either end."""
    low, high = (found.quantile(share) for share in (0.001, 0.999)) if found.count else (0.0, 0.0)
    if low == high:
        return None
    inside = (found.values >= low) & (found.values <= high)
    counts, edges = np.histogram(
        found.values[inside], _BINS, (low, high), weights=found.counts[inside]
    )
    with drawing("drift") as drawn:
        drawn.axes.stairs(counts, edges, fill=True, color=FIRST, alpha=0.3, lw=0)
        drawn.axes.stairs(counts, edges, color=FIRST, linewidth=1.3)
        if low < 0 < high:
            drawn.axes.axvline(0, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        drawn.axes.set(xlabel="score in b less score in a", ylabel="pairs", ylim=(0, None))
        whole_numbers(drawn)
        return drawn.svg("Pairs of both runs by how much their score changed")
