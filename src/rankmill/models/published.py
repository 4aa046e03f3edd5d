"""Scores that were published with models, to verify real weights against.

The data is `published_scores.yaml` beside this file, with the source of each number.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Example(_Frozen):
    """A pair and its published raw score (a logit)."""

    query: str
    document: str
    score: float


class Source(_Frozen):
    """Where examples were published, how they were computed, and how far that lets them be off."""

    source: str
    computed: str
    tolerance: PositiveFloat
    examples: tuple[Example, ...] = Field(min_length=1)


class Published(_Frozen):
    """All published examples of one model.

    variants: named changes to its config.json, where the files of the checkpoint do not say how
    they are to be read.
    """

    name: str
    sources: tuple[Source, ...] = Field(min_length=1)
    variants: dict[str, dict[str, str]] = {}


@cache
def published() -> tuple[Published, ...]:
    """All models with published scores, in the order of the file."""
    text = resources.files(__package__).joinpath("published_scores.yaml").read_text("utf-8")
    return tuple(Published.model_validate(one) for one in yaml.safe_load(text))


def find(name: str) -> Published | None:
    """The published scores of the model of that exact name, or None."""
    return next((one for one in published() if one.name == name), None)
