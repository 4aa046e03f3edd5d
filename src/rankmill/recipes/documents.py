"""The texts of candidates, kept on disk: of a collection of any size, in little memory."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from rankmill.errors import InputError

# SQLite takes at least 999 parameters.
_AT_ONCE = 500


class Document(NamedTuple):
    """A document of a collection. An empty title is None."""

    doc_id: str
    title: str | None
    text: str

    @property
    def passage(self) -> str:
        """Title and text as a model reads them."""
        return self.text if self.title is None else f"{self.title} {self.text}"


class Documents:
    """Those documents of a collection that are wanted, looked up by id.

    A context manager: they lie in a temporary file that is removed with it. Of documents with one
    id the last counts, as in BEIR's loader.
    """

    def __init__(self, collection: Iterable[Document], wanted: Container[str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="rankmill-documents-")
        self._database = sqlite3.connect(Path(self._folder.name) / "documents.sqlite")
        self._database.execute("pragma synchronous = off")  # nothing is kept beyond the process
        self._database.execute("create table document (id text primary key, title text, text text)")
        try:
            self._database.executemany(
                "insert or replace into document values (?, ?, ?)",
                (document for document in collection if document.doc_id in wanted),
            )
        except BaseException:
            self.close()
            raise

    def take(self, ids: Sequence[str]) -> list[Document]:
        """Documents in the order of their ids. Raises `InputError` for one that is not there."""
        found: dict[str, Document] = {}
        for start in range(0, len(ids), _AT_ONCE):
            some = ids[start : start + _AT_ONCE]
            marks = ", ".join("?" * len(some))
            query = f"select id, title, text from document where id in ({marks})"
            found |= {row[0]: Document(*row) for row in self._database.execute(query, some)}
        missing = [doc_id for doc_id in ids if doc_id not in found]
        if missing:
            raise InputError(
                f"The collection lacks {len(missing)} of {len(ids)} candidates, "
                f"{missing[0]} the first of them.",
                "Give the collection that the candidates are from.",
            )
        return [found[doc_id] for doc_id in ids]

    def close(self) -> None:
        """Remove the file."""
        self._database.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
