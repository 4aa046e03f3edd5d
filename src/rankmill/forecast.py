"""What a plan needs, by the rates that outputs tell: its own, and others that are named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rankmill import capacity, output, runs
from rankmill.capacity import Rate, Wanted
from rankmill.errors import ConfigError
from rankmill.load import Estimate
from rankmill.prepared import Prepared
from rankmill.storage import absolute, reaching
from rankmill.store import Store


def capacity_facts(ready: Prepared, rates_from: Sequence[str]) -> list[dict[str, Any]]:
    """What is left of a plan needs so much of each kind of worker that has been measured.

    Rates are those of the plan's own committed shards and of the outputs in `rates_from`; an item a
    model and kind of worker, none where nothing is known.

    Raises `ConfigError` for one of `rates_from` without a run, and, where there are any, for a
    model of which no rate is found.
    """
    models = _wanted(ready)
    measured = []
    if ready.stored is not None:
        measured += capacity.rates(ready.stored, ready.committed.values())
    stores = (Store(absolute(path), ready.config.storage) for path in rates_from)
    others = {store.url: store for store in stores}
    if ready.stored is not None:
        others.pop(ready.store.url, None)  # its shards are counted
    for store in others.values():
        measured += _rates_in(store)
    found = capacity.needs(models, measured)
    if rates_from:
        capacity.refuse_unmeasured(models, found)
    counts = capacity.worker_counts(len(ready.pending))
    return [need.to_json(counts) for need in found]


def _wanted(ready: Prepared) -> list[Wanted]:
    """The models, and what is left for them when committed shards are taken off."""
    done = sum(marker.counters.rows_in for marker in ready.committed.values())
    share = max(ready.plan.pairs - done, 0) / max(ready.plan.pairs, 1)
    return [
        Wanted(
            label=model.label,
            name=str(model.description.to_json()["name"]),
            digest=model.description.digest,
            backend=model.asked.backend,
            precision=model.asked.precision,
            left=Estimate(
                round(whole.pairs * share), round(whole.tokens * share), whole.operations * share
            ),
        )
        for model, whole in zip(ready.models, ready.estimates, strict=True)
    ]


def _rates_in(store: Store) -> list[Rate]:
    with reaching(store.url):
        record = runs.stored_run(store)
        if record is None:
            raise ConfigError(
                f"--rates-from {store.url} holds no run.",
                f"Name the output of one, finished or not: it has {runs.RUN}.",
            )
        if "tokens_a_pair" not in record["plan"]:
            raise ConfigError(
                f"The run in --rates-from {store.url} did not note what its plan estimated: an "
                "earlier version of rankmill wrote it.",
                "Name the output of a run by this version (rankmill rerank --limit 200 is enough).",
            )
        found, _ = output.committed(store, record["fingerprint"], record["plan"]["shards"])
    return capacity.rates(record, found.values())
