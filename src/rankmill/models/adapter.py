"""LoRA adapters: small weights that change a base model's, merged into it once a node.

The merged model is a folder in the node's cache like any other model's, so that every backend
reads it, and processes share its memory-mapped weights. Merging itself is in `lora`, with peft.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rankmill import storage
from rankmill.errors import ConfigError, InputError, ModelError
from rankmill.models.locate import (
    EMBEDDED_NAME,
    HubModel,
    LocalFolder,
    Place,
    StoreFolder,
    cached,
    locate,
    on_hub,
)
from rankmill.storage_settings import StorageConfig
from rankmill.tokenizer_files import has_vocabulary

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
# Files of tokenizers, by how their names begin; SentencePiece's all end in .model.
_TOKENIZER = ("tokenizer", "special_tokens_map", "added_tokens", "vocab", "merges")


@dataclass(frozen=True)
class MergedAdapter(Place):
    """An adapter and its base, merged.

    expected: the digest of both, without which nothing is merged. The tokenizer is the adapter's
    where it has one.
    """

    name: str
    adapter: Place
    base: Place
    base_name: str
    expected: str
    revision: str | None

    def path(self) -> Path:
        """The merged model in this node's cache.

        Raises `ModelError` when the files are not those of the run, when they do not fit
        together, or without peft.
        """
        try:
            peft = metadata.version("peft")
        except metadata.PackageNotFoundError:
            raise ModelError(
                f"The model {self.name} is a LoRA adapter, and peft is not installed.",
                "pip install 'rankmill[lora]' on every node.",
            ) from None
        return cached(Path(self.name).name, f"{self.expected}\0peft {peft}", self._merge)

    def tokenizer_folder(self) -> Path:
        """Which of the two folders on this node has the tokenizer: the adapter's, if it has one."""
        adapter = self.adapter.path()
        return adapter if has_vocabulary(adapter) else self.base.path()

    def digest(self) -> str:
        """SHA-256 over the files of both."""
        return _digest(self.base, self.adapter)

    def to_json(self) -> dict[str, str | None]:
        """The adapter's revision, and the base."""
        return {
            "revision": self.revision,
            "base": self.base_name,
            "base_revision": self.base.revision,
        }

    def _merge(self, folder: Path) -> None:
        from rankmill.models import lora

        if self.digest() != self.expected:
            raise ModelError(
                f"The files of the adapter {self.name} or of its base {self.base_name} on this "
                "node are not those of the run.",
                "Bring the same files to every node.",
            )
        base, adapter = self.base.path(), self.adapter.path()
        lora.merge(base, adapter, folder)
        for file in self.tokenizer_folder().iterdir():
            if file.name.startswith(_TOKENIZER) or file.suffix == ".model":
                shutil.copyfile(file, folder / file.name)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter rather than a whole model."""
    return (folder / CONFIG).is_file()


def find_base(name: str, adapter: Place, access: StorageConfig) -> MergedAdapter:
    """Read an adapter's configuration and find its base: a hub id, or a folder.

    A relative folder is looked for in the adapter's own and beside it.

    Raises `ModelError` for an adapter of another kind, one whose weights are pickled, and a base
    that cannot be found.
    """
    folder = adapter.path()
    settings = _read(name, folder)
    _refuse_pickled(name, folder)
    named = settings["base_model_name_or_path"]
    try:
        base = _locate_base(named, settings.get("revision"), adapter, access)
        if is_adapter(base.path()):
            raise ModelError(f"{named} is an adapter itself.")
    except (ModelError, ConfigError, InputError) as error:
        raise ModelError(
            f"The base of the adapter {name} cannot be used: {error.message}",
            f"Name it in {CONFIG} (base_model_name_or_path): a hub id, or a folder beside the "
            "adapter's.",
        ) from None
    return MergedAdapter(
        name=name,
        adapter=adapter,
        base=base,
        base_name=named,
        expected=_digest(base, adapter),
        revision=adapter.revision,
    )


def _read(name: str, folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind, base = settings["peft_type"], settings["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        raise ModelError(
            f"{folder / CONFIG} is not the configuration of an adapter.",
            "Give a folder written by peft's save_pretrained.",
        ) from None
    if kind != "LORA":
        raise ModelError(
            f"The adapter {name} is of the kind {kind}; only LORA is supported.",
            "Merge it where it was trained: model.merge_and_unload().save_pretrained(FOLDER).",
        )
    if not isinstance(base, str) or not base:
        raise ModelError(f"{folder / CONFIG} names no base model (base_model_name_or_path).")
    values: dict[str, Any] = settings
    return values


def _refuse_pickled(name: str, folder: Path) -> None:
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        found = "only adapter_model.bin (nothing is ever unpickled)" if pickled else "no weights"
        raise ModelError(
            f"The adapter {name} has no {WEIGHTS}: {found}.",
            "Convert it once where you trust it: model.save_pretrained(FOLDER) writes safetensors.",
        )


def _locate_base(named: str, revision: str | None, adapter: Place, access: StorageConfig) -> Place:
    if isinstance(adapter, HubModel) and storage.is_remote(named):
        # This machine's credentials would be used where a stranger's file says.
        raise ModelError(f"{named} is a URL, in an adapter from the hub.")
    if isinstance(adapter, LocalFolder | StoreFolder):
        own = adapter.folder if isinstance(adapter, LocalFolder) else adapter.url
        for start in (own, posixpath.dirname(own)):
            near = _below(start, named)
            if near is not None and storage.is_folder(near, access):
                return locate(near, None, access)
    if "/" not in named and named != EMBEDDED_NAME:  # the hub's oldest models have no owner
        return on_hub(named, revision)
    return locate(named, revision, access)


def _below(start: str, named: str) -> str | None:
    """A relative path from a folder, local or not; None where it leads out of everything."""
    if storage.is_remote(named) or named.startswith(("/", "~")):
        return None
    protocol, separator, path = start.rpartition("://")
    joined = posixpath.normpath(posixpath.join(path, named))
    return None if joined.startswith("..") else f"{protocol}{separator}{joined}"


def _digest(base: Place, adapter: Place) -> str:
    return hashlib.sha256(f"{base.digest()}\0{adapter.digest()}".encode()).hexdigest()
