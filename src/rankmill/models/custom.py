"""A team's own scorer: a class that they have installed, beside a folder with its files.

The class is named by its import path (`model.scorer: "mypackage.rerankers:TwoLayerHead"`) and
built on every worker as `Class(folder, profile)`. It is code of the user's own environment, on the
driver and on every node; code that lies in a model's folder is refused, wherever the folder came
from.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rankmill.errors import ModelError
from rankmill.models import ScorerModel
from rankmill.models.architectures import ARCHITECTURES, Architecture
from rankmill.models.locate import Place, digest_of_all
from rankmill.profile import Profile
from rankmill.tokenizer import PairTokenizer
from rankmill.tokens import PairRules, TokenBatch

# What an architecture that is not known is taken for when work is estimated.
PLAIN = Architecture("own", feed_forward=2)


@dataclass(frozen=True)
class CustomModel:
    """A folder of any kind with a tokenizer, and the import path of the class that scores it.

    config: config.json, `{}` where there is none. weight_bytes: of its safetensors.
    """

    name: str
    scorer: str
    digest: str
    config: str
    weight_bytes: int
    place: Place
    license: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """config.json."""
        values: dict[str, Any] = json.loads(self.config)
        return values

    @property
    def operations_per_token(self) -> float:
        """From the encoder's sizes, or two operations for each four bytes of weights."""
        try:
            return self._architecture.operations_per_token(self.settings)
        except (KeyError, TypeError):
            return max(self.weight_bytes, 1) / 2

    def max_length(self, wanted: int) -> int:
        """`wanted`, or the limit that config.json gives where that is lower."""
        if type(self.settings.get("max_position_embeddings")) is not int:
            return wanted
        return min(wanted, self._architecture.max_length(self.settings))

    @property
    def takes_instruction(self) -> bool:
        """Never: the class is given queries and documents."""
        return False

    @property
    def is_int8(self) -> bool:
        """Never: the class scores the folder, whatever lies in it."""
        return False

    def check(self, rules: PairRules) -> PairTokenizer:
        """The tokenizer. Raises `ModelError` when it differs, or the class is not there."""
        self.fetch()
        tokenizer = self.tokenizer(rules)
        tokenizer.verify()
        return tokenizer

    def fetch(self) -> None:
        """Make the files present on this node, and see that the run's class can be imported."""
        self._class()

    def prepare(self, profile: Profile) -> None:
        """Nothing: the class is its own backend."""

    def tokenizer(self, rules: PairRules) -> PairTokenizer:
        """The tokenizer with its pair template."""
        return PairTokenizer.load(self.place.path(), rules)

    def load(self, profile: Profile) -> ScorerModel:
        """The user's object, whose answers are checked. Raises `ModelError` when it fails."""
        build, folder = self._class(), self.place.path()
        try:
            model = build(folder, profile)
        except Exception as error:  # whatever somebody else's code raises
            raise ModelError(
                f"{self.scorer} could not be built from {folder}: "
                f"{type(error).__name__}: {' '.join(str(error).split())}.",
                "It is called with the model's folder (a pathlib.Path) and the run's Profile.",
            ) from error
        return CheckedScorer(self.scorer, model)

    def to_json(self) -> dict[str, Any]:
        """What names the model in run.json and in the part files."""
        return {
            "name": self.name,
            **self.place.to_json(),
            "digest": self.digest,
            "architecture": str(self.settings.get("model_type", "own")),
            "scorer": self.scorer,
            "license": self.license,
        }

    @property
    def _architecture(self) -> Architecture:
        return ARCHITECTURES.get(str(self.settings.get("model_type")), PLAIN)

    def _class(self) -> Callable[[Path, Profile], ScorerModel]:
        folder = self.place.path()
        found, source = import_scorer(self.scorer, folder)
        if _digest(folder, self.scorer, source) != self.digest:
            raise ModelError(
                f"The files of {self.name} or the source of {self.scorer} ({source}) on this "
                "node are not those of the run.",
                "Bring the same files and the same code to every node.",
            )
        return found


class CheckedScorer:
    """Somebody else's model: what it answers is looked at before it becomes scores."""

    def __init__(self, name: str, model: ScorerModel) -> None:
        self._name, self._model = name, model

    def score(self, batch: TokenBatch) -> npt.NDArray[np.float32]:
        """Its scores, float32 [batch]. Raises `ModelError` when it gives anything else."""
        found: object = self._model.score(batch)
        pairs = len(batch.input_ids)
        if isinstance(found, np.ndarray) and found.dtype == np.float32 and found.shape == (pairs,):
            return found
        kind = f"{type(found).__module__}.{type(found).__name__}"
        if isinstance(found, np.ndarray):
            kind = f"an array of {found.dtype} {list(found.shape)}"
        raise ModelError(
            f"{self._name}.score must give a numpy array of float32 [{pairs}], a score a pair; "
            f"it gave {kind}.",
            "For a torch tensor of logits [pairs, 1]: logits.float().squeeze(-1).cpu().numpy().",
        )


def describe(name: str, scorer: str, place: Place, license_: str | None) -> CustomModel:
    """A model that a class of the user's own scores.

    Its digest covers all files of the folder, the class's import path and the source of the
    module that defines it.

    Raises `ModelError` when the class cannot be imported or lies in the model's folder.
    """
    folder = place.path()
    config = folder / "config.json"
    try:
        settings = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
        if not isinstance(settings, dict):
            raise ValueError(f"a {type(settings).__name__} at the top")
    except ValueError as error:
        raise ModelError(f"{config} must hold a JSON object: {error}.") from None
    _, source = import_scorer(scorer, folder)
    return CustomModel(
        name=name,
        scorer=scorer,
        digest=_digest(folder, scorer, source),
        config=json.dumps(settings),
        weight_bytes=sum(file.stat().st_size for file in folder.rglob("*.safetensors")),
        place=place,
        license=license_,
    )


def import_scorer(scorer: str, folder: Path) -> tuple[Callable[[Path, Profile], ScorerModel], Path]:
    """The class of an import path `module:Class`, and the file that defines it.

    Nothing is imported from the model's folder: that is looked at before the import runs.

    Raises `ModelError` when it is not there, is no scorer, or lies in the model's folder.
    """
    module, _, name = scorer.partition(":")
    try:
        for part in (module.partition(".")[0], module):
            _refuse_inside(scorer, importlib.util.find_spec(part), folder)
        found = getattr(importlib.import_module(module), name, None)
    except ModelError:
        raise
    except Exception as error:  # importing runs the user's code
        raise ModelError(
            f"model.scorer is {scorer}, but {module} cannot be imported on this machine: "
            f"{type(error).__name__}: {error}.",
            "Install it on the driver and on every node, or name its folder in PYTHONPATH; "
            "`ray job submit --working-dir` brings it along.",
        ) from error
    if not isinstance(found, type) or not callable(getattr(found, "score", None)):
        raise ModelError(
            f"model.scorer is {scorer}, but {module} has no class {name} with a method `score`.",
            "See rankmill.ScorerModel.",
        )
    try:
        source = inspect.getsourcefile(sys.modules[found.__module__])
    except (KeyError, TypeError):  # TypeError: a built-in module
        source = None
    if source is None or not Path(source).is_file():
        raise ModelError(
            f"{scorer} has no source file, by which a run could tell that it has changed.",
            "Put the class into a module (a .py file).",
        )
    _refuse_file(scorer, Path(source), folder)
    return found, Path(source)


def _refuse_inside(scorer: str, spec: Any, folder: Path) -> None:  # noqa: ANN401 - a ModuleSpec
    if spec is None:
        raise ModuleNotFoundError(f"no module named {scorer.partition(':')[0]!r}")
    for place in [spec.origin, *(spec.submodule_search_locations or [])]:
        if place is not None:
            _refuse_file(scorer, Path(place), folder)


def _refuse_file(scorer: str, file: Path, folder: Path) -> None:
    if file.resolve().is_relative_to(folder.resolve()):
        raise ModelError(
            f"{scorer} lies in the model's folder ({file}); code from there is never run.",
            "Install it as a package of your own.",
        )


def _digest(folder: Path, scorer: str, source: Path) -> str:
    parts = (digest_of_all(folder), scorer, hashlib.sha256(source.read_bytes()).hexdigest())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
