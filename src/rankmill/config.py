"""Settings: one frozen model, filled from YAML, from `--set` and from flags.

Nothing secret ever stands here: nodes bring their own credentials, only paths and profile names
travel. Everything that changes results is in `RunConfig.result_settings`, which names a run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from rankmill import labels
from rankmill.errors import ConfigError
from rankmill.gate_settings import GatesConfig
from rankmill.masking import has_credentials, secret_setting
from rankmill.rank_settings import RankConfig
from rankmill.results import (
    Results,
    refuse_several_ways,
    refuse_wrong_cuts,
    refuse_wrong_ranking,
)
from rankmill.settings import (
    DATE,
    AnyPath,
    Name,
    PositiveInt,
    Section,
    Setting,
    fill_date,
    plain,
    put,
    read_section,
    read_yaml,
)
from rankmill.storage_settings import S3, StorageConfig

CONTRACT_VERSION = 1
# Settings of a model that its digest or its profile stands for.
_ELSEWHERE = {"name", "revision", "scorer", "backend", "precision"}


# Ends a column's name, and is a key in a file and after `--set`.
ColumnSuffix = Annotated[str, StringConstraints(pattern=r"^[\w-]+$", max_length=64)]
ImportPath = Annotated[str, StringConstraints(pattern=r"^[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*$")]
Paths = Name | Annotated[list[Name], Field(min_length=1)]
Slopes = Literal["standard", "halved"]
AskedPrecision = Literal["auto", "fp32", "bf16", "fp16"]


class ColumnNames(Section):
    """Which input columns hold what; `document` may be several, joined with one space.

    `instruction`: what a causal reranker is told beside each query; where a row's is null or
    empty, `model.instruction` or the model's usual one.
    """

    query_id: Name | None = "query_id"
    query: Name = "query"
    doc_id: Name | None = "doc_id"
    document: Name | Annotated[list[Name], Field(min_length=1)] = "document"
    candidates: Name = "candidates"
    instruction: Name | None = None

    @property
    def document_parts(self) -> list[str]:
        """The document's columns, in the order they are joined."""
        return [self.document] if isinstance(self.document, str) else list(self.document)


class InputConfig(Section):
    """Where the candidates are and how they are laid out (DESIGN: input).

    queries, documents: with `layout: ids`, the tables that hold the texts, under the same ids.
    """

    path: Paths
    layout: Literal["auto", "pairs", "nested", "ids"] = "auto"
    queries: Paths | None = None
    documents: Paths | None = None
    columns: ColumnNames = ColumnNames()
    depth: PositiveInt | None = None
    limit: PositiveInt | None = Field(None, description="only the first N queries")
    max_text_bytes: PositiveInt = Field(
        8 << 20, description="longer queries and documents go to quarantine"
    )

    @model_validator(mode="after")
    def _of_one_layout(self) -> Self:
        tables = {"queries": self.queries, "documents": self.documents}
        if self.layout != "ids":
            given = [name for name, path in tables.items() if path is not None]
            if given:
                raise ValueError(f"{given[0]} belongs to layout: ids, but layout is {self.layout}")
            return self
        missing = [name for name, path in tables.items() if path is None]
        if missing:
            raise ValueError(f"layout: ids needs {' and '.join(missing)}, where the texts are")
        for name in ("query_id", "doc_id"):
            if getattr(self.columns, name) is None:
                raise ValueError(f"layout: ids joins by ids, so columns.{name} cannot be null")
        return self

    @property
    def paths(self) -> list[str]:
        """The input paths, always as a list."""
        return _as_list(self.path)

    @property
    def all_paths(self) -> dict[str, list[str]]:
        """Every setting that names input files, and its paths."""
        given = {"path": self.path, "queries": self.queries, "documents": self.documents}
        return {name: _as_list(paths) for name, paths in given.items() if paths is not None}


def _as_list(paths: str | list[str]) -> list[str]:
    return [paths] if isinstance(paths, str) else list(paths)


class OutputConfig(Section):
    """What is written, and where."""

    path: Name
    columns: Literal["all"] | Annotated[list[Name], Field(min_length=1)] = "all"
    top_k: PositiveInt | None = None
    min_score: float | None = None
    column_prefix: Name = "rerank_"


class WindowConfig(Section):
    """With `overflow: windows`: how windows follow each other, and what a pair's score is.

    stride: tokens of the document that a window shares with the one before, at most half a window
    (what transformers' tokenizers call stride). pool: the pair's score is the highest of its
    windows' raw scores, or their mean.
    """

    stride: Annotated[int, Field(ge=0)] = 128
    pool: Literal["max", "mean"] = "max"


class ModelConfig(Section):
    """The cross-encoder and how pairs are brought to its length.

    max_length: tokens of an input, special tokens included; lowered to the model's own limit.
    max_query_tokens, max_document_tokens: how much of a text counts at all. truncation: where a
    pair does not fit, `document` cuts the document (the query only where it leaves no room),
    `longest_first` the longer text. overflow: `windows` does not cut such a document; every
    window over it is scored beside the query that `truncation: document` leaves.
    alibi_slopes: JinaBERT only; `auto` is halved, as the v1 rerankers are reported to be.
    instruction, prompt: causal rerankers only; what they are told beside each query, and the name
    of the prompt that they were trained with (`auto`: a preset's, or sentence-transformers' files).
    """

    name: Name
    revision: Name | None = None
    scorer: ImportPath | None = Field(
        None, description="a class of one's own, module:Class, that scores the model's folder"
    )
    backend: Literal["auto", "torch", "openvino"] = "auto"
    precision: AskedPrecision = "auto"
    max_length: PositiveInt = 512
    max_query_tokens: PositiveInt | None = None
    max_document_tokens: PositiveInt | None = None
    truncation: Literal["document", "longest_first"] = "document"
    overflow: Literal["truncate", "windows"] = "truncate"
    window: WindowConfig = WindowConfig()
    instruction: Name | None = None
    alibi_slopes: Literal["auto"] | Slopes = "auto"
    prompt: Name = "auto"

    @model_validator(mode="after")
    def _in_this_version(self) -> Self:
        if self.overflow == "windows" and self.truncation != "document":
            raise ValueError(
                "overflow: windows needs truncation: document; "
                f"{self.truncation} would cut the query for the sake of a document that is not cut"
            )
        if self.scorer is not None and self.backend != "auto":
            raise ValueError("scorer is a backend of its own; leave backend at auto")
        if self.max_query_tokens is not None and self.max_query_tokens >= self.max_length:
            raise ValueError(
                f"max_query_tokens ({self.max_query_tokens}) must be below "
                f"max_length ({self.max_length})"
            )
        return self

    def scoring_settings(self) -> dict[str, Setting]:
        """The settings that a pair's score depends on, as plain JSON values.

        The digest stands for the model's name and for the scorer's; the profile for the rest.
        """
        return self.model_dump(mode="json", exclude=_ELSEWHERE | {"keep"})


class StageConfig(ModelConfig):
    """A model of a cascade.

    keep: so many distinct pairs of each query, the best by this model, go on to the next stage.
    The last stage has none.
    """

    keep: PositiveInt | None = None


class ComputeConfig(Section):
    """Where the run takes place and how much of the cluster it takes.

    workers: scoring actors, of all models of the run together, but at least one of each. labels:
    Ray label selectors of the nodes that score (`{ray.io/accelerator-type: in(H100, L4)}`; a value,
    `!value`, `in(…)` or `!in(…)`). wait_seconds: how long to wait for GPUs that are still to start,
    until `workers` fit (auto: one). Then device auto makes do with what is there, CPUs if no GPU
    is, and cuda is an error if no GPU is.
    """

    address: Name | None = None
    device: Literal["auto", "cuda", "cpu", "mps"] = "auto"
    workers: Literal["auto"] | PositiveInt = "auto"
    cpus_per_worker: Literal["auto"] | PositiveInt = "auto"
    gpus_per_worker: Annotated[float, Field(gt=0)] = 1
    memory: PositiveInt | None = Field(None, description="bytes of heap reserved by a worker")
    labels: dict[Name, str] = Field(default_factory=dict)
    wait_seconds: Annotated[int, Field(ge=0)] = 0
    batch_timeout: PositiveInt = Field(
        600, description="seconds that a batch may take; one that takes longer hangs"
    )

    @field_validator("labels")
    @classmethod
    def _as_ray_selects(cls, selectors: dict[str, str]) -> dict[str, str]:
        wrong = [label for label, text in selectors.items() if not labels.is_selector(text)]
        if wrong:
            raise ValueError(
                f"{wrong[0]} must be a value, !value, in(one, other) or !in(one, other)"
            )
        return selectors

    @field_validator("gpus_per_worker")
    @classmethod
    def _as_ray_counts(cls, gpus: float) -> float:
        if gpus > 1 and gpus % 1:
            raise ValueError("above 1 it must be a whole number")
        return gpus


class ReportConfig(Section):
    """What the report may show."""

    texts: bool = False


class RunConfig(Section):
    """One run: everything a user can set.

    model, or in its place one of: stages, a cascade, in which each model scores what the one before
    found best; models, which score every pair side by side, and of which the one that `rank_by`
    names ranks.
    """

    input: InputConfig
    output: OutputConfig
    model: ModelConfig | None = None
    stages: list[StageConfig] = Field(default_factory=list)
    models: dict[ColumnSuffix, ModelConfig] = Field(default_factory=dict)
    rank_by: Name | None = None
    rank: RankConfig = RankConfig()
    compute: ComputeConfig = ComputeConfig()
    storage: StorageConfig = StorageConfig()
    reuse: list[Name] = Field(
        default_factory=list, description="earlier outputs whose scores are taken over"
    )
    gates: GatesConfig = GatesConfig()
    report: ReportConfig = ReportConfig()

    @model_validator(mode="after")
    def _paths_are_safe(self) -> Self:
        given = self.input.all_paths.items()
        paths = [(f"input.{name}", path) for name, each in given for path in each]
        for setting, path in [
            *paths,
            ("output.path", self.output.path),
            *(("reuse", path) for path in self.reuse),
            ("gates.qrels", self.gates.qrels or ""),
            ("gates.previous", self.gates.previous or ""),
            *((f"{key}.name", asked.name) for key, asked in self.scorers.items()),
            ("compute.address", self.compute.address or ""),
            ("rank.calibration", self.rank.calibration or ""),
        ]:
            if "\0" in path:
                raise ValueError(f"{setting} holds a null character")
            if DATE in path:
                raise ValueError(f"{setting} holds {DATE}; give the --date that it stands for")
            if has_credentials(path):
                raise ValueError(
                    f"{setting} carries credentials; "
                    "leave them to the environment or an AWS profile"
                )
        # A store's bulk calls would take the wildcard for one and reach other folders.
        if "://" in self.output.path and re.search(r"[*?\[]", self.output.path):
            raise ValueError("output.path must name one folder, without the characters * ? [")
        if (secret := secret_setting(self.model_dump(mode="json"))) is not None:
            raise ValueError(
                f"{secret} holds a credential by its form, or the value of an environment variable "
                "that is named for one; run.json would keep it"
            )
        return self

    @model_validator(mode="after")
    def _encryption_is_asked_of_s3(self) -> Self:
        scheme, found, _ = self.output.path.partition("://")
        if self.storage.encryption is not None and (not found or scheme not in S3):
            raise ValueError(
                "storage.encryption is asked of S3 alone, and output.path does not lie there"
            )
        return self

    @model_validator(mode="after")
    def _one_way_to_score(self) -> Self:
        refuse_several_ways(self.model is not None, len(self.stages), list(self.models))
        refuse_wrong_cuts([stage.keep for stage in self.stages])
        refuse_wrong_ranking(list(self.models), self.rank_by)
        return self

    @property
    def scorers(self) -> dict[str, ModelConfig]:
        """The models that score, in their order, by the key of their settings."""
        if self.model is not None:
            return {"model": self.model}
        stages = {f"stages.{place}": stage for place, stage in enumerate(self.stages)}
        return stages | {f"models.{name}": asked for name, asked in self.models.items()}

    @property
    def one_model(self) -> ModelConfig:
        """The model of a configuration that has one. Raises `ConfigError` for several."""
        if self.model is None:
            raise ConfigError("This takes one model, and several are configured.", "Set model.")
        return self.model

    @property
    def results(self) -> Results:
        """What the run adds to each row."""
        names = tuple(self.models)
        ranked_by = names.index(self.rank_by) + 1 if self.rank_by is not None else 1
        return Results(
            len(self.stages),
            names,
            ranked_by,
            fused=self.rank.fuse is not None,
            probability=self.rank.calibration is not None,
        )

    def result_settings(self) -> dict[str, Setting]:
        """The settings that change what is computed or written, as plain JSON values.

        Input files, the model's digest and the profile are the rest of a run's identity; paths
        of the output, the cluster's size, gates and the report are not part of it. The digest
        stands for the model's name and for the scorer's.
        """
        found: dict[str, Setting] = {
            "input": self.input.model_dump(mode="json", exclude={"path", "queries", "documents"}),
            "output": self.output.model_dump(mode="json", exclude={"path"}),
            **self.rank.result_settings(),
        }
        scored_by: dict[str, Setting] = {
            key.rpartition(".")[2]: asked.model_dump(mode="json", exclude=_ELSEWHERE)
            for key, asked in self.scorers.items()
        }
        if self.model is not None:
            return found | scored_by
        if self.stages:
            return found | {"stages": scored_by}
        # Columns stand in the order of the models; a mapping does not keep it.
        return found | {"models": scored_by, "order": list(scored_by), "rank_by": self.rank_by}


def load_config(
    path: str | Path | None = None,
    overrides: Mapping[str, Setting | AnyPath] | None = None,
    date: str | None = None,
) -> RunConfig:
    """Read a YAML file and apply overrides with dotted keys (`{"output.top_k": 20}`).

    date: takes the place of `{date}` in any setting.

    Raises `ConfigError` when the file cannot be read or is not a mapping, when a key is unknown
    (the nearest known key is suggested), or when a value has the wrong type.
    """
    values = {} if path is None else read_yaml(Path(path))
    for dotted, value in (overrides or {}).items():
        put(values, dotted, plain(value))
    if date is not None:
        values = fill_date(values, date)
    return read_section(RunConfig, values, f" in {path}" if path is not None else "")
