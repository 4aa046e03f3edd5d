"""Scores that earlier runs have stored, found by query. Pure: no Ray, arrays in, arrays out.

An index maps the queries of all earlier score files to the files, 12 bytes a query; a shard opens
the files of its own queries one after the other, so what it holds at once is one file. In a run
whose lists come in the old order that is one or two; in one that was shuffled it may be a file a
query, each some 500 kB, which is still little beside the model's work on the pairs that are new.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rankmill import score_files, storage
from rankmill.score_files import Keys
from rankmill.storage_settings import StorageConfig
from rankmill.store import Store

log = logging.getLogger("rankmill")

_FILES = pa.schema([("source", pa.int16()), ("name", pa.string()), ("sha256", pa.string())])


@dataclass(frozen=True)
class ScoreSource:
    """An output whose scores may be reused: those of `stages`, and nothing else in its files."""

    url: str
    access: StorageConfig
    stages: tuple[int, ...]


@dataclass(frozen=True)
class ScoreFile:
    """A score file of the source with that number, with the checksum of its marker."""

    source: int
    name: str
    sha256: str


@dataclass(frozen=True)
class FoundScores:
    """What is known of pairs, a row a pair: score float32 (NaN: nothing), tokens, dropped int32.

    damaged: a file that should have been read has gone or is not what was committed.
    """

    score: npt.NDArray[np.float32]
    tokens: npt.NDArray[np.int32]
    dropped: npt.NDArray[np.int32]
    damaged: bool = False

    @classmethod
    def none(cls, pairs: int) -> FoundScores:
        """Nothing is known."""
        zeros = np.zeros(pairs, np.int32)
        return cls(np.full(pairs, np.nan, np.float32), zeros, zeros.copy())


@dataclass(frozen=True)
class KnownScores:
    """The index. Arrays and a table, so that every process of a node reads the same memory.

    files: source, name and sha256 of every file; where several hold a pair, the first one counts.
    key: uint64, ascending, a query of a file each; file: int32, its number, parallel.
    """

    sources: tuple[ScoreSource, ...]
    files: pa.Table
    key: Keys
    file: npt.NDArray[np.int32]

    @classmethod
    def index(
        cls,
        sources: Sequence[ScoreSource],
        files: Sequence[ScoreFile],
        keys: Sequence[Keys | None],
    ) -> KnownScores:
        """Put together from the keys of each file (None: it cannot be used)."""
        table = pa.table([list(c) for c in zip(*map(_row, files))] or [[]] * 3, schema=_FILES)
        sizes = [0 if one is None else len(one) for one in keys]
        key = np.concatenate([np.empty(0, np.uint64), *(one for one in keys if one is not None)])
        file = np.repeat(np.arange(len(files), dtype=np.int32), sizes)
        order = np.argsort(key, kind="stable")
        return cls(tuple(sources), table, key[order], file[order])

    def find(self, keys: Keys, digests: pa.Array) -> FoundScores:
        """What is known of pairs: uint64 [pairs] keys of their queries, binary(16) digests.

        Raises `OSError` when a store cannot be reached.
        """
        found = FoundScores.none(len(keys))
        damaged = False
        queries, query = np.unique(keys, return_inverse=True)
        low, high = (np.searchsorted(self.key, queries, side) for side in ("left", "right"))
        holders = np.concatenate([self.file[a:b] for a, b in zip(low, high)] or [self.file[:0]])
        held = np.repeat(np.arange(len(queries)), high - low)
        for number in np.unique(holders).tolist():
            has = np.zeros(len(queries), bool)
            has[held[holders == number]] = True
            wanted = np.flatnonzero(has[query] & np.isnan(found.score))
            if not len(wanted):
                continue
            stored = self._read(number)
            if stored is None:
                damaged = True
                continue
            place = pc.index_in(digests.take(pa.array(wanted)), stored["pair"])
            known = wanted[place.is_valid().to_numpy(zero_copy_only=False)]
            at = place.drop_null()
            found.score[known] = stored["score"].take(at).to_numpy()
            found.tokens[known] = stored["tokens"].take(at).to_numpy()
            found.dropped[known] = stored["tokens_dropped"].take(at).to_numpy()
        return replace(found, damaged=damaged)

    def _read(self, number: int) -> pa.Table | None:
        """The usable pairs of a file; None when it is not what was committed."""
        source = self.sources[self.files["source"][number].as_py()]
        name = self.files["name"][number].as_py()
        content = Store(source.url, source.access).read(name)
        committed = self.files["sha256"][number].as_py()
        if content is not None and hashlib.sha256(content).hexdigest() == committed:
            stored = score_files.read_scores(content, source.stages)
            if stored is not None:
                return stored
        log.warning(
            "%s has gone or is damaged; its pairs are scored.", storage.join(source.url, name)
        )
        return None


def read_keys(sources: Sequence[ScoreSource], files: Sequence[ScoreFile]) -> list[Keys | None]:
    """The keys of each file, for `KnownScores.index`."""
    found = []
    for file in files:
        source = sources[file.source]
        url = storage.join(source.url, file.name)
        found.append(score_files.read_query_keys(url, source.access))
    return found


def _row(file: ScoreFile) -> tuple[int, str, str]:
    return file.source, file.name, file.sha256
