"""What a report tells, gathered from a run's own files: run.json, its markers, its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rankmill import markers, runs
from rankmill.markers import Counters, Marker, ModelCost
from rankmill.report.timeline import Timeline
from rankmill.results import Results
from rankmill.store import Store
from rankmill.summary import Summary

# The summaries of more shards are not added up (3 s; 40 million pairs or more): an even sample is.
SUMMARIES = 10_000


@dataclass(frozen=True)
class Facts:
    """A run as its files show it.

    run: run.json. manifest: None until the run is complete. failures: why shards failed at the
    last start. summary: of `summarised` shards. stages: seconds of all workers by stage. models:
    of several, what each did, by what it is called. timeline: None where no pair was scored. gates:
    as the manifest holds them, once all is committed.
    """

    url: str
    state: Literal["complete", "running", "stopped"]
    run: dict[str, Any]
    manifest: dict[str, Any] | None
    counters: Counters
    shards: int
    committed: int
    degraded: int
    failures: dict[int, str]
    summary: Summary
    summarised: int
    stages: dict[str, float]
    models: dict[str, ModelCost]
    timeline: Timeline | None
    gates: tuple[dict[str, Any], ...] = ()

    @property
    def is_sample(self) -> bool:
        """Whether scores, ranks and lengths are those of some of the committed shards."""
        return self.summarised < self.committed


def gather(
    store: Store,
    run: dict[str, Any],
    done: Mapping[int, Marker],
    *,
    running: bool,
    summaries: int = SUMMARIES,
) -> Facts:
    """Read what the markers do not hold, and add up what they do.

    run: run.json; done: the committed shards; running: somebody is at work on the others.
    """
    complete = store.read(runs.SUCCESS) is not None
    shards = int(run["plan"]["shards"])
    found = [done[shard] for shard in sorted(done)]
    summary, summarised = Summary(), 0
    for marker in _sample(found, summaries):
        one = Summary.from_text(marker.summary)
        if one is not None:
            summary, summarised = summary + one, summarised + 1
    return Facts(
        url=store.url,
        state="complete" if complete else "running" if running else "stopped",
        run=run,
        manifest=runs.stored_manifest(store) if complete else None,
        counters=markers.add(marker.counters for marker in found),
        shards=shards,
        committed=len(found),
        degraded=sum(marker.degraded for marker in found),
        failures={} if complete else markers.read_failures(store),
        summary=summary,
        summarised=summarised,
        stages=_stages(found),
        models=dict(zip(Results.of_stored(run["config"]).labels, markers.add_costs(found))),
        timeline=Timeline.of(found),
        gates=tuple(runs.stored_gates(store, str(run["fingerprint"]))),
    )


def _sample(found: list[Marker], most: int) -> list[Marker]:
    """All of them, or `most` at equal distances: the same for the same run."""
    if len(found) <= most:
        return found
    return [found[place] for place in np.linspace(0, len(found) - 1, most).astype(int)]


def _stages(found: list[Marker]) -> dict[str, float]:
    seconds = {
        name: sum(marker.stages.get(name, 0.0) for marker in found)
        for name in ("read", "tokenize", "rank", "write")
    }
    seconds["score"] = sum(marker.seconds for marker in found)
    return {name: spent for name, spent in seconds.items() if spent}
