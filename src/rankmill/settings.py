"""Plain settings: read from YAML and `--set`, checked against a section, errors explained."""

from __future__ import annotations

import copy
import datetime
import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeGuard, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import ErrorDetails

from rankmill import settings_yaml
from rankmill.errors import ConfigError

S = TypeVar("S", bound=BaseModel)
Setting = str | int | float | bool | None | list[Any] | dict[str, Any]
AnyPath = str | os.PathLike[str]
PositiveInt = Annotated[int, Field(gt=0)]
_SHOULD_BE = "Input should be "
# Stands in a setting for the date of a nightly run.
DATE = "{date}"
Name = Annotated[str, StringConstraints(min_length=1)]


class Section(BaseModel):
    """A frozen part of the configuration that knows all of its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def read_section(section: type[S], values: Mapping[str, Any], where: str = "") -> S:
    """Check plain values against a section of the configuration.

    Raises `ConfigError` for an unknown key (the nearest known one is suggested), a missing one and
    a wrong value; `where` is added to its sentences.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise ConfigError(*_explain(error, section, where)) from None


def plain(value: Any) -> Any:  # noqa: ANN401 - what a caller gives as a setting
    """The same value with texts in place of paths (`os.PathLike`), in a list too."""
    if isinstance(value, list):
        return [plain(one) for one in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def parse_override(text: str) -> tuple[str, Setting]:
    """Split `a.b=value`; the value is read as YAML, so `20`, `null` and `[a, b]` mean themselves.

    Raises `ConfigError` when there is no `=` or the value is not YAML.
    """
    key, equals, raw = text.partition("=")
    if not equals or not key.strip():
        # Without the text: what should be a value may be anything.
        raise ConfigError("--set expects a.b=value.", "For example: --set output.top_k=20")
    try:
        return key.strip(), settings_yaml.parse(raw)
    except ValueError as error:
        raise ConfigError(f"The value of --set {key} is not valid YAML: {error}.") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a file, not yet checked. Raises `ConfigError` unless it is a mapping."""
    try:
        with path.open("rb") as file:
            content = file.read(settings_yaml.MAX_BYTES + 1)
        if len(content) > settings_yaml.MAX_BYTES:
            raise ConfigError(
                f"{path} is longer than {settings_yaml.MAX_BYTES:,} bytes.",
                "Give the path of a YAML file.",
            )
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(
            f"There is no configuration file {path}.", "Give the path of a YAML file."
        ) from None
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or no name of a file
        raise ConfigError(f"The configuration file {path} cannot be read: {error}.") from None
    try:
        values = settings_yaml.parse(text)
    except ValueError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, found {type(values).__name__}.")
    return values


def fill_date(values: Any, date: str) -> Any:  # noqa: ANN401 - plain values, as YAML holds them
    """The same values with `{date}` filled in wherever a text holds it."""
    if isinstance(values, dict):
        return {key: fill_date(value, date) for key, value in values.items()}
    if isinstance(values, list):
        return [fill_date(value, date) for value in values]
    return values.replace(DATE, date) if isinstance(values, str) else values


def put(values: dict[str, Any], dotted: str, value: Setting) -> None:
    """Set `a.b.c` in nested mappings, or `a.0.c` in a list of them that is there.

    Raises `ConfigError` where a value stands in the way, or a list has no such place.
    """
    *parents, last = dotted.split(".")
    section: Any = values
    for depth, key in enumerate(parents):
        name = ".".join(parents[: depth + 1])
        if isinstance(section, list):
            section = section[_place_in(section, key, dotted)]
        else:
            section = section.setdefault(key, {})
        if not isinstance(section, dict | list):
            raise ConfigError(f"{dotted} cannot be set: {name} is a value, not a section.")
    where = _place_in(section, last, dotted) if isinstance(section, list) else last
    section[where] = copy.deepcopy(value)  # later overrides may reach into it


def _place_in(section: list[Any], key: str, dotted: str) -> int:
    if not key.isdecimal() or int(key) >= len(section):
        raise ConfigError(
            f"{dotted} cannot be set: there is a list of {len(section)}, which has no {key}.",
            "Give a place in it, counted from 0.",
        )
    return int(key)


def _explain(error: ValidationError, root: type[BaseModel], where: str) -> tuple[str, str | None]:
    """Turn pydantic's findings into one message and one remedy."""
    lines: list[str] = []
    wrong: dict[str, list[ErrorDetails]] = {}
    remedy = None
    # A misspelt section is both unknown and missing; the spelling is what needs mending.
    findings = error.errors(include_url=False)
    findings.sort(key=lambda finding: finding["type"] != "extra_forbidden")
    for finding in findings:
        place = _place(root, finding["loc"])
        if finding["type"] == "extra_forbidden":
            known = _known_keys(root, finding["loc"][:-1])
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
        elif finding["type"] == "model_type":
            found = _shown(finding["input"])
            lines.append(f"{place}{where}: {_SHOULD_BE}a section of settings, found {found}.")
            first = _known_keys(root, finding["loc"])[0]
            remedy = remedy or f"Give the settings below it, for example {place}.{first}."
        else:
            wrong.setdefault(place, []).append(finding)
            if finding["type"] == "string_type" and _is_yaml_scalar(finding["input"]):
                remedy = remedy or (
                    "Put it into quotes, or YAML does not take it for text; "
                    f"""on a command line: --set '{place}="…"'."""
                )
    for place, same in wrong.items():
        # Of several kinds that a setting may have, it is the one whose parts are told of.
        if not any(other.startswith(f"{place}.") for other in wrong):
            found = _shown(same[0]["input"])
            lines.append(f"{place}{where}: {_expected(same)}, found {found}.")
    return "\n".join(dict.fromkeys(lines)), remedy


def _expected(alternatives: Sequence[ErrorDetails]) -> str:
    """What a setting should be, by any of the kinds that it may have."""
    said = list(dict.fromkeys(one["msg"] for one in alternatives))
    if all(one.startswith(_SHOULD_BE) for one in said):
        return _SHOULD_BE + " or ".join(one.removeprefix(_SHOULD_BE) for one in said)
    return "; ".join(said)


def _is_yaml_scalar(value: object) -> bool:
    return isinstance(value, bool | int | float | datetime.date)


def _shown(value: object) -> str:
    """A short value as it was given, else its kind.

    A URL may carry a secret that was never checked for, a few anchors a list of a billion.
    """
    if isinstance(value, datetime.date):
        return f"the date {value}"
    simple = value is None or isinstance(value, str | int | float)
    if not simple or (isinstance(value, str) and (len(value) > 24 or "://" in value)):
        return f"a {type(value).__name__}"
    return repr(value)


def _place(root: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    """A setting's dotted name, without the alternatives of a type that pydantic adds to it."""
    parts: list[str] = []
    kind: object = root
    for part in loc:
        if kind is not None or isinstance(part, int):
            parts.append(str(part))
        kind = _kind_below(kind, part)
    return ".".join(parts)


def _known_keys(root: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    kind: object = root
    for part in loc:
        kind = _kind_below(kind, part)
    return list(kind.model_fields) if _is_section(kind) else []


def _kind_below(kind: object, key: int | str) -> object:
    """The section, or the list or mapping of sections, that stands under a key; None: a value."""
    if get_origin(kind) in (list, dict):
        return _of_sections(get_args(kind)[-1])
    field = kind.model_fields.get(str(key)) if _is_section(kind) else None
    return _of_sections(field.annotation) if field is not None else None


def _of_sections(annotation: object) -> object:
    if get_origin(annotation) in (UnionType, Union):
        found = [one for one in map(_of_sections, get_args(annotation)) if one is not None]
        return found[0] if len(found) == 1 else None
    if get_origin(annotation) in (list, dict):
        return annotation if _of_sections(get_args(annotation)[-1]) is not None else None
    return annotation if _is_section(annotation) else None


def _is_section(kind: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
