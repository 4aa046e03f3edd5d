"""Models as folders: where they are, what is in them, whether they can be trusted.

A folder needs `config.json`, tokenizer files and safetensors. Pickled weights are not read and
no code from a repository is run, whatever its config asks for.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rankmill.config import ModelConfig
from rankmill.errors import ModelError
from rankmill.models import ScorerModel, openvino_model, presets
from rankmill.models.architectures import Architecture, architecture_of, refuse_broken
from rankmill.profile import Profile
from rankmill.storage import user_cache
from rankmill.tokenizer import PairTokenizer
from rankmill.tokens import PairRules

# What makes scores. Pictures, readmes and other formats of the weights do not.
_DIGESTED = (".json", ".txt", ".model", ".safetensors")
_NOT_DIGESTED = frozenset({"README.txt", "modules.json", "trainer_state.json"})
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_HUB_PATTERNS = ["*.json", "*.txt", "*.model", "*.safetensors"]
_WEIGHTS = "model.safetensors"
_WEIGHTS_INDEX = "model.safetensors.index.json"
EMBEDDED_NAME = "demo"
EMBEDDED = Path(__file__).parent.parent / "demo" / "model"


@dataclass(frozen=True)
class FolderModel:
    """A sequence classifier of a supported architecture in a local folder or on the hub.

    `folder` is None for the embedded model, and for a hub model, which each node fetches.
    """

    name: str
    digest: str
    config: str
    folder: str | None = None
    revision: str | None = None
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
        """The folder on this node. Raises `ModelError` when it is not there."""
        if self.name == EMBEDDED_NAME:
            return EMBEDDED
        if self.folder is not None:
            if not Path(self.folder, "config.json").is_file():
                raise ModelError(
                    f"The model folder {self.folder} is not on this node.",
                    "Copy it to the same path on every node, or use a hub model.",
                )
            return Path(self.folder)
        return _snapshot(self.name, self.revision)

    def fetch(self) -> None:
        """Fetch a hub model to this node's cache; a local folder must be there already."""
        self.path()

    def prepare(self, profile: Profile) -> None:
        """Convert the model where the profile's backend needs it. Raises `BackendUnfit`."""
        if profile.backend == "openvino":
            openvino_model.ready(self, profile, user_cache() / "openvino")

    def check(self, rules: PairRules) -> None:
        """Raise `ModelError` when the weights do not fill the class, or the tokenizer differs."""
        from rankmill.models import classifiers

        classifiers.check(self.path())
        self.tokenizer(rules).verify()

    def tokenizer(self, rules: PairRules) -> PairTokenizer:
        """The tokenizer with its pair template."""
        return PairTokenizer.load(self.path(), rules)

    def load(self, profile: Profile) -> ScorerModel:
        """The model on the profile's device, once its digest is confirmed.

        Raises `BackendUnfit` when the profile's backend cannot score it on this node.
        """
        folder = self.path()
        found = digest_of(folder)
        if found != self.digest:
            raise ModelError(
                f"The model {self.name} on this node has the digest {found[:12]}, "
                f"the run's is {self.digest[:12]}.",
                "Bring the same files to every node.",
            )
        if profile.backend == "openvino":
            entry = openvino_model.ready(self, profile, user_cache() / "openvino")
            from rankmill.models import openvino_encoder

            return openvino_encoder.OpenVinoEncoder(entry, profile)
        from rankmill.models import torch_encoder

        return torch_encoder.TorchEncoder(folder, profile)

    def to_json(self) -> dict[str, Any]:
        """What names the model in run.json and in the part files."""
        return {
            "name": self.name,
            "revision": self.revision,
            "digest": self.digest,
            "architecture": self.architecture.name,
            "license": self.license,
        }


def describe(config: ModelConfig) -> FolderModel:
    """Find a model: the embedded one (`demo`), a local folder, or a hub id.

    Raises `ModelError` when it cannot be found, has no safetensors, asks for code of its own, or
    is of an architecture that this version does not score.
    """
    name = config.name
    preset = presets.find(name)
    license_ = preset.licence if preset is not None else None
    if name == EMBEDDED_NAME:
        return _described(name, EMBEDDED, license_=license_)
    local = Path(os.path.abspath(os.path.expanduser(name)))
    if local.is_dir():
        return _described(name, local, folder=str(local))
    if "://" in name:
        raise ModelError(
            f"The model {name} is not a local folder.",
            "Models on object stores are not in this version; copy it to a folder.",
        )
    if preset is None and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        near = presets.nearest(name)
        raise ModelError(
            f"There is no model {name}: not a preset, not a folder, not a hub id (owner/name).",
            f"Did you mean {near[0]}?" if near else "`rankmill models` lists the presets.",
        )
    if preset is not None and not preset.supported:
        raise ModelError(f"{name} is not supported in this version: {preset.reason}")
    cached = _snapshot(name, config.revision)
    # The hub's cache keeps each revision in a folder named by its commit.
    return _described(name, cached, revision=cached.name, license_=license_)


def _described(
    name: str,
    files: Path,
    folder: str | None = None,
    revision: str | None = None,
    license_: str | None = None,
) -> FolderModel:
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
    found = architecture_of(name, settings)
    refuse_broken(config_file, settings)
    weight_files(name, files)
    vocabulary = ["tokenizer.json", *filter(None, [found.vocabulary])]
    if not any((files / file).is_file() for file in vocabulary):
        raise ModelError(
            f"The model {name} has no tokenizer: no {' or '.join(vocabulary)} in {files}.",
            "Save it beside the model: tokenizer.save_pretrained(FOLDER).",
        )
    return FolderModel(name, digest_of(files), json.dumps(settings), folder, revision, license_)


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


def digest_of(folder: Path) -> str:
    """SHA-256 over the names and contents of config, tokenizer and weight files.

    Cached by size and modification time, so that the actors of a node hash large weights once a
    process, not once a shard.
    """
    files = sorted(
        p
        for p in folder.iterdir()
        if p.is_file() and p.suffix in _DIGESTED and p.name not in _NOT_DIGESTED
    )
    stamps = tuple((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files)
    return _digest(stamps)


@lru_cache(maxsize=8)
def _digest(stamps: tuple[tuple[str, int, int], ...]) -> str:
    whole = hashlib.sha256()
    for path, _, _ in stamps:
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        whole.update(Path(path).name.encode() + b"\0" + content)
    return whole.hexdigest()


@lru_cache(maxsize=8)
def _snapshot(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_HUB_PATTERNS))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        near = presets.nearest(name)
        raise ModelError(
            f"The model {name} is not a local folder and could not be fetched from the hub: "
            f"{reason}",
            f"Did you mean {near[0]}?"
            if near and near[0] != name
            else "Check the name and the network, or give a local folder.",
        ) from None
