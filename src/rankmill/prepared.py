"""A run before it starts: input, model, plan and output are looked at, nothing is changed."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from rankmill import output, pipeline, reuse, runs, schema, storage
from rankmill.config import RunConfig
from rankmill.errors import OutputError
from rankmill.markers import Marker
from rankmill.models import Description, refuse_instructions
from rankmill.models.describe import describe
from rankmill.plan import GPU_TIMES, Plan, make_plan
from rankmill.reuse import Previous
from rankmill.source import Source, open_source
from rankmill.store import Store
from rankmill.tokens import PairRules, Template

log = logging.getLogger("rankmill")


@dataclass(frozen=True)
class Prepared:
    """A run that could start: everything is known but the profile.

    template: of the model's pairs. stored: run.json of an earlier start; committed: its shards
    that need not be done again. previous: outputs to take scores from, if any are to be computed;
    reused: their names for the run's own.
    """

    config: RunConfig
    source: Source
    model: Description
    template: Template
    plan: Plan
    store: Store
    stored: dict[str, Any] | None
    committed: dict[int, Marker]
    previous: tuple[Previous, ...]
    reused: dict[str, str]

    @property
    def pending(self) -> list[int]:
        """Shards that are still to be computed."""
        return [index for index in range(len(self.plan)) if index not in self.committed]

    @property
    def is_complete(self) -> bool:
        """Whether there is nothing left to do."""
        return self.stored is not None and not self.pending and output.is_complete(self.store)

    @property
    def rules(self) -> PairRules:
        """How pairs are cut, with the model's own limit."""
        return _rules(self.config, self.model)


def prepare(
    config: RunConfig, *, overwrite: bool = False, model: Description | None = None
) -> Prepared:
    """Resolve input, model and plan, and look at the output. Starts nothing, writes nothing.

    Raises a `StartError` for whatever would make the run fail.
    """
    config = _absolute(config)
    store = Store(config.output.path, config.storage.profile)
    output.refuse_overlap(config.input.paths, store.url)
    output.refuse_overlap(config.reuse, store.url, "reused output")
    source = open_source(config.input, config.storage.profile)
    carried_columns(config, source)
    with storage.reaching(store.url):
        stored = None if overwrite else runs.stored_run(store)
        if stored is None:
            output.refuse_foreign(store, overwrite)
    found = describe(config.model, config.storage.profile) if model is None else model
    refuse_instructions(found, config.input.columns.instruction)
    previous: tuple[Previous, ...] = ()
    recorded: dict[str, str] = {}
    if stored is None:
        previous = reuse.look_at(config.reuse, config.storage.profile)
        reused = reuse.names(previous)
    else:
        recorded = stored["identity"].get("reuse", {})
        reused = reuse.recorded_names(config.reuse, recorded)
        identity = runs.identity_without_profile(config, source, found, reused)
        names = (str(stored["model"]["name"]), str(found.to_json()["name"]))
        runs.refuse_other(store, stored, identity, names=names)
    rules = _rules(config, found)
    length = rules.max_length
    if length < config.model.max_length:
        log.warning("model.max_length is lowered to the model's own limit of %d tokens.", length)
    tokenizer = found.check(rules)
    whole = make_plan(
        source,
        pipeline.scan(source, config.compute),
        found.operations_per_token,
        rules,
        config.input.limit,
        tokenizer.fixed_tokens,
        times=GPU_TIMES if config.compute.device == "cuda" else 1.0,
    )
    committed: dict[int, Marker] = {}
    if stored is not None:
        _refuse_other_plan(store, stored, whole)
        committed, wrong = output.committed(store, stored["fingerprint"])
        for problem in wrong:
            log.warning("Computed again: %s", problem)
        if len(committed) < len(whole):
            output.refuse_strangers(store, len(whole))
            previous = reuse.look_at(config.reuse, config.storage.profile)
            reuse.refuse_changed(previous, recorded, store.url)
    return Prepared(
        config,
        source,
        found,
        tokenizer.template,
        whole,
        store,
        stored,
        committed,
        previous,
        reused,
    )


def _rules(config: RunConfig, model: Description) -> PairRules:
    return PairRules.of(config.model, model.max_length(config.model.max_length))


def _absolute(config: RunConfig) -> RunConfig:
    paths = [storage.absolute(path) for path in config.input.paths]
    return config.model_copy(
        update={
            "input": config.input.model_copy(update={"path": paths}),
            "reuse": [storage.absolute(path) for path in config.reuse],
            "output": config.output.model_copy(
                update={"path": storage.absolute(config.output.path)}
            ),
        }
    )


def carried_columns(config: RunConfig, source: Source) -> list[str]:
    """The input columns that are written. Raises for a clash or an unknown column."""
    wanted = None if config.output.columns == "all" else config.output.columns
    found = schema.output_schema(source.pair_schema, wanted, config.output.column_prefix)
    return [name for name in found.names if name in source.pair_schema.names]


def _refuse_other_plan(store: Store, stored: dict[str, Any], whole: Plan) -> None:
    if stored["plan"]["digest"] != whole.digest:
        raise OutputError(
            f"{store.url} was cut into other shards than this version of rankmill makes.",
            "Finish it with the version that started it "
            f"({stored['versions'].get('rankmill')}), or start again with --overwrite.",
        )
