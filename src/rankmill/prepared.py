"""A run before it starts: input, model, plan and output are looked at, nothing is changed."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from rankmill import output, runs, schema, staging, storage
from rankmill.config import RunConfig
from rankmill.errors import OutputError
from rankmill.markers import Marker
from rankmill.models import Description, refuse_instructions
from rankmill.models.describe import describe
from rankmill.plan import GPU_TIMES, Plan
from rankmill.source import Source
from rankmill.staging import Cost, Staging
from rankmill.store import Store
from rankmill.text_tables import open_input
from rankmill.tokens import PairRules, Template

log = logging.getLogger("rankmill")


@dataclass(frozen=True)
class Prepared:
    """A run that could start: everything is known but the profile.

    template: of the model's pairs. staging: what is done before shards are read. stored: run.json
    of an earlier start; committed: its shards that need not be done again.
    """

    config: RunConfig
    source: Source
    model: Description
    template: Template
    staging: Staging
    store: Store
    stored: dict[str, Any] | None
    committed: dict[int, Marker]

    @property
    def plan(self) -> Plan:
        """The shards."""
        return self.staging.whole

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
    every = [path for paths in config.input.all_paths.values() for path in paths]
    output.refuse_overlap(every, store.url)
    source = open_input(config.input, config.storage.profile)
    carried_columns(config, source)
    with storage.reaching(store.url):
        stored = None if overwrite else runs.stored_run(store)
        if stored is None:
            output.refuse_foreign(store, overwrite)
    found = describe(config.model, config.storage.profile) if model is None else model
    refuse_instructions(found, config.input.columns.instruction)
    if stored is not None:
        identity = runs.identity_without_profile(config, source, found)
        names = (str(stored["model"]["name"]), str(found.to_json()["name"]))
        runs.refuse_other(store, stored, identity, names=names)
    rules = _rules(config, found)
    length = rules.max_length
    if length < config.model.max_length:
        log.warning("model.max_length is lowered to the model's own limit of %d tokens.", length)
    tokenizer = found.check(rules)
    cost = Cost(
        found.operations_per_token,
        rules,
        config.input.limit,
        tokenizer.fixed_tokens,
        times=GPU_TIMES if config.compute.device == "cuda" else 1.0,
    )
    before = staging.find(source, config.compute, cost, store)
    whole = before.whole
    committed: dict[int, Marker] = {}
    if stored is not None:
        _refuse_other_plan(store, stored, whole)
        committed, wrong = output.committed(store, stored["fingerprint"])
        for problem in wrong:
            log.warning("Computed again: %s", problem)
        if len(committed) < len(whole):
            output.refuse_strangers(store, len(whole))
    return Prepared(config, source, found, tokenizer.template, before, store, stored, committed)


def _rules(config: RunConfig, model: Description) -> PairRules:
    return PairRules.of(config.model, model.max_length(config.model.max_length))


def _absolute(config: RunConfig) -> RunConfig:
    paths = {
        name: [storage.absolute(path) for path in given]
        for name, given in config.input.all_paths.items()
    }
    return config.model_copy(
        update={
            "input": config.input.model_copy(update=paths),
            "output": config.output.model_copy(
                update={"path": storage.absolute(config.output.path)}
            ),
        }
    )


def carried_columns(config: RunConfig, source: Source) -> list[str]:
    """The input columns that are written. Raises for a clash or an unknown column.

    Texts that were joined by id are written only where they are named.
    """
    wanted = config.output.columns
    if wanted == "all":
        wanted = [name for name in source.pair_schema.names if name not in source.joined]
    found = schema.output_schema(source.pair_schema, wanted, config.output.column_prefix)
    return [name for name in found.names if name in source.pair_schema.names]


def _refuse_other_plan(store: Store, stored: dict[str, Any], whole: Plan) -> None:
    if stored["plan"]["digest"] != whole.digest:
        raise OutputError(
            f"{store.url} was cut into other shards than this version of rankmill makes.",
            "Finish it with the version that started it "
            f"({stored['versions'].get('rankmill')}), or start again with --overwrite.",
        )
