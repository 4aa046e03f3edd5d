"""The one module that knows file systems: local disk, and everything fsspec reaches.

A path is a plain local path or a URL (`s3://bucket/key`). Only the path and the settings of
`storage` ever travel between processes; each process opens its own file system with the
credentials of its own environment, so no secret is pickled, logged or stored.
"""

from __future__ import annotations

import glob
import os
import posixpath
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Literal, cast

import fsspec
import pyarrow as pa
import pyarrow.dataset as pads
from fsspec import AbstractFileSystem

from rankmill import s3
from rankmill.errors import ConfigError, InputError, OutputError
from rankmill.storage_settings import ENVIRONMENT, S3, StorageConfig

Infos = dict[str, dict[str, object]]

_GLOB = frozenset("*?[")
_BATCH_ROWS = 2**17


@dataclass(frozen=True)
class StoredFile:
    """A file as it was listed. `version` changes whenever its content may have.

    `folders`: the folders between the given path (or its first wildcard) and the file.
    """

    url: str
    size: int
    version: str
    folders: tuple[str, ...] = ()


def is_remote(path: str) -> bool:
    """Whether a path names an object store rather than a local file."""
    return "://" in path and not path.startswith("file://")


def is_s3(path: str) -> bool:
    """Whether a path names an object of S3 or of what speaks like it."""
    return path.split("://", 1)[0] in S3


def absolute(path: str) -> str:
    """A local path made absolute (`~` expanded, `..` resolved textually); URLs as they are.

    Raises `ConfigError` for a URL whose key climbs with `..`.
    """
    if is_remote(path):
        if ".." in path.split("://", 1)[1].split("/"):
            raise ConfigError(f"The path {path} climbs with '..'.", "Give the key itself.")
        return path.rstrip("/")
    return os.path.abspath(os.path.expanduser(path.removeprefix("file://")))


def join(base: str, *names: str) -> str:
    """`base/name/…` for local paths and URLs alike."""
    return posixpath.join(base, *names)


def user_cache() -> Path:
    """rankmill's folder in the user's cache (XDG_CACHE_HOME, or ~/.cache)."""
    wanted = os.environ.get("XDG_CACHE_HOME", "")
    # By the XDG specification a relative path means nothing.
    return Path(wanted if os.path.isabs(wanted) else os.path.expanduser("~/.cache"), "rankmill")


@lru_cache(maxsize=16)
def _filesystem(protocol: str, access: StorageConfig, process: int) -> AbstractFileSystem:
    # `process` keeps a forked child from using its parent's connections and event loop.
    options = s3.options(access) if protocol in S3 else {}
    try:
        return fsspec.filesystem(protocol, **options)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"Paths that start with {protocol}:// cannot be opened: {error}.",
            "Install the fsspec implementation of that store.",
        ) from None


def filesystem(path: str, access: StorageConfig = ENVIRONMENT) -> tuple[AbstractFileSystem, str]:
    """The file system of a path and the path as that file system writes it.

    Raises `ConfigError` when no implementation is installed.
    """
    protocol = path.split("://", 1)[0] if "://" in path else "file"
    fs = _filesystem(protocol, access if protocol in S3 else ENVIRONMENT, os.getpid())
    return fs, fs._strip_protocol(path)


@contextmanager
def os_errors() -> Iterator[None]:
    """Make botocore's own errors, which derive from Exception alone, an OSError.

    s3fs translates what a server answers, but not a server that cannot be reached.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise OSError(str(error)) from error


@contextmanager
def reaching(path: str, to_be: Literal["read", "written"] = "read") -> Iterator[None]:
    """Turn a store's own failures into an error that names the path and the remedy.

    Raises `InputError`; for what was to be written `OutputError`.
    """
    try:
        with os_errors():
            yield
    except OSError as error:
        if to_be == "read" and isinstance(error, FileNotFoundError):
            raise InputError(f"There is nothing at {path}.", "Check the path.") from None
        remedy = "Check the path and its permissions."
        if is_remote(path):
            remedy = (
                "Check the path, the endpoint (storage.endpoint_url or AWS_ENDPOINT_URL) and the "
                "credentials."
            )
        # The system's own words, for its message repeats a name of any length.
        why = str(error)
        if error.strerror and not is_remote(path):
            inside = error.filename not in (None, path) and len(str(error.filename)) < 1_000
            why = f"{error.filename}: {error.strerror}" if inside else error.strerror
        kind = InputError if to_be == "read" else OutputError
        raise kind(f"{path} cannot be {to_be}: {why.rstrip('.')}.", remedy) from None


def list_files(paths: Sequence[str], access: StorageConfig = ENVIRONMENT) -> list[StoredFile]:
    """All files under the given files, folders and globs, in the order of the paths, then names.

    Names that start with `_` or `.` are skipped at every level below a given folder, and wherever
    a wildcard could match them, as Spark and pyarrow do. A file named twice is read once.

    Raises `InputError` when a path holds nothing.
    """
    found: dict[str, StoredFile] = {}
    for path in paths:
        with reaching(path):
            files = _list_one(absolute(path), access)
        if not files:
            raise InputError(
                f"No file was found at {path}.",
                "Names that start with '_' or '.' are skipped; check the path.",
            )
        for file in files:
            found.setdefault(file.url, file)
    return list(found.values())


def _list_one(path: str, access: StorageConfig) -> list[StoredFile]:
    fs, bare = filesystem(path, access)
    if _GLOB & set(bare) and not fs.exists(bare):
        fixed = bare.rfind("/", 0, min(bare.index(c) for c in _GLOB & set(bare))) + 1
        if "file" in _protocols(fs):  # fsspec would pass over symbolic links
            infos = {p.rstrip("/"): fs.info(p) for p in glob.glob(bare, recursive=True)}
        else:
            infos = fs.glob(bare, detail=True)
        infos = {path: info for path, info in infos.items() if _is_visible(path[fixed:])}
        root = bare[:fixed]
        files = [_stored(fs, p, info, root) for p, info in infos.items() if _is_file(p, info)]
        for folder in (p for p, info in infos.items() if info["type"] == "directory"):
            files += _visible(fs, _find(fs, folder), folder, root)
    elif (files_below := _files_below(fs, bare)) is not None:
        files = files_below
    else:
        info = fs.info(bare)
        files = [_stored(fs, bare, info, posixpath.dirname(bare))] if _is_file(bare, info) else []
    return sorted(files, key=lambda file: file.url)


def visible_files(folder: str, access: StorageConfig = ENVIRONMENT) -> list[StoredFile]:
    """All files below a folder that a reader pointed at it would take; none if there is none."""
    fs, bare = filesystem(folder, access)
    with reaching(folder):
        return sorted(_files_below(fs, bare) or [], key=lambda file: file.url)


def _files_below(fs: AbstractFileSystem, folder: str) -> list[StoredFile] | None:
    """The visible files below a folder; None: there is no such folder."""
    # On S3 the same listing tells: to ask first would list a large folder twice.
    if not set(S3) & set(_protocols(fs)) and not fs.isdir(folder):
        return None
    found = _find(fs, folder)
    return _visible(fs, found, folder, folder) if found.keys() - {folder} else None


def _visible(fs: AbstractFileSystem, found: Infos, folder: str, root: str) -> list[StoredFile]:
    prefix = len(folder.rstrip("/")) + 1
    return [
        _stored(fs, path, info, root)
        for path, info in found.items()
        if _is_file(path, info) and _is_visible(path[prefix:])
    ]


def _find(fs: AbstractFileSystem, root: str) -> Infos:
    if "file" not in _protocols(fs):
        return cast(Infos, fs.find(root, detail=True))

    # fsspec would pass over symbolic links and unreadable folders in silence.
    def refuse(error: OSError) -> None:
        raise error

    found: Infos = {}
    for folder, below, names in os.walk(root, onerror=refuse, followlinks=True):
        below[:] = filter(_is_visible, below)
        for path in (os.path.join(folder, name) for name in names if _is_visible(name)):
            try:
                found[path] = fs.info(path)
            except FileNotFoundError:
                raise InputError(
                    f"{path} is a link that leads nowhere.", "Mend it or leave it out."
                ) from None
    return found


def _is_file(path: str, info: dict[str, object]) -> bool:
    if info["type"] not in ("file", "directory"):  # a pipe would be waited for, for ever
        raise InputError(f"{path} is not a regular file.", "Leave it out of the input.")
    # Consoles of object stores make empty objects that stand for folders.
    return info["type"] == "file" and not str(info["name"]).endswith("/")


def _is_visible(relative: str) -> bool:
    return not any(part.startswith(("_", ".")) for part in relative.split("/"))


def _stored(fs: AbstractFileSystem, path: str, info: dict[str, object], root: str) -> StoredFile:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise InputError(f"The name of {path} is not valid UTF-8.", "Rename the file.") from None
    url = path if "file" in _protocols(fs) else fs.unstrip_protocol(path)
    folders = tuple(path[len(root) :].strip("/").split("/")[:-1])
    return StoredFile(url, int(cast(int, info["size"])), _version(path, info), folders)


def _protocols(fs: AbstractFileSystem) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _version(path: str, info: dict[str, object]) -> str:
    for key in ("ETag", "etag", "md5Hash", "generation"):
        if info.get(key):
            return str(info[key]).strip('"')
    if os.path.isfile(path):
        stat = os.stat(path)
        return f"{stat.st_size}-{stat.st_mtime_ns}"
    return f"{info['size']}-{info.get('mtime') or info.get('LastModified')}"


def current_version(file: StoredFile, access: StorageConfig = ENVIRONMENT) -> str:
    """The version that a listed file has now. Raises `InputError` when it has vanished."""
    fs, bare = filesystem(file.url, access)
    with reaching(file.url):
        return _version(bare, fs.info(bare))


def is_folder(path: str, access: StorageConfig = ENVIRONMENT) -> bool:
    """Whether a path is a folder. Raises `InputError` when its store cannot be reached."""
    fs, bare = filesystem(path, access)
    with reaching(path):
        return bool(fs.isdir(bare))


def download(file: StoredFile, target: Path, access: StorageConfig = ENVIRONMENT) -> None:
    """Copy a listed file to local disk. Raises `InputError` when it does not arrive whole."""
    fs, bare = filesystem(file.url, access)
    with reaching(file.url):
        fs.get_file(bare, str(target))
        arrived = target.stat().st_size
        if arrived != file.size:
            raise OSError(f"{arrived:,} of {file.size:,} bytes arrived")


@contextmanager
def open_input(
    path: str, access: StorageConfig = ENVIRONMENT, size: int | None = None
) -> Iterator[BinaryIO]:
    """A seekable binary file for reading. size: where it is known, S3 is not asked for it.

    Raises `InputError` when it cannot be opened; errors while reading are OSErrors.
    """
    fs, bare = filesystem(path, access)
    with reaching(path):
        options: dict[str, object] = {} if "file" in _protocols(fs) else {"cache_type": "none"}
        if size is not None and is_s3(path):
            options["size"] = size
        file = fs.open(bare, "rb", **options)
        if "size" in options:
            file.details = {"name": bare, "size": size}  # or the first read asks for them
    with file, os_errors():
        yield file


def write_file(path: str, content: bytes, access: StorageConfig = ENVIRONMENT) -> None:
    """Write a file of the user's own, local or remote, its folders too.

    What is there is replaced, and no reader of a file sees a part. Raises `ConfigError` when it
    cannot be written.
    """
    fs, bare = filesystem(absolute(path), access)
    try:
        with os_errors():
            if is_remote(path) or (os.path.exists(bare) and not os.path.isfile(bare)):
                # What is there may be a pipe or /dev/stdout.
                fs.pipe_file(bare, content, **(s3.ONE_PUT if is_s3(path) else {}))
                return
            bare = os.path.realpath(bare)
            temporary = Path(f"{bare}.{uuid.uuid4().hex}")
            temporary.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(content)
                temporary.replace(bare)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise ConfigError(f"{path} cannot be written: {why}.", "Check its folder.") from None


def read_table(
    paths: str | Sequence[str],
    columns: Sequence[str] | None = None,
    access: StorageConfig = ENVIRONMENT,
) -> pa.Table:
    """All rows of the Parquet files under some paths, in listing order, as one table.

    For judgements and ranked output of a size that fits the caller's memory. Raises `InputError`
    when nothing is found, a file is not Parquet, or a wanted column is missing.
    """
    with _opened(paths, columns, access) as dataset:
        return dataset.to_table(columns=None if columns is None else list(columns))


def read_batches(
    paths: str | Sequence[str], columns: Sequence[str], access: StorageConfig = ENVIRONMENT
) -> Iterator[pa.RecordBatch]:
    """The same rows in the same order, some at a time: a few row groups are in memory.

    Raises `InputError` as `read_table` does.
    """
    with _opened(paths, columns, access) as dataset:
        # Arrow's defaults hold 16 batches of each of 4 files ahead.
        yield from dataset.to_batches(
            columns=list(columns), batch_size=_BATCH_ROWS, batch_readahead=4, fragment_readahead=1
        )


def require_folder(path: str) -> None:
    """Raise `ConfigError` where a file's folder on disk is not there: before work, not after."""
    folder = os.path.dirname(absolute(path))
    if not is_remote(path) and not os.path.isdir(folder):
        raise ConfigError(f"There is no folder {folder} for {path}.", "Make it, or check the path.")


@contextmanager
def _opened(
    paths: str | Sequence[str], columns: Sequence[str] | None, access: StorageConfig
) -> Iterator[pads.Dataset]:
    listed = list_files([paths] if isinstance(paths, str) else paths, access)
    fs, _ = filesystem(listed[0].url, access)
    try:
        dataset = pads.dataset(
            [fs._strip_protocol(file.url) for file in listed], format="parquet", filesystem=fs
        )
        missing = [name for name in columns or [] if name not in dataset.schema.names]
        if missing:
            raise InputError(
                f"{paths} has no column {', '.join(missing)}.",
                f"Its columns are {', '.join(dataset.schema.names)}.",
            )
        yield dataset
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{paths} cannot be read as Parquet: {error}.") from None
