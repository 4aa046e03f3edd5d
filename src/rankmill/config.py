"""Settings: one frozen model, filled from YAML, from `--set` and from flags.

Nothing secret ever stands here: nodes bring their own credentials, only paths and profile names
travel. Everything that changes results is in `RunConfig.result_settings`, which names a run.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from rankmill.errors import ConfigError

CONTRACT_VERSION = 1

S = TypeVar("S", bound=BaseModel)
Setting = str | int | float | bool | None | list[Any] | dict[str, Any]
PositiveInt = Annotated[int, Field(gt=0)]
Name = Annotated[str, StringConstraints(min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ColumnNames(_Section):
    """Which input columns hold what; `document` may be several, joined with one space."""

    query_id: Name | None = "query_id"
    query: Name = "query"
    doc_id: Name | None = "doc_id"
    document: Name | Annotated[list[Name], Field(min_length=1)] = "document"
    candidates: Name = "candidates"

    @property
    def document_parts(self) -> list[str]:
        """The document's columns, in the order they are joined."""
        return [self.document] if isinstance(self.document, str) else list(self.document)


class InputConfig(_Section):
    """Where the candidates are and how they are laid out (DESIGN: input)."""

    path: Name | Annotated[list[Name], Field(min_length=1)]
    layout: Literal["auto", "pairs", "nested"] = "auto"
    columns: ColumnNames = ColumnNames()
    depth: PositiveInt | None = None
    limit: PositiveInt | None = Field(None, description="only the first N queries")
    max_text_bytes: PositiveInt = Field(
        8 << 20, description="longer queries and documents go to quarantine"
    )

    @property
    def paths(self) -> list[str]:
        """The input paths, always as a list."""
        return [self.path] if isinstance(self.path, str) else list(self.path)


class OutputConfig(_Section):
    """What is written, and where."""

    path: Name
    columns: Literal["all"] | Annotated[list[Name], Field(min_length=1)] = "all"
    top_k: PositiveInt | None = None
    min_score: float | None = None
    column_prefix: Name = "rerank_"


class WindowConfig(_Section):
    """Token windows over long documents (used with `overflow: windows`)."""

    stride: PositiveInt = 128
    pool: Literal["max", "mean"] = "max"


class ModelConfig(_Section):
    """The cross-encoder and how pairs are cut to its length."""

    name: Name
    revision: Name | None = None
    backend: Literal["auto", "torch"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    max_length: PositiveInt = 512
    max_query_tokens: PositiveInt | None = None
    truncation: Literal["document", "longest_first"] = "document"
    overflow: Literal["truncate", "windows"] = "truncate"
    window: WindowConfig = WindowConfig()
    instruction: str | None = None

    @model_validator(mode="after")
    def _in_this_version(self) -> Self:
        if self.overflow != "truncate":
            raise ValueError("overflow: windows is not in this version; use truncate")
        if self.instruction is not None:
            raise ValueError("instruction needs a causal-LM reranker, not in this version")
        if self.max_query_tokens is not None and self.max_query_tokens >= self.max_length:
            raise ValueError(
                f"max_query_tokens ({self.max_query_tokens}) must be below "
                f"max_length ({self.max_length})"
            )
        return self


class ComputeConfig(_Section):
    """Where the run takes place and how much of the cluster it takes."""

    address: Name | None = None
    device: Literal["auto", "cuda", "cpu", "mps"] = "auto"
    workers: Literal["auto"] | PositiveInt = "auto"
    cpus_per_worker: Literal["auto"] | PositiveInt = "auto"
    gpus_per_worker: Annotated[float, Field(gt=0)] = 1
    memory: PositiveInt | None = Field(None, description="bytes of heap reserved by a worker")


class StorageConfig(_Section):
    """How object stores are reached. Credentials come from each node's own environment."""

    profile: Name | None = Field(None, description="a profile in the nodes' AWS configuration")


class ReportConfig(_Section):
    """What the report may show."""

    texts: bool = False


class RunConfig(_Section):
    """One run: everything a user can set."""

    input: InputConfig
    output: OutputConfig
    model: ModelConfig
    compute: ComputeConfig = ComputeConfig()
    storage: StorageConfig = StorageConfig()
    reuse: list[Name] = Field(default_factory=list)
    report: ReportConfig = ReportConfig()

    @model_validator(mode="after")
    def _in_this_version(self) -> Self:
        if self.reuse:
            raise ValueError("reuse is not in this version; leave the list empty")
        for path in [*self.input.paths, self.output.path]:
            parts = urlsplit(path)
            if parts.scheme and (parts.username or parts.password):
                raise ValueError(
                    f"a path on {parts.scheme}://{parts.hostname} carries credentials; "
                    "leave them to the environment or an AWS profile"
                )
        return self

    def result_settings(self) -> dict[str, Setting]:
        """The settings that change what is computed or written, as plain JSON values.

        Input files, the model's digest and the profile are the rest of a run's identity; paths
        of the output, the cluster's size and the report are not part of it.
        """
        return {
            "input": self.input.model_dump(mode="json", exclude={"path"}),
            "output": self.output.model_dump(mode="json", exclude={"path"}),
            "model": self.model.model_dump(
                mode="json", exclude={"name", "revision", "backend", "precision"}
            ),
        }


def load_config(
    path: str | Path | None = None, overrides: Mapping[str, Setting] | None = None
) -> RunConfig:
    """Read a YAML file and apply overrides with dotted keys (`{"output.top_k": 20}`).

    Raises `ConfigError` when the file cannot be read or is not a mapping, when a key is unknown
    (the nearest known key is suggested), or when a value has the wrong type.
    """
    values = {} if path is None else _read_yaml(Path(path))
    for dotted, value in (overrides or {}).items():
        _put(values, dotted, value)
    return read_section(RunConfig, values, f" in {path}" if path is not None else "")


def read_section(section: type[S], values: Mapping[str, Any], where: str = "") -> S:
    """Check plain values against a section of the configuration.

    Raises `ConfigError` as `load_config` does; `where` is added to its sentences.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise ConfigError(*_explain(error, section, where)) from None


def parse_override(text: str) -> tuple[str, Setting]:
    """Split `a.b=value`; the value is read as YAML, so `20`, `null` and `[a, b]` mean themselves.

    Raises `ConfigError` when there is no `=` or the value is not YAML.
    """
    key, equals, raw = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(
            f"--set expects a.b=value, found {text!r}.", "For example: --set output.top_k=20"
        )
    try:
        return key.strip(), yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise ConfigError(f"The value of --set {key} is not valid YAML: {error}.") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"There is no configuration file {path}.", "Give the path of a YAML file."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The configuration file {path} cannot be read: {error}.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, found {type(values).__name__}.")
    return values


def _put(values: dict[str, Any], dotted: str, value: Setting) -> None:
    *parents, last = dotted.split(".")
    section = values
    for depth, key in enumerate(parents):
        below = section.setdefault(key, {})
        if not isinstance(below, dict):
            name = ".".join(parents[: depth + 1])
            raise ConfigError(f"{dotted} cannot be set: {name} is a value, not a section.")
        section = below
    section[last] = value


def _explain(error: ValidationError, root: type[BaseModel], where: str) -> tuple[str, str | None]:
    """Turn pydantic's findings into one message and one remedy."""
    lines: list[str] = []
    remedy = None
    # A misspelt section is both unknown and missing; the spelling is what needs mending.
    findings = error.errors(include_url=False)
    findings.sort(key=lambda finding: finding["type"] != "extra_forbidden")
    for finding in findings:
        place = ".".join(str(part) for part in finding["loc"])
        if finding["type"] == "extra_forbidden":
            known = _known_keys(root, finding["loc"])
            lines.append(f"Unknown setting {place}{where}.")
            near = difflib.get_close_matches(str(finding["loc"][-1]), known, n=1, cutoff=0.5)
            remedy = remedy or (
                f"Did you mean {near[0]}?" if near else f"Known here: {', '.join(known)}."
            )
        elif finding["type"] == "missing":
            lines.append(f"The setting {place} is missing{where}.")
            remedy = remedy or f"Give {place} in the file, as a flag, or with --set."
        elif finding["type"] == "value_error":
            lines.append(f"{place or 'The configuration'}{where}: {finding['ctx']['error']}.")
        else:
            shown = repr(finding["input"])
            found = shown if len(shown) <= 60 else f"a {type(finding['input']).__name__}"
            lines.append(f"{place}{where}: {finding['msg']}, found {found}.")
    return "\n".join(dict.fromkeys(lines)), remedy


def _known_keys(root: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    section = root
    for part in loc[:-1]:
        field = section.model_fields.get(str(part))
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        section = annotation
    return list(section.model_fields)
