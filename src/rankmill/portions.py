"""How the models of a run share a cluster: to each a portion, by its share of the work.

All models score at once, shards on their way from one to the next. So each must have an actor that
Ray can place whatever the others hold, or the run would stand still: what all of them reserve on a
node fits beside the share that `pool` leaves free, and each has an actor for every node, or every
one that was asked for. Portions are rounded up: a core that waits for shards of one model works for
another, and a model with too little would hold up all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rankmill.config import ComputeConfig
from rankmill.errors import ConfigError
from rankmill.pool import (
    FREE_CPUS,
    Capacity,
    Pool,
    actors_on,
    cores_a_worker,
    reservable,
    size_pool,
    workers_on,
)
from rankmill.profile import Device, Profile

# Ray counts parts of a GPU in ten-thousandths.
_GPU_PARTS = 10_000


@dataclass(frozen=True)
class Portion:
    """What one of a run's models has of the cluster.

    share: of the run's work. cores: of a node, that an actor with all of its portion may count on.
    gpus: of one actor.
    """

    share: float
    cores: int
    gpus: float


def divide(
    compute: ComputeConfig, device: Device, shares: Sequence[float], found: Capacity
) -> list[Portion]:
    """The models' portions. shares: of the work, which add up to 1."""
    if len(shares) == 1:
        return [Portion(1.0, cores_a_worker(compute, found), compute.gpus_per_worker)]
    gpus = _gpus_each(compute, len(shares), found) if device == "cuda" else compute.gpus_per_worker
    cores = int(min(found.cpus, default=1))
    actors = _actors_a_node(compute, shares, found)
    return [
        Portion(share, max(_up(cores * share / each), 1), gpus)
        for share, each in zip(shares, actors)
    ]


def size_pools(
    compute: ComputeConfig,
    device: Device,
    profiles: Sequence[Profile],
    portions: Sequence[Portion],
    found: Capacity,
) -> list[Pool]:
    """The pool of each model. Raises `ConfigError` when the cluster cannot hold one of each."""
    if len(profiles) == 1:
        whole_nodes = profiles[0].backend == "openvino"
        return [size_pool(compute, device, profiles[0].threads, found, whole_nodes)]
    shares = [portion.share for portion in portions]
    on_gpus = compute.model_copy(update={"gpus_per_worker": portions[0].gpus, "workers": "auto"})
    # What a pool of one kind would be says whether the cluster can hold any, and how many.
    whole = size_pool(on_gpus, device, min(p.threads for p in profiles), found)
    if device == "cuda":
        wanted = whole.workers if compute.workers == "auto" else compute.workers
        if whole.workers < len(shares):
            raise ConfigError(
                f"{len(shares)} models score at once, and the nodes with GPUs hold "
                f"{whole.workers} worker(s)"
                + (f" of {compute.memory:,} bytes." if compute.memory is not None else "."),
                "Lower compute.memory, or add such nodes.",
            )
        counts = _distribute(min(max(wanted, len(shares)), whole.workers), shares)
        return [Pool(n, whole.cpus, whole.gpus, compute.memory, compute.labels) for n in counts]
    if device == "mps":
        cpus = reservable((found.cpus[0] - FREE_CPUS) / len(shares))
        return [Pool(1, cpus, 0, compute.memory, compute.labels)] * len(shares)
    return _cpu_pools(compute, profiles, portions, found)


def _cpu_pools(
    compute: ComputeConfig,
    profiles: Sequence[Profile],
    portions: Sequence[Portion],
    found: Capacity,
) -> list[Pool]:
    shares, smallest = [portion.share for portion in portions], min(found.cpus)
    actors, wanted = [], []
    for profile, portion, asked in zip(profiles, portions, _actors_a_node(compute, shares, found)):
        fills_node = profile.backend == "openvino" and compute.cpus_per_worker == "auto"
        most = 1.0 if fills_node else workers_on(smallest, profile.threads) * portion.share
        actors.append(max(_up(most), 1) if compute.workers == "auto" else asked)
        wanted.append(float(portion.cores if fills_node else profile.threads))
    room = smallest - FREE_CPUS
    fits = min(room / sum(n * cpus for n, cpus in zip(actors, wanted)), 1.0)
    if compute.workers == "auto":
        times = [(cpus - FREE_CPUS) / room for cpus in found.cpus]
        counts = [sum(max(int(each * n), 1) for each in times) for n in actors]
    else:
        counts = _distribute(max(compute.workers, len(shares)), shares)
    most = _fit_in_memory(compute, shares, found)
    if sum(counts) > most:
        counts = _distribute(int(most), shares)
    return [
        Pool(n, reservable(c * fits), 0, compute.memory, compute.labels)
        for n, c in zip(counts, wanted)
    ]


def _actors_a_node(
    compute: ComputeConfig, shares: Sequence[float], found: Capacity
) -> Sequence[int]:
    """Of each model, at most, where the configuration says how many there are in all; else 1."""
    if compute.workers == "auto":
        return [1] * len(shares)
    counts = _distribute(max(compute.workers, len(shares)), shares)
    return [math.ceil(count / max(len(found.cpus), 1)) for count in counts]


def _gpus_each(compute: ComputeConfig, models: int, found: Capacity) -> float:
    """GPUs of an actor: as configured, or less where there would not be one for each model."""
    if sum(actors_on(gpus, compute.gpus_per_worker) for gpus in found.gpus) >= models:
        return compute.gpus_per_worker
    whole = sum(int(gpus) for gpus in found.gpus)
    return math.floor(_GPU_PARTS / math.ceil(models / max(whole, 1))) / _GPU_PARTS


def _fit_in_memory(compute: ComputeConfig, shares: Sequence[float], found: Capacity) -> float:
    """How many actors find the memory that each reserves. Raises `ConfigError` for too little."""
    if compute.memory is None:
        return math.inf
    most = sum(int(memory // compute.memory) for memory in found.memory)
    if most < len(shares):
        raise ConfigError(
            f"compute.memory asks for {compute.memory:,} bytes a worker, and {len(shares)} models "
            f"score at once; the cluster's nodes hold {most} such workers.",
            "Lower it, or leave it out.",
        )
    return most


def _distribute(total: float, shares: Sequence[float]) -> list[int]:
    """So many in all, to each model by its share, but at least one."""
    counts = [max(int(total * share), 1) for share in shares]
    while sum(counts) != total:
        step = 1 if sum(counts) < total else -1
        lacking = [step * (total * share - n) for share, n in zip(shares, counts)]
        open_ = [place for place, n in enumerate(counts) if n + step >= 1]
        counts[max(open_, key=lambda place: lacking[place])] += step
    return counts


def _up(value: float) -> int:
    """Rounded up, whatever binary fractions make of a whole number."""
    return math.ceil(value - 1e-9)
