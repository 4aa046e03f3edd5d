"""The run whose output a ranked table is: what judging must know of it, and what it must warn of.

A table that is no output (a frame, a file of one's own) has no origin, and is taken as it is.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from rankmill import output, runs, storage
from rankmill.errors import OutputError
from rankmill.qrels import TableSource
from rankmill.storage_settings import ENVIRONMENT, StorageConfig
from rankmill.store import Store

log = logging.getLogger("rankmill")

# What the columns of a table without an origin start with: `output.column_prefix` by default.
_USUAL_PREFIX = "rerank_"
_CUTS = ("top_k", "min_score")
# A part file, as a shell lists them, or a glob of them: the output is the folder above.
_OF_A_FOLDER = re.compile(r"part-\d{5,}\.parquet|.*[*?\[].*")


@dataclass(frozen=True, eq=False)
class Origin:
    """An output folder, its run.json, and what it lacks.

    cuts: the settings that left rows out of its parts, by name. complete: `_SUCCESS` is there.
    """

    folder: str
    record: Mapping[str, Any]
    cuts: Mapping[str, float]
    complete: bool

    def warn_of_cuts(self, consequence: str) -> None:
        """Say that rows were left out, if any were. consequence: two sentences, with the remedy."""
        if self.cuts:
            log.warning("%s was cut by %s: %s", self.folder, " and ".join(self.cuts), consequence)

    def warn_of_missing(self) -> None:
        """Say that queries may be missing, if the run is not complete."""
        if not self.complete:
            log.warning(
                "%s has no %s: its run has not finished, or did not pass its gates. Judged queries "
                "that it lacks count 0.",
                self.folder,
                runs.SUCCESS,
            )


def find_origin(source: TableSource, access: StorageConfig = ENVIRONMENT) -> Origin | None:
    """The output folder that a table is, or whose parts it names. None for any other table.

    A run.json that cannot be used is told, and the table then has no origin. Raises `InputError`
    when a store cannot be reached.
    """
    if isinstance(source, pd.DataFrame | pa.Table):
        return None
    paths = [source] if isinstance(source, str | Path) else source
    folders = {_folder(str(path)) for path in paths}
    if len(folders) != 1:
        return None
    store = Store(folders.pop(), access)
    if not storage.is_folder(store.url, access):
        return None
    with storage.reaching(store.url):
        try:
            record = runs.stored_run(store)
        except OutputError as error:
            log.warning("%s It is judged as a table of no run.", error.message)
            return None
        if record is None:
            return None
        return Origin(store.url, record, _cuts(record, store), output.is_complete(store))


def prefix_of(origin: Origin | None, given: str | None = None) -> str:
    """What the result columns of a table start with: what was given, or its run's own."""
    if given is not None:
        return given
    return _USUAL_PREFIX if origin is None else origin.record["config"]["output"]["column_prefix"]


def _folder(path: str) -> str:
    there = storage.absolute(path)
    above, _, name = there.rpartition("/")
    return above if _OF_A_FOLDER.fullmatch(name) else there


def _cuts(record: Mapping[str, Any], store: Store) -> dict[str, float]:
    made = record["config"]["output"]
    cuts = {f"output.{name}": made[name] for name in _CUTS if made.get(name) is not None}
    return cuts if cuts and _left_rows_out(store) else {}


def _left_rows_out(store: Store) -> bool:
    """Whether a limit was reached; where no manifest says, it may have been."""
    try:
        manifest = runs.stored_manifest(store)
    except OutputError:
        return True
    return manifest is None or manifest["rows_below_cut"] > 0
