"""A committed run, read again: its parts, and which of their columns hold what."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rankmill import output, runs, storage
from rankmill.config import ColumnNames
from rankmill.errors import InputError
from rankmill.markers import WrittenFile
from rankmill.settings import read_section
from rankmill.storage_settings import ENVIRONMENT, StorageConfig
from rankmill.store import Store


@dataclass(frozen=True)
class Ranked:
    """A run's part files, in the order of its shards. Small, and pickles.

    schema: of every part; its metadata says which model scored. prefix: of the columns that the
    run added. record: of run.json, the `config` and the `profile`.
    """

    url: str
    access: StorageConfig
    fingerprint: str
    parts: tuple[WrittenFile, ...]
    schema: pa.Schema
    columns: ColumnNames
    prefix: str
    record: Mapping[str, Any]

    @property
    def query_key(self) -> str:
        """The column that tells queries apart: the id, or the query text where there is none."""
        named = self.columns.query_id
        return named if named is not None and named in self.schema.names else self.columns.query

    @property
    def identity(self) -> dict[str, str]:
        """What names the rows: the run, and the contents of the parts that are there."""
        sums = "\n".join(f"{part.name} {part.sha256}" for part in self.parts)
        parts = hashlib.sha256(sums.encode()).hexdigest()
        return {"fingerprint": self.fingerprint, "parts": parts}

    def require(self, names: Iterable[str], purpose: str) -> None:
        """Raise `InputError` naming the columns that the parts lack. purpose: who needs them."""
        missing = [name for name in names if name not in self.schema.names]
        if missing:
            raise InputError(
                f"{self.url} has no column {', '.join(missing)}, which {purpose} needs. "
                f"Its columns are {', '.join(self.schema.names)}.",
                self._remedy(missing),
            )

    def _remedy(self, missing: list[str]) -> str:
        if missing[0].startswith(self.prefix):
            return "Check the model's name, and output.column_prefix of the run."
        texts = {self.columns.query, *self.columns.document_parts}
        if self.record["config"]["input"].get("layout") == "ids" and texts & {*missing}:
            # `all` are the candidates' columns; texts that were joined by id are not among them.
            there = [name for name in self.schema.names if not name.startswith(self.prefix)]
            wanted = ", ".join([*there, *missing])
            return (
                f"Rank again with output.columns: [{wanted}]: texts that come by id are written "
                "only where they are named."
            )
        return "Rank again with output.columns: all, or with that column among them."

    def read(self, part: int, names: Iterable[str]) -> pa.Table:
        """Some columns of a part. Raises `InputError` naming a part that cannot be read."""
        url = storage.join(self.url, self.parts[part].name)
        try:
            with storage.open_input(url, self.access) as file:
                return pq.read_table(file, columns=list(dict.fromkeys(names)))
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{url} cannot be read: {error}.", "Check it with rankmill status --verify."
            ) from error


def open_ranked(
    path: str, access: StorageConfig = ENVIRONMENT, *, allow_incomplete: bool = False
) -> Ranked:
    """Find the committed parts of a run.

    allow_incomplete: take what is committed of a run that has not finished.

    Raises `InputError` when there is no run, it is not complete, or its parts are not what was
    committed.
    """
    store = Store(storage.absolute(path), access)
    with storage.reaching(store.url):
        stored = runs.stored_run(store)
        if stored is None:
            raise InputError(
                f"There is no run at {store.url}.",
                f"The output folder of a run holds {runs.RUN}; check the path.",
            )
        shards = int(stored["plan"]["shards"])
        found, wrong = output.committed(store, stored["fingerprint"], shards)
        complete = output.is_complete(store) and len(found) == shards
    if wrong:
        raise InputError(
            f"{store.url} is damaged: {wrong[0]}.", "Run its rankmill rerank command again."
        )
    if not found or not (complete or allow_incomplete):
        raise InputError(
            f"The run at {store.url} is not complete: {len(found)} of {shards} shards are "
            "committed.",
            "Finish it with the same rankmill rerank command"
            + (", or take what is there with allow_incomplete." if found else "."),
        )
    parts = tuple(found[shard].part for shard in sorted(found))
    return Ranked(
        url=store.url,
        access=access,
        fingerprint=stored["fingerprint"],
        parts=parts,
        schema=_schema(storage.join(store.url, parts[0].name), access),
        columns=read_section(ColumnNames, stored["config"]["input"]["columns"]),
        prefix=stored["config"]["output"]["column_prefix"],
        record={name: stored[name] for name in ("config", "profile")},
    )


def _schema(url: str, access: StorageConfig) -> pa.Schema:
    with storage.open_input(url, access) as file:
        try:
            return pq.read_schema(file)
        except pa.ArrowException as error:
            raise InputError(
                f"{url} is not a Parquet file: {error}.", "Check it with rankmill status --verify."
            ) from None
