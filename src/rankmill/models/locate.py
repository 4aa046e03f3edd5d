"""Where a model's files are, and how each node comes by them.

A name is the embedded model (`demo`), a local folder, a folder on an object store (any fsspec
URL), or a hub id. `locate` finds it once, on the driver, as a `Place`: a small picklable value
from which every node gets the same files, or an error when they are no longer the same.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

from rankmill import storage
from rankmill.errors import ConfigError, InputError, ModelError
from rankmill.models import presets
from rankmill.models.converted import FILES
from rankmill.storage import StoredFile
from rankmill.storage_settings import ENVIRONMENT, StorageConfig

# What makes scores. Pictures, readmes and other formats of the weights do not.
_DIGESTED = (".json", ".txt", ".model", ".safetensors")
_NOT_DIGESTED = frozenset({"README.txt", "modules.json", "trainer_state.json"})
_FETCHED = ["*.json", "*.jinja", "*.txt", "*.model", "*.safetensors", *FILES]
# The card of an int8 folder, whose graphs make its scores.
CARD = "quantized.json"
# One of them lies in every model's folder, and in none above it.
_LANDMARKS = frozenset({"config.json", "adapter_config.json", "tokenizer.json"})
# A trainer's intermediate states, each as large as the model beside them.
_CHECKPOINTS = "checkpoint-"
EMBEDDED_NAME = "demo"
EMBEDDED = Path(__file__).parent.parent / "demo" / "model"


class Place(ABC):
    """Where a model's files are, the same for every node. A hashable value."""

    revision: str | None = None

    @abstractmethod
    def path(self) -> Path:
        """The folder on this node, fetched if need be. Raises `ModelError` when it cannot be."""

    def digest(self) -> str:
        """SHA-256 over the files on this node that make scores."""
        return digest_of(self.path())

    def to_json(self) -> dict[str, str | None]:
        """What is recorded of the place beside the model's name and digest."""
        return {"revision": self.revision}


@dataclass(frozen=True)
class EmbeddedModel(Place):
    """The model that is part of the package."""

    def path(self) -> Path:
        """The package's own folder."""
        return EMBEDDED


@dataclass(frozen=True)
class LocalFolder(Place):
    """A folder that is on every node under the same path."""

    folder: str

    def path(self) -> Path:
        """The folder itself. Raises `ModelError` when it is not there."""
        if not Path(self.folder).is_dir():
            raise ModelError(
                f"The model folder {self.folder} is not on this node.",
                "Copy it to the same path on every node, or use a hub model or an s3:// folder.",
            )
        return Path(self.folder)


@dataclass(frozen=True)
class HubModel(Place):
    """A repository of the hub at one commit."""

    name: str
    revision: str | None

    def path(self) -> Path:
        """The snapshot in the hub's own cache."""
        return _snapshot(self.name, self.revision)


@dataclass(frozen=True)
class StoreFolder(Place):
    """A folder of an object store, as it was when it was listed.

    version: over the files' names, sizes and versions. access: how it was reached, for other
    nodes.
    """

    url: str
    version: str
    access: StorageConfig

    def path(self) -> Path:
        """This version's copy in the node's cache. Raises `ModelError` when it cannot be had."""
        return cached(self.url.rpartition("/")[2], f"{self.url}\0{self.version}", self._fetch)

    def _fetch(self, folder: Path) -> None:
        files = _listed(self.url, self.access)
        self._refuse_other(files)
        for name, file in files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with _fetching(self.url):
                storage.download(file, target, self.access)
        self._refuse_other(_listed(self.url, self.access))

    def _refuse_other(self, files: dict[str, StoredFile]) -> None:
        if _version(files) != self.version:
            raise ModelError(
                f"The files in {self.url} have changed since the run was planned.",
                "Run the command again; give each version of a model a folder of its own.",
            )


def locate(name: str, revision: str | None = None, access: StorageConfig = ENVIRONMENT) -> Place:
    """Find a model: `demo`, a local folder, an object store's folder, or a hub id.

    revision: of a hub id. access: how an object store is reached.

    Raises `ModelError` when there is no such model or it cannot be reached.
    """
    if name == EMBEDDED_NAME:
        return EmbeddedModel()
    if storage.is_remote(name):
        with _fetching(name):
            url = storage.absolute(name)
        return StoreFolder(url, _version(_listed(url, access)), access)
    local = storage.absolute(name)
    if os.path.isdir(local):
        return LocalFolder(local)
    if presets.find(name) is None and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        near = presets.nearest(name)
        raise ModelError(
            f"There is no model {name}: not a preset, not a folder, not a hub id (owner/name).",
            f"Did you mean {near[0]}?" if near else "`rankmill models` lists the presets.",
        )
    return on_hub(name, revision)


def on_hub(name: str, revision: str | None) -> HubModel:
    """A repository of the hub, fetched. Raises `ModelError` when it cannot be."""
    # The hub's cache keeps each revision in a folder named by its commit.
    return HubModel(name, _snapshot(name, revision).name)


def digest_of(folder: Path) -> str:
    """SHA-256 over the names and contents of config, tokenizer and weight files.

    In an int8 folder the weights are graphs (`quantized`). Cached by size and modification time,
    so that the actors of a node hash large weights once a process, not once a shard.
    """
    graphs = FILES if (folder / CARD).is_file() else ()
    return _digest_of(
        folder,
        (
            p
            for p in folder.iterdir()
            if p.is_file()
            and (p.suffix in _DIGESTED or p.name in graphs)
            and p.name not in _NOT_DIGESTED
        ),
    )


def digest_of_all(folder: Path) -> str:
    """SHA-256 over the names and contents of all files below a folder, hidden ones left out."""
    return _digest_of(folder, (p for p in _visible(folder) if p.is_file()))


def cached(name: str, key: str, fill: Callable[[Path], None]) -> Path:
    """A folder in the user's cache, made by `fill` once for each key: whole, or not there.

    Several processes may ask at once: each fills a folder of its own, and the first to be ready
    is kept. Raises `ModelError` when the cache cannot be written, and what `fill` raises.
    """
    readable = re.sub(r"[^\w.-]", "_", name)[:60]
    folder = (
        storage.user_cache()
        / "models"
        / f"{readable}-{hashlib.sha256(key.encode()).hexdigest()[:32]}"
    )
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent) as partial:
            made = Path(partial, "made")
            made.mkdir()
            fill(made)
            try:
                made.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was first, with the same files
                    raise
    except OSError as error:
        raise ModelError(
            f"The model {name} cannot be kept in {folder.parent}: {error}.",
            "Make room there, or set XDG_CACHE_HOME to a folder that can be written.",
        ) from None
    return folder


def _listed(url: str, access: StorageConfig) -> dict[str, StoredFile]:
    """The files of a store's folder that a model needs, by their names below it.

    Raises `ModelError` when there is no such folder, it holds no model, or a name leads out of it.
    """
    with _fetching(url):
        listed = storage.list_files([url], access)
    found = {}
    for file in listed:
        name = "/".join((*file.folders, file.url.rpartition("/")[2]))
        # An empty part (`mine//etc/x`) would be the root of the disk.
        if not file.url.endswith(f"{url.partition('://')[2]}/{name}"):
            raise ModelError(
                f"{url} is not the folder of one model: {file.url} is no file below it.",
                "Give the folder that holds config.json; no name in it may have empty parts.",
            )
        if any(fnmatchcase(name, pattern) for pattern in _FETCHED) and not any(
            part.startswith(_CHECKPOINTS) for part in file.folders
        ):
            found[name] = file
    if not _LANDMARKS & found.keys():
        raise ModelError(
            f"The model folder {url} has no config.json.",
            "Give a folder written by save_pretrained.",
        )
    return found


def _version(files: dict[str, StoredFile]) -> str:
    lines = [f"{name}\0{file.size}\0{file.version}\n" for name, file in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@contextmanager
def _fetching(name: str) -> Iterator[None]:
    """Say of which model a store's error is."""
    try:
        yield
    except (InputError, ConfigError) as error:
        raise ModelError(
            f"The model {name} cannot be fetched: {error.message}", error.remedy
        ) from None


def _visible(folder: Path) -> Iterable[Path]:
    for path in folder.iterdir():
        if not path.name.startswith("."):
            yield path
            if path.is_dir():
                yield from _visible(path)


def _digest_of(folder: Path, files: Iterable[Path]) -> str:
    return _digest(
        tuple(
            (p.relative_to(folder).as_posix(), str(p), p.stat().st_size, p.stat().st_mtime_ns)
            for p in sorted(files)
        )
    )


@lru_cache(maxsize=8)
def _digest(stamps: tuple[tuple[str, str, int, int], ...]) -> str:
    whole = hashlib.sha256()
    for name, path, _, _ in stamps:
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        whole.update(name.encode() + b"\0" + content)
    return whole.hexdigest()


@lru_cache(maxsize=8)
def _snapshot(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_FETCHED))
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
