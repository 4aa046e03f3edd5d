"""A run before it starts: input, model, plan and output are looked at, nothing is changed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rankmill import fusion, output, reuse, runs, schema, staging, storage
from rankmill.calibration import StoredCalibration, read_calibration
from rankmill.config import ModelConfig, RunConfig
from rankmill.errors import OutputError
from rankmill.load import Estimate, Load
from rankmill.markers import Marker
from rankmill.models import Description, Tokenizer, refuse_instructions
from rankmill.models.describe import describe
from rankmill.plan import GPU_TIMES, Plan
from rankmill.profile import Profile
from rankmill.reuse import Previous
from rankmill.settings import Setting
from rankmill.source import Source
from rankmill.staging import Cost, Staging
from rankmill.store import Store
from rankmill.text_tables import open_input
from rankmill.tokens import PairRules

log = logging.getLogger("rankmill")


@dataclass(frozen=True)
class RunModel:
    """One of a run's models, known but not loaded.

    key: of its settings, `asked`; label: what it is called among several. rules: how its pairs are
    cut, with its own limit. best: see `StageSettings`.
    """

    key: str
    label: str
    asked: ModelConfig
    description: Description
    rules: PairRules
    tokenizer: Tokenizer
    best: int | None

    @property
    def load(self) -> Load:
        """What it costs."""
        each = self.description.operations_per_token
        return Load(each, self.rules, self.tokenizer.fixed_tokens, self.best)


@dataclass(frozen=True)
class Prepared:
    """A run that could start: everything is known but the profiles.

    models: in the order in which they score. staging: what is done before shards are read. stored:
    run.json of an earlier start; committed: its shards that need not be done again. previous:
    outputs to take scores from, if any are to be computed; reused: their names for the run's own.
    calibration: what `config.rank` names.
    """

    config: RunConfig
    source: Source
    models: tuple[RunModel, ...]
    staging: Staging
    store: Store
    stored: dict[str, Any] | None
    committed: dict[int, Marker]
    previous: tuple[Previous, ...]
    reused: dict[str, str]
    calibration: StoredCalibration | None

    @property
    def beside(self) -> dict[str, Setting]:
        """What else names the run: see `runs.identity_without_profile`."""
        return _beside(self.reused, self.calibration)

    @property
    def ranking(self) -> dict[str, Setting]:
        """What makes the order and probabilities beside the scores; empty where nothing does."""
        found = self.config.rank.model_dump(mode="json", include={"fuse"}, exclude_none=True)
        return found if self.calibration is None else found | {"calibration": self.calibration.rule}

    def refuse_uncalibrated(self, profiles: Sequence[Profile]) -> None:
        """Raise `ConfigError` when the calibration is for scores of another precision."""
        if self.calibration is not None:
            precision = profiles[self.config.results.deciding - 1].precision
            described = self.model.description.to_json()
            self.calibration.refuse_other(described, self.config.result_settings(), precision)

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
    def model(self) -> RunModel:
        """The model whose scores rank first."""
        return self.models[self.config.results.deciding - 1]

    @property
    def estimates(self) -> list[Estimate]:
        """What each model is expected to do, committed shards included."""
        lists, pairs = int(self.plan.queries.sum()), self.plan.pairs
        found = []
        for model, tokens in zip(self.models, self.plan.tokens_a_pair, strict=True):
            depths = filter(None, (model.best, self.config.input.depth))
            load = replace(model.load, best=min(depths, default=None))
            seen = round(pairs * load.share(pairs, lists))
            operations = seen * tokens * load.operations_per_token
            found.append(Estimate(seen, round(seen * tokens), operations))
        return found


def prepare(
    config: RunConfig, *, overwrite: bool = False, model: Description | None = None
) -> Prepared:
    """Resolve input, models and plan, and look at the output. Starts nothing, writes nothing.

    model: an own `Description` in place of the one that `config.model` names.

    Raises a `StartError` for whatever would make the run fail.
    """
    config = _absolute(config)
    store = Store(config.output.path, config.storage)
    every = [path for paths in config.input.all_paths.values() for path in paths]
    output.refuse_overlap(every, store.url)
    output.refuse_overlap(config.reuse, store.url, "reused output")
    source = open_input(config.input, config.storage)
    carried_columns(config, source)
    if config.rank.fuse is not None:
        fusion.refuse_unfit(source.pair_schema, config.rank.fuse)
    with storage.reaching(store.url):
        output.refuse_links(store)
        stored = None if overwrite else runs.stored_run(store)
        if stored is None:
            output.refuse_foreign(store, overwrite)
    found = _describe(config, model)
    if not any(one.takes_instruction for one in found):
        refuse_instructions(found[0], config.input.columns.instruction)
    deciding = found[config.results.deciding - 1]
    calibration = _read_calibration(config, deciding)
    previous: tuple[Previous, ...] = ()
    recorded: dict[str, str] = {}
    if stored is None:
        previous = reuse.look_at(config.reuse, config.storage)
        reused = reuse.names(previous)
    else:
        recorded = stored["identity"].get("reuse", {})
        reused = reuse.recorded_names(config.reuse, recorded)
        beside = _beside(reused, calibration)
        identity = runs.identity_without_profile(config, source, found, beside)
        names = (str(stored["model"]["name"]), str(deciding.to_json()["name"]))
        runs.refuse_other(store, stored, identity, names=names)
    models = _models(config, found)
    cost = Cost(
        loads=tuple(one.load for one in models),
        limit=config.input.limit,
        times=GPU_TIMES if config.compute.device == "cuda" else 1.0,
    )
    before = staging.find(source, config.compute, cost, store)
    whole = before.whole
    committed: dict[int, Marker] = {}
    if stored is not None:
        _refuse_other_plan(store, stored, whole)
        with storage.reaching(store.url):
            committed = output.resume(store, stored["fingerprint"], len(whole))
        if len(committed) < len(whole):
            previous = reuse.look_at(config.reuse, config.storage)
            reuse.refuse_changed(previous, recorded, store.url)
    return Prepared(
        config,
        source,
        models,
        before,
        store,
        stored,
        committed,
        previous=previous,
        reused=reused,
        calibration=calibration,
    )


def _beside(reused: dict[str, str], calibration: StoredCalibration | None) -> dict[str, Setting]:
    given: dict[str, Setting] = {} if not reused else {"reuse": dict(reused)}
    return given if calibration is None else given | {"calibration": calibration.sha256}


def _read_calibration(config: RunConfig, deciding: Description) -> StoredCalibration | None:
    if config.rank.calibration is None:
        return None
    found = read_calibration(config.rank.calibration, config.storage)
    found.refuse_other(deciding.to_json(), config.result_settings(), None)
    return found


def _describe(config: RunConfig, model: Description | None) -> list[Description]:
    if model is not None:
        return [model]
    asked = config.scorers.values()
    return [describe(one, config.storage) for one in asked]


def _models(config: RunConfig, found: Sequence[Description]) -> tuple[RunModel, ...]:
    """Bring every model and its settings together. Raises what would fail in a worker."""
    made = []
    keeps = [None, *(stage.keep for stage in config.stages)]
    for number, ((key, asked), one) in enumerate(zip(config.scorers.items(), found, strict=True)):
        rules = PairRules.of(asked, one.max_length(asked.max_length))
        if rules.max_length < asked.max_length:
            log.warning(
                "%s.max_length is lowered to the model's own limit of %d tokens.",
                key,
                rules.max_length,
            )
        tokenizer = one.check(rules)
        label, best = config.results.labels[number], keeps[number] if config.stages else None
        made.append(RunModel(key, label, asked, one, rules, tokenizer, best))
    return tuple(made)


def _absolute(config: RunConfig) -> RunConfig:
    paths = {
        name: [storage.absolute(path) for path in given]
        for name, given in config.input.all_paths.items()
    }
    return config.model_copy(
        update={
            "input": config.input.model_copy(update=paths),
            "reuse": [storage.absolute(path) for path in config.reuse],
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
    prefix, added = config.output.column_prefix, config.results.columns
    found = schema.output_schema(source.pair_schema, wanted, prefix, added)
    return [name for name in found.names if name in source.pair_schema.names]


def _refuse_other_plan(store: Store, stored: dict[str, Any], whole: Plan) -> None:
    if stored["plan"]["digest"] != whole.digest:
        raise OutputError(
            f"{store.url} was cut into other shards than this version of rankmill makes.",
            "Finish it with the version that started it "
            f"({stored['versions'].get('rankmill')}), or start again with --overwrite.",
        )
