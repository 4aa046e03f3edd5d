"""What `rankmill status` shows: a look at a run, once or until it ends."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.live import Live
from rich.markup import escape
from rich.table import Table

from rankmill.console import facts_table, gate_row
from rankmill.progress import duration
from rankmill.status import Status

# Between two looks at a run of another process.
_WATCH_SECONDS = 2.0


def status_table(status: Status) -> Table:
    """How far a run is."""
    if not status.shards:
        return facts_table(_before_shards(status))
    counters = status.counters
    state = "complete" if status.complete else "running" if status.running else "stopped"
    if state == "stopped" and not all(gate["passed"] for gate in status.gates):
        state = "all shards committed, a gate failed"
    rows = [
        ("output", status.url),
        ("state", state),
        ("shards committed", f"{status.committed:,} of {status.shards:,}"),
        ("rows done", f"{counters.rows_in:,} of about {status.pairs:,}"),
        ("  written, ranked", f"{counters.rows_out:,}"),
        ("  below the cut", f"{counters.rows_below_cut:,}"),
        ("  in quarantine", f"{counters.rows_quarantined:,}"),
        ("scoring time, all workers", duration(status.scoring_seconds)),
        ("degraded shards", f"{len(status.degraded):,}"),
    ]
    rows += [gate_row(gate) for gate in status.gates]
    rows += [(f"[red]failed shard {s}", escape(why)) for s, why in status.failed.items()]
    rows += [("[red]damaged", escape(problem)) for problem in status.damaged]
    return facts_table(rows)


def _before_shards(status: Status) -> list[tuple[str, str]]:
    staging, state = status.staging, "running" if status.running else "stopped"
    if staging is None:
        return [("output", status.url), ("state", "running: its first shards are still planned")]
    return [
        ("output", status.url),
        ("state", f"{state}: the input is brought into order first"),
        ("staging folder", escape(staging.url)),
        ("being made there", f"{staging.step}, {staging.done:,} of {staging.of:,} files"),
    ]


def watch_status(first: Status, look: Callable[[], Status]) -> Status:
    """Show a run until it ends, in one place on a terminal; the last look.

    Elsewhere the table is printed when shards were committed, and at the end.
    """
    started, found = time.monotonic(), first
    with Live(status_table(first), auto_refresh=False, transient=False) as live:
        while found.running:
            time.sleep(_WATCH_SECONDS)
            found, last = look(), found
            table = status_table(found)
            done = found.counters.rows_in - first.counters.rows_in
            rate = done / (time.monotonic() - started)
            left = found.pairs - found.counters.rows_in
            table.add_row("rows/s while watched", f"{rate:,.0f}")
            if found.running and rate:
                table.add_row("time left", duration(max(left, 0) / rate))
            live.update(table, refresh=live.console.is_terminal)
            if not live.console.is_terminal and found.committed != last.committed and found.running:
                live.console.print(table)
    return found
