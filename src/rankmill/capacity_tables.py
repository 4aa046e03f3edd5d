"""Capacity of a plan: the rates that its outputs tell, and the table of what it needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from rankmill import capacity, output, runs
from rankmill.capacity import Rate, Wanted
from rankmill.errors import ConfigError
from rankmill.load import Estimate
from rankmill.prepared import Prepared
from rankmill.progress import duration
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
    others.pop(ready.store.url, None)
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
        found, _ = output.committed(store, str(record["fingerprint"]))
    return capacity.rates(record, found.values())


def capacity_tables(facts: Sequence[dict[str, Any]]) -> Iterator[Table]:
    """Hours by the number of workers, a table a model and kind of worker."""
    for one in facts:
        measured, hours = one["measured"], one["hours"]
        label = f"{escape(one['label'])}: " if one["label"] else ""
        worker = capacity.Worker(**one["worker"]).name
        unit = "core" if one["gpu_hours"] is None else "GPU"
        table = Table(
            title=f"{label}{escape(one['model'])} on {escape(worker)}",
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
