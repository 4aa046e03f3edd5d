"""A folder that is written to: whole files, atomically, on local disk or an object store.

Two processes may write to one folder by mistake or after a pause. `exchange` lets one of them win,
and a `Fence` keeps a writer out that slept while the folder became another run's.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import posixpath
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from fsspec import AbstractFileSystem

from rankmill import s3
from rankmill.errors import InputError, OutputBusy
from rankmill.storage import filesystem, is_remote, is_s3, join, os_errors
from rankmill.storage_settings import ENVIRONMENT, StorageConfig

_LOCK = "_rankmill/lease.lock"
# Whoever waits for a lock gives up after so many seconds: its holder does not run.
_LOCK_SECONDS = 20.0
# A file system without locks (some network and FUSE mounts) answers one of these.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
_WILDCARD = re.compile(r"[*?\[]")
# How often a file may change under a conditional write before somebody must be at fault.
_ATTEMPTS = 5


@dataclass(frozen=True)
class Fence:
    """Nothing is written unless the file `name` still has this SHA-256."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Listed:
    """A file as its folder's listing shows it. tag: an object store's ETag; empty elsewhere."""

    size: int
    tag: str = ""


@dataclass(frozen=True)
class Listing:
    """What lies directly in a folder: files, and the names of all else; folders end in a slash."""

    files: dict[str, Listed]
    others: tuple[str, ...] = ()

    @property
    def visible(self) -> list[str]:
        """Names that a reader pointed at the folder would not pass over."""
        return [n for n in (*self.files, *self.others) if not n.startswith(("_", "."))]


@dataclass(frozen=True)
class Store:
    """A folder that is written to: local, or a prefix of an object store. Cheap to pickle.

    fence: what must still be there whenever `write` puts a file in its place.

    Whatever a store answers or fails to answer is an OSError.
    """

    url: str
    access: StorageConfig = ENVIRONMENT
    fence: Fence | None = None

    def _at(self, name: str) -> tuple[AbstractFileSystem, str]:
        return filesystem(join(self.url, name) if name else self.url, self.access)

    @property
    def local(self) -> bool:
        """Whether writes go to a local file system."""
        return not is_remote(self.url)

    @os_errors()
    def write(self, name: str, content: bytes) -> None:
        """Write a whole file so that no reader ever sees a part of it.

        On disk: a temporary file below `_rankmill/tmp`, unique to this attempt, fsync, rename. On
        an object store: one completed upload. Raises `OutputBusy` when the fence has fallen; on
        disk and on a store with conditional writes nothing is written over then, however long
        this process slept on the way.
        """
        if self.local:
            with self._temporary(name, content) as temporary:
                if self.fence is None:
                    self._put_in_place(temporary, name)
                    return
                with self.locked(shared=True):
                    self._refuse_fallen()
                    self._put_in_place(temporary, name)
            return
        if self.fence is None:
            self._put(name, content)
            return
        self._behind_fence(name, lambda tag: self._put_if(name, content, tag))

    @os_errors()
    def withdraw(self, name: str) -> None:
        """Remove a file, if it is there, as `write` would put one: behind the fence."""
        if self.fence is None:
            self.delete([name])
            return
        with self.locked(shared=True):
            self._behind_fence(name, lambda tag: tag is None or self._delete_if(name, tag))

    def _behind_fence(self, name: str, act: Callable[[str | None], bool]) -> None:
        """Do what is told a file's tag and fails when the file has another, until it is done."""
        for _ in range(_ATTEMPTS):
            tag = self._tag(name)
            # After the look at the file: who takes the folder over from here on changes its tag.
            self._refuse_fallen()
            if act(tag):
                return
        raise OSError(f"{join(self.url, name)} is written by other processes all the time")

    @os_errors()
    def exchange(self, name: str, expected: bytes | None, content: bytes | None) -> bool:
        """Replace a file (None: no file) if it holds just what is expected; whether it did.

        One of several that try at once wins: on disk by a lock, on an object store by
        conditional writes (`If-Match`, `If-None-Match`). On a store without them several may
        believe that they won; the last one did. A write whose answer was lost on the way counts
        as not done, so look again before giving up. No content may be written twice.
        """
        if self.local:
            with self.locked():
                if self.read(name) != expected:
                    return False
                if content is None:
                    self.delete([name])
                    return True
                with self._temporary(name, content) as temporary:
                    self._put_in_place(temporary, name)
                return True
        tag = self._tag(name)
        if self.read(name) != expected or (tag is None) != (expected is None):
            return False
        return (
            self._put_if(name, content, tag) if content is not None else self._delete_if(name, tag)
        )

    @contextmanager
    def locked(self, shared: bool = False) -> Iterator[None]:
        """Hold the folder's lock, alone or with others that share it; only on disk.

        The kernel gives it back when a process dies. Raises `OutputBusy` when another process
        does not give it back.
        """
        if not self.local:
            yield
            return
        path = Path(self.url, _LOCK)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            _lock(file.fileno(), fcntl.LOCK_SH if shared else fcntl.LOCK_EX, self.url)
            yield

    @contextmanager
    def _temporary(self, name: str, content: bytes) -> Iterator[Path]:
        """A complete file on the same disk; gone afterwards unless it was put in its place."""
        temporary = Path(self.url, "_rankmill", "tmp", f"{Path(name).name}.{uuid.uuid4().hex}")
        temporary.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def _put_in_place(self, temporary: Path, name: str) -> None:
        path = Path(self.url, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary, path)
        _sync_folder(path.parent)

    def _refuse_fallen(self) -> None:
        assert self.fence is not None, "asked only where there is one"
        content = self.read(self.fence.name)
        if content is None or hashlib.sha256(content).hexdigest() != self.fence.sha256:
            raise OutputBusy(
                f"Another run has taken over {self.url}; this one writes no more.",
                "If that was not wanted, start again in another output.",
            )

    @property
    def _conditional(self) -> bool:
        return is_s3(self.url)

    @property
    def _one_get(self) -> dict[str, int]:
        return s3.ONE_GET if self._conditional else {}

    def _put(self, name: str, content: bytes, **condition: str) -> None:
        fs, path = self._at(name)
        fs.pipe_file(path, content, **(s3.ONE_PUT if self._conditional else {}), **condition)

    def _tag(self, name: str) -> str | None:
        """What changes with a file's content; None when there is no file."""
        fs, path = self._at(name)
        try:
            return str(fs.info(path).get("ETag", ""))
        except FileNotFoundError:
            return None

    def _put_if(self, name: str, content: bytes, tag: str | None) -> bool:
        """Write if the file has that tag (None: if there is none), where the store can do so."""
        condition = {"mode": "create"} if tag is None else {"IfMatch": tag}
        try:
            self._put(name, content, **(condition if self._conditional else {}))
        except OSError as error:
            if _is_unmet(error):
                return False
            if error.errno != errno.ENOSYS:
                raise
            self._put(name, content)
        return True

    def _delete_if(self, name: str, tag: str | None) -> bool:
        if not self._conditional or tag is None:
            self.delete([name])
            return True
        fs, path = self._at(name)
        bucket, key, _ = fs.split_path(path)
        try:
            fs.call_s3("delete_object", Bucket=bucket, Key=key, IfMatch=tag)
        except OSError as error:
            if _is_unmet(error):
                return False
            if error.errno != errno.ENOSYS:
                raise
            self.delete([name])
        return True

    @os_errors()
    def read(self, name: str) -> bytes | None:
        """A file's content, or None when there is no such file."""
        fs, path = self._at(name)
        try:
            return cast(bytes, fs.cat_file(path, **self._one_get))
        except FileNotFoundError:
            return None

    @os_errors()
    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Some bytes of a file. Raises `OSError` when there are fewer, or there is no such file."""
        fs, path = self._at(name)
        content = cast(bytes, fs.cat_file(path, start=start, end=stop))
        if len(content) != stop - start:
            raise OSError(f"{join(self.url, name)} ends before byte {stop:,}")
        return content

    @os_errors()
    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        """The contents of those files that exist; object stores are asked concurrently."""
        if not names:
            return {}
        if self.local or _WILDCARD.search(self.url):  # which fsspec would look for
            found = {name: self.read(name) for name in names}
            return {name: content for name, content in found.items() if content is not None}
        fs, _ = self._at("")
        paths = {self._at(name)[1]: name for name in names}
        contents = fs.cat(list(paths), on_error="return", **self._one_get)
        for content in contents.values():
            if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                raise content
        return {paths[p]: c for p, c in contents.items() if isinstance(c, bytes)}

    def sizes(self, folder: str = "") -> dict[str, int]:
        """The names of the files directly in a folder with their sizes in bytes.

        Raises `InputError` when the object store has no such bucket.
        """
        return {name: file.size for name, file in self.listing(folder).files.items()}

    @os_errors()
    def listing(self, folder: str = "") -> Listing:
        """What lies directly in a folder, listed once; nothing if there is no such folder.

        Raises `InputError` when the object store has no such bucket.
        """
        fs, path = self._at(folder)
        try:
            infos = fs.ls(path, detail=True)
        except FileNotFoundError as error:
            answer = getattr(error.__cause__, "response", {})
            if answer.get("Error", {}).get("Code") == "NoSuchBucket":
                raise InputError(
                    f"The bucket of {self.url} does not exist.", "Create it, or check the name."
                ) from None
            return Listing({})
        files, others = {}, []
        for info in infos:
            name = posixpath.basename(info["name"].rstrip("/"))
            if info["type"] == "file" and info["name"].endswith("/"):
                continue  # an empty object by which consoles of S3 show a folder
            if info["type"] == "file":
                files[name] = Listed(int(info["size"]), str(info.get("ETag", "")).strip('"'))
            else:
                others.append(f"{name}/" if info["type"] == "directory" else name)
        return Listing(files, tuple(others))

    @os_errors()
    def folders(self) -> list[str]:
        """The names of the folders directly in it."""
        fs, path = self._at("")
        try:
            infos = fs.ls(path, detail=True)
        except FileNotFoundError:
            return []
        there = (info["name"].rstrip("/") for info in infos if info["type"] == "directory")
        return sorted(posixpath.basename(name) for name in there)

    @os_errors()
    def delete(self, names: Sequence[str]) -> None:
        """Remove files; those that are not there are no error."""
        fs, _ = self._at("")
        paths = [self._at(name)[1] for name in names]
        if self.local:
            for path in paths:
                Path(path).unlink(missing_ok=True)
        else:
            _remove(fs, paths)

    @os_errors()
    def delete_folder(self, name: str) -> None:
        """Remove a folder and all below it; one that is not there is no error."""
        fs, path = self._at(name)
        if self.local:
            if fs.exists(path):
                fs.rm(path, recursive=True)
        else:
            # Not recursively: s3fs would name the folder too, which not every server takes.
            _remove(fs, fs.find(path))


def _remove(fs: AbstractFileSystem, paths: Sequence[str]) -> None:
    # fsspec takes `[`, `*` and `?` in a list of paths for wildcards: other files would go.
    plain = [path for path in paths if not _WILDCARD.search(path)]
    one_by_one = [path for path in paths if _WILDCARD.search(path)]
    if plain:
        try:
            fs.rm(plain)
        except FileNotFoundError:  # not every store passes over what is not there
            one_by_one = list(paths)
    for path in one_by_one:
        with suppress(FileNotFoundError):
            fs.rm_file(path)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _lock(handle: int, kind: int, url: str) -> None:
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
        if time.monotonic() > deadline:
            raise OutputBusy(
                f"Another process holds the lock of {url} ({_LOCK}) and does not go on.",
                "It is stopped or hangs in a write: let it go on, or end it.",
            )
        time.sleep(0.01)


def _is_unmet(error: OSError) -> bool:
    """Whether a conditional write was refused because of its condition."""
    code = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
    # A file that is to be replaced may be gone, too.
    unmet = ("PreconditionFailed", "ConditionalRequestConflict", "412", "NoSuchKey", "404")
    return isinstance(error, FileExistsError) or code in unmet
