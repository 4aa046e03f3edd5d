"""Whether an output holds what was committed: at a glance for a start, to the last byte on demand.

The glance costs the markers and three listings. The full check reads every file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic_core import from_json

from rankmill import markers, schema, storage
from rankmill.markers import PRIVATE, QUARANTINE, SCORES, Marker, WrittenFile
from rankmill.results import ONE_MODEL, Results
from rankmill.store import Listed, Listing, Store

_SUCCESS, _MANIFEST = "_SUCCESS", f"{PRIVATE}/manifest.json"


@dataclass(frozen=True)
class Expected:
    """What run.json says of a run. `prefix`: of its result columns, which `results` has."""

    fingerprint: str
    shards: int
    prefix: str
    results: Results = ONE_MODEL


def listed(store: Store, top: Listing) -> dict[str, Listed]:
    """Every file that shards consist of, by name relative to the output. top: its own listing."""
    found = dict(top.files)
    for folder in (SCORES, QUARANTINE):
        files = store.listing(folder).files
        found |= {f"{folder}/{name}": file for name, file in files.items()}
    return found


def glance(
    marker: Marker, fingerprint: str, shards: int, files: Mapping[str, Listed]
) -> str | None:
    """What is wrong with a committed shard as far as its marker and a listing show, or None.

    shards: of the run. files: see `listed`.
    """
    name = markers.marker_name(marker.shard)
    if marker.fingerprint != fingerprint:
        return f"{name}: shard {marker.shard} is of another run"
    if marker.shard >= shards:
        return f"{name}: the run has {shards} shards"
    if (problem := marker.contradiction()) is not None:
        return f"{name}: {problem}"
    for file in marker.files:
        found = files.get(file.name)
        if found is None:
            return f"{file.name} is missing"
        if found.size != file.size:
            return f"{file.name} has {found.size} bytes, its marker says {file.size}"
    return None


def examine(store: Store, expected: Expected, running: bool) -> list[str]:
    """Everything in an output that is damaged or not of its run, a line each; reads every file.

    running: a run is at work, so files whose marker is still to come are no fault.
    """
    found, wrong = markers.read_all(store)
    files = listed(store, store.listing())
    wrong = [f"{name} is not a shard marker" for name in wrong]
    shapes: dict[pa.Schema, str] = {}
    for _, marker in sorted(found.items()):
        problem = glance(marker, expected.fingerprint, expected.shards, files)
        wrong += [problem] if problem else _content(store, marker, expected, shapes)
    if len(shapes) > 1:
        one, other = list(shapes.values())[:2]
        wrong.append(f"{other} has other columns than {one}")
    own = {s: m for s, m in found.items() if m.fingerprint == expected.fingerprint}
    named = {file.name for marker in found.values() for file in marker.files}
    wrong += _strays(store, files, named, running)
    wrong += _completeness(store, own, expected, _SUCCESS in files)
    return wrong


def _content(
    store: Store, marker: Marker, expected: Expected, shapes: dict[pa.Schema, str]
) -> Iterator[str]:
    """What is wrong with a shard's files once they are read."""
    for file in marker.files:
        content = store.read(file.name)
        if content is None:
            yield f"{file.name} is missing"
        elif hashlib.sha256(content).hexdigest() != file.sha256:
            yield f"{file.name} is not what was committed (checksum)"
        else:
            problem = _table_problem(file, content, marker, expected, shapes)
            if problem is not None:
                yield f"{file.name} {problem}"


def _table_problem(
    file: WrittenFile,
    content: bytes,
    marker: Marker,
    expected: Expected,
    shapes: dict[pa.Schema, str],
) -> str | None:
    counters = marker.counters
    try:
        if file == marker.part:
            footer = pq.read_metadata(pa.BufferReader(content))
            found, rows, wanted = (
                footer.schema.to_arrow_schema(),
                footer.num_rows,
                counters.rows_out,
            )
        else:
            table = pa.ipc.open_file(content).read_all()
            found, rows = table.schema, table.num_rows
            wanted = counters.rows_quarantined if file.name.startswith(QUARANTINE) else file.rows
    except (pa.ArrowException, OSError) as error:
        return f"cannot be read: {error}"
    if rows != file.rows or rows != wanted:
        return f"holds {rows} rows, its marker says {file.rows} and counts {wanted}"
    if file == marker.part:
        results = {expected.prefix + n: kind for n, kind in expected.results.columns.items()}
        lacking = [n for n, kind in results.items() if _type_of(found, n) != kind]
        run = (found.metadata or {}).get(b"rankmill.run", b"").decode("ascii", "replace")
        if lacking or run != expected.fingerprint:
            return f"lacks {', '.join(lacking)}" if lacking else "is of another run"
        shapes.setdefault(found.remove_metadata(), file.name)
    elif file.name.startswith(SCORES) and found != schema.SCORES:
        return "has other columns than scores have"
    elif file.name.startswith(QUARANTINE) and not {"reason", "quarantine_reason"} & {*found.names}:
        return "gives no reason"
    return None


def _type_of(found: pa.Schema, name: str) -> pa.DataType | None:
    return found.field(name).type if name in found.names else None


def _strays(
    store: Store, files: Mapping[str, Listed], named: set[str], running: bool
) -> Iterator[str]:
    """Files that no marker names: a shard's, and whatever a reader of the output would take."""
    for name in sorted({*_visible(store), *files} - named - {_SUCCESS}):
        of_a_shard = markers.shard_of(name) is not None
        if of_a_shard and not running:
            yield f"{name} has no marker"
        elif not of_a_shard:
            yield f"{name} is not of this run"


def _visible(store: Store) -> list[str]:
    prefix = len(store.url.rstrip("/")) + 1
    return [file.url[prefix:] for file in storage.visible_files(store.url, store.access)]


def _completeness(
    store: Store, own: Mapping[int, Marker], expected: Expected, complete: bool
) -> Iterator[str]:
    """Where `_SUCCESS` and the manifest promise what the markers do not bear out."""
    if not complete:
        return
    missing = expected.shards - sum(shard < expected.shards for shard in own)
    if missing:
        yield f"{_SUCCESS} is there, but {missing} of {expected.shards} shards are not committed"
    try:
        manifest = from_json(store.read(_MANIFEST) or b"")
        agrees = manifest["fingerprint"] == expected.fingerprint
        agrees = agrees and manifest["files"] == [own[shard].part.name for shard in sorted(own)]
    except (ValueError, TypeError, KeyError):
        agrees = False
    if not agrees:
        yield f"{_SUCCESS} is there, but {_MANIFEST} is not that of the committed shards"
