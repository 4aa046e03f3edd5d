"""Cells of what a terminal shows: text of others, which is no markup and moves no cursor."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from rankmill.masking import written_out

# A `Text` has its styles already; any other text is shown as it is.
Cell = str | Text


def cell(text: object, style: str = "") -> Text:
    """What comes from data, paths or models: no tag is read in it, control characters show."""
    return Text(written_out(str(text)), style)


def facts_table(rows: Iterable[tuple[Cell, Cell]]) -> Table:
    """Names and values, a line each."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*(one if isinstance(one, Text) else cell(one) for one in row))
    return table
