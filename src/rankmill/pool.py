"""How a run spreads over a cluster: which device, how many scoring actors, what each reserves.

Pure arithmetic over the nodes' resources. The pool never takes all CPUs: reads, tokenizing and
commits must always find room, or nothing moves.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from rankmill.config import ComputeConfig
from rankmill.errors import ConfigError
from rankmill.labels import takes
from rankmill.profile import Device

# Shares of a CPU. All differ (equal shares let Ray fuse stages), and any one fits into the half
# CPU that the pool leaves free on a one-core node.
READ_CPUS = 0.2
TOKENIZE_CPUS = 0.25
COMMIT_CPUS = 0.15
FREE_CPUS = 0.5
# 1 / 0.1 actors are ten, whatever binary fractions make of it.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Capacity:
    """What the cluster has: CPUs, GPUs, bytes of memory and labels of each live node with CPUs."""

    cpus: tuple[float, ...]
    gpus: tuple[float, ...]
    node_ids: tuple[str, ...]
    memory: tuple[float, ...] = ()
    labels: tuple[Mapping[str, str], ...] = ()

    def of(self, selectors: Mapping[str, str]) -> Capacity:
        """The nodes that label selectors take; all where there are none."""
        if not selectors:
            return self
        nodes = zip(self.cpus, self.gpus, self.node_ids, self.memory, self.labels, strict=True)
        taken = [node for node in nodes if takes(selectors, node[-1])]
        return Capacity(*zip(*taken)) if taken else Capacity((), (), (), (), ())


@dataclass(frozen=True)
class Pool:
    """The scoring actors: how many, and what each of them reserves."""

    workers: int
    cpus: float
    gpus: float
    memory: int | None
    labels: Mapping[str, str] = field(default_factory=dict)


def choose_device(compute: ComputeConfig, found: Capacity) -> Device:
    """cuda where the cluster has GPUs, cpu otherwise, unless the configuration says.

    Raises `ConfigError` for `cuda` on a cluster without enough GPUs.
    """
    most = max(found.gpus, default=0.0)
    if compute.device == "auto":
        return "cuda" if most >= compute.gpus_per_worker else "cpu"
    if compute.device == "cuda" and most < compute.gpus_per_worker:
        raise ConfigError(
            f"compute.device is cuda and a worker needs {compute.gpus_per_worker:g} GPU(s), but "
            f"the cluster's nodes have {most:g} at most.",
            "Set compute.device to auto or cpu, or run on a cluster with GPUs.",
        )
    return compute.device


def cores_a_worker(compute: ComputeConfig, found: Capacity) -> int:
    """CPUs of the smallest node for each of its actors, where one actor is to have a node's.

    One is, unless `compute.workers` asks for more actors than there are nodes.
    """
    nodes = max(len(found.cpus), 1)
    actors = 1 if compute.workers == "auto" else math.ceil(compute.workers / nodes)
    return max(int(min(found.cpus, default=1)) // actors, 1)


def size_pool(
    compute: ComputeConfig,
    device: Device,
    threads: int,
    found: Capacity,
    whole_nodes: bool = False,
) -> Pool:
    """How many actors, and what each reserves, so that reads and commits always find room.

    whole_nodes: an actor is to have a node's CPUs, as far as `compute` does not say otherwise (a
    node larger than the smallest has room for several).

    Raises `ConfigError` when no node can hold a worker, or the nodes' memory not all of them.
    """
    if not found.cpus:
        chosen = ", ".join(f"{label}: {text}" for label, text in compute.labels.items())
        raise ConfigError(
            f"The cluster has no node with {chosen or 'CPUs'}.",
            "Start such a node"
            + (", or change compute.labels." if chosen else ", or wait for it."),
        )
    held = _held(compute, found)
    if compute.memory is not None and not max(held):
        raise ConfigError(
            f"compute.memory asks for {compute.memory:,} bytes a worker; the largest node has "
            f"{max(found.memory):,.0f}.",
            "Lower it, or leave it out.",
        )
    if device == "cuda":
        pool = _gpu_pool(compute, found, held)
    elif device == "mps":  # one Apple GPU serves one process
        pool = Pool(1, _share(found.cpus[0], 1, 1), 0, compute.memory)
    else:
        pool = _cpu_pool(compute, threads, found, held, whole_nodes)
    return replace(pool, labels=compute.labels)


def _cpu_pool(
    compute: ComputeConfig, threads: int, found: Capacity, held: list[int], whole_nodes: bool
) -> Pool:
    # Actors of one pool reserve the same share everywhere: what the smallest node can give.
    smallest = min(found.cpus)
    if whole_nodes and compute.cpus_per_worker == "auto":
        threads = cores_a_worker(compute, found)
    cpus = _share(smallest, workers_on(smallest, threads), threads)
    fits = sum(
        min(workers_on(c, threads), int((c - FREE_CPUS) / cpus), most)
        for c, most in zip(found.cpus, held, strict=True)
    )
    if compute.workers == "auto" or compute.workers <= fits:
        workers = max(fits, 1) if compute.workers == "auto" else compute.workers
        return Pool(workers, cpus, 0, compute.memory)
    if compute.memory is not None and compute.workers > sum(held):
        raise ConfigError(
            f"compute.workers asks for {compute.workers} workers of {compute.memory:,} bytes; the "
            f"nodes' memory holds {sum(held)}.",
            "Lower compute.workers or compute.memory, or add nodes.",
        )
    a_node = math.ceil(compute.workers / len(found.cpus))
    return Pool(compute.workers, _share(smallest, a_node, threads), 0, compute.memory)


def _gpu_pool(compute: ComputeConfig, found: Capacity, held: list[int]) -> Pool:
    """Actors on GPUs, each with at most its share of half its node's CPUs: the other half reads
    and tokenizes what they score."""
    actors = _gpu_actors(compute, found, held)
    fits = sum(actors)
    if not fits:
        raise ConfigError(
            f"No node has both a worker's GPU and the {compute.memory or 0:,} bytes of "
            "compute.memory.",
            "Lower compute.memory, or leave it out.",
        )
    workers = fits if compute.workers == "auto" else min(compute.workers, fits)
    cpus = min(_share(c / 2, n, 1) for c, n in zip(found.cpus, actors, strict=True) if n)
    return Pool(workers, cpus, compute.gpus_per_worker, compute.memory)


def gpu_workers(compute: ComputeConfig, found: Capacity) -> int:
    """How many workers the nodes' GPUs (and memory) hold."""
    return sum(_gpu_actors(compute, found, _held(compute, found)))


def _gpu_actors(compute: ComputeConfig, found: Capacity, held: list[int]) -> list[int]:
    return [
        min(actors_on(gpus, compute.gpus_per_worker), most)
        for gpus, most in zip(found.gpus, held, strict=True)
    ]


def _held(compute: ComputeConfig, found: Capacity) -> list[int]:
    """How many actors each node's memory holds; where none is reserved it sets no bound."""
    if compute.memory is None:
        return [sys.maxsize] * len(found.cpus)
    return [int(memory // compute.memory) for memory in found.memory]


def actors_on(gpus: float, share: float) -> int:
    """How many actors a node's GPUs hold. A part of a GPU is of one GPU: Ray never joins two."""
    if share >= 1:
        return int(gpus // share)
    return int(gpus) * int(1 / share + _ROUNDING)


def workers_on(cpus: float, threads: int) -> int:
    """How many actors of so many threads a node's CPUs hold, at least one."""
    if threads == 1:
        return max(int(cpus), 1)
    return max(int((cpus - FREE_CPUS) // threads), 1)


def _share(cpus: float, workers: int, threads: int) -> float:
    """CPUs that an actor reserves: its threads, or what fits; whole above one, as Ray demands."""
    return reservable(min(float(threads), (cpus - FREE_CPUS) / workers))


def reservable(cpus: float) -> float:
    """Such a share of CPUs, or slightly less: whole above one, as Ray demands, and never what
    tokenizing takes, or Ray would fuse both."""
    if cpus >= 1:
        return float(int(cpus))
    share = max(math.floor(cpus * 1000) / 1000, 0.001)
    return share - 0.001 if share == TOKENIZE_CPUS else share
