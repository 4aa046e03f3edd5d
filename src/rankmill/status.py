"""How far a run is, from its own files alone: while it runs, after a crash, when it is complete."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rankmill import integrity, markers, output, runs
from rankmill.errors import InputError
from rankmill.integrity import Expected
from rankmill.lease import Owner, holder
from rankmill.markers import Counters
from rankmill.masking import mask
from rankmill.results import Results
from rankmill.staging_progress import StagingProgress, read_progress
from rankmill.storage import absolute, reaching
from rankmill.storage_settings import ENVIRONMENT, StorageConfig
from rankmill.store import Store


@dataclass(frozen=True)
class Status:
    """A look at an output.

    running: somebody holds its lease, namely `held_by`. failed: why shards failed at the last
    start. damaged: what is wrong with committed files, and files that are not of this run. gates:
    as the manifest holds them (see `gates.Gate`), once all shards were committed. staging: of a
    first start that has no shards yet, as those are planned but their rows are still brought into
    order.
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
    gates: tuple[dict[str, Any], ...] = ()
    staging: StagingProgress | None = None
    held_by: Owner | None = None


def read_status(path: str, access: StorageConfig = ENVIRONMENT, verify: bool = False) -> Status:
    """Read run.json and the markers of an output.

    verify: read, hash and open every file instead of comparing sizes, and look for files that are
    not of the run.

    Raises `InputError` when there is no run under the path.
    """
    store = Store(absolute(path), access)
    with reaching(store.url):
        stored = runs.stored_run(store)
        if stored is None and (before := _before_run(store)) is not None:
            return before
        if stored is None:
            raise InputError(
                f"There is no run at {path}.", f"An output folder holds {runs.RUN}; check the path."
            )
        fingerprint, shards = str(stored["fingerprint"]), int(stored["plan"]["shards"])
        owner = holder(store)
        running = owner is not None
        own, damaged = output.committed(store, fingerprint, shards)
        if verify:
            prefix = str(stored["config"]["output"]["column_prefix"])
            results = Results.of_stored(stored["config"])
            expected = Expected(fingerprint, shards, prefix, results)
            damaged = integrity.examine(store, expected, running)
        return Status(
            url=store.url,
            complete=output.is_complete(store),
            running=running,
            shards=shards,
            committed=len(own),
            pairs=int(stored["plan"]["pairs"]),
            counters=markers.add(marker.counters for marker in own.values()),
            scoring_seconds=sum(marker.seconds for marker in own.values()),
            degraded=tuple(sorted(s for s, marker in own.items() if marker.degraded)),
            # Names and notes are whatever somebody has put there.
            failed={shard: mask(why) for shard, why in markers.read_failures(store).items()},
            damaged=tuple(map(mask, damaged)),
            gates=tuple(runs.stored_gates(store, fingerprint)),
            held_by=owner,
        )


def _before_run(store: Store) -> Status | None:
    """Of an output without run.json: whether a first start is under way, or died in its staging."""
    if store.read(runs.EXPORT) is not None:
        return None
    owner, staging = holder(store), read_progress(store)
    if staging is None and owner is None:
        return None
    nothing, running = Counters(), owner is not None
    return Status(
        *(store.url, False, running, 0, 0, 0, nothing, 0.0, (), {}),
        damaged=(),
        staging=staging,
        held_by=owner,
    )
