"""The end of a run: sums and gates, the manifest, `_SUCCESS`, and what a caller gets."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rankmill import gates, markers, output, pipeline, runs, storage
from rankmill.attempts import ATTEMPTS
from rankmill.config import CONTRACT_VERSION
from rankmill.errors import OutputError, RunFailed, StartError
from rankmill.lease import Lease
from rankmill.markers import Counters, Marker, ModelCost
from rankmill.pool import Pool
from rankmill.prepared import Prepared
from rankmill.runs import Run
from rankmill.store import Store

log = logging.getLogger("rankmill")
_FAILURES_SHOWN = 3


@dataclass(frozen=True)
class RunResult:
    """A finished run. `files`: URLs of the part files, in order."""

    output: str
    manifest: dict[str, Any]
    counters: Counters
    files: tuple[str, ...]


def finish(
    ready: Prepared,
    run: Run,
    pools: Sequence[Pool],
    done: dict[int, Marker],
    seconds: float,
    lease: Lease,
) -> RunResult:
    """Check sums and gates, write the manifest and `_SUCCESS`.

    Raises `RunFailed` for missing shards, `GatesFailed` for what is not good enough, `OutputBusy`
    when another run has taken over.
    """
    missing = [index for index in range(len(ready.plan)) if index not in done]
    if missing:
        raise _failure(ready.store, missing, len(ready.plan))
    counters = markers.add(done[index].counters for index in range(len(ready.plan)))
    counters.refuse_imbalance()
    if ready.source.layout != "nested":
        expected = int(ready.plan.bounds[-1])
        assert counters.rows_in == expected, f"{counters.rows_in} of {expected} rows were read"
    fresh = sum(done[index].counters.pairs_scored for index in ready.pending)
    try:
        found = gates.check(ready.config, ready.store.url, counters, pipeline.map_shared)
    except StartError as error:  # too late to be one: all is committed
        raise RunFailed(error.message, error.remedy) from error
    manifest = {
        "contract_version": CONTRACT_VERSION,
        "fingerprint": run.fingerprint,
        "complete": all(gate.passed for gate in found),
        "gates": [gate.to_json() for gate in found],
        **asdict(counters),
        "seconds": round(seconds, 3),
        "pairs_per_second": round(fresh / seconds, 2),
        "scoring_seconds": round(sum(marker.seconds for marker in done.values()), 3),
        "shards": len(ready.plan),
        "shards_resumed": len(ready.committed),
        "staging": ready.staging.to_json(),
        "degraded": [index for index in sorted(done) if done[index].degraded],
        "workers": asdict(pools[ready.config.results.deciding - 1]),
        "max_length": ready.model.rules.max_length,
        **{key: run.recorded[key] for key in ("model", "profile", "versions")},
        "files": [done[index].part.name for index in sorted(done)],
    }
    if ready.ranking:
        manifest["rank"] = ready.ranking
    if len(ready.models) > 1:
        manifest["models"] = _by_model(ready, run, pools, done)
    try:
        # A process that slept since the last look must clear away nothing of a newer run's.
        with ready.store.locked():
            lease.refuse_lost()
            output.remove_scraps(ready.store)
        ready.store.delete_folder(ATTEMPTS)
        ready.staging.remove()
        output.refuse_strangers(ready.store, len(ready.plan))
    except OutputError as error:  # too late to be one: all is committed
        raise RunFailed(error.message, error.remedy) from error
    ready.store.write(runs.MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False).encode())
    gates.refuse_failed(found, ready.store.url, manifest)
    ready.store.write(runs.SUCCESS, b"")
    return _result(ready.store, manifest, counters)


def _by_model(
    ready: Prepared, run: Run, pools: Sequence[Pool], done: dict[int, Marker]
) -> dict[str, Any]:
    """What each of several models is, where it ran and what it did, by what it is called."""
    costs = markers.add_costs(done.values()) or [ModelCost()] * len(pools)
    return {
        model.label: {
            "model": run.recorded["models"][model.label],
            "profile": run.recorded["profiles"][model.label],
            "workers": asdict(pool),
            "max_length": model.rules.max_length,
            **asdict(cost),
        }
        for model, pool, cost in zip(ready.models, pools, costs, strict=True)
    }


def _failure(store: Store, missing: list[int], shards: int) -> RunFailed:
    notes = markers.read_failures(store)
    first = [f"  shard {i}: {notes.get(i, 'not committed')}" for i in missing[:_FAILURES_SHOWN]]
    more = len(missing) - len(first)
    if more:
        first.append(f"  … and {more} more in {store.url}/{markers.FAILED}")
    return RunFailed(
        f"{len(missing)} of {shards} shards failed:\n" + "\n".join(first),
        f"The other {shards - len(missing)} are committed. Run the same command again when the "
        "cause is mended: only the missing shards are computed. (An input file that was written "
        "anew makes another run: start that one with --overwrite or in another output.)",
    )


def already_complete(ready: Prepared) -> RunResult:
    """What a finished run left. Raises `OutputError` where its manifest is gone or damaged."""
    manifest = runs.stored_manifest(ready.store)
    if manifest is None:
        raise OutputError(
            f"{ready.store.url} has {runs.SUCCESS} but no {runs.MANIFEST}.",
            f"Remove {runs.SUCCESS} and run the same command again.",
        )
    counters = markers.add(marker.counters for marker in ready.committed.values())
    log.info("Already complete: nothing was computed.")
    checked = {gate["name"]: gate["limit"] for gate in manifest.get("gates", [])}
    if checked != gates.limits(ready.config):
        log.warning("Gates are checked before a run is complete: those asked for now were not.")
    return _result(ready.store, manifest, counters)


def _result(store: Store, manifest: dict[str, Any], counters: Counters) -> RunResult:
    files = tuple(storage.join(store.url, name) for name in manifest["files"])
    return RunResult(store.url, manifest, counters, files)
