"""The output folder before and after a run: whose it is, what in it counts, what must go."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch

from rankmill import integrity, markers, runs, schema, storage
from rankmill.attempts import ATTEMPTS
from rankmill.errors import ConfigError, OutputError
from rankmill.markers import PRIVATE, Marker
from rankmill.store import Fence, Store

_PART = re.compile(r"part-\d{5,}\.parquet")


def refuse_overlap(inputs: Sequence[str], output: str, kind: str = "input") -> None:
    """Raise `ConfigError` when an output and what is read for it lie inside each other.

    A reader pointed at OUTPUT must see ranked pairs only, and a run must not read what it writes.
    """
    there = _folder(output)
    for path in inputs:
        here = _folder(path)
        if _is_glob(path):
            written = [there + "part-00000.parquet", *_parents(there)]
            inside = any(fnmatch(name, path) for name in written) or here.startswith(there)
        else:
            beside = os.path.dirname(here.rstrip("/")) + "/" == there
            inside = there.startswith(here) or here.startswith(there) or beside
        if inside:
            raise ConfigError(
                f"The output {output} and the {kind} {path} lie inside each other.",
                "Choose an output folder of its own.",
            )


def refuse_relative(paths: Sequence[str]) -> None:
    """Raise `ConfigError` for a local path that every node of a cluster would read differently."""
    for path in paths:
        if not storage.is_remote(path) and not path.removeprefix("file://").startswith(("/", "~")):
            raise ConfigError(
                f"The path {path} is relative, which means another place on every node of a "
                "cluster.",
                "Give an absolute path on a shared file system, or an s3:// path.",
            )


def _is_glob(path: str) -> bool:
    here = not storage.is_remote(path) and os.path.exists(path)
    return re.search(r"[*?\[]", path) is not None and not here


def _parents(folder: str) -> list[str]:
    """A folder and all above it, without the last slash."""
    names = folder.rstrip("/").split("/")
    return ["/".join(names[:end]) for end in range(len(names), 1, -1)]


def _folder(path: str) -> str:
    """A path with symlinks resolved, up to its first wildcard, ending in a slash."""
    fixed = path
    if _is_glob(path):
        fixed = re.split(r"[*?\[]", path, maxsplit=1)[0].rpartition("/")[0]
    resolved = fixed if storage.is_remote(path) else os.path.realpath(fixed)
    return resolved.rstrip("/") + "/"


def refuse_foreign(store: Store, overwrite: bool) -> None:
    """Raise `OutputError` for files that readers would see and that no run of rankmill wrote.

    overwrite: the parts of a run that is there will be removed, so they are no obstacle.
    """
    has_run = store.read(runs.RUN) is not None
    visible = _visible(store)
    foreign = [name for name in visible if not _PART.fullmatch(name)]
    if foreign or (visible and not (overwrite and has_run)):
        shown = ", ".join(sorted(foreign or visible)[:3])
        raise OutputError(
            f"The output {store.url} holds files that are not of a run of rankmill: {shown}.",
            "Choose an empty folder.",
        )


def refuse_strangers(store: Store, shards: int) -> None:
    """Raise `OutputError` for what readers would see beside the parts of a run that goes on."""
    own = {schema.part_name(shard, shards) for shard in range(shards)}
    foreign = [name for name in _visible(store) if name not in own]
    if foreign:
        raise OutputError(
            f"The output {store.url} holds {', '.join(sorted(foreign)[:3])}, which is not of its "
            "run; whoever reads the output would read it, too.",
            "Move it away, and run the same command again.",
        )


def _visible(store: Store) -> list[str]:
    """Files and folders directly in an output that a reader would not pass over."""
    names = [*store.sizes(), *(f"{name}/" for name in store.folders())]
    return [name for name in names if not name.startswith(("_", "."))]


def committed(store: Store, fingerprint: str) -> tuple[dict[int, Marker], list[str]]:
    """The shards that need not be computed again, and what is wrong with the others.

    A marker counts when it is of this run and all its files have the size that was committed.
    """
    found, broken = markers.read_all(store)
    listed = integrity.sizes(store)
    problems = {s: integrity.glance(marker, fingerprint, listed) for s, marker in found.items()}
    good = {shard: marker for shard, marker in found.items() if problems[shard] is None}
    wrong = [problem for problem in problems.values() if problem is not None]
    return good, wrong + [f"{name} is not a shard marker" for name in broken]


def is_complete(store: Store) -> bool:
    """Whether `_SUCCESS` is there."""
    return runs.SUCCESS in store.sizes()


def begin(store: Store, record: bytes | None, pending: Sequence[int]) -> None:
    """Make ready for a start: no `_SUCCESS`, no manifest, notes and scraps of an earlier start.

    record: run.json, for a run that has none yet. pending: the shards that will be computed; a
    marker of theirs (damaged, or of another run) must not vouch for them.
    """
    store.delete([runs.SUCCESS, runs.MANIFEST])
    there = set(store.sizes(markers.SHARDS))
    names = {markers.marker_name(shard) for shard in pending}
    own = {f"{markers.SHARDS}/{name}" for name in there}
    store.delete(sorted(names & own | {*markers.read_all(store)[1]}))
    store.delete_folder(markers.FAILED)
    store.delete_folder(ATTEMPTS)
    remove_scraps(store)
    if record is not None:
        store.write(runs.RUN, record)


def remove_scraps(store: Store) -> None:
    """Remove what killed writers have left half-written."""
    # File by file: the last writes of a killed run may still arrive in that folder.
    store.delete([f"{PRIVATE}/tmp/{name}" for name in store.sizes(f"{PRIVATE}/tmp")])


def fenced(store: Store, record: str = runs.RUN) -> Store:
    """The same output, to be written to only as long as it is this run's, whose record that is."""
    content = store.read(record) or b""
    return replace(store, fence=Fence(record, hashlib.sha256(content).hexdigest()))


def remove_old(store: Store) -> None:
    """Remove an old run, `_SUCCESS` first and run.json last.

    So no reader takes half a run for a whole one, and a crash midway leaves no marker without its
    part.
    """
    store.delete([runs.SUCCESS, runs.MANIFEST, runs.REPORT])
    for folder in ("shards", "scores", "quarantine", "failed", "attempts", "tmp"):
        store.delete_folder(f"{PRIVATE}/{folder}")
    store.delete([name for name in store.sizes() if _PART.fullmatch(name)])
    store.delete([runs.RUN])
