"""The models that rankmill knows by name: shapes, lengths, licences and published figures.

The data is `presets.yaml` beside this file. A preset never changes how a model is scored (that is
read from the model's own configuration and tokenizer), but for the prompt of a causal language
model, which its files need not hold; it tells users what they can choose, and refuses early what
cannot work.
"""

from __future__ import annotations

import difflib
from functools import cache
from importlib import resources
from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, PositiveInt, model_validator

from rankmill.config import ModelConfig

Architecture = Literal[
    "bert", "xlm-roberta", "modernbert", "deberta-v2", "jina-bert", "gte", "causal-lm"
]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Figure(_Frozen):
    """A published measurement: a ranking metric as a fraction of 1, seconds, or pairs/s.

    `source` says who published it and where.
    """

    dataset: str
    metric: str
    value: float
    settings: str | None
    source: str


class Preset(_Frozen):
    """What is known about one model. Lengths are in tokens, specials included.

    `positions` is the size of the position table (or the longest length that rotary positions were
    trained for); `recommended_length` is the length at which the published figures were taken.
    `truncation` is the policy of the authors' own code: `longest_first` is what transformers does
    under `truncation=True`. `template` is a pair as the tokenizer writes it (q query, d document;
    None: not known for certain, or a prompt). `prompt` names that of a causal model (prompts.yaml).
    `score` says what the raw score is; `authors_activation` what the authors' code applies to it
    before it prints a score (None: not known for certain). `note` says what a user has to do
    first. `inferred` names the fields that were concluded from the model's family.
    """

    name: str
    architecture: Architecture
    parameters: PositiveInt | None
    layers: PositiveInt
    hidden: PositiveInt
    heads: PositiveInt
    intermediate: PositiveInt
    vocab: PositiveInt | None
    positions: PositiveInt
    recommended_length: PositiveInt = 512
    languages: tuple[str, ...]
    licence: str | None
    template: str | None
    truncation: Literal["document", "longest_first"] | None = "longest_first"
    score: str = "logit of the single label"
    authors_activation: Literal["none", "sigmoid"] | None
    prompt: str | None = None
    supported: bool = True
    reason: str | None = None
    note: str | None = None
    inferred: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()

    @property
    def max_length(self) -> int:
        """The longest pair that the model takes, in tokens.

        XLM-R counts positions from its padding id + 1 = 2, so two of its table are never used.
        """
        return self.positions - 2 if self.architecture == "xlm-roberta" else self.positions

    @model_validator(mode="after")
    def _reason_says_why(self) -> Self:
        if self.supported == (self.reason is not None):
            raise ValueError("an unsupported preset, and only such a one, gives a reason")
        return self


@cache
def presets() -> tuple[Preset, ...]:
    """All presets, in the order of the file: the embedded model first, then by family."""
    text = resources.files(__package__).joinpath("presets.yaml").read_text(encoding="utf-8")
    data = yaml.safe_load(text)
    benchmarks = data["benchmarks"]
    return tuple(
        Preset.model_validate(
            model
            | {
                "figures": tuple(
                    benchmarks[key] | {"value": value}
                    for key, value in model.get("figures", {}).items()
                )
            }
        )
        for model in data["models"]
    )


def find(name: str) -> Preset | None:
    """The preset of that exact name (a hub id, or `demo`), or None."""
    return next((preset for preset in presets() if preset.name == name), None)


def authors_length(model: ModelConfig, used: int) -> int | None:
    """The length that a preset's authors use, where the user chose none and it is not `used`."""
    preset = None if "max_length" in model.model_fields_set else find(model.name)
    return (
        None if preset is None or preset.recommended_length == used else preset.recommended_length
    )


def nearest(name: str) -> list[str]:
    """Up to three preset names that a mistyped or shortened name may have meant, best first."""
    spellings: dict[str, str] = {}
    for preset in presets():
        spellings[preset.name.lower()] = preset.name
        spellings[preset.name.rpartition("/")[2].lower()] = preset.name
    # Six, because a model can match both in full and without its owner.
    close = difflib.get_close_matches(name.lower(), spellings, n=6)
    return list(dict.fromkeys(spellings[spelling] for spelling in close))[:3]
