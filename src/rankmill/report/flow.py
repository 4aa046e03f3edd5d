"""The counters as a flow from input to output: a Sankey diagram, its heights rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from rankmill.markers import Counters
from rankmill.report.figure import BAD, FIRST, INK, MUTED, SECOND, THIRD, Drawing, drawing

# In points: a node's width, the room for its two lines of text, and the least height, so that one
# row in a million still shows.
_NODE, _LABEL, _LEAST = 8.0, 34.0, 1.5


@dataclass
class Node:
    """A count of rows on its way. column: from 0 on the left; top, height: in points."""

    name: str
    rows: int
    column: int
    colour: str
    top: float = 0.0
    height: float = 0.0
    _given: float = field(default=0.0, repr=False)
    _taken: float = field(default=0.0, repr=False)


@dataclass(frozen=True)
class Stream:
    """Rows that go from one node to another; the nodes are named by their places."""

    source: int
    target: int
    rows: int


def nodes_and_streams(counters: Counters) -> tuple[list[Node], list[Stream]]:
    """What became of the rows, from left to right; nothing that did not occur."""
    nodes = [Node("rows in", counters.rows_in, 0, MUTED)]
    streams: list[Stream] = []

    def add(source: int, name: str, rows: int, column: int, colour: str) -> int:
        nodes.append(Node(name, rows, column, colour))
        streams.append(Stream(source, len(nodes) - 1, rows))
        return len(nodes) - 1

    ways = {
        "scored": counters.pairs_scored,
        "scores reused": counters.pairs_reused,
        "copies of a scored pair": counters.pairs_duplicate,
        "beyond the depth": counters.pairs_beyond_depth,
    }
    taken = [
        add(0, name, rows, 1, FIRST if name == "scored" else THIRD)
        for name, rows in ways.items()
        if rows
    ]
    ranked = counters.rows_in - counters.rows_quarantined
    if len(taken) > 1:
        nodes.append(Node("ranked", ranked, 2, FIRST))
        streams += [Stream(each, len(nodes) - 1, nodes[each].rows) for each in taken]
        taken = [len(nodes) - 1]
    last = 3 if nodes[-1].column == 2 else 2
    for each in taken:
        if counters.rows_out:
            add(each, "written", counters.rows_out, last, SECOND)
        if counters.rows_below_cut:
            add(each, "below the cut", counters.rows_below_cut, last, MUTED)
    if counters.rows_quarantined:
        add(0, "in quarantine", counters.rows_quarantined, last, BAD)
    return nodes, streams


def draw_flow(counters: Counters, width: float, name: str) -> Markup | None:
    """The diagram at a width in points; None where no row came in."""
    nodes, streams = nodes_and_streams(counters)
    if not counters.rows_in:
        return None
    height = _place(nodes, width)
    with drawing(name, width, height) as drawn:
        drawn.figure.set_layout_engine("none")
        drawn.axes.set_position((0.0, 0.0, 1.0, 1.0))
        drawn.axes.set(xlim=(0, width), ylim=(height, 0))
        drawn.axes.axis("off")
        left = _columns(nodes, width)
        for stream in streams:
            _ribbon(drawn, nodes, stream, left, counters.rows_in)
        for node in nodes:
            _block(drawn, node, left[node.column], counters.rows_in)
        return drawn.svg(
            "What became of the rows: " + ", ".join(f"{node.rows:,} {node.name}" for node in nodes)
        )


def _columns(nodes: Sequence[Node], width: float) -> list[float]:
    """Where each column's nodes begin. The last leaves room for its texts on the left of them."""
    last = max(node.column for node in nodes)
    return [2 + column * (width - _NODE - 4) / last for column in range(last + 1)]


def _place(nodes: Sequence[Node], width: float) -> float:
    """Stack each column's nodes below each other; the height of it all."""
    full = max(70.0, min(120.0, width / 6))
    whole = nodes[0].rows
    lowest = 0.0
    for column in range(max(node.column for node in nodes) + 1):
        top = 0.0
        for node in nodes:
            if node.column == column:
                node.top = top + _LABEL
                node.height = max(full * node.rows / whole, _LEAST)
                top = node.top + node.height + 6
        lowest = max(lowest, top)
    return lowest + 2


def _block(drawn: Drawing, node: Node, left: float, whole: int) -> None:
    from matplotlib.patches import Rectangle

    block = drawn.axes.add_patch(
        Rectangle((left, node.top), _NODE, node.height, color=node.colour, clip_on=False)
    )
    share = f"{node.rows:,} rows, {percent(node.rows, whole)} of the input: {node.name}"
    drawn.tell(block, share)
    at_end = left > drawn.width / 2 and left + _NODE + 3 > drawn.width - 4
    x, align = (left + _NODE, "right") if at_end else (left, "left")
    for below, text, colour, weight in (
        (17, f"{node.rows:,}", INK, "bold"),
        (5, node.name, MUTED, "normal"),
    ):
        drawn.axes.text(
            x, node.top - below, text, color=colour, weight=weight, ha=align, clip_on=False
        )


def _ribbon(
    drawn: Drawing, nodes: Sequence[Node], stream: Stream, left: Sequence[float], whole: int
) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    source, target = nodes[stream.source], nodes[stream.target]
    thick = max(source.height * stream.rows / max(source.rows, 1), _LEAST)
    x0, x1 = left[source.column] + _NODE, left[target.column]
    y0, y1 = source.top + source._given, target.top + target._taken
    source._given += thick
    target._taken += thick
    bend = (x0 + x1) / 2
    corners = [
        (x0, y0),
        (bend, y0),
        (bend, y1),
        (x1, y1),
        (x1, y1 + thick),
        (bend, y1 + thick),
        (bend, y0 + thick),
        (x0, y0 + thick),
        (x0, y0),
    ]
    curve = [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO, *[Path.CURVE4] * 3, Path.CLOSEPOLY]
    ribbon = drawn.axes.add_patch(
        PathPatch(Path(corners, curve), color=target.colour, alpha=0.3, linewidth=0, clip_on=False)
    )
    told = f"{source.name} → {target.name}: {stream.rows:,} rows, {percent(stream.rows, whole)}"
    drawn.tell(ribbon, told)


def percent(part: float, whole: float) -> str:
    """`12 %`, `1.2 %` and its rest `98.8 %`, `under 0.1 %`; never 0 or 100 for what is not."""
    if not whole:
        return "0 %"
    share = 100 * part / whole
    if share == 0 or share == 100:
        return f"{share:.0f} %"
    if share < 0.1:
        return "under 0.1 %"
    if share > 99.9:
        return "over 99.9 %"
    return f"{share:.1f} %" if share < 10 or share > 90 else f"{share:.0f} %"
