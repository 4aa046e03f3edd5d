"""A Matplotlib figure as inline SVG that takes its colours and fonts from the page around it.

Matplotlib because its SVG is finished when it is written: nothing on the page has to run, so the
page can forbid every script, and a chart is some kilobytes. What a script would show under the
pointer is the `<title>` of a shape, which browsers show by themselves.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that are drawn with, each for one of the page's own; the page has a light and a dark set.
INK, MUTED, LINE, CARD = "#010101", "#020202", "#030303", "#040404"
FIRST, SECOND, THIRD, BAD = "#050505", "#060606", "#070707", "#080808"
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    LINE: "--line",
    CARD: "--card",
    FIRST: "--first",
    SECOND: "--second",
    THIRD: "--third",
    BAD: "--bad",
}
_SVG = "http://www.w3.org/2000/svg"
ElementTree.register_namespace("", _SVG)
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
# What the page's own style sheet says; and what every element has anyway.
_LEFT_OUT = ("font", "font-family", "stroke-linecap", "stroke-linejoin", "stroke-miterlimit")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")

# Matplotlib's annotations know no dict of its own settings.
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "text.color": INK,
    "font.size": 10.0,
    "axes.facecolor": "none",
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "legend.frameon": False,
    "legend.labelcolor": MUTED,
    "patch.linewidth": 0.0,
}


@dataclass
class Drawing:
    """A figure that is being drawn. width, height: in points, a page's pixels at full size."""

    figure: Figure
    axes: Axes
    width: float
    height: float
    _tips: dict[str, str] = field(default_factory=dict)

    def tell(self, artist: Artist, text: str) -> None:
        """Show a text while the pointer is on a shape."""
        name = f"tip-{len(self._tips)}"
        artist.set_gid(name)
        self._tips[name] = text

    def tell_each(self, artists: Sequence[Artist], texts: Sequence[str]) -> None:
        """`tell` for several shapes."""
        for artist, text in zip(artists, texts, strict=True):
            self.tell(artist, text)

    def svg(self, label: str) -> Markup:
        """The figure as an SVG element. label: what it shows, for those who do not see it."""
        written = io.BytesIO()
        self.figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
        root = ElementTree.fromstring(written.getvalue())
        _strip(root)
        _dress(root, self._tips)
        size = root.get("viewBox")
        root.attrib.clear()
        root.attrib |= {"viewBox": size or "", "role": "img", "aria-label": printable(label)}
        return Markup(ElementTree.tostring(root, encoding="unicode"))  # which escapes all texts


@contextmanager
def drawing(name: str, width: float = 400, height: float = 230) -> Iterator[Drawing]:
    """An empty figure with one pair of axes. name: of its own on the page; it makes ids differ."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # not what a user has set up for plots of their own
        matplotlib.rcParams.update(_STYLE | {"svg.hashsalt": name})
        figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
        yield Drawing(figure, figure.add_subplot(), width, height)


def printable(text: str, most: int = 80) -> str:
    """A text that XML can hold, not too long for a chart."""
    clean = _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)
    return clean if len(clean) <= most else clean[: most - 1] + "…"


def _strip(root: ElementTree.Element) -> None:
    """Take out what only stands for itself: metadata, a style sheet, the white background."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)


def _dress(root: ElementTree.Element, tips: dict[str, str]) -> None:
    """Make inline styles attributes, which a strict page allows, and put texts on shapes."""
    for element in root.iter():
        if element.tag != f"{{{_SVG}}}text":
            element.text = None  # white space
        element.tail = None
        for name, value in _declarations(element.attrib.pop("style", "")):
            element.set(name, value)
        for name in ("fill", "stroke"):
            variable = _VARIABLES.get(element.get(name, ""))
            if variable is not None:
                element.set(name, f"var({variable})")
        tip = tips.get(element.attrib.pop("id", "")) if element.tag == f"{{{_SVG}}}g" else None
        if tip is not None:
            title = ElementTree.Element(f"{{{_SVG}}}title")
            title.text = printable(tip, 400)
            element.insert(0, title)


def _declarations(style: str) -> Iterator[tuple[str, str]]:
    for declaration in style.split(";"):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name == "font":
            size = re.search(r"([\d.]+)px", value)
            if size:
                yield "font-size", size[1]
        elif name and name not in _LEFT_OUT:
            yield name, value
