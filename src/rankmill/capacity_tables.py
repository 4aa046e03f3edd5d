"""The table of what a plan needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

from rankmill import capacity
from rankmill.cells import cell
from rankmill.progress import duration


def capacity_tables(facts: Sequence[dict[str, Any]]) -> Iterator[Table]:
    """Hours by the number of workers, a table a model and kind of worker."""
    for one in facts:
        measured, hours = one["measured"], one["hours"]
        label = f"{one['label']}: " if one["label"] else ""
        worker = capacity.Worker(**one["worker"]).name
        unit = "core" if one["gpu_hours"] is None else "GPU"
        table = Table(
            title=cell(f"{label}{one['model']} on {worker}", "table.title"),
            caption=f"{one['pairs']:,} pairs, about {one['tokens_estimated']:,} tokens: "
            f"{_hours(one[f'{unit.lower()}_hours'])} {unit}-hours of scoring\n"
            f"A worker did {measured['tokens_per_second']:,.0f} tokens/s, "
            f"{measured['pairs_per_second']:,.1f} pairs/s, over {measured['pairs']:,} pairs in "
            f"{duration(measured['seconds'])}",
            title_justify="left",
            caption_justify="left",
        )
        table.add_column("workers")
        for count in hours:
            table.add_column(count, justify="right")
        table.add_row("hours", *map(_hours, hours.values()))
        yield table


def _hours(hours: float) -> str:
    return f"{hours:,.2f}" if hours < 10 else f"{hours:,.0f}"
