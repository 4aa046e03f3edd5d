"""The settings of gates: what a finished run must reach before it counts as complete."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from rankmill.settings import Name, PositiveInt, Section

Share = Annotated[float, Field(ge=0, le=1)]


class GatesConfig(Section):
    """Limits that are checked once all shards are committed; None: not checked (see `gates`).

    k: of nDCG@k and of the overlap of the first k. previous: the run that this one is compared
    with; by default the first of `reuse`.
    """

    max_quarantine_rate: Share | None = Field(None, description="of all rows")
    max_truncation_rate: Share | None = Field(None, description="of the rows that were scored")
    min_ndcg: Share | None = Field(None, description="nDCG@k of the golden queries in qrels")
    min_overlap: Share | None = Field(None, description="of the first k with the previous run's")
    max_score_shift: Annotated[float, Field(ge=0)] | None = Field(
        None, description="root mean square, over pairs that both runs wrote"
    )
    qrels: Name | None = None
    previous: Name | None = None
    k: PositiveInt = 10

    @property
    def compares(self) -> bool:
        """Whether a gate looks at a previous run."""
        return self.min_overlap is not None or self.max_score_shift is not None

    @model_validator(mode="after")
    def _can_be_measured(self) -> Self:
        if (self.min_ndcg is None) != (self.qrels is None):
            raise ValueError("min_ndcg and qrels need each other: a limit and its judgements")
        if self.previous is not None and not self.compares:
            raise ValueError("previous is for min_overlap or max_score_shift; set one of them")
        return self
