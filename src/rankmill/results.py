"""What a run adds to each row: which columns, and which of its models a number means.

A run has one model, or several: the stages of a cascade, or models side by side. They are numbered
from 1, in the order in which they are configured; score files and markers go by these numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from rankmill.schema import RESULT_COLUMNS


@dataclass(frozen=True)
class Results:
    """Whose scores the rows of a run hold.

    stages: of a cascade, how many it has; 0 without one. names: of models side by side. ranked_by:
    the number of the one of them that ranks. fused, probability: whether the first stage's score
    joins the order, and whether a calibration is applied.
    """

    stages: int = 0
    names: tuple[str, ...] = ()
    ranked_by: int = 1
    fused: bool = False
    probability: bool = False

    @property
    def models(self) -> int:
        """How many models score."""
        return self.stages or len(self.names) or 1

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """The columns that are added, in their order, without the run's prefix."""
        stage = {"stage": pa.int32()} if self.stages else {}
        beside = {f"score_{name}": pa.float32() for name in self.names}
        fused = {"fused": pa.float32()} if self.fused else {}
        probability = {"probability": pa.float32()} if self.probability else {}
        return RESULT_COLUMNS | stage | beside | fused | probability

    @property
    def labels(self) -> tuple[str, ...]:
        """What each model is called among several: `stage 2`, or its name; one alone: ``."""
        if self.stages:
            return tuple(f"stage {number}" for number in range(1, self.stages + 1))
        return self.names or ("",)

    @property
    def deciding(self) -> int:
        """The number of the model whose scores rank first: a cascade's last."""
        return self.stages or self.ranked_by

    @classmethod
    def of_stored(cls, config: Mapping[str, Any]) -> Results:
        """Those of a configuration as run.json holds it, of this or an earlier version.

        Raises `KeyError`, `TypeError` or `ValueError` for one that is damaged.
        """
        names = tuple(dict(config.get("models") or {}))
        ranked_by = names.index(config["rank_by"]) + 1 if names else 1
        ranking = config.get("rank") or {}
        return cls(
            len(config.get("stages") or ()),
            names,
            ranked_by,
            fused=ranking.get("fuse") is not None,
            probability=ranking.get("calibration") is not None,
        )


ONE_MODEL = Results()


def refuse_several_ways(model: bool, stages: int, names: Sequence[str]) -> None:
    """Raise `ValueError` unless a run has one model, or several in one of the two ways."""
    ways = {"model": int(model), "stages": stages, "models": len(names)}
    given = [name for name, count in ways.items() if count]
    if not given:
        raise ValueError(
            "model is missing; give it in the file, as a flag or with --set (or stages, a cascade, "
            "or models, several side by side)"
        )
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are set, and only one of them can be")
    if given != ["model"] and ways[given[0]] < 2:
        raise ValueError(f"{given[0]} holds one model; set model instead, or add another")


def refuse_wrong_cuts(keeps: Sequence[int | None]) -> None:
    """Raise `ValueError` unless every stage but the last keeps fewer pairs than the one before."""
    before: int | None = None
    for place, keep in enumerate(keeps):
        key = f"stages.{place}.keep"
        if place == len(keeps) - 1:
            if keep is not None:
                raise ValueError(
                    f"{key} is {keep}, but nothing follows the last stage (output.top_k limits "
                    "what is written)"
                )
        elif keep is None:
            raise ValueError(f"{key} is missing: how many pairs of a query go on to the next stage")
        elif before is not None and keep >= before:
            raise ValueError(
                f"{key} is {keep}, but no more than {before} pairs of a query reach that stage; "
                "each must keep fewer than the one before"
            )
        before = keep


def refuse_wrong_ranking(names: Sequence[str], rank_by: str | None) -> None:
    """Raise `ValueError` unless `rank_by` names one of the models side by side, where there are.

    names: of columns' ends, which must differ in more than case: SQL engines go by letters alone.
    """
    known = ", ".join(names)
    if names and rank_by is None:
        raise ValueError(f"rank_by is missing: which of models ({known}) ranks")
    if rank_by is not None and not names:
        raise ValueError("rank_by is set, but there are no models side by side to choose from")
    if rank_by is not None and rank_by not in names:
        raise ValueError(f"rank_by must be one of models ({known}), found {rank_by}")
    if len({name.casefold() for name in names}) < len(names):
        raise ValueError(
            f"two names in models ({known}) differ in upper and lower case alone; DuckDB and Spark "
            "take their columns for one"
        )
