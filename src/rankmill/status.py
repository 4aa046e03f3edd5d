"""How far a run is, from its own files alone: while it runs, after a crash, when it is complete."""

from __future__ import annotations

from dataclasses import dataclass

from rankmill import markers, output, runs
from rankmill.errors import InputError
from rankmill.lease import holder
from rankmill.markers import Counters
from rankmill.storage import absolute, reaching
from rankmill.store import Store


@dataclass(frozen=True)
class Status:
    """A look at an output.

    running: somebody holds its lease. failed: why shards failed at the last start. damaged: what
    is wrong with committed files, and files that are not of this run.
    """

    url: str
    complete: bool
    running: bool
    shards: int
    committed: int
    pairs: int
    counters: Counters
    scoring_seconds: float
    degraded: tuple[int, ...]
    failed: dict[int, str]
    damaged: tuple[str, ...]


def read_status(path: str, profile: str | None = None, verify: bool = False) -> Status:
    """Read run.json and the markers of an output.

    verify: read and hash every committed file instead of comparing sizes.

    Raises `InputError` when there is no run under the path.
    """
    store = Store(absolute(path), profile)
    with reaching(store.url):
        stored = runs.stored_run(store)
        if stored is None:
            raise InputError(
                f"There is no run at {path}.", f"An output folder holds {runs.RUN}; check the path."
            )
        found = markers.read_markers(store)
        own = {s: m for s, m in found.items() if m.fingerprint == stored["fingerprint"]}
        damaged = output.describe_damage(store, own, full=verify)
        expected = {marker.part.name for marker in own.values()}
        if verify:
            strays = output.stray_parts(store, expected)
            damaged += [f"{name} has no marker" for name in strays]
        return Status(
            url=store.url,
            complete=output.is_complete(store),
            running=holder(store) is not None,
            shards=int(stored["plan"]["shards"]),
            committed=len(own),
            pairs=int(stored["plan"]["pairs"]),
            counters=markers.add(marker.counters for marker in own.values()),
            scoring_seconds=sum(marker.seconds for marker in own.values()),
            degraded=tuple(sorted(s for s, marker in own.items() if marker.degraded)),
            failed=markers.read_failures(store),
            damaged=tuple(damaged),
        )
