"""An exchange of rows through a folder: cut by a number, written, read again number by number.

A file holds a section a number; each is read alone, with two requests. Pure functions over a
`Store`; equal rows give equal files, so that a step that was cut off is simply done again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rankmill import schema
from rankmill.listing import RowGroup
from rankmill.store import Store

# What one task holds of rows on their way, in bytes; it needs two to three times as much.
SPILL_BYTES = 64 << 20
# What is given to one task to read, in bytes as the footers have them.
CHUNK_BYTES = 256 << 20
_READ_THREADS = 8
_OFFSET = np.dtype("<i8")


def chunks(groups: Sequence[RowGroup]) -> list[tuple[int, ...]]:
    """Consecutive row groups, as many as one task reads; at least one each."""
    found: list[tuple[int, ...]] = []
    current: list[int] = []
    held = 0
    for number, group in enumerate(groups):
        if current and held + group.total_bytes > CHUNK_BYTES:
            found.append(tuple(current))
            current, held = [], 0
        current.append(number)
        held += group.total_bytes
    return [*found, tuple(current)] if current else found


def split(
    store: Store,
    prefix: str,
    stream: Iterable[tuple[pa.Table, npt.NDArray[np.int64]]],
    sections: int,
) -> list[str]:
    """Write the rows of a stream of tables to the sections that their numbers name.

    A row with the number -1 is left out. Rows keep their order within a section: the files are
    `prefix.0000`, `prefix.0001`, …, one each time that `SPILL_BYTES` are held, and at last
    `prefix.done`, which holds their number and without which they do not count. Returns the
    files' names.
    """
    tables: list[pa.Table] = []
    numbers: list[npt.NDArray[np.int64]] = []
    held = files = 0
    for table, number in stream:
        wanted = number >= 0
        table = without_dictionaries(table)
        tables.append(table if wanted.all() else table.filter(pa.array(wanted)))
        numbers.append(number[wanted])
        held += tables[-1].nbytes
        if held >= SPILL_BYTES:
            _spill(store, f"{prefix}.{files:04d}", tables, numbers, sections)
            tables, numbers, held, files = [], [], 0, files + 1
    if tables and any(len(number) for number in numbers):
        _spill(store, f"{prefix}.{files:04d}", tables, numbers, sections)
        files += 1
    store.write(f"{prefix}.done", b"%d" % files)
    return split_files(prefix, b"%d" % files)


def split_files(prefix: str, done: bytes) -> list[str]:
    """The files that `split` has written, by what its last file says."""
    return [f"{prefix}.{number:04d}" for number in range(int(done))]


def without_dictionaries(table: pa.Table) -> pa.Table:
    """The same columns as plain values: a slice of a dictionary column carries all of it."""
    fields = [field.with_type(schema.value_type(field.type)) for field in table.schema]
    return table.cast(pa.schema(fields))


def _spill(
    store: Store,
    name: str,
    tables: list[pa.Table],
    numbers: list[npt.NDArray[np.int64]],
    sections: int,
) -> None:
    number = np.concatenate(numbers)
    order = np.argsort(number, kind="stable")
    table = pa.concat_tables(tables).take(pa.array(order))
    ends = np.searchsorted(number[order], np.arange(sections + 1))
    used = np.unique(number).tolist()
    cut = {n: table.slice(int(ends[n]), int(ends[n + 1] - ends[n])) for n in used}
    write_sections(store, name, cut, sections)


def write_sections(store: Store, name: str, cut: Mapping[int, pa.Table], sections: int) -> None:
    """Write a file of sections: their offsets (int64, one more than there are), then the tables."""
    sink = pa.BufferOutputStream()
    offsets = np.full(sections + 1, (sections + 1) * _OFFSET.itemsize, _OFFSET)
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    for number in sorted(cut):
        with pa.ipc.new_stream(sink, cut[number].schema, options=options) as writer:
            writer.write_table(cut[number])
        offsets[number + 1 :] = (sections + 1) * _OFFSET.itemsize + sink.tell()
    store.write(name, offsets.tobytes() + sink.getvalue().to_pybytes())


def read_section(store: Store, name: str, number: int) -> pa.Table | None:
    """One section, or None where it has no rows."""
    size = _OFFSET.itemsize
    raw = store.read_range(name, number * size, (number + 2) * size)
    first, stop = np.frombuffer(raw, _OFFSET).tolist()
    if first == stop:
        return None
    return pa.ipc.open_stream(store.read_range(name, first, stop)).read_all()


def read_sections(store: Store, names: Sequence[str], number: int) -> list[pa.Table]:
    """The same section of several files, in their order."""
    with ThreadPoolExecutor(1 if store.local else _READ_THREADS) as pool:
        found = pool.map(lambda name: read_section(store, name, number), names)
        return [table for table in found if table is not None]
