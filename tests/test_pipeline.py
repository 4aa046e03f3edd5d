"""The graph that Ray makes of a run: nothing fused, one shard a block, room for every stage."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from ray.data import DataContext
from ray.data._internal.logical.optimizers import get_execution_plan
from ray.exceptions import WorkerCrashedError

from conftest import make_pairs
from rankmill import cluster, pipeline, plan, scan
from rankmill.config import ComputeConfig, InputConfig, ModelConfig, load_config
from rankmill.errors import ConfigError, InputError, RunFailed
from rankmill.job import _stage_settings
from rankmill.pipeline import Step
from rankmill.pool import COMMIT_CPUS, READ_CPUS, TOKENIZE_CPUS, Capacity, choose_device, size_pool
from rankmill.prepared import Prepared, prepare
from rankmill.profile import make_profile, probe
from rankmill.read import ShardSource
from rankmill.source import open_source
from rankmill.worker import Bounds

Write = Callable[..., str]


@pytest.fixture
def prepared(
    ray_cluster: None,
    tmp_path: object,
    tiny_model: Callable[[str], str],
    write_pairs: Write,
    monkeypatch: pytest.MonkeyPatch,
) -> Prepared:
    """Seven shards in one file of several row groups."""
    monkeypatch.setattr(plan, "SHARD_PAIRS", 40)
    path = write_pairs(make_pairs(28, 10), row_group_size=33)
    return prepare(
        load_config(
            overrides={
                "input.path": path,
                "output.path": f"{tmp_path}/out",
                "model.name": tiny_model("bert"),
            }
        )
    )


def dataset(ready: Prepared, workers: int = 2, **reserved: Any) -> ray.data.Dataset:
    profile = make_profile(
        ModelConfig(name="x"), ComputeConfig(), "cpu", probe("cpu"), operations_per_token=1e6
    )
    compute = ComputeConfig(workers=workers)
    pool = size_pool(compute, "cpu", profile.threads, cluster.capacity())
    source = ShardSource(ready.source, ready.plan, ready.pending, ready.store)
    bounds = Bounds(ready.store, ready.config.compute.batch_timeout)
    (settings,) = _stage_settings(ready, [profile])
    return pipeline.graph(source, [Step(settings, replace(pool, **reserved))], bounds)


def test_stages_are_not_fused(prepared: Prepared) -> None:
    assert len(prepared.plan) == 7
    with DataContext.current(pipeline.run_context()):
        physical, _ = get_execution_plan(dataset(prepared)._logical_plan)
    stages, operator = [], physical.dag
    while operator is not None:
        stages.append(operator.name)
        operator = operator.input_dependencies[0] if operator.input_dependencies else None
    assert stages == [
        "MapBatches(ScoreBlocks)",
        "MapBatches(tokenize_block)",
        "ReadShardSource",
        "Input",
    ]


def test_every_block_is_one_shard_and_every_shard_passes_once(prepared: Prepared) -> None:
    with DataContext.current(pipeline.run_context()):
        bundles = list(dataset(prepared).iter_internal_ref_bundles())
    blocks = [ray.get(ref) for bundle in bundles for ref in bundle.block_refs]
    assert [block.num_rows for block in blocks] == [1] * 7
    assert sorted(block.column("shard")[0].as_py() for block in blocks) == list(range(7))


@given(
    cpus=st.lists(st.integers(1, 256), min_size=1, max_size=8),
    threads=st.integers(1, 64),
    workers=st.one_of(st.just("auto"), st.integers(1, 100)),
)
def test_the_pool_leaves_room_for_the_other_stages(
    cpus: list[int], threads: int, workers: int | str
) -> None:
    found = Capacity(tuple(map(float, cpus)), (0.0,) * len(cpus), tuple(map(str, cpus)))
    compute = ComputeConfig(workers=workers)  # type: ignore[arg-type]
    pool = size_pool(compute, "cpu", threads, found)
    room = sum(cpus) - pool.cpus * pool.workers
    needed = max(READ_CPUS, TOKENIZE_CPUS, COMMIT_CPUS)
    assert pool.workers >= 1
    assert pool.cpus > 0
    assert pool.cpus < 1 or pool.cpus == int(pool.cpus), "Ray wants whole CPUs above one"
    assert room >= needed - 1e-9


def test_cuda_without_a_gpu_is_refused() -> None:
    found = Capacity((2.0,), (0.0,), ("a",))
    with pytest.raises(ConfigError, match="have 0 at most"):
        choose_device(ComputeConfig(device="cuda"), found)


def test_auto_takes_gpus_where_there_are_some() -> None:
    assert choose_device(ComputeConfig(), Capacity((8.0,), (2.0,), ("a",))) == "cuda"
    assert choose_device(ComputeConfig(), Capacity((8.0,), (0.0,), ("a",))) == "cpu"


def test_gpu_workers_are_as_many_as_gpus() -> None:
    found = Capacity((16.0, 8.0), (4.0, 0.0), ("a", "b"))
    pool = size_pool(ComputeConfig(), "cuda", 1, found)
    assert (pool.workers, pool.gpus) == (4, 1)


@pytest.mark.parametrize(
    ("gpus", "share", "workers"),
    [
        ((1,), 0.5, 2),
        ((1,), 0.1, 10),
        ((1,), 0.3, 3),
        # Two GPUs have room for four such actors: what is left of each does not make a fifth.
        ((2,), 0.4, 4),
        ((4, 0, 1), 0.5, 10),
        ((4,), 2, 2),
        ((3, 1), 2, 1),
    ],
)
def test_a_gpu_holds_as_many_actors_as_its_parts(
    gpus: tuple[float, ...], share: float, workers: int
) -> None:
    found = Capacity((16.0,) * len(gpus), gpus, tuple(map(str, range(len(gpus)))))
    pool = size_pool(ComputeConfig(gpus_per_worker=share), "cuda", 1, found)
    assert (pool.workers, pool.gpus) == (workers, share)
    fewer = size_pool(ComputeConfig(gpus_per_worker=share, workers=1), "cuda", 1, found)
    assert fewer.workers == 1


@pytest.mark.parametrize("cpus", [1, 2, 4, 8, 64])
@pytest.mark.parametrize("share", [1, 0.25])
def test_actors_on_gpus_leave_half_the_cpus_to_tokenizing(cpus: int, share: float) -> None:
    pool = size_pool(
        ComputeConfig(gpus_per_worker=share), "cuda", 1, Capacity((float(cpus),), (2.0,), ("a",))
    )
    assert 0 < pool.cpus <= 1
    assert cpus - pool.workers * pool.cpus >= max(cpus / 2, 0.9)


def test_actors_are_as_many_as_the_nodes_memory_holds() -> None:
    found = Capacity((8.0, 8.0), (4.0, 4.0), ("a", "b"), (5e9, 1e9))
    compute = ComputeConfig(memory=2_000_000_000)
    assert size_pool(compute, "cuda", 1, found).workers == 2
    assert size_pool(compute, "cpu", 1, found).workers == 2
    with pytest.raises(ConfigError, match=r"3 workers of 2,000,000,000 bytes.* holds 2"):
        size_pool(compute.model_copy(update={"workers": 3}), "cpu", 1, found)
    with pytest.raises(ConfigError, match=r"the largest node has 5,000,000,000"):
        size_pool(ComputeConfig(memory=6_000_000_000), "cpu", 1, found)


@pytest.mark.parametrize(
    ("selector", "nodes"),
    [
        ("h100", ("a",)),
        ("!h100", ("b", "c")),
        ("in(h100, l4)", ("a", "b")),
        ("!in(h100,l4)", ("c",)),
        ("a100", ()),
    ],
)
def test_labels_select_the_nodes_that_score(selector: str, nodes: tuple[str, ...]) -> None:
    labels = ({"gpu": "h100"}, {"gpu": "l4"}, {})
    found = Capacity((8.0, 4.0, 2.0), (1.0, 1.0, 0.0), ("a", "b", "c"), (1.0,) * 3, labels)
    assert found.of({"gpu": selector}).node_ids == nodes


def test_labels_that_no_node_has_are_named() -> None:
    found = Capacity((8.0,), (0.0,), ("a",), (1.0,), ({},))
    compute = ComputeConfig(labels={"gpu": "h100"})
    with pytest.raises(ConfigError, match="no node with gpu: h100"):
        size_pool(compute, "cpu", 1, found.of(compute.labels))


def test_a_selector_that_ray_would_not_take_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"compute\.labels.*gpu must be a value, !value"):
        load_config(
            overrides={
                **{"input.path": "a", "output.path": "b", "model.name": "demo"},
                "compute.labels": {"gpu": "in(h100"},
            }
        )


def test_scoring_actors_are_held_to_memory_and_labels(prepared: Prepared) -> None:
    chosen = {"gpu": "!in(l4)"}
    actors = dataset(prepared, memory=1 << 20, labels=chosen)
    with DataContext.current(pipeline.run_context()):
        physical, _ = get_execution_plan(actors._logical_plan)
    options = physical.dag._ray_remote_args
    assert (options["memory"], options["label_selector"]) == (1 << 20, chosen)


def test_gpus_that_do_not_come_are_waited_for_and_then_done_without_or_missed(
    ray_cluster: None,
) -> None:
    found = cluster.scoring_capacity(ComputeConfig(wait_seconds=1))
    assert choose_device(ComputeConfig(), found) == "cpu"
    with pytest.raises(ConfigError, match="have 0 at most"):
        choose_device(ComputeConfig(device="cuda"), found)


def test_a_pool_on_parts_of_gpus_waits_for_its_nodes_and_starts_there() -> None:
    ask = """
import threading
import ray
from ray.cluster_utils import Cluster
from rankmill.cluster import scoring_capacity
from rankmill.config import ComputeConfig
from rankmill.pool import choose_device, size_pool

nodes = Cluster(True, head_node_args={"num_cpus": 1, "include_dashboard": False})
ray.init(nodes.address)
labels = {"kind": "in(a, b)"}
compute = ComputeConfig(gpus_per_worker=0.4, workers=4, labels=labels, wait_seconds=90)
found = []
waiting = threading.Thread(target=lambda: found.append(scoring_capacity(compute)))
waiting.start()
nodes.add_node(num_cpus=2, num_gpus=2, labels={"kind": "a"})
waiting.join()
assert choose_device(compute, found[0]) == "cuda"
pool = size_pool(compute, "cuda", 1, found[0])

@ray.remote(num_cpus=pool.cpus, num_gpus=pool.gpus, label_selector=dict(pool.labels))
class Actor:
    def which(self):
        return ray.get_gpu_ids()[0]

actors = [Actor.remote() for _ in range(pool.workers)]
print("on", sorted(ray.get([actor.which.remote() for actor in actors], timeout=60)))
"""
    # A cluster with tokens would write one into the user's home.
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, "-c", ask], capture_output=True, text=True, check=False, env=environment
    )
    assert "on [0, 0, 1, 1]" in done.stdout, done.stderr


def test_tasks_share_an_object_and_answer_in_order(ray_cluster: None) -> None:
    found = pipeline.map_shared(lambda words, place: words[place], ["a", "b", "c"], [2, 0, 1])
    assert list(found) == ["c", "a", "b"]


def test_when_a_task_fails_the_others_have_ended_before_it_is_told(
    ray_cluster: None, tmp_path: Path
) -> None:
    first = tmp_path / "first"

    def work(number: int) -> None:
        if number == 0:
            while not first.exists():
                time.sleep(0.01)
            raise InputError("the first fails")
        first.touch()
        time.sleep(1)
        (tmp_path / f"{number}").touch()

    with pytest.raises(InputError, match="the first fails"):
        list(pipeline.map_tasks(work, [0, 1, 2]))
    assert {path.name for path in tmp_path.iterdir()} == {"first", "1", "2"}


def test_tasks_scan_a_large_input_as_the_driver_scans_a_small_one(
    ray_cluster: None, write_pairs: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(InputConfig(path=write_pairs(make_pairs(20, 7), row_group_size=9)))
    here = list(scan.scan(source, ComputeConfig()))
    monkeypatch.setattr(scan, "ON_DRIVER_ROWS", 0)
    monkeypatch.setattr(scan, "_GROUPS_A_TASK", 3)
    on_tasks = list(scan.scan(source, ComputeConfig()))
    assert [run.key.tolist() for run in on_tasks] == [run.key.tolist() for run in here]
    assert [run.start.tolist() for run in on_tasks] == [run.start.tolist() for run in here]
    assert len(here) == 16


def test_a_process_that_was_interrupted_while_it_loaded_a_tokenizer_is_not_used_again(
    prepared: Prepared, ray_cluster: None
) -> None:
    class Interrupted:
        def tokenizer(self, rules: object) -> None:
            raise KeyboardInterrupt

    profile = make_profile(
        ModelConfig(name="x"), ComputeConfig(), "cpu", probe("cpu"), operations_per_token=1e6
    )
    (known,) = _stage_settings(prepared, [profile])
    settings = replace(known, description=Interrupted())
    task = ray.remote(max_retries=0)(pipeline.tokenize_block)
    with pytest.raises(WorkerCrashedError):
        ray.get(task.remote(pa.table({}), settings, Bounds(prepared.store, 60)))


def test_a_task_whose_process_dies_again_and_again_ends_with_a_remedy(ray_cluster: None) -> None:
    with pytest.raises(RunFailed, match="Ray ended a task") as failed:
        list(pipeline.map_tasks(lambda _: os._exit(1), [0]))
    assert failed.value.remedy == "Run the same command again."
    print(failed.value)
