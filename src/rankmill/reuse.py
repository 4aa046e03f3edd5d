"""Earlier outputs whose scores a run takes over: looked at, named, and found fit or not.

The rules
- A path without a run is refused: it is a mistake, and would cost hours in silence.
- Of an output that is not complete the committed shards serve; damaged ones are passed over with
  a warning, as is a whole output whose scores were made in another way (`runs.scoring`).
- What the outputs held at the first start is part of the run's name. A resume that finds them
  changed or gone is refused. A score file that goes while the run is at work has its pairs scored,
  and the shard counts as degraded.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rankmill import output, runs, storage
from rankmill.errors import ConfigError, OutputError
from rankmill.known_scores import KnownScores, ScoreFile, ScoreSource, read_keys
from rankmill.markers import SCORES, WrittenFile
from rankmill.score_files import Keys
from rankmill.storage import absolute, reaching
from rankmill.storage_settings import ENVIRONMENT, StorageConfig
from rankmill.store import Store

log = logging.getLogger("rankmill")

Chunk = tuple[ScoreFile, ...]
ReadKeys = Callable[[Sequence[ScoreSource], Chunk], list[Keys | None]]
MapShared = Callable[
    [ReadKeys, Sequence[ScoreSource], Sequence[Chunk]], Iterable[list[Keys | None]]
]

# Footers that one task reads.
_FILES_A_TASK = 64


@dataclass(frozen=True)
class Previous:
    """An earlier output as it was looked at.

    scorings: how the scores of each of its models were made, in their order. files: the score
    files of its committed shards, by shard. damaged: what is wrong with the others.
    """

    store: Store
    fingerprint: str
    scorings: tuple[dict[str, Any], ...]
    files: tuple[WrittenFile, ...]
    damaged: tuple[str, ...]

    @property
    def pairs(self) -> int:
        """How many scores there are."""
        return sum(file.rows for file in self.files)

    @property
    def digest(self) -> str:
        """SHA-256 over the run's name and all score files that may be used."""
        lines = [self.fingerprint, *(f"{file.name} {file.sha256}" for file in self.files)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a plan and a manifest."""
        return {
            "output": self.store.url,
            "fingerprint": self.fingerprint,
            "shards": len(self.files),
            "pairs": self.pairs,
            "damaged": list(self.damaged),
        }


def look_at(paths: Sequence[str], access: StorageConfig = ENVIRONMENT) -> tuple[Previous, ...]:
    """Look at earlier outputs, in the order in which they are asked for scores.

    Raises `ConfigError` for one without a run, and `InputError` when one cannot be reached.
    """
    return tuple(_look_at(absolute(path), access) for path in dict.fromkeys(paths))


def names(previous: Sequence[Previous]) -> dict[str, str]:
    """Outputs, numbered in their order, and what they hold: part of a run's name."""
    return {_name(place, one.store.url): one.digest for place, one in enumerate(previous, 1)}


def recorded_names(paths: Sequence[str], recorded: Mapping[str, str]) -> dict[str, str]:
    """What `names` gave the outputs at a run's first start, without looking at them again."""
    asked = [_name(place, absolute(path)) for place, path in enumerate(dict.fromkeys(paths), 1)]
    return {name: recorded.get(name, "not looked at") for name in asked}


def refuse_changed(previous: Sequence[Previous], recorded: Mapping[str, str], url: str) -> None:
    """Raise `OutputError` when earlier outputs do not hold what they did at a run's first start.

    url: of the run's own output.
    """
    for (name, digest), one in zip(names(previous).items(), previous):
        if recorded.get(name) != digest:
            raise OutputError(
                f"The run in {url} reuses scores of {one.store.url}, which has changed since.",
                "Put it back as it was, or start again with --overwrite.",
            )


def warn_unfit(previous: Sequence[Previous], scorings: Mapping[str, Mapping[str, Any]]) -> None:
    """Tell what cannot serve: damaged files, outputs for none of a run's models, and the models
    that no output serves. scorings: of each model, by what it is called among several.
    """
    for one in previous:
        for problem in one.damaged:
            log.warning("Not reused from %s: %s", one.store.url, problem)
        if not any(scoring in one.scorings for scoring in scorings.values()):
            why = _nearest(one.scorings, scorings.values())
            log.warning("No score of %s is reused. What differs: %s", one.store.url, why)
    for label, scoring in scorings.items():
        found = [other for one in previous for other in one.scorings]
        if len(scorings) > 1 and found and scoring not in found:
            why = _nearest(found, [scoring])
            log.info("%s reuses no score. What differs: %s", label, why)


def _nearest(theirs: Iterable[Mapping[str, Any]], ours: Iterable[Mapping[str, Any]]) -> str:
    """What differs between the two that have most in common."""
    pairs = ((dict(other), dict(scoring)) for other in theirs for scoring in ours)
    lines = min((list(runs.differences(*pair)) for pair in pairs), key=len, default=["no scores"])
    return "; ".join(lines)


def known(
    previous: Sequence[Previous], scoring: Mapping[str, Any], map_shared: MapShared
) -> KnownScores | None:
    """An index of all scores that a model would make in the same way; None where there are none.

    Which number the model had there does not matter: a cascade's stage may take over what a model
    alone has scored, and the other way round.

    scoring: how the model scores (`runs.scoring`). map_shared: reads the footers of the score
    files, as `pipeline.map_shared` does by tasks.
    """
    serving = [one for one in previous if scoring in one.scorings]
    sources = tuple(
        ScoreSource(
            one.store.url,
            one.store.access,
            tuple(n for n, other in enumerate(one.scorings, 1) if other == scoring),
        )
        for one in serving
    )
    files = [
        ScoreFile(place, file.name, file.sha256)
        for place, one in enumerate(serving)
        for file in one.files
    ]
    if not files:
        return None
    chunks = [tuple(files[at : at + _FILES_A_TASK]) for at in range(0, len(files), _FILES_A_TASK)]
    keys = [each for chunk in map_shared(read_keys, sources, chunks) for each in chunk]
    for file, found in zip(files, keys, strict=True):
        if found is None:
            url = storage.join(sources[file.source].url, file.name)
            log.warning("Not reused: %s is damaged.", url)
    return KnownScores.index(sources, files, keys)


def _look_at(path: str, access: StorageConfig) -> Previous:
    store = Store(path, access)
    with reaching(store.url):
        try:
            stored = runs.stored_run(store)
        except OutputError as error:
            raise ConfigError(
                f"reuse names {path}, but {error.message}", "Leave it out of reuse."
            ) from None
        if stored is None:
            raise ConfigError(
                f"reuse names {path}, where there is no run.",
                f"An output folder holds {runs.RUN}; check the path, or leave it out.",
            )
        good, damaged = output.committed(store, stored["fingerprint"], stored["plan"]["shards"])
    files = (file for shard in sorted(good) for file in good[shard].files)
    return Previous(
        store=store,
        fingerprint=str(stored["fingerprint"]),
        scorings=tuple(stored.get("scoring", ())),
        files=tuple(file for file in files if file.name.startswith(SCORES)),
        damaged=tuple(damaged),
    )


def _name(place: int, url: str) -> str:
    return f"{place}. {url}"
