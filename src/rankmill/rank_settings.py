"""The settings of the final order: what joins the model's score, and what it is worth."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from rankmill.settings import Name, PositiveInt, Section, Setting

Method = Literal["minmax", "zscore", "rrf"]
Share = Annotated[float, Field(ge=0, le=1)]


class FuseConfig(Section):
    """The first stage's score joins the model's (see `fusion`).

    column: of the input, higher is better, or lower where its name ends in `rank`. weight: the
    model's share. k: with rrf, what is added to each place; 60 is usual (Cormack, Clarke and
    Büttcher, SIGIR 2009).
    """

    column: Name
    method: Method = "minmax"
    weight: Share = 0.5
    k: PositiveInt = 60

    @field_validator("weight", mode="before")
    @classmethod
    def _is_known_before_the_run(cls, weight: object) -> object:
        if weight == "tune":
            raise ValueError(
                "a run takes a number; `rankmill tune` finds one from judgements, on the output of "
                "a run without fuse"
            )
        return weight


class RankConfig(Section):
    """What the final order and its probabilities are made of, beside the model's score."""

    fuse: FuseConfig | None = None
    calibration: Name | None = Field(
        None, description="a file of `rankmill calibrate`: adds the probability of relevance"
    )

    def result_settings(self) -> dict[str, Setting]:
        """What changes a run's files. What a calibration holds names the run, not its path."""
        if self.fuse is None:
            return {}
        return {"rank": {"fuse": self.fuse.model_dump(mode="json")}}
