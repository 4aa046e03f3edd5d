"""Markers: one JSON a committed shard. How far a run is stands in them and nowhere else."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, field

from pydantic import TypeAdapter, ValidationError

from rankmill.errors import OutputError
from rankmill.store import Store

PRIVATE = "_rankmill"
SHARDS = f"{PRIVATE}/shards"
FAILED = f"{PRIVATE}/failed"
SCORES = f"{PRIVATE}/scores"
QUARANTINE = f"{PRIVATE}/quarantine"
# The files of a shard, and nothing else: a marker that names others is no marker.
_SHARD_FILE = re.compile(
    rf"part-(?P<part>\d{{5,}})\.parquet|({SCORES}|{QUARANTINE})/(?P<beside>\d{{5,}})\.arrow"
)


@dataclass(frozen=True)
class Counters:
    """What became of rows, and what it cost. They add up: see `refuse_imbalance`.

    pairs_scored, pairs_reused: distinct ones that a model scored, and those that none had to, as
    all that saw them took over earlier scores. windows: inputs of the model, one a distinct pair
    unless long documents are windowed. tokens: of all of them. pairs_truncated: rows of which the
    model did not see all tokens.
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

    def imbalance(self) -> str | None:
        """Which rows were lost or doubled on the way, or None."""
        values = asdict(self)
        reasons = values.pop("quarantine")
        below = [name for name, count in (values | reasons).items() if count < 0]
        if below:
            return f"{below[0]} is below zero"
        written = self.rows_out + self.rows_below_cut + self.rows_quarantined
        if self.rows_in != written:
            return f"{self.rows_in} rows came in, {written} are accounted for"
        known = self.pairs_scored + self.pairs_reused + self.pairs_duplicate
        known += self.pairs_beyond_depth + self.rows_quarantined
        if self.rows_in != known:
            return f"{self.rows_in} rows came in, {known} were dealt with"
        return None

    def refuse_imbalance(self) -> None:
        """Raise `AssertionError` when rows were lost or doubled on the way."""
        problem = self.imbalance()
        assert problem is None, problem


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
class ModelCost:
    """What one of a run's models did for a shard.

    pairs: distinct ones that it was given; reused: those of them that had an earlier score, so that
    it scored the others. windows, tokens, padded_tokens: as in `Counters`; seconds: of scoring.
    """

    pairs: int = 0
    reused: int = 0
    windows: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: ModelCost) -> ModelCost:
        mine, theirs = astuple(self), astuple(other)
        return ModelCost(*(one + two for one, two in zip(mine, theirs, strict=True)))


def add_costs(found: Iterable[Marker]) -> list[ModelCost]:
    """What each of a run's models did for all these shards; nothing where the run has one."""
    by_model = zip(*(marker.models for marker in found))
    return [sum(costs, ModelCost()) for costs in by_model]


@dataclass(frozen=True)
class WrittenFile:
    """A file of a shard, named relative to the output; its size in bytes.

    md5: what object stores list of a file that was written at once, see `checksum`.
    """

    name: str
    size: int
    rows: int
    sha256: str
    md5: str = ""

    @classmethod
    def of(cls, name: str, content: bytes, rows: int) -> WrittenFile:
        """Describe content that is about to be written."""
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        return cls(name, len(content), rows, hashlib.sha256(content).hexdigest(), md5)


@dataclass(frozen=True)
class Marker:
    """A committed shard: its files and what became of its rows.

    seconds: of scoring. stages: seconds of the others by name, and `ended`, when scoring was over
    (seconds since 1970). models: of a run with several, what each did. summary: as
    `summary.Summary.to_text` writes it.
    """

    shard: int
    fingerprint: str
    files: tuple[WrittenFile, ...]
    counters: Counters
    degraded: bool
    seconds: float
    stages: dict[str, float] = field(default_factory=dict)
    summary: str = ""
    models: tuple[ModelCost, ...] = ()

    @property
    def part(self) -> WrittenFile:
        """The part file."""
        return self.files[0]

    def to_bytes(self) -> bytes:
        """As stored."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, name: str, content: bytes) -> Marker:
        """Read a stored marker. Raises `OutputError` naming one that is not its shard's marker."""
        try:
            marker = _MARKER.validate_json(content)
        except ValidationError:
            marker = None
        if marker is None or name != marker_name(marker.shard) or not marker.names_its_own():
            raise OutputError(
                f"{name} is not a shard marker.",
                "Remove that file; the shard will be computed again.",
            )
        return marker

    def contradiction(self) -> str | None:
        """What in it cannot be: rows that do not add up, a number that is none; or None."""
        counted = self.counters
        if (problem := counted.imbalance()) is not None:
            return problem
        in_quarantine = [f.rows for f in self.files if f.name.startswith(f"{QUARANTINE}/")]
        for what, rows, wanted in (
            ("its part holds", self.part.rows, counted.rows_out),
            ("its quarantine holds", sum(in_quarantine), counted.rows_quarantined),
            ("it has reasons for", sum(counted.quarantine.values()), counted.rows_quarantined),
        ):
            if rows != wanted:
                return f"{what} {rows} rows, its counters say {wanted}"
        costs = (value for model in self.models for value in astuple(model))
        numbers = (self.seconds, *self.stages.values(), *costs)
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            return "a time or a cost in it is no number from zero on"
        return None

    def names_its_own(self) -> bool:
        """Whether the files are its shard's, a part first, and no others anywhere."""
        names = [file.name for file in self.files]
        own = all(shard_of(name) == self.shard for name in names)
        return bool(names) and own and names[0].startswith("part-") and len({*names}) == len(names)


_MARKER = TypeAdapter(Marker)


def shard_of(name: str) -> int | None:
    """The shard that a file belongs to by its name (relative to the output), or None."""
    found = _SHARD_FILE.fullmatch(name)
    return None if found is None else int(found["part"] or found["beside"])


def marker_name(shard: int) -> str:
    """`_rankmill/shards/00000.json`."""
    return f"{SHARDS}/{shard:05d}.json"


def failure_name(shard: int) -> str:
    """`_rankmill/failed/00000.json`."""
    return f"{FAILED}/{shard:05d}.json"


def read_markers(store: Store, known: Iterable[int] = ()) -> dict[int, Marker]:
    """All markers of an output but those already known, by shard.

    What is no marker vouches for nothing: its shard counts as not committed.
    """
    return read_all(store, known)[0]


def read_all(store: Store, known: Iterable[int] = ()) -> tuple[dict[int, Marker], list[str]]:
    """All markers of an output but those already known, and the names of files that are none."""
    skip = {f"{shard:05d}.json" for shard in known}
    names = [f"{SHARDS}/{name}" for name in store.sizes(SHARDS) if name not in skip]
    found: dict[int, Marker] = {}
    wrong: list[str] = []
    for name, content in store.read_many(names).items():
        try:
            marker = Marker.from_bytes(name, content)
            found[marker.shard] = marker
        except OutputError:
            wrong.append(name)
    return found, sorted(wrong)


def read_failures(store: Store) -> dict[int, str]:
    """Why shards failed at the last attempt, by shard."""
    names = [n for n in store.sizes(FAILED) if n.endswith(".json")]
    contents = store.read_many([f"{FAILED}/{name}" for name in names])
    found: dict[int, str] = {}
    for content in contents.values():
        with suppress(ValueError, TypeError, KeyError):  # a note that is none tells nothing
            note = json.loads(content)
            found[int(note["shard"])] = str(note["error"])
    return found
