"""Models as folders: what is in them, and whether they can be trusted.

A folder needs `config.json`, tokenizer files and safetensors. Pickled weights are not read and
no code from a repository is run, whatever its config asks for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rankmill.config import ModelConfig
from rankmill.errors import ModelError
from rankmill.models import Description, ScorerModel, adapter, custom, presets
from rankmill.models.architectures import Architecture, architecture_of, refuse_broken
from rankmill.models.locate import Place, locate
from rankmill.profile import Profile
from rankmill.tokenizer import PairTokenizer
from rankmill.tokens import PairRules

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_WEIGHTS = "model.safetensors"
_WEIGHTS_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class FolderModel:
    """A sequence classifier of a supported architecture, as a folder on every node."""

    name: str
    digest: str
    config: str
    place: Place
    license: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """config.json."""
        values: dict[str, Any] = json.loads(self.config)
        return values

    @property
    def architecture(self) -> Architecture:
        """Found in config.json."""
        return architecture_of(self.name, self.settings)

    @property
    def operations_per_token(self) -> float:
        """Floating-point operations of the encoder for one token."""
        return self.architecture.operations_per_token(self.settings)

    def max_length(self, wanted: int) -> int:
        """`wanted`, or the model's own limit where that is lower."""
        positions = int(self.settings["max_position_embeddings"])
        return min(wanted, positions - self.architecture.unused_positions)

    def path(self) -> Path:
        """The folder on this node. Raises `ModelError` when it cannot be had."""
        return self.place.path()

    def fetch(self) -> None:
        """Make the files present on this node; a local folder must be there already."""
        self.path()

    def check(self, rules: PairRules) -> None:
        """Raise `ModelError` when the weights do not fill the class, or the tokenizer differs."""
        from rankmill.models import classifiers

        classifiers.check(self.path())
        self.tokenizer(rules).verify()

    def tokenizer(self, rules: PairRules) -> PairTokenizer:
        """The tokenizer with its pair template."""
        return PairTokenizer.load(self.path(), rules)

    def load(self, profile: Profile) -> ScorerModel:
        """The model on the profile's device, once its digest is confirmed."""
        from rankmill.models import torch_encoder

        found = self.place.digest()
        if found != self.digest:
            raise ModelError(
                f"The model {self.name} on this node has the digest {found[:12]}, "
                f"the run's is {self.digest[:12]}.",
                "Bring the same files to every node.",
            )
        return torch_encoder.TorchEncoder(self.path(), profile)

    def to_json(self) -> dict[str, Any]:
        """What names the model in run.json and in the part files."""
        return {
            "name": self.name,
            **self.place.to_json(),
            "digest": self.digest,
            "architecture": self.architecture.name,
            "license": self.license,
        }


def describe(config: ModelConfig, profile: str | None = None) -> Description:
    """Find a model: `demo`, a local folder, a folder on an object store, or a hub id.

    The folder may be a LoRA adapter's. profile: the AWS profile for an object store.

    Raises `ModelError` when it cannot be found, has no safetensors, asks for code of its own, or
    is of an architecture that this version does not score.
    """
    name = config.name
    preset = presets.find(name)
    license_ = preset.licence if preset is not None else None
    if config.scorer is not None:
        return custom.describe(
            name, config.scorer, locate(name, config.revision, profile), license_
        )
    if preset is not None and not preset.supported and not Path(name).is_dir():
        raise ModelError(f"{name} is not supported in this version: {preset.reason}")
    place = locate(name, config.revision, profile)
    files = place.path()
    if adapter.is_adapter(files):
        merged = adapter.find_base(name, place, profile)
        return _described(name, merged, [merged.base.path(), files], license_)
    return _described(name, place, [files], license_)


def _described(
    name: str, place: Place, folders: Sequence[Path], license_: str | None
) -> FolderModel:
    """folders: first the one with config and weights; any of them may hold the tokenizer."""
    files = folders[0]
    config_file = files / "config.json"
    if not config_file.is_file():
        raise ModelError(
            f"The model {name} has no config.json in {files}.",
            "Give a folder written by save_pretrained.",
        )
    try:
        settings = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{config_file} is not valid JSON: {error}.") from None
    if not isinstance(settings, dict):
        raise ModelError(
            f"{config_file} must hold a JSON object, found a {type(settings).__name__}.",
            "Give a folder written by save_pretrained.",
        )
    if isinstance(place, adapter.MergedAdapter):  # which brings the head, or lacks it by name
        settings.pop("architectures", None)
    found = architecture_of(name, settings)
    refuse_broken(config_file, settings)
    weight_files(name, files)
    vocabulary = ["tokenizer.json", *filter(None, [found.vocabulary])]
    if not any((folder / file).is_file() for folder in folders for file in vocabulary):
        raise ModelError(
            f"The model {name} has no tokenizer: no {' or '.join(vocabulary)} in {files}.",
            "Save it beside the model: tokenizer.save_pretrained(FOLDER).",
        )
    return FolderModel(name, place.digest(), json.dumps(settings), place, license_)


def weight_files(name: str, files: Path) -> list[Path]:
    """The safetensors files that transformers would load: one, or those that an index names.

    Raises `ModelError` when there are none, or when one that the index names is missing.
    """
    if (files / _WEIGHTS).is_file():
        return [_readable(files / _WEIGHTS)]
    index = files / _WEIGHTS_INDEX
    if not index.is_file():
        others = sorted(p.name for p in files.iterdir() if p.suffix in (".safetensors", *_PICKLED))
        found = f"only {', '.join(others)} (nothing is ever unpickled)" if others else "no weights"
        raise ModelError(
            f"The model {name} has no {_WEIGHTS}: {found}.",
            "Convert it once where you trust it: model.save_pretrained(FOLDER) writes safetensors.",
        )
    try:
        named = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(
            f"{index} is not an index of safetensors files.",
            "Give a folder written by save_pretrained.",
        ) from None
    missing = [n for n in named if Path(n).name != n or not (files / n).is_file()]
    if missing or not named:
        raise ModelError(
            f"{index} names {', '.join(missing) or 'no file'}, which is not in the folder.",
            "Fetch the model again.",
        )
    return [_readable(files / n) for n in named]


def _readable(file: Path) -> Path:
    try:
        with safe_open(str(file), framework="numpy"):
            return file
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{file} is not a readable safetensors file: {error}.", "Fetch the model again."
        ) from None
