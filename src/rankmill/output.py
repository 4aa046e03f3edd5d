"""The output folder before and after a run: whose it is, what in it counts, what must go."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from rankmill import checksum, integrity, markers, runs, schema, storage
from rankmill.attempts import ATTEMPTS
from rankmill.errors import ConfigError, OutputError
from rankmill.markers import PRIVATE, Marker
from rankmill.store import Fence, Listed, Listing, Store

log = logging.getLogger("rankmill")

# Protocols that fsspec knows by several names.
_USUAL = {"gcs": "gs", "az": "abfs", "abfss": "abfs", "arrow_hdfs": "hdfs"}

_PART = re.compile(r"part-\d{5,}\.parquet")


def refuse_overlap(inputs: Sequence[str], output: str, kind: str = "input") -> None:
    """Raise `ConfigError` when an output and what is read for it lie inside each other.

    A reader pointed at OUTPUT must see ranked pairs only, and a run must not read what it writes.
    """
    there = _folder(_in_one_spelling(output))
    for given in inputs:
        path = _in_one_spelling(given)
        here = _folder(_before_wildcard(path) if _is_glob(path) else path)
        if _is_glob(path):
            written = [there + "part-00000.parquet", *_parents(there)]
            inside = any(fnmatch(name, path) for name in written) or here.startswith(there)
        else:
            beside = os.path.dirname(here.rstrip("/")) + "/" == there
            inside = there.startswith(here) or here.startswith(there) or beside
        if inside:
            raise ConfigError(
                f"The output {output} and the {kind} {given} lie inside each other.",
                "Choose an output folder of its own.",
            )


def _in_one_spelling(path: str) -> str:
    """The path with the usual one of a protocol's names."""
    protocol, separator, rest = path.partition("://")
    if not separator:
        return path
    if protocol in ("file", "local"):
        return rest
    usual = "s3" if storage.is_s3(path) else _USUAL.get(protocol, protocol)
    return f"{usual}://{rest}"


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


def _before_wildcard(path: str) -> str:
    return re.split(r"[*?\[]", path, maxsplit=1)[0].rpartition("/")[0]


def _folder(path: str) -> str:
    """A path with symlinks resolved, ending in a slash."""
    resolved = path if storage.is_remote(path) else os.path.realpath(path)
    return resolved.rstrip("/") + "/"


def refuse_foreign(store: Store, overwrite: bool) -> None:
    """Raise `OutputError` for files that readers would see and that no run of rankmill wrote.

    overwrite: the parts of a run that is there will be removed, so they are no obstacle.
    """
    has_run = store.read(runs.RUN) is not None
    visible = store.listing().visible
    foreign = [name for name in visible if not _PART.fullmatch(name)]
    if foreign or (visible and not (overwrite and has_run)):
        shown = ", ".join(sorted(foreign or visible)[:3])
        raise OutputError(
            f"The output {store.url} holds files that are not of a run of rankmill: {shown}.",
            "Choose an empty folder.",
        )


def refuse_links(store: Store) -> None:
    """Raise `OutputError` for a link in the private folder of an output on disk, or in its place.

    What a run writes and clears away there would be somebody else's.
    """
    if not store.local:
        return
    private = Path(store.url, PRIVATE)
    below = sorted(private.iterdir()) if private.is_dir() else []
    for path in (private, *below):
        if path.is_symlink():
            raise OutputError(
                f"{path} is a symbolic link: a run would write and remove files where it leads.",
                "Remove the link, or choose another output.",
            )


def refuse_strangers(store: Store, shards: int) -> None:
    """Raise `OutputError` for what readers would see beside the parts of a run that goes on.

    Costs one listing.
    """
    _refuse(store, _strangers(store.listing(), shards))


def _strangers(listing: Listing, shards: int) -> list[str]:
    own = {schema.part_name(shard, shards) for shard in range(shards)}
    return sorted(name for name in listing.visible if name not in own)


def _refuse(store: Store, strangers: Sequence[str]) -> None:
    if strangers:
        raise OutputError(
            f"The output {store.url} holds {_shown(strangers)}, which is not of its run; whoever "
            "reads the output would read it, too.",
            "Move it away, and run the same command again.",
        )


def _shown(names: Sequence[str]) -> str:
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")


def committed(store: Store, fingerprint: str, shards: int) -> tuple[dict[int, Marker], list[str]]:
    """The shards that need not be computed again, and what is wrong with the others.

    A marker counts when it is of this run, which has so many shards, its numbers add up, and all
    its files have the size that was committed.
    """
    found, broken = markers.read_all(store)
    files = integrity.listed(store, store.listing())
    return _judge(found, broken, fingerprint, shards, files)


def _judge(
    found: Mapping[int, Marker],
    broken: Sequence[str],
    fingerprint: str,
    shards: int,
    files: Mapping[str, Listed],
) -> tuple[dict[int, Marker], list[str]]:
    problems = {s: integrity.glance(m, fingerprint, shards, files) for s, m in found.items()}
    good = {shard: marker for shard, marker in found.items() if problems[shard] is None}
    wrong = [problem for problem in problems.values() if problem is not None]
    return good, wrong + [f"{name} is not a shard marker" for name in broken]


def resume(store: Store, fingerprint: str, shards: int) -> dict[int, Marker]:
    """The shards that a start takes over from an earlier one; what is wrong with others is logged.

    They are those of `committed` whose bytes are the committed ones, too (see `checksum`).

    Raises `OutputError` for files and markers that are not of the run, unless it is complete: then
    nothing will be written beside them, and a warning names them.
    """
    found, broken = markers.read_all(store)
    top = store.listing()
    files = integrity.listed(store, top)
    beyond = [markers.marker_name(shard) for shard in sorted(found) if shard >= shards]
    own = {shard: marker for shard, marker in found.items() if shard < shards}
    good, wrong = _judge(own, broken, fingerprint, shards, files)
    changed = checksum.changed(store, good.values(), files)
    for problem in [*wrong, *changed.values()]:
        log.warning("Computed again: %s", problem)
    good = {shard: marker for shard, marker in good.items() if shard not in changed}
    strangers = _strangers(top, shards) + beyond
    if len(good) < shards or runs.SUCCESS not in top.files:
        _refuse(store, strangers)
    elif strangers:
        log.warning(
            "The output %s is complete, but holds %s, which is not of its run; whoever reads the "
            "output reads it, too.",
            store.url,
            _shown(strangers),
        )
    return good


def is_complete(store: Store) -> bool:
    """Whether `_SUCCESS` is there."""
    return store.read(runs.SUCCESS) is not None


def begin(store: Store, record: bytes | None, pending: Sequence[int]) -> None:
    """Make ready for a start: no `_SUCCESS`, no manifest, notes and scraps of an earlier start.

    record: run.json, for a run that has none yet. pending: the shards that will be computed; a
    marker of theirs (damaged, or of another run) must not vouch for them.

    Raises `OutputError` as `refuse_links` does, like all that clears away here.
    """
    refuse_links(store)
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
    """Remove what killed writers have left half-written.

    To be called under the folder's lock, which the lease holds while it has a beat half-written.
    """
    refuse_links(store)
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
    refuse_links(store)
    store.delete([runs.SUCCESS, runs.MANIFEST, runs.REPORT])
    for folder in ("shards", "scores", "quarantine", "failed", "attempts", "tmp"):
        store.delete_folder(f"{PRIVATE}/{folder}")
    store.delete([name for name in store.sizes() if _PART.fullmatch(name)])
    store.delete([runs.RUN])
