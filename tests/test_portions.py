"""How the models of a run share a cluster: every one finds room, whatever the others hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankmill.config import ComputeConfig
from rankmill.errors import ConfigError
from rankmill.load import Estimate, Load, shares
from rankmill.pool import FREE_CPUS, TOKENIZE_CPUS, Capacity, Pool, size_pool
from rankmill.portions import divide, size_pools
from rankmill.profile import Profile
from rankmill.tokens import PairRules


def cluster(cpus: list[int], gpus: list[int] | None = None, memory: float = 1e12) -> Capacity:
    found = gpus or [0] * len(cpus)
    names = tuple(map(str, range(len(cpus))))
    return Capacity(tuple(map(float, cpus)), tuple(map(float, found)), names, (memory,) * len(cpus))


def profile(backend: str, threads: int = 1, device: Any = "cpu") -> Profile:
    return Profile(backend, "fp32", device, "avx2", threads, 1024)


def pools(
    compute: ComputeConfig,
    parts: list[float],
    found: Capacity,
    backends: list[str] | None = None,
    device: Any = "cpu",
) -> list[Pool]:
    portions = divide(compute, device, parts, found)
    kinds = backends or ["torch"] * len(parts)
    profiles = [
        profile(kind, portion.cores if kind == "openvino" else 1, device)
        for kind, portion in zip(kinds, portions)
    ]
    return size_pools(compute, device, profiles, portions, found)


def free_after(actors: list[float], cpus: list[int]) -> list[float]:
    """CPUs that are free on each node once these actors are placed, each on the fullest node that
    has room, so as to leave the least to those that come after; one that finds none waits."""
    free = list(map(float, cpus))
    for share in actors:
        fitting = [node for node, left in enumerate(free) if left >= share - 1e-9]
        if fitting:
            free[min(fitting, key=lambda node: free[node])] -= share
    return free


@given(
    node=st.integers(1, 64),
    nodes=st.integers(1, 6),
    work=st.lists(st.floats(0.001, 1000), min_size=2, max_size=4),
    workers=st.one_of(st.just("auto"), st.integers(1, 40)),
    backends=st.lists(st.sampled_from(["torch", "openvino"]), min_size=4, max_size=4),
)
def test_every_model_has_an_actor_that_finds_room_beside_all_others(
    node: int, nodes: int, work: list[float], workers: Any, backends: list[str]
) -> None:
    parts = [one / sum(work) for one in work]
    found = cluster([node] * nodes)
    made = pools(ComputeConfig(workers=workers), parts, found, backends)
    assert all(pool.workers >= 1 for pool in made)
    assert all(pool.cpus == int(pool.cpus) or 0 < pool.cpus < 1 for pool in made)
    assert all(pool.cpus != TOKENIZE_CPUS for pool in made), "Ray would fuse it with tokenizing"
    for last in range(len(made)):
        # All actors of the other models come first; one of this one's must still find room.
        others = [p.cpus for at, p in enumerate(made) if at != last for _ in range(p.workers)]
        free = free_after(others, [node] * nodes)
        assert max(free) >= made[last].cpus - 1e-9
        assert max(free_after([*others, made[last].cpus], [node] * nodes)) >= TOKENIZE_CPUS


@given(
    cpus=st.lists(st.integers(1, 64), min_size=1, max_size=5),
    work=st.lists(st.floats(0.001, 1000), min_size=2, max_size=3),
)
def test_all_actors_together_leave_room_on_nodes_of_any_size(
    cpus: list[int], work: list[float]
) -> None:
    made = pools(ComputeConfig(), [one / sum(work) for one in work], cluster(cpus))
    taken = sum(pool.cpus * pool.workers for pool in made)
    assert taken <= sum(cpus) - FREE_CPUS * len(cpus) + 1e-9


def test_actors_are_as_many_as_a_models_share_of_the_work() -> None:
    made = pools(ComputeConfig(), [0.25, 0.75], cluster([8, 8, 8, 8]))
    assert [pool.workers for pool in made] == [8, 24]
    made = pools(ComputeConfig(workers=12), [0.25, 0.75], cluster([8, 8, 8, 8]))
    assert [pool.workers for pool in made] == [3, 9]


def test_openvino_counts_on_its_share_of_a_nodes_cores() -> None:
    found = cluster([16, 16])
    portions = divide(ComputeConfig(), "cpu", [0.25, 0.75], found)
    assert [portion.cores for portion in portions] == [4, 12]
    made = pools(ComputeConfig(), [0.25, 0.75], found, ["openvino"] * 2)
    assert [(pool.workers, pool.cpus) for pool in made] == [(2, 3.0), (2, 11.0)]


@pytest.mark.parametrize(
    ("gpus", "a_worker", "parts", "workers", "each"),
    [
        ([1], 1, [0.2, 0.8], [1, 1], 0.5),
        ([4], 1, [0.25, 0.75], [1, 3], 1),
        ([1], 0.25, [0.5, 0.5], [2, 2], 0.25),
        ([1], 1, [0.2, 0.3, 0.5], [1, 1, 1], 0.3333),
        ([2], 2, [0.1, 0.9], [1, 1], 1),
    ],
)
def test_gpus_are_shared_by_work_and_halved_where_there_are_too_few(
    gpus: list[int], a_worker: float, parts: list[float], workers: list[int], each: float
) -> None:
    compute = ComputeConfig(gpus_per_worker=a_worker)
    made = pools(compute, parts, cluster([8] * len(gpus), gpus), device="cuda")
    assert [pool.workers for pool in made] == workers
    assert {pool.gpus for pool in made} == {each}


def test_memory_that_does_not_hold_an_actor_of_each_model_is_refused() -> None:
    compute = ComputeConfig(memory=6 << 30)
    with pytest.raises(ConfigError, match="2 models score at once; the cluster's nodes hold 1"):
        pools(compute, [0.5, 0.5], cluster([8], memory=10 << 30))
    made = pools(compute, [0.1, 0.9], cluster([8], memory=20 << 30))
    assert [pool.workers for pool in made] == [1, 2]


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_workers_of_several_models_stay_on_the_labelled_nodes_too(device: str) -> None:
    labels = {"pool": "scoring"}
    made = pools(ComputeConfig(labels=labels), [0.5, 0.5], cluster([8], [2]), device=device)
    assert [pool.labels for pool in made] == [labels, labels]


def test_memory_counts_where_the_gpus_are() -> None:
    found = replace(cluster([8, 8], [0, 1]), memory=(100e9, 5e9))
    compute = ComputeConfig(memory=4_000_000_000)
    with pytest.raises(ConfigError, match="nodes with GPUs hold 1 worker"):
        pools(compute, [0.5, 0.5], found, device="cuda")


def test_one_model_has_the_cluster_as_if_it_were_not_shared() -> None:
    compute, found = ComputeConfig(), cluster([8, 4])
    assert pools(compute, [1.0], found) == [size_pool(compute, "cpu", 1, found)]


# Work


def test_a_model_that_sees_the_best_of_each_list_has_that_share_of_the_pairs() -> None:
    rules = PairRules(512, "document")
    assert Load(1e6, rules).share(1000, 10) == 1
    assert Load(1e6, rules, best=20).share(1000, 10) == 0.2
    assert Load(1e6, rules, best=200).share(1000, 10) == 1


def test_work_is_shared_by_operations() -> None:
    found = [Estimate(100, 1000, 1e9), Estimate(10, 100, 3e9)]
    assert shares(found) == [0.25, 0.75]
    assert shares([Estimate(1, 1, 0.0)] * 2) == [0.5, 0.5]
