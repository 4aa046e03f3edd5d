"""What an export is made by: its format and label, the rules of mining, and what goes together."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from rankmill.errors import ConfigError
from rankmill.settings import Name, PositiveInt

Label = Literal["score", "sigmoid", "binary", "relevance"]


class ExportConfig(BaseModel):
    """What is exported, and by which rules rows become positives and negatives.

    label: what `score` or `scores` holds. `score` is the raw logit, `sigmoid` the same between 0
    and 1, `binary` 1 for positives and 0 for negatives, `relevance` the judged grade. The default
    is `sigmoid` in labeled formats (a BinaryCrossEntropy label lies between 0 and 1, and Lambda's
    gain is 2 to the label's power) and `score` in tuples, for MarginMSE.

    Bounds and margins are on the scale that `bounds_on` names. With several positives a margin
    counts from the lowest. relative_margin: a share of that positive's magnitude; 0.05 keeps what
    scores at least 5 % below it, as TopK-PercPos of NV-Retriever (arXiv 2407.15831) does. Without
    a rule for positives every document counts as a negative. What agrees (other models' columns
    here, other runs) must keep negative_max_score and both margins by its own scores.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    format: Literal["labeled-pair", "labeled-list", "triplet", "n-tuple", "trec"]
    label: Label | None = None
    scores: bool = False
    model: Name | None = Field(None, description="take the column …score_MODEL")
    stage: PositiveInt | None = Field(None, description="of a cascade, the stage that scored")
    bounds_on: Literal["score", "sigmoid"] = "score"
    positive_min_score: float | None = None
    positive_max_rank: PositiveInt | None = None
    negatives: PositiveInt | None = Field(None, description="at most so many a query")
    sampling: Literal["hardest", "random"] = "hardest"
    seed: int = 0
    negative_min_rank: PositiveInt | None = None
    negative_max_rank: PositiveInt | None = None
    negative_min_score: float | None = None
    negative_max_score: float | None = None
    margin: Annotated[float, Field(ge=0)] | None = None
    relative_margin: Annotated[float, Field(ge=0)] | None = None
    agree_models: list[Name] = Field(default_factory=list, description="columns …score_NAME")

    @property
    def positives_by_score(self) -> bool:
        """Whether there is a rule for positives by score or rank."""
        return self.positive_min_score is not None or self.positive_max_rank is not None

    @property
    def has_margin(self) -> bool:
        """Whether negatives are measured against positives."""
        return self.margin is not None or self.relative_margin is not None

    @property
    def is_labeled(self) -> bool:
        """Whether there is a column of labels."""
        return self.format.startswith("labeled") or self.scores

    @property
    def chosen_label(self) -> Label:
        """The label, or the format's own."""
        return self.label or ("score" if self.format == "n-tuple" else "sigmoid")

    @property
    def negatives_a_tuple(self) -> int:
        """How many columns of negatives the format n-tuple has."""
        assert self.negatives is not None, "n-tuple is refused without negatives"
        return self.negatives

    def needed_negatives(self, has_positives: bool) -> int:
        """How many negatives a list must have to give an example."""
        if self.format == "n-tuple":
            return self.negatives_a_tuple
        fewest = {"labeled-pair": 1, "labeled-list": 2, "triplet": 1}[self.format]
        return fewest - has_positives if self.is_labeled else fewest


def refuse_contradictions(config: ExportConfig, judged: bool, other_runs: bool) -> None:
    """Raise `ConfigError` for settings that do not go together.

    judged: there are judgements; other_runs: other runs must agree.
    """
    has_positives = judged or config.positives_by_score
    agreeing = other_runs or bool(config.agree_models)
    bounded = config.has_margin or config.negative_max_score is not None
    given = [*sorted(config.model_fields_set - {"format"}), *["qrels"] * judged]
    given += ["agree_runs"] * other_runs
    unused = given if config.format == "trec" else []
    needs_positives = {
        f"The format {config.format}": config.format in ("triplet", "n-tuple"),
        "label: binary": config.label == "binary",
        "A margin": config.has_margin,
    }
    lacking = [what for what, needs in needs_positives.items() if needs and not has_positives]
    for wrong, message, remedy in (
        (
            unused,
            f"The format trec writes whole rankings and does not use {', '.join(unused)}.",
            "Leave that out, or choose another format.",
        ),
        (
            lacking,
            f"{' and '.join(lacking)} needs positives, and nothing says which they are.",
            "Give judgements (qrels), or a rule: positive_max_rank or positive_min_score.",
        ),
        (
            config.format == "n-tuple" and config.negatives is None,
            "The format n-tuple needs the number of negatives.",
            "Set negatives, for example to 4.",
        ),
        (
            config.scores and config.format != "n-tuple",
            f"The format {config.format} takes no scores beside its columns.",
            "Use the format n-tuple; with negatives = 1 it is a triplet with scores.",
        ),
        (
            config.label is not None and not config.is_labeled,
            f"The format {config.format} has no label, so label cannot be {config.label}.",
            "Use a labeled format, or n-tuple with scores.",
        ),
        (
            config.label == "relevance" and not judged,
            "label is relevance, and there are no judgements.",
            "Give judgements (qrels), or choose another label.",
        ),
        (
            agreeing and not bounded,
            "Models can only agree on a bound, and there is none.",
            "Set margin (0: not above the positive), relative_margin or negative_max_score.",
        ),
        (
            config.sampling == "random" and config.negatives is None,
            "sampling is random, but all negatives are taken.",
            "Set negatives, the number to draw for a query.",
        ),
        (
            _crossed(config.negative_min_rank, config.negative_max_rank)
            or _crossed(config.negative_min_score, config.negative_max_score),
            "The lower bound for negatives lies above the upper one.",
            "Exchange them.",
        ),
    ):
        if wrong:
            raise ConfigError(message, remedy)


def _crossed(lowest: float | None, highest: float | None) -> bool:
    return lowest is not None and highest is not None and lowest > highest
