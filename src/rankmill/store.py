"""A folder that is written to: whole files, atomically, on local disk or an object store."""

from __future__ import annotations

import os
import posixpath
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from fsspec import AbstractFileSystem

from rankmill.errors import InputError
from rankmill.storage import filesystem, is_remote, join, os_errors


@dataclass(frozen=True)
class Store:
    """A folder that is written to: local, or a prefix of an object store. Cheap to pickle.

    Whatever a store answers or fails to answer is an OSError.
    """

    url: str
    profile: str | None = None

    def _at(self, name: str) -> tuple[AbstractFileSystem, str]:
        return filesystem(join(self.url, name) if name else self.url, self.profile)

    @property
    def local(self) -> bool:
        """Whether writes go to a local file system."""
        return not is_remote(self.url)

    @os_errors()
    def write(self, name: str, content: bytes) -> None:
        """Write a whole file so that no reader ever sees a part of it.

        On disk: a temporary file below `_rankmill/tmp`, unique to this attempt, fsync, rename. On
        an object store: one completed upload.
        """
        fs, path = self._at(name)
        if not self.local:
            fs.pipe_file(path, content)
            return
        temporary = Path(self.url, "_rankmill", "tmp", f"{Path(name).name}.{uuid.uuid4().hex}")
        temporary.parent.mkdir(parents=True, exist_ok=True)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(Path(path).parent)

    @os_errors()
    def create(self, name: str, content: bytes) -> bool:
        """Write a file only if there is none; whether it was written.

        Atomic on disk (a link to a complete temporary file) and on stores with conditional writes
        (`If-None-Match: *`); on a store that ignores the condition, the last writer wins.
        """
        fs, path = self._at(name)
        if self.local:
            temporary = Path(f"{path}.{uuid.uuid4().hex}")
            temporary.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(content)
                os.link(temporary, path)
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)
            return True
        try:
            fs.pipe_file(path, content, mode="create")
        except FileExistsError:
            return False
        return True

    @os_errors()
    def read(self, name: str) -> bytes | None:
        """A file's content, or None when there is no such file."""
        fs, path = self._at(name)
        try:
            return cast(bytes, fs.cat_file(path))
        except FileNotFoundError:
            return None

    @os_errors()
    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        """The contents of those files that exist; object stores are asked concurrently."""
        if not names:
            return {}
        if self.local:  # fsspec would take brackets in the folder's name for a wildcard
            found = {name: self.read(name) for name in names}
            return {name: content for name, content in found.items() if content is not None}
        fs, _ = self._at("")
        paths = {self._at(name)[1]: name for name in names}
        contents = fs.cat(list(paths), on_error="return")
        for content in contents.values():
            if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                raise content
        return {paths[p]: c for p, c in contents.items() if isinstance(c, bytes)}

    @os_errors()
    def sizes(self, folder: str = "") -> dict[str, int]:
        """The names of the files directly in a folder with their sizes in bytes.

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
            return {}
        files = (info for info in infos if info["type"] == "file")
        return {posixpath.basename(info["name"]): int(info["size"]) for info in files}

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
        elif paths:
            fs.rm(paths)

    @os_errors()
    def delete_folder(self, name: str) -> None:
        """Remove a folder and all below it; one that is not there is no error."""
        fs, path = self._at(name)
        if self.local:
            if fs.exists(path):
                fs.rm(path, recursive=True)
        elif files := fs.find(path):
            # Not recursively: s3fs would name the folder too, which not every server takes.
            fs.rm(files)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
