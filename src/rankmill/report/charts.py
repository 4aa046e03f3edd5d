"""The report's charts, one function each. None where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from markupsafe import Markup

from rankmill.report.figure import (
    BAD,
    CARD,
    FIRST,
    INK,
    LINE,
    MUTED,
    SECOND,
    THIRD,
    Drawing,
    drawing,
    printable,
)
from rankmill.report.flow import percent
from rankmill.report.timeline import Floats, Timeline
from rankmill.summary import PLACES, Histogram, Summary

# The cells of more groups are too small for a number each.
_NUMBERED = 8
STAGES = {
    "read": "read",
    "tokenize": "tokenize",
    "score": "score",
    "rank": "rank, encode",
    "write": "write",
}


def draw_scores(summary: Summary) -> Markup | None:
    """The distribution of raw scores: of all rows, and of those that came first."""
    whole = summary.scores[0] + summary.scores[1] + summary.scores[2]
    if not whole.total:
        return None
    first = summary.scores[0].coarsened(whole.exponent)
    with drawing("scores") as drawn:
        for found, colour, name, depth in (
            (whole, MUTED, "all", 0.25),
            (first, FIRST, "ranked first", 0.35),
        ):
            shares = np.array(found.counts) / found.total
            drawn.axes.stairs(shares, found.edges, fill=True, color=colour, alpha=depth, lw=0)
            drawn.axes.stairs(shares, found.edges, color=colour, linewidth=1.3, label=name)
        low, high = zip(_most_of(whole), _most_of(first))
        drawn.axes.set(
            xlabel="raw score", ylabel="share", ylim=(0, None), xlim=(min(low), max(high))
        )
        drawn.axes.yaxis.set_major_formatter(percents)
        _legend(drawn)
        return drawn.svg("Distribution of raw scores, of all rows and of those ranked first")


def _most_of(found: Histogram) -> tuple[float, float]:
    """The range of all but a thousandth of the values at either end, and a little more."""
    reached = np.cumsum(found.counts) / found.total
    low = int(np.searchsorted(reached, 0.001))
    high = int(np.searchsorted(reached, 0.999))
    width = found.edges[1] - found.edges[0]
    return float(found.edges[low] - width), float(found.edges[min(high + 1, len(reached))] + width)


def draw_origins(summary: Summary) -> Markup | None:
    """Where in the input the new first places, and the new first ten, stood."""
    moves = _moves(summary)
    if moves is None:
        return None
    first, ten = moves[:, 0], moves[:, : PLACES.index(11)].sum(axis=1)
    names = place_names(len(moves))
    with drawing("origins") as drawn:
        places = np.arange(len(moves))
        for shift, counts, colour, name in (
            (-0.2, first, FIRST, "ranked first"),
            (0.2, ten, SECOND, "ranked 1 to 10"),
        ):
            bars = drawn.axes.bar(
                places + shift, counts / counts.sum(), 0.38, color=colour, label=name
            )
            drawn.tell_each(
                list(bars),
                [
                    f"{percent(n, counts.sum())} of the documents {name} ({n:,}) "
                    f"stood at place {place} of the input"
                    for n, place in zip(counts.tolist(), names)
                ],
            )
        drawn.axes.set(xlabel="place in the input", ylabel="share")
        drawn.axes.set_xticks(places, names)
        drawn.axes.yaxis.set_major_formatter(percents)
        _legend(drawn)
        return drawn.svg("Places in the input of the documents that are ranked first now")


def draw_moves(summary: Summary) -> Markup | None:
    """Place in the input against rank: how documents of each place spread over the ranks."""
    from matplotlib.patches import Rectangle

    moves = _moves(summary)
    if moves is None:
        return None
    size = len(moves)
    names = place_names(size)
    totals = np.maximum(moves.sum(axis=1, keepdims=True), 1)
    shares = moves / totals
    most = float(shares.max())
    with drawing("moves", height=290) as drawn:
        for before, after in np.argwhere(moves > 0).tolist():
            share = float(shares[before, after])
            cell = Rectangle(
                (after - 0.48, before - 0.48),
                0.96,
                0.96,
                color=FIRST,
                alpha=0.05 + 0.85 * share / most,
            )
            drawn.axes.add_patch(cell)
            n = int(moves[before, after])
            if size <= _NUMBERED:
                drawn.axes.text(
                    after,
                    before,
                    f"{100 * share:.0f} %" if share >= 0.005 else "< 1 %",
                    color=CARD if share > 0.75 * most else INK,
                    ha="center",
                    va="center",
                    fontsize=9,
                )
            drawn.tell(
                cell,
                f"Of the documents at place {names[before]} of the input, "
                f"{percent(n, float(totals[before, 0]))} ({n:,}) have rank {names[after]} now",
            )
        drawn.axes.set(
            xlim=(-0.5, size - 0.5),
            ylim=(size - 0.5, -0.5),
            xlabel="rank",
            ylabel="place in the input",
        )
        drawn.axes.grid(visible=False)
        drawn.axes.set_xticks(range(size), names, rotation=40 if size > 7 else 0)
        drawn.axes.set_yticks(range(size), names)
        return drawn.svg("Place in the input against rank after scoring")


def _moves(summary: Summary) -> np.ndarray[tuple[int, int], np.dtype[np.int64]] | None:
    """int64 [groups, groups]: rows by place in the input and by rank; None if none moved could."""
    if not summary.compared:
        return None
    size = 1 + max(max(before, after) for before, after, _ in summary.moves)
    moves = np.zeros((size, size), np.int64)
    for before, after, count in summary.moves:
        moves[before, after] = count
    return moves


def place_names(size: int) -> list[str]:
    """`1`, `2`, `3`, `4–5`, …: the groups of places."""
    names = []
    for first, following in zip(PLACES[:size], (*PLACES[1:], None)):
        if following is None:
            names.append(f"{first:,} and on")
        else:
            names.append(f"{first}" if following == first + 1 else f"{first}–{following - 1}")
    return names


def draw_agreement(summary: Summary) -> Markup | None:
    """Queries by the correlation of the new order with that of the input."""
    if not summary.compared:
        return None
    label = "Queries by the correlation of the new order with the input's"
    return draw_correlations(summary.correlation, label)


def draw_correlations(counts: Sequence[int], label: str) -> Markup:
    """Queries by the correlation of two orders, in bins of equal width from -1 to 1."""
    edges = np.linspace(-1, 1, len(counts) + 1)
    width = 2 / len(counts)
    with drawing("agreement") as drawn:
        bars = drawn.axes.bar(
            edges[:-1], counts, 0.92 * width, align="edge", color=FIRST, alpha=0.85
        )
        drawn.tell_each(
            list(bars),
            [
                f"{n:,} queries: correlation {low:+.1f} to {low + width:+.1f}"
                for n, low in zip(counts, edges[:-1].tolist())
            ],
        )
        drawn.axes.set(xlabel="correlation of both orders", ylabel="queries", xlim=(-1.03, 1.03))
        drawn.axes.set_xticks([-1, -0.5, 0, 0.5, 1], ["−1", "−0.5", "0", "0.5", "1"])
        whole_numbers(drawn)
        return drawn.svg(label)


def draw_lengths(summary: Summary) -> Markup | None:
    """Distinct pairs by their length in tokens, those that were cut above the others."""
    whole = summary.fitting + summary.cut
    if not whole.total:
        return None
    stacks = [
        (summary.fitting, SECOND, "seen whole"),
        (summary.cut, THIRD, "cut to fit"),
    ]
    below = np.zeros(len(whole.counts))
    with drawing("lengths") as drawn:
        for found, colour, name in stacks:
            counts = _on(found.coarsened(whole.exponent), whole)
            if not counts.any():
                continue
            drawn.axes.stairs(
                below + counts, whole.edges, baseline=below, fill=True, color=colour, label=name
            )
            below = below + counts
        drawn.axes.set(xlabel="tokens of both texts", ylabel="pairs", xlim=(0, _most_of(whole)[1]))
        drawn.axes.xaxis.set_major_formatter(_counts)
        whole_numbers(drawn)
        _legend(drawn)
        return drawn.svg("Pairs by their length in tokens")


def _on(found: Histogram, whole: Histogram) -> Floats:
    """A histogram's counts in the bins of another of the same width that covers it."""
    counts = np.zeros(len(whole.counts))
    if found.counts:
        start = found.first - whole.first
        counts[start : start + len(found.counts)] = found.counts
    return counts


def draw_timeline(timeline: Timeline | None) -> Markup | None:
    """Pairs a second while the run went on; where it stood still for long is marked."""
    if timeline is None:
        return None
    unit, seconds = next(
        (name, size)
        for name, size in (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))
        if timeline.edges[-1] >= 2 * size or size == 1.0
    )
    edges = timeline.edges / seconds
    with drawing("timeline") as drawn:
        drawn.axes.stairs(timeline.rate, edges, fill=True, color=FIRST, alpha=0.25, lw=0)
        drawn.axes.stairs(timeline.rate, edges, color=FIRST, linewidth=1.3)
        top = float(timeline.rate.max()) * 1.1
        for at, length in timeline.pauses:
            line = drawn.axes.axvline(at / seconds, color=BAD, linewidth=1, linestyle=(0, (4, 3)))
            drawn.tell(line, f"Nothing was scored for {length / 60:,.0f} minutes; cut out here")
        drawn.axes.set(
            xlabel=f"{unit} of scoring", ylabel="pairs/s", ylim=(0, top), xlim=(0, edges[-1])
        )
        drawn.axes.xaxis.set_major_formatter(_counts)
        drawn.axes.yaxis.set_major_formatter(_counts)
        return drawn.svg("Pairs scored a second, over time")


def draw_shares(bars: Sequence[tuple[str, Sequence[tuple[str, float, str]]]]) -> Markup | None:
    """A stacked bar a line, each of the same length: its parts by name, size and colour."""
    bars = [bar for bar in bars if sum(size for _, size, _ in bar[1])]
    if not bars:
        return None
    with drawing("shares", height=26 + 52 * len(bars)) as drawn:
        for line, (name, parts) in enumerate(bars):
            whole, left = sum(size for _, size, _ in parts), 0.0
            drawn.axes.text(0, line - 0.36, name, color=INK, va="bottom")
            for part, size, colour in parts:
                bar = drawn.axes.barh(line, size / whole, 0.42, left=left, color=colour)
                drawn.tell_each(list(bar), [f"{part}: {size:,.0f}, {percent(size, whole)}"])
                left += size / whole
            told = " · ".join(f"{percent(size, whole)} {part}" for part, size, _ in parts)
            drawn.axes.text(1, line - 0.36, told, color=MUTED, va="bottom", ha="right")
        drawn.axes.set(xlim=(0, 1), ylim=(len(bars) - 0.7, -0.85))
        drawn.axes.axis("off")
        return drawn.svg("; ".join(name for name, _ in bars))


def draw_lines(
    name: str, sizes: Mapping[str, float], tell: Callable[[float], str], colour: str
) -> Markup | None:
    """A horizontal bar a name, as long as its share of all, with its size in words behind it."""
    if not sizes:
        return None
    whole = sum(sizes.values())
    with drawing(name, height=24 + 34 * len(sizes)) as drawn:
        for line, (label, size) in enumerate(sizes.items()):
            shown = printable(label, 60)
            drawn.axes.barh(line, 1.0, 0.34, color=LINE, alpha=0.6)
            bar = drawn.axes.barh(line, size / max(whole, 1e-9), 0.34, color=colour)
            told = tell(size)
            drawn.tell_each(list(bar), [f"{shown}: {told}, {percent(size, whole)}"])
            drawn.axes.text(0, line - 0.24, shown, color=INK, va="bottom")
            share = f"{told} · {percent(size, whole)}"
            drawn.axes.text(1, line - 0.24, share, color=MUTED, va="bottom", ha="right")
        drawn.axes.set(xlim=(0, 1), ylim=(len(sizes) - 0.7, -0.8))
        drawn.axes.axis("off")
        return drawn.svg(", ".join(f"{label}: {tell(size)}" for label, size in sizes.items()))


def _legend(drawn: Drawing) -> None:
    """Above the plot, where nothing lies under it."""
    drawn.axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 0.99), ncols=2, borderpad=0.2)


def percents(value: float, _position: float) -> str:
    """Ticks of an axis of shares."""
    return f"{100 * value:.4g} %"


def whole_numbers(drawn: Drawing) -> None:
    """Ticks of an axis of counts."""
    from matplotlib.ticker import MaxNLocator

    drawn.axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    drawn.axes.yaxis.set_major_formatter(_counts)


def _counts(value: float, _position: float) -> str:
    if abs(value) < 1000:
        return f"{value:g}"
    size = (f"{value / 1e9:g} G", f"{value / 1e6:g} M", f"{value / 1e3:g} k")
    return size[0 if abs(value) >= 1e9 else 1 if abs(value) >= 1e6 else 2]
