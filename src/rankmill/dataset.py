"""Reranking inside somebody else's Ray Data pipeline: a Dataset in, a Dataset out, lazy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from rankmill import cluster, fusion, pipeline, rank, rows, schema, stages
from rankmill.calibration import Curve, probabilities, read_calibration
from rankmill.config import AskedPrecision, ColumnNames, ComputeConfig, InputConfig, ModelConfig
from rankmill.envelope import Envelope
from rankmill.errors import InputError
from rankmill.models import Description, refuse_instructions
from rankmill.models.describe import describe
from rankmill.pool import Capacity, Pool, choose_device, cores_a_worker, size_pool
from rankmill.profile import Backend, Profile
from rankmill.rank_settings import FuseConfig
from rankmill.results import Results
from rankmill.settings import AnyPath, Setting, plain, read_section
from rankmill.stages import StageSettings
from rankmill.tokens import Overflow, PairRules, Pooling, Truncation

if TYPE_CHECKING:
    from ray.data import Dataset

# Ray gathers this many rows before it calls an actor: enough to order by length, and little beside
# an object store even with 100 kB a row.
_BATCH_ROWS = 512
# Ray's own default is 200 for any data, which takes 30 rows 12 to 40 s on 2 cores. Fewer make
# larger partitions, and each must fit into a worker's memory.
_PARTITIONS_A_CPU, _MOST_PARTITIONS = 16, 200
_MAX_TEXT_BYTES = InputConfig.model_fields["max_text_bytes"].default


@dataclass(frozen=True)
class _Settings:
    description: Description
    profile: Profile
    rules: PairRules
    columns: ColumnNames
    prefix: str
    added: tuple[str, ...]
    fuse: FuseConfig | None


def rerank_dataset(
    ds: Dataset,
    model: AnyPath = "demo",
    *,
    revision: str | None = None,
    scorer: str | None = None,
    backend: Literal["auto"] | Backend = "auto",
    columns: Mapping[str, Setting] | None = None,
    device: Literal["auto", "cuda", "cpu"] = "auto",
    precision: AskedPrecision = "auto",
    max_length: int = 512,
    max_query_tokens: int | None = None,
    max_document_tokens: int | None = None,
    truncation: Truncation = "document",
    overflow: Overflow = "truncate",
    window_stride: int = 128,
    window_pool: Pooling = "max",
    instruction: str | None = None,
    prompt: str = "auto",
    workers: Literal["auto"] | int = "auto",
    column_prefix: str = "rerank_",
    fuse: Mapping[str, Setting] | None = None,
    calibration: str | None = None,
) -> Dataset:
    """Score and rank the pairs of a Dataset in the `pairs` layout.

    Adds `rerank_score` and `rerank_sigmoid` float32, `rerank_rank` int32 from 1 within each
    query, `rerank_tokens_dropped` int32 and `rerank_error` string (why a row has no score; such
    a row has no rank either). `columns` maps names as `input.columns` does; the other settings are
    those of `ModelConfig`, `window_stride` and `window_pool` its `window.stride` and `window.pool`.
    `fuse` (the settings of `rank.fuse`) adds `rerank_fused` float32, by which rows are then ranked;
    `calibration` (a file of `rankmill calibrate`) adds `rerank_probability` float32.

    Rows are grouped by `query_id`, or by the query's text where Ray knows the schema and finds no
    such column (elsewhere `columns={"query_id": None}` says so). That is a shuffle, so their order
    is Ray's and there is no plan, no commit and no resume: use `rerank` for a job.

    Raises `ConfigError` or `ModelError` at once, and `InputError` for a missing or mistyped column
    at once where Ray knows the schema; otherwise the execution fails with it.
    """
    asked = {
        "name": plain(model),
        "revision": revision,
        "scorer": scorer,
        "backend": backend,
        "precision": precision,
        "max_length": max_length,
        "max_query_tokens": max_query_tokens,
        "max_document_tokens": max_document_tokens,
        "truncation": truncation,
        "overflow": overflow,
        "window": {"stride": window_stride, "pool": window_pool},
        "instruction": instruction,
        "prompt": prompt,
    }
    config = read_section(ModelConfig, asked)
    compute = read_section(ComputeConfig, {"device": device, "workers": workers})
    names = read_section(ColumnNames, dict(columns or {}))
    rule = None if fuse is None else read_section(FuseConfig, dict(fuse))
    fitted = None if calibration is None else read_calibration(calibration)
    results = Results(fused=rule is not None, probability=fitted is not None)
    added = tuple(column_prefix + name for name in (*results.columns, "error"))
    known = ds.schema(fetch_if_missing=False)
    if known is not None and isinstance(known.base_schema, pa.Schema):
        if names.query_id not in known.names and "query_id" not in names.model_fields_set:
            names = names.model_copy(update={"query_id": None})
        _check_columns(known.base_schema, names, added, rule)
    description = describe(config)
    refuse_instructions(description, names.instruction)
    rules = PairRules.of(config, description.max_length(max_length))
    description.check(rules)
    found = cluster.capacity()
    chosen, cores = choose_device(compute, found), cores_a_worker(compute, found)
    profile = pipeline.resolve(description, config, compute, chosen, cores).tell()
    if fitted is not None:
        made = {"model": config.scoring_settings()}
        fitted.refuse_other(description.to_json(), made, profile.precision)
    whole_nodes = profile.backend == "openvino"
    pool = size_pool(compute, chosen, profile.threads, found, whole_nodes)
    pool = _leave_a_cpu(pool, found)
    settings = _Settings(description, profile, rules, names, column_prefix, added, rule)
    scored = pipeline.map_actors(ds, ScoreTables, (settings,), pool, _BATCH_ROWS)
    key = names.query if names.query_id is None else names.query_id
    partitions = min(_PARTITIONS_A_CPU * math.ceil(sum(found.cpus)), _MOST_PARTITIONS)
    curve = None if fitted is None else fitted.content.curve
    ranking = {"prefix": column_prefix, "rule": rule, "curve": curve}
    return pipeline.map_groups(scored, key, rank_group, ranking, partitions)


def _check_columns(
    found: pa.Schema, columns: ColumnNames, added: Sequence[str], rule: FuseConfig | None
) -> None:
    clash = [name for name in added if name in found.names]
    if clash:
        raise InputError(
            f"The Dataset already has the column {', '.join(clash)}.",
            "Give another column_prefix, or drop the column.",
        )
    texts = (columns.query, *columns.document_parts, columns.instruction)
    wanted = dict.fromkeys(filter(None, texts), schema.is_text)
    if columns.query_id is not None:
        wanted[columns.query_id] = schema.is_id
    for name, fits in wanted.items():
        if name not in found.names:
            raise InputError(
                f"The Dataset has no column {name}; its columns are {', '.join(found.names)}.",
                "Map the names with columns={...}; without query ids, columns={'query_id': None}.",
            )
        data_type = found.field(name).type
        if not fits(data_type) and not pat.is_null(data_type):
            raise InputError(
                f"The column {name} must hold "
                f"{'text' if fits is schema.is_text else 'text or integers'}, found {data_type}."
            )
    if rule is not None:
        fusion.refuse_unfit(found, rule)


def _leave_a_cpu(pool: Pool, found: Capacity) -> Pool:
    """A smaller share for each actor, so that every node has a whole CPU for other tasks.

    Steps of the caller's own and the shuffle's tasks ask for one each, and would wait for ever
    for what the pool holds. On a node with one CPU the actors therefore reserve none.
    """
    share = (min(found.cpus) - 1) / math.ceil(pool.workers / len(found.cpus))
    share = float(int(share)) if share >= 1 else max(math.floor(share * 100) / 100, 0.0)
    return replace(pool, cpus=min(pool.cpus, share))


class ScoreTables:
    """An actor that adds score columns to batches of pair rows."""

    def __init__(self, settings: _Settings) -> None:
        self._settings = settings
        self._tokenizer = settings.description.tokenizer(settings.rules)
        self._model = settings.description.load(settings.profile)
        self._stage = StageSettings(
            description=settings.description,
            profile=settings.profile,
            rules=settings.rules,
            template=self._tokenizer.template,
            columns=settings.columns,
            has_query_id=settings.columns.query_id is not None,
            max_text_bytes=_MAX_TEXT_BYTES,
            depth=None,
        )

    def __call__(self, table: pa.Table) -> pa.Table:
        """The same rows with score, sigmoid, tokens_dropped and error."""
        asked = self._settings
        _check_columns(table.schema, asked.columns, asked.added, asked.fuse)
        envelope = stages.tokenize(Envelope(0, rows=table), self._stage, self._tokenizer)
        scored = stages.score(
            envelope,
            self._stage.rules,
            self._tokenizer.template,
            self._stage.profile,
            self._model,
        )
        assert scored.facts is not None, "scored envelopes have facts"
        assert scored.pairs is not None, "scored envelopes have pairs"
        assert scored.scores is not None, "scored envelopes have scores"
        score, dropped = stages.by_row(
            scored.facts.column("pair").to_numpy(),
            scored.scores.column("score").to_numpy(),
            scored.pairs.column("dropped").to_numpy(),
        )
        reason = scored.facts.column("reason").combine_chunks()
        finite = np.isfinite(score)
        reason = pc.if_else(pc.and_(pc.is_null(reason), pa.array(~finite)), rows.BAD_SCORE, reason)
        prefix = asked.prefix
        for name, values in (
            ("score", pa.array(score, mask=~finite)),
            ("sigmoid", pa.array(rank.sigmoid(score), mask=~finite)),
            ("tokens_dropped", pa.array(dropped, mask=~finite)),
            ("error", reason.cast(pa.string())),
        ):
            table = table.append_column(prefix + name, values)
        return table


def rank_group(
    table: pa.Table, prefix: str, rule: FuseConfig | None = None, curve: Curve | None = None
) -> pa.Table:
    """Order the rows of one query and add their ranks; rows without a score come last, unranked."""
    score = table.column(prefix + "score").to_numpy(zero_copy_only=False).astype(np.float32)
    query, added = np.zeros(len(score), np.int32), {}
    if rule is not None:
        first = fusion.first_stage(table.column(rule.column), rule.column)
        added["fused"] = fusion.fuse(query, score, first, rule)
    if curve is not None:
        added["probability"] = probabilities(curve, score)
    ranking = rank.rank_rows(query, score, fused=added.get("fused"))
    unscored = np.isnan(score[ranking.rows])
    ranked = table.take(pa.array(ranking.rows))
    field = pa.field(prefix + "rank", schema.RESULT_COLUMNS["rank"])
    ranked = ranked.append_column(field, pa.array(ranking.rank, mask=unscored))
    for name, values in added.items():
        ranked = ranked.append_column(prefix + name, pa.array(values[ranking.rows], mask=unscored))
    return ranked
