"""The run on Ray: tasks on its nodes, and the Ray Data graph.

    ShardSource -> tokenize (tasks) -> score (actors) -> ShardSink

Where several models score, tokenize and score come once for each, one pair after the other.
Every stage hands on one-row blocks, an envelope a shard. The stages ask for different shares of a
CPU so that Ray never fuses them, and the pool always leaves room for the other stages.
"""

from __future__ import annotations

import gc
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple, TypeVar, cast

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rankmill import backend, cluster, logs, profile, worker
from rankmill.backend import Resolved
from rankmill.commit import CommitSettings, ShardSink
from rankmill.config import ComputeConfig, ModelConfig
from rankmill.envelope import Envelope
from rankmill.errors import ConfigError, RankmillError, RunFailed, is_interrupt
from rankmill.known_scores import KnownScores
from rankmill.models import Description, Tokenizer
from rankmill.plan import Plan
from rankmill.pool import COMMIT_CPUS, READ_CPUS, TOKENIZE_CPUS, Capacity, Pool
from rankmill.profile import Device, Hardware
from rankmill.read import Lookup, ShardSource
from rankmill.source import Source
from rankmill.stages import StageSettings
from rankmill.tokens import PairRules
from rankmill.worker import Bounds, ScoringWorker

# The driver's memory grows with the blocks of one execution (ray-project/ray#66016), so a long
# run is several executions. A new pool costs seconds, this many shards take hours.
SHARDS_AN_EXECUTION = 2_000

# What tasks may take to end when one beside them has failed: Ray starts some again and again.
_END_SECONDS = 60.0

# In a traceback: message and remedy up to the next empty line.
_OUR_ERROR = re.compile(r"^rankmill\.errors\.\w+: (.+?)\n\n", re.DOTALL | re.MULTILINE)

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")


class Step(NamedTuple):
    """What the workers of a model must know, how many they are, and what need not be scored.

    tokenizer: sent where it can be, otherwise None, and every worker loads it.
    """

    settings: StageSettings
    pool: Pool
    known: ray.ObjectRef[KnownScores] | None = None
    tokenizer: ray.ObjectRef[Tokenizer] | None = None


def probe(device: Device, compute: ComputeConfig) -> Hardware:
    """Look at a worker node of the kind that will score."""
    task = ray.remote(**_as_scoring(device, compute))(profile.probe).remote(device)
    found: Hardware = _get([task])[0]
    return found


def _as_scoring(device: Device, compute: ComputeConfig) -> dict[str, Any]:
    """Options of a task that is to run where scoring will."""
    gpus = compute.gpus_per_worker if device == "cuda" else 0
    return {"num_cpus": READ_CPUS, "num_gpus": gpus, "label_selector": compute.labels or None}


def resolve(
    description: Description,
    model: ModelConfig,
    compute: ComputeConfig,
    device: Device,
    cores: int,
) -> Resolved:
    """Find the profile on a worker node of the kind that will score. cores: of it, for an actor.

    Raises `ConfigError` or `BackendUnfit` as `backend.resolve` does.
    """
    remote = ray.remote(**_as_scoring(device, compute))(backend.resolve)
    task = remote.remote(description, model, compute, device, cores)
    resolved: Resolved = _get([task])[0]
    return resolved


def run_on_every_node(function: Callable[[], None], found: Capacity) -> None:
    """Run a function once on each node, for example to fetch a model."""
    remote = ray.remote(num_cpus=READ_CPUS)(lambda: function())
    refs = [
        remote.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=False)
        ).remote()
        for node in found.node_ids
    ]
    _get(refs)


def map_tasks(
    function: Callable[[T], R], items: Sequence[T], cpus: float = TOKENIZE_CPUS
) -> Iterator[R]:
    """Run a function over items as Ray tasks, a bounded number at once; results in order.

    When one fails, those that were begun have ended, or had a minute to, before its error is
    raised.
    """
    remote = ray.remote(num_cpus=cpus)(function)
    window = 4 * max(int(sum(cluster.capacity().cpus)), 1)
    left = iter(items)
    begun = deque(remote.remote(item) for item in islice(left, window))
    while begun:
        try:
            result = _get([begun[0]])[0]
        except RankmillError:
            # The caller may clear up where they write.
            others = list(begun)
            ray.wait(others, num_returns=len(others), timeout=_END_SECONDS, fetch_local=False)
            raise
        begun.popleft()
        begun.extend(remote.remote(item) for item in islice(left, 1))
        yield result


def map_shared(
    function: Callable[[S, T], R], shared: S, items: Sequence[T], cpus: float = TOKENIZE_CPUS
) -> Iterator[R]:
    """`map_tasks` with an object that every task reads; it is sent to the cluster once."""
    reference = ray.put(shared)
    return map_tasks(lambda item: function(ray.get(reference), item), items, cpus)


def hold(function: Callable[[T], R], item: T, cpus: float = 1.0) -> ray.ObjectRef[R]:
    """Run a function as a task; its result stays in the cluster's memory, where tasks find it."""
    # The driver waits for a second result: the first would be brought to its node.
    remote = ray.remote(num_cpus=cpus, num_returns=2)(lambda item: (function(item), None))
    result, done = remote.remote(item)
    _get([done])
    return cast("ray.ObjectRef[R]", result)


def share(known: KnownScores | None) -> ray.ObjectRef[KnownScores] | None:
    """Send what is known to the cluster, once for a run; for a `Step`."""
    return None if known is None else ray.put(known)


def share_tokenizer(tokenizer: Tokenizer) -> ray.ObjectRef[Tokenizer] | None:
    """Send a tokenizer that travels to the cluster, once for a run; for a `Step`."""
    return ray.put(tokenizer) if tokenizer.travels else None


def _get(refs: list[Any]) -> list[Any]:
    try:
        return list(ray.get(refs))
    except RayTaskError as error:
        if isinstance(error.cause, RankmillError):
            raise error.cause from None
        raise ConfigError(
            f"A task on the cluster failed: {type(error.cause).__name__}: {error.cause}.",
            "Every node needs the same version of rankmill and its packages.",
        ) from error
    except RayError as error:
        raise RunFailed(
            f"Ray ended a task: {str(error).strip().splitlines()[-1]}",
            "Run the same command again.",
        ) from error


def run_shards(
    source: Source,
    whole: Plan,
    pending: Sequence[int],
    steps: Sequence[Step],
    commit: CommitSettings,
    bounds: Bounds,
    lookups: Sequence[Lookup] = (),
) -> None:
    """Compute and commit the pending shards.

    steps: a model each, in their order. lookups: see `ShardSource`.

    Raises `RunFailed` when Ray gives up; shards that fail on their own leave a note and do not
    stop the others.
    """
    for start in range(0, len(pending), SHARDS_AN_EXECUTION):
        chosen = list(pending[start : start + SHARDS_AN_EXECUTION])
        failure = None
        try:
            _execute(
                ShardSource(source, whole, chosen, bounds.store, lookups), steps, commit, bounds
            )
        except RayError as error:
            failure = _failure(error)
        except BaseException:
            gc.collect()
            raise
        if failure is not None:
            # Ray ends an actor, and frees its CPUs, when nothing refers to it any more. What is
            # left of a failed execution is a cycle of references, and its error's traceback refers
            # to it: so that error must be gone, and is not the cause of the one that is raised.
            gc.collect()
            raise failure


def _execute(
    source: ShardSource, steps: Sequence[Step], commit: CommitSettings, bounds: Bounds
) -> None:
    with DataContext.current(run_context()):
        scored = graph(source, steps, bounds)
        scored.write_datasink(ShardSink(commit), ray_remote_args={"num_cpus": COMMIT_CPUS})


def _failure(error: RayError) -> RankmillError:
    """What to raise in place of an error of Ray's."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, RankmillError) else _run_failed(error)


def _run_failed(error: RayError) -> RunFailed:
    """What ended a run. Of an error that an actor raised, Ray keeps the text alone."""
    ours = _OUR_ERROR.findall(f"{error}\n\n")
    if ours:
        message, _, remedy = ours[-1].partition("\n")
        return RunFailed(message, remedy or None)
    if isinstance(error, RayTaskError):  # nobody foresaw it: who reports it needs where it was
        logs.log.error("%s", error)
    return RunFailed(
        f"Ray ended the run: {str(error).strip().splitlines()[-1]}",
        "What is committed stays; the same command resumes.",
    )


def run_context() -> DataContext:
    """Ray Data's settings for a run, apart from the session's own."""
    context = DataContext.get_current().copy()
    # A block is cut at its first row: envelopes are never merged and cannot be split.
    context.target_max_block_size = 1
    context.enable_progress_bars = False
    # A worker restarted on a node that is short of memory or disk tries again.
    context.actor_init_retry_on_errors = True
    context.max_consecutive_actor_init_deaths = 3
    # A shard of a slow model may take longer than Ray's half hour; batches are bounded instead.
    context.execution_no_progress_timeout_s = -1
    logs.hush_ray_data()
    return context


def graph(source: ShardSource, steps: Sequence[Step], bounds: Bounds) -> Dataset:
    """The lazy Ray Data graph up to scored envelopes."""
    dataset = ray.data.read_datasource(source, num_cpus=READ_CPUS, override_num_blocks=source.tasks)
    for settings, pool, known, tokenizer in steps:
        dataset = dataset.map_batches(
            tokenize_block,
            fn_args=(settings, bounds, known, tokenizer),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=TOKENIZE_CPUS,
        )
        dataset = map_actors(dataset, ScoreBlocks, (settings, bounds), pool, batch_rows=1)
    return dataset


def map_actors(
    dataset: Dataset, actor: type, arguments: tuple[Any, ...], pool: Pool, batch_rows: int
) -> Dataset:
    """Apply an actor class to batches of at most `batch_rows` rows of a lazy Dataset."""
    return dataset.map_batches(
        actor,
        fn_constructor_args=arguments,
        batch_size=batch_rows,
        batch_format="pyarrow",
        compute=_strategy(pool),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus or None,
        memory=pool.memory,
        label_selector=dict(pool.labels) or None,
    )


def map_groups(
    dataset: Dataset,
    key: str,
    function: Callable[..., pa.Table],
    arguments: dict[str, Any],
    partitions: int,
) -> Dataset:
    """Apply a function to the rows of each value of a column, brought together by a shuffle.

    It asks for a whole CPU, as the shuffle's reducers do, so that Ray fuses them.
    """
    return dataset.groupby(key, num_partitions=partitions).map_groups(
        function, fn_kwargs=arguments, batch_format="pyarrow"
    )


def _strategy(pool: Pool) -> ActorPoolStrategy:
    return ActorPoolStrategy(
        min_size=1,
        max_size=pool.workers,
        initial_size=pool.workers,
        max_tasks_in_flight_per_actor=2,
    )


def tokenize_block(
    block: pa.Table,
    settings: StageSettings,
    bounds: Bounds,
    shared: ray.ObjectRef[KnownScores] | None = None,
    sent: ray.ObjectRef[Tokenizer] | None = None,
) -> pa.Table:
    """Tokenize the envelopes of a block. shared: what is known of their pairs; sent: see `Step`."""
    _write_logs(bounds.run)
    try:
        tokenizer = _tokenizer(_Wanted(settings.description, settings.rules, sent))
    except BaseException as error:
        if is_interrupt(error):
            # A run that ends cancels its tasks. One that was importing leaves C extensions half
            # loaded, and Ray would give this process to a later run's task.
            os._exit(1)
        raise
    known = None if shared is None else ray.get(shared)
    return _each(block, lambda one: worker.tokenize(one, settings, tokenizer, bounds, known))


@lru_cache(maxsize=1)
def _write_logs(run: str) -> None:
    """Have this worker process say what happens in its log, where Ray keeps it."""
    logs.write_json()
    logs.name_run(run)


@dataclass(frozen=True)
class _Wanted:
    """A tokenizer. Where it was sent does not make it another: a cache holds on to one of them."""

    description: Description
    rules: PairRules
    sent: ray.ObjectRef[Tokenizer] | None = field(compare=False)


@lru_cache(maxsize=8)
def _tokenizer(wanted: _Wanted) -> Tokenizer:
    """One tokenizer a worker process: building it takes longer than a small shard."""
    if wanted.sent is None:
        return wanted.description.tokenizer(wanted.rules)
    return ray.get(wanted.sent)


class ScoreBlocks:
    """A scoring actor."""

    def __init__(self, settings: StageSettings, bounds: Bounds) -> None:
        _write_logs(bounds.run)
        self._worker = ScoringWorker(settings, bounds)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Score the envelopes of a block. Raises `ModelError` when there is no model."""
        scored = _each(block, self._worker.score)
        if self._worker.unusable is not None:
            raise self._worker.unusable
        return scored


def _each(block: pa.Table, step: Callable[[Envelope], Envelope]) -> pa.Table:
    """Apply a step to every envelope that has not failed. A failure stays with its shard."""
    done = []
    for envelope in Envelope.from_block(block):
        if envelope.error is None:
            try:
                envelope = step(envelope)
            except BaseException as error:  # one shard's failure must not end the run
                if is_interrupt(error):
                    raise
                envelope = envelope.failed(error)
        done.append(envelope.to_block())
    return pa.concat_tables(done)
