"""The job from start to end: resolve, plan, hold the output, run, report."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from rankmill import (
    cluster,
    gates,
    load,
    logs,
    notebook,
    output,
    pipeline,
    portions,
    reuse,
    runs,
    storage,
)
from rankmill.commit import CommitSettings
from rankmill.completion import RunResult, already_complete, finish
from rankmill.config import ComputeConfig, RunConfig
from rankmill.errors import (
    BackendUnfit,
    ConfigError,
    OutputBusy,
    OutputError,
    RunFailed,
    StartError,
)
from rankmill.lease import Lease
from rankmill.metrics import RunMetrics
from rankmill.models import Description, presets
from rankmill.pipeline import Step
from rankmill.pool import Pool, choose_device
from rankmill.portions import Portion
from rankmill.prepared import Prepared, RunModel, carried_columns, prepare
from rankmill.profile import SCORING_VERSION, Device, Profile, with_threads
from rankmill.progress import Listener, Watch
from rankmill.read import Lookup
from rankmill.report import draw_or_warn
from rankmill.runs import Run
from rankmill.source import Source
from rankmill.stages import StageSettings
from rankmill.worker import Bounds

log = logging.getLogger("rankmill")


def rerank(
    config: RunConfig,
    *,
    overwrite: bool = False,
    listener: Listener | None = None,
    model: Description | None = None,
) -> RunResult:
    """Run the job. The same call again resumes it, or finds it complete.

    listener: told about once a second how far the run is; unless given, a notebook's cell shows it.
    model: an own `Description` in place of the one that `config.model` names.

    Raises `StartError` (nothing was started), `OutputBusy`, `RunFailed` (what is committed
    stays), or `GatesFailed` (all is committed, without `_SUCCESS`).
    """
    started = time.monotonic()
    if cluster.is_foreign_cluster(config.compute):
        given = [path for paths in config.input.all_paths.values() for path in paths]
        previous = filter(None, [*config.reuse, config.gates.previous])
        output.refuse_relative([*given, config.output.path, *previous])
    ready = prepare(config, overwrite=overwrite, model=model)
    if ready.is_complete:
        return already_complete(ready)
    gates.refuse_unmeasurable(ready.config, carried_columns(ready.config, ready.source))
    with ExitStack() as stack:
        with storage.reaching(ready.store.url, "written"):
            lease = stack.enter_context(Lease(ready.store))
            _refuse_changed_output(ready, overwrite)
        stack.enter_context(cluster.connected(ready.config.compute))
        profiles, pools = _resolve(ready)
        ready.refuse_uncalibrated(profiles)
        source: Source = ready.source
        lookups: tuple[Lookup, ...] = ()
        if ready.pending:
            source, lookups = ready.staging.carry_out(lease)
        described = [model.description for model in ready.models]
        run = runs.make_run(
            ready.config, ready.source, described, ready.plan, profiles, ready.beside
        )
        with storage.reaching(ready.store.url, "written"), ready.store.locked():
            lease.refuse_lost()
            if overwrite:
                output.remove_old(ready.store)
            record = run.to_bytes() if ready.stored is None else None
            output.begin(ready.store, record, ready.pending)
            ready = replace(ready, store=output.fenced(ready.store))
        logs.name_run(run.fingerprint)
        steps: list[Step] = []
        if ready.pending:
            for line in map(_resolved_line, ready.models, profiles, pools):
                log.info("%s", line)
            _prepare_nodes(ready, profiles)
            steps = _steps(ready, run, profiles, pools)
        watch = stack.enter_context(
            Watch(
                ready.store,
                len(ready.plan),
                ready.plan.pairs,
                ready.committed,
                run.fingerprint,
                lease,
                listener or notebook.listener(),
                RunMetrics(run.fingerprint).record,
            )
        )
        try:
            pipeline.run_shards(
                source,
                ready.plan,
                ready.pending,
                steps,
                _commit_settings(ready, run),
                Bounds(ready.store, ready.config.compute.batch_timeout, run.fingerprint),
                lookups,
            )
        except KeyboardInterrupt:
            if not lease.lost:
                raise
        except StartError as error:  # too late to be one: shards may be committed
            raise RunFailed(error.message, error.remedy) from error
        try:
            lease.refuse_lost()
            watch.finish()
            # What counts is what lies in the output now, whatever was seen on the way.
            done, _ = output.committed(ready.store, run.fingerprint, len(ready.plan))
            stack.callback(draw_or_warn, ready.store, done, ready.config.report.texts)
            return finish(ready, run, pools, done, time.monotonic() - started, lease)
        except OSError as error:
            raise RunFailed(
                f"{ready.store.url} is out of reach at the end of the run: {error}.",
                "What is committed stays; the same command resumes.",
            ) from error


def _refuse_changed_output(ready: Prepared, overwrite: bool) -> None:
    """Raise `OutputBusy` when another run has come and gone since the output was looked at."""
    if not overwrite and runs.stored_run(ready.store) != ready.stored:
        raise OutputBusy(
            f"Another run has written to {ready.store.url} in the meantime.",
            "Run the same command again.",
        )


def _resolve(ready: Prepared) -> tuple[list[Profile], list[Pool]]:
    """Each model's profile (an earlier start's binds) and the pool that fits the cluster.

    Where nothing is left to score (a gate is checked again), the cluster need hold no worker.
    """
    compute = ready.config.compute
    known = None if ready.stored is None else runs.stored_profiles(ready.stored)
    if known is not None:
        if not ready.pending:
            return known, [Pool(0, 0, 0, compute.memory, compute.labels)] * len(known)
        compute = compute.model_copy(update={"device": known[0].device})
    found = cluster.scoring_capacity(compute)
    device = choose_device(compute, found)
    if known is None:
        _advise_larger_shards(compute, device)
    parts = portions.divide(compute, device, load.shares(ready.estimates), found)
    if known is None:
        profiles = [
            _find_profile(model, compute, device, part) for model, part in zip(ready.models, parts)
        ]
    else:
        _refuse_other_machine(ready, known[0], device)
        profiles = [with_threads(p, compute, part.cores) for p, part in zip(known, parts)]
    return profiles, portions.size_pools(compute, device, profiles, parts, found)


def _advise_larger_shards(compute: ComputeConfig, device: Device) -> None:
    """The plan is older than the look at the cluster, so it is for GPUs only where they are named.

    By simulated lengths shards for CPUs then pad 11 to 33 % (benchmarks/README.md).
    """
    if device == "cuda" and compute.device == "auto":
        log.warning(
            "GPUs were found, but the shards are cut for CPUs, too small to fill a GPU's batches. "
            "With compute.device: cuda a new output gets larger ones."
        )


def _find_profile(
    model: RunModel, compute: ComputeConfig, device: Device, part: Portion
) -> Profile:
    own = compute.model_copy(update={"gpus_per_worker": part.gpus})
    return pipeline.resolve(model.description, model.asked, own, device, part.cores).tell()


def _refuse_other_machine(ready: Prepared, profile: Profile, device: Device) -> None:
    """Raise unless this start would compute the bits of the one whose profile is stored."""
    if profile.scoring_version != SCORING_VERSION:
        raise OutputError(
            f"{ready.store.url} was begun with version {profile.scoring_version} of the scoring "
            f"code; this one is {SCORING_VERSION} and would give other scores.",
            "Finish it with the version of rankmill that began it, or use --overwrite.",
        )
    hardware = pipeline.probe(device, ready.config.compute)
    if hardware.instructions != profile.instructions:
        raise ConfigError(
            f"The run in {ready.store.url} was started on processors with "
            f"{profile.instructions}; these have {hardware.instructions}, and would not give "
            "the same bytes.",
            "Resume on the same kind of machine, or start again with --overwrite.",
        )


def _prepare_nodes(ready: Prepared, profiles: Sequence[Profile]) -> None:
    """Have every node fetch the models, and convert them where a profile's backend needs that."""
    chosen = [(model.description, profile) for model, profile in zip(ready.models, profiles)]
    nodes = cluster.capacity()
    labels = ready.config.compute.labels

    def fetch() -> None:
        for description, _ in chosen:
            description.fetch()

    def prepare_node() -> None:
        fetch()
        for description, profile in chosen:
            description.prepare(profile)

    try:
        if labels:  # the others read and tokenize
            pipeline.run_on_every_node(fetch, nodes)
        pipeline.run_on_every_node(prepare_node, nodes.of(labels))
    except BackendUnfit as unfit:
        raise ConfigError(
            f"The run scores on openvino, and a node cannot: {unfit.message}",
            unfit.remedy
            if any(description.is_int8 for description, _ in chosen)
            else "Make all nodes alike, or start again with --overwrite and model.backend torch.",
        ) from unfit


def _resolved_line(model: RunModel, profile: Profile, pool: Pool) -> str:
    length = model.rules.max_length
    theirs = presets.authors_length(model.asked, length)
    hint = "" if theirs is None else f" (the authors use {theirs:,})"
    label = f"{model.label}: " if model.label else ""
    return (
        f"{label}{model.description.to_json()['name']}, {length} tokens an input{hint}, "
        f"{profile.backend} {profile.precision} on {profile.device} ({profile.instructions}), "
        f"{pool.workers} worker(s) of {profile.threads} thread(s) in {profile.streams} stream(s), "
        f"{profile.token_budget} tokens a batch"
    )


def _stage_settings(ready: Prepared, profiles: Sequence[Profile]) -> list[StageSettings]:
    return [
        StageSettings(
            description=model.description,
            profile=profile,
            rules=model.rules,
            template=model.tokenizer.template,
            columns=ready.source.columns,
            has_query_id=ready.source.has_query_id,
            max_text_bytes=ready.config.input.max_text_bytes,
            depth=ready.config.input.depth,
            number=number,
            best=model.best,
        )
        for number, (model, profile) in enumerate(zip(ready.models, profiles, strict=True), 1)
    ]


def _steps(
    ready: Prepared, run: Run, profiles: Sequence[Profile], pools: Sequence[Pool]
) -> list[Step]:
    """Each model's workers, with the earlier scores that it would give again."""
    scorings = run.recorded["scoring"]
    reuse.warn_unfit(ready.previous, {m.label: s for m, s in zip(ready.models, scorings)})
    known = [reuse.known(ready.previous, one, pipeline.map_shared) for one in scorings]
    settings = _stage_settings(ready, profiles)
    return [
        Step(one, pool, pipeline.share(found), pipeline.share_tokenizer(model.tokenizer))
        for model, one, pool, found in zip(ready.models, settings, pools, known, strict=True)
    ]


def _commit_settings(ready: Prepared, run: Run) -> CommitSettings:
    described = ready.model.description.to_json()
    model = {f"rankmill.model.{k}": str(v) for k, v in described.items() if v}
    wanted = ready.config.output
    ranking = {f"rankmill.rank.{k}": json.dumps(v) for k, v in ready.ranking.items()}
    return CommitSettings(
        store=ready.store,
        fingerprint=run.fingerprint,
        shards=len(ready.plan),
        columns=tuple(carried_columns(ready.config, ready.source)),
        prefix=wanted.column_prefix,
        top_k=wanted.top_k,
        min_score=wanted.min_score,
        metadata={
            **model,
            **ranking,
            "rankmill.version": run.recorded["versions"].get("rankmill", "unknown"),
            "rankmill.run": run.fingerprint,
        },
        results=ready.config.results,
        fuse=ready.config.rank.fuse,
        curve=None if ready.calibration is None else ready.calibration.content.curve,
        joined=ready.source.joined,
    )
