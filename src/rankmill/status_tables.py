"""What `rankmill status` shows: a look at a run, once or until it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from rich.live import Live
from rich.table import Table

from rankmill.cells import Cell, cell, facts_table
from rankmill.console import gate_row
from rankmill.lease import SILENCE_SECONDS
from rankmill.progress import Pace, duration
from rankmill.status import Status

# Between two looks at a run of another process.
_WATCH_SECONDS = 2.0


def status_table(status: Status, watched: bool = False) -> Table:
    """How far a run is. watched: `status.running` is what looking on has shown."""
    running = _running_or_stopped(status, watched)
    if not status.shards:
        return facts_table(_before_shards(status, running))
    counters = status.counters
    state = "complete" if status.complete else running
    if state == "stopped" and not all(gate["passed"] for gate in status.gates):
        state = "all shards committed, a gate failed"
    rows: list[tuple[Cell, Cell]] = [
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
    rows += [(cell(f"failed shard {s}", "red"), why) for s, why in status.failed.items()]
    rows += [(cell("damaged", "red"), problem) for problem in status.damaged]
    if status.damaged and not status.running:
        rows.append(("to mend it", "remove the named files and run the same command again"))
    return facts_table(rows)


def _running_or_stopped(status: Status, watched: bool) -> str:
    """Whether a process of another machine lives only time shows: one look cannot tell."""
    if not status.running:
        return "stopped"
    owner = status.held_by
    if watched or owner is None or owner.is_alive:
        return "running"
    return f"running, or lost with its machine {owner.host}: --watch tells"


def _before_shards(status: Status, state: str) -> list[tuple[Cell, Cell]]:
    staging = status.staging
    if staging is None:
        planning = f"{state}: its first shards are not planned yet"
        return [("output", status.url), ("state", planning)]
    return [
        ("output", status.url),
        ("state", f"{state}: the input is brought into order first"),
        ("staging folder", staging.url),
        ("being made there", f"{staging.step}, {staging.done:,} of {staging.of:,} files"),
    ]


def watch_status(first: Status, look: Callable[[], Status]) -> Status:
    """Show a run until it ends, in one place on a terminal; the last look.

    Elsewhere the table is printed when shards were committed, and at the end. Another machine's
    lease that stands still for the time that no live owner lets pass is a dead one's.
    """
    pace, found, renewed = Pace(first.committed), first, time.monotonic()
    with Live(status_table(first, watched=True), auto_refresh=False, transient=False) as live:
        while found.running:
            time.sleep(_WATCH_SECONDS)
            found, last = look(), found
            owner = found.held_by
            if owner is None or owner != last.held_by or owner.is_alive:
                renewed = time.monotonic()
            elif time.monotonic() - renewed > SILENCE_SECONDS:
                found = replace(found, running=False)
            table = status_table(found, watched=True)
            done = found.counters.rows_in
            shard_seconds = found.scoring_seconds / max(found.committed, 1)
            rate = pace.look(found.committed, done, shard_seconds, time.monotonic())
            if rate is not None:
                table.add_row("rows/s while watched", f"{rate:,.0f}")
                if found.running and rate:
                    table.add_row("time left", duration(max(found.pairs - done, 0) / rate))
            live.update(table, refresh=live.console.is_terminal)
            if not live.console.is_terminal and found.committed != last.committed and found.running:
                live.console.print(table)
    return found
