"""Markers: one JSON a committed shard. How far a run is stands in them and nowhere else."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from rankmill.errors import OutputError
from rankmill.store import Store

PRIVATE = "_rankmill"
SHARDS = f"{PRIVATE}/shards"
FAILED = f"{PRIVATE}/failed"


@dataclass(frozen=True)
class Counters:
    """What became of rows, and what it cost. They add up: see `refuse_imbalance`.

    windows: inputs of the model, one a distinct pair unless long documents are windowed. tokens:
    of all of them. pairs_truncated: rows of which the model did not see all tokens.
    """

    rows_in: int = 0
    rows_out: int = 0
    rows_below_cut: int = 0
    rows_quarantined: int = 0
    queries: int = 0
    queries_empty: int = 0
    queries_with_several_texts: int = 0
    pairs_scored: int = 0
    pairs_reused: int = 0
    pairs_duplicate: int = 0
    pairs_beyond_depth: int = 0
    pairs_truncated: int = 0
    windows: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    quarantine: dict[str, int] = field(default_factory=dict)

    def refuse_imbalance(self) -> None:
        """Raise `AssertionError` when rows were lost or doubled on the way."""
        written = self.rows_out + self.rows_below_cut + self.rows_quarantined
        assert self.rows_in == written, f"{self.rows_in} rows came in, {written} are accounted for"
        known = self.pairs_scored + self.pairs_reused + self.pairs_duplicate
        known += self.pairs_beyond_depth + self.rows_quarantined
        assert self.rows_in == known, f"{self.rows_in} rows came in, {known} were dealt with"


def add(counters: Iterable[Counters]) -> Counters:
    """The sum of several shards' counters."""
    totals: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for one in counters:
        values = asdict(one)
        reasons.update(values.pop("quarantine"))
        totals.update(values)
    return Counters(**totals, quarantine=dict(sorted(reasons.items())))


@dataclass(frozen=True)
class WrittenFile:
    """A file of a shard, named relative to the output; its size in bytes."""

    name: str
    size: int
    rows: int
    sha256: str

    @classmethod
    def of(cls, name: str, content: bytes, rows: int) -> WrittenFile:
        """Describe content that is about to be written."""
        return cls(name, len(content), rows, hashlib.sha256(content).hexdigest())


@dataclass(frozen=True)
class Marker:
    """A committed shard: its files and what became of its rows.

    seconds: of scoring. stages: seconds of the others by name, and `ended`, when scoring was over
    (seconds since 1970). summary: as `summary.Summary.to_text` writes it.
    """

    shard: int
    fingerprint: str
    files: tuple[WrittenFile, ...]
    counters: Counters
    degraded: bool
    seconds: float
    stages: dict[str, float] = field(default_factory=dict)
    summary: str = ""

    @property
    def part(self) -> WrittenFile:
        """The part file."""
        return self.files[0]

    def to_bytes(self) -> bytes:
        """As stored."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, name: str, content: bytes) -> Marker:
        """Read a stored marker. Raises `OutputError` naming one that is not a marker."""
        try:
            values: dict[str, Any] = json.loads(content)
            values["files"] = tuple(WrittenFile(**one) for one in values["files"])
            values["counters"] = Counters(**values["counters"])
            return cls(**values)
        except (ValueError, TypeError, KeyError, UnicodeDecodeError):
            raise OutputError(
                f"{name} is not a shard marker.",
                "Remove that file; the shard will be computed again.",
            ) from None


def marker_name(shard: int) -> str:
    """`_rankmill/shards/00000.json`."""
    return f"{SHARDS}/{shard:05d}.json"


def failure_name(shard: int) -> str:
    """`_rankmill/failed/00000.json`."""
    return f"{FAILED}/{shard:05d}.json"


def read_markers(store: Store, known: Iterable[int] = ()) -> dict[int, Marker]:
    """All markers of an output but those already known, by shard."""
    skip = {f"{shard:05d}.json" for shard in known}
    names = [n for n in store.sizes(SHARDS) if n.endswith(".json") and n not in skip]
    contents = store.read_many([f"{SHARDS}/{name}" for name in names])
    found: dict[int, Marker] = {}
    for name, content in contents.items():
        # What is no marker vouches for nothing: its shard counts as not committed.
        with suppress(OutputError):
            marker = Marker.from_bytes(name, content)
            found[marker.shard] = marker
    return found


def read_failures(store: Store) -> dict[int, str]:
    """Why shards failed at the last attempt, by shard."""
    names = [n for n in store.sizes(FAILED) if n.endswith(".json")]
    contents = store.read_many([f"{FAILED}/{name}" for name in names])
    values = (json.loads(content) for content in contents.values())
    return {int(value["shard"]): str(value["error"]) for value in values}


def damage(store: Store, marker: Marker, sizes: dict[str, int], full: bool) -> str | None:
    """What is wrong with a committed shard's files, or None.

    sizes: names and sizes of the files in OUTPUT itself. Full verification reads and hashes
    every file of the shard; the quick one compares the part's size.
    """
    if not full:
        found = sizes.get(marker.part.name)
        if found != marker.part.size:
            return f"{marker.part.name} has {found} bytes, its marker says {marker.part.size}"
        return None
    for file in marker.files:
        content = store.read(file.name)
        if content is None:
            return f"{file.name} is missing"
        if hashlib.sha256(content).hexdigest() != file.sha256:
            return f"{file.name} is not what was committed (checksum)"
    return None
