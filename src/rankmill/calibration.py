"""Probabilities of relevance: curves from a model's raw scores, and whose scores they are for.

- platt: 1 / (1 + e^-(slope * score + intercept)) (Platt 1999).
- isotonic: a rising line through points, level outside of them (Zadrozny and Elkan, KDD 2002).

A curve means nothing for scores that are made in another way. So it is kept with the model's
digest, the precision and the settings that scores depend on, and a run in which any of them differs
is refused. `calibrate` fits and judges curves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError, model_validator

from rankmill import runs, storage
from rankmill.errors import ConfigError
from rankmill.rank import Float32
from rankmill.settings import Section, Setting
from rankmill.storage_settings import ENVIRONMENT, StorageConfig

Probability = Annotated[float, Field(ge=0, le=1)]


class Platt(Section):
    """A logistic curve."""

    method: Literal["platt"] = "platt"
    slope: float
    intercept: float

    def probabilities(self, score: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """float64 [scores] of float [scores]; NaN stays NaN."""
        logit = self.slope * score.astype(np.float64) + self.intercept
        small = np.exp(-np.abs(logit))
        return np.where(logit >= 0, 1, small) / (1 + small)


class Isotonic(Section):
    """A line through points: rising scores, probabilities that do not fall."""

    method: Literal["isotonic"] = "isotonic"
    scores: Annotated[list[float], Field(min_length=1)]
    values: Annotated[list[Probability], Field(min_length=1)]

    @model_validator(mode="after")
    def _rises(self) -> Isotonic:
        alike = len(self.scores) == len(self.values)
        if not alike or (np.diff(self.scores) <= 0).any() or (np.diff(self.values) < 0).any():
            raise ValueError("scores and values must be as many, and rise")
        return self

    def probabilities(self, score: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """float64 [scores] of float [scores]; NaN stays NaN."""
        wide = score.astype(np.float64)
        return np.where(np.isnan(wide), np.nan, np.interp(wide, self.scores, self.values))


Curve = Annotated[Platt | Isotonic, Field(discriminator="method")]


class ScoredBy(Section):
    """All that the meaning of a score depends on: the model's digest, and how it scored."""

    model: str
    precision: str
    settings: dict[str, Any]


class Calibration(Section):
    """What a file of `rankmill calibrate` holds. fitted: on what, and how good it is held out."""

    rankmill_calibration: Literal[1] = 1
    curve: Curve
    scored_by: ScoredBy
    fitted: dict[str, Any]

    def to_bytes(self) -> bytes:
        """As stored: equal fits, equal bytes."""
        return (self.model_dump_json(indent=1) + "\n").encode()


@dataclass(frozen=True)
class StoredCalibration:
    """A calibration and the file that it stands in. sha256: of its bytes, which name a run."""

    path: str
    sha256: str
    content: Calibration

    @property
    def rule(self) -> dict[str, Setting]:
        """What a run says of it."""
        return {"method": self.content.curve.method, "sha256": self.sha256}

    def refuse_other(
        self, model: Mapping[str, Any], settings: Mapping[str, Any], precision: str | None
    ) -> None:
        """Raise `ConfigError` unless a run makes its scores as those were that were fitted to.

        model: as stored in run.json; settings: `RunConfig.result_settings`; precision: None before
        it is known.
        """
        there = self.content.scored_by
        here = ScoredBy(
            model=str(model["digest"]),
            precision=precision or there.precision,
            settings=scoring_settings(settings),
        )
        changes = list(runs.differences(there.model_dump(), here.model_dump()))
        if changes:
            name = self.content.fitted.get("model", "another model")
            shown = "\n".join(f"  {line}" for line in changes)
            raise ConfigError(
                f"rank.calibration {self.path} was fitted to scores of {name}, and this run makes "
                f"those of {model['name']} in another way. What differs:\n{shown}",
                "Fit one to an output of this model and these settings with `rankmill calibrate`, "
                "or leave rank.calibration out.",
            )


def scoring_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the model whose scores rank, of the settings that name a run."""
    if "model" in settings:
        own = settings["model"]
    elif "stages" in settings:
        own = settings["stages"][max(settings["stages"], key=int)]
    else:
        own = settings["models"][settings["rank_by"]]
    return {name: value for name, value in own.items() if name != "keep"}


def read_calibration(path: str, access: StorageConfig = ENVIRONMENT) -> StoredCalibration:
    """Read a file of `rankmill calibrate`, local or on an object store.

    Raises `ConfigError` for what is none, `InputError` for what cannot be read.
    """
    with storage.reaching(path), storage.open_input(path, access) as file:
        content = file.read()
    try:
        found = Calibration.model_validate_json(content)
    except ValidationError:
        raise ConfigError(
            f"rank.calibration {path} is not a calibration of this version of rankmill.",
            "Make one with `rankmill calibrate`.",
        ) from None
    return StoredCalibration(path, hashlib.sha256(content).hexdigest(), found)


def probabilities(curve: Curve, score: Float32) -> Float32:
    """float32 [rows]: how likely each row is relevant; NaN where it has no score."""
    return curve.probabilities(score).astype(np.float32)
