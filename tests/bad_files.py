"""Inputs that are not as they should be, each made by a function that is given an empty folder.

A function writes what it needs below the folder and returns the settings that go with it; where it
names no `input.path`, that is the folder itself.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe

Settings = dict[str, Any] | None
Make = Callable[[Path], Settings]

# In every text below; no message may hold it.
PAYLOAD = "PAYLOAD-OF-A-ROW"
PAIRS = {
    "query_id": ["a", "a", "b", "b"],
    "query": [f"{PAYLOAD} one"] * 2 + [f"{PAYLOAD} two"] * 2,
    "doc_id": ["1", "2", "3", "4"],
    "document": [f"{PAYLOAD} {text}" for text in ("v", "w", "x", "y")],
}


def write(path: Path, values: dict[str, Any] | pa.Table = PAIRS, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(values if isinstance(values, pa.Table) else pa.table(values), path, **options)
    return path


def a_table(values: dict[str, Any] | pa.Table, **settings: Any) -> Make:
    """One file with these values."""

    def make(folder: Path) -> Settings:
        write(folder / "a.parquet", values)
        return settings

    return make


def two_tables(one: dict[str, Any], other: dict[str, Any]) -> Make:
    """Two files that do not go together."""

    def make(folder: Path) -> Settings:
        write(folder / "a.parquet", one)
        write(folder / "b.parquet", other)
        return None

    return make


def changed(change: Callable[[bytes], bytes]) -> Make:
    """A good file and beside it one whose bytes were changed."""

    def make(folder: Path) -> Settings:
        write(folder / "a.parquet")
        bad = write(folder / "bad.parquet")
        bad.write_bytes(change(bad.read_bytes()))
        return None

    return make


def without(name: str) -> dict[str, Any]:
    return {key: values for key, values in PAIRS.items() if key != name}


def renamed(name: str, new: str) -> dict[str, Any]:
    return {new if key == name else key: values for key, values in PAIRS.items()}


def named_twice(name: str) -> pa.Table:
    table = pa.table(PAIRS)
    return table.append_column(name, table[name])


def broken_footer(content: bytes) -> bytes:
    """The metadata is overwritten; its length and both magics stay."""
    length = int.from_bytes(content[-8:-4], "little")
    return content[: -8 - length] + b"\xff" * length + content[-8:]


def footer_too_long(content: bytes) -> bytes:
    return content[:-8] + (1 << 30).to_bytes(4, "little") + b"PAR1"


def damage_column(path: Path, name: str, group: int = 0, keep_time: bool = True) -> None:
    """Overwrite the first page of a column, header and all."""
    stat = path.stat()
    metadata = pq.read_metadata(path)
    column = metadata.row_group(group).column(metadata.schema.to_arrow_schema().names.index(name))
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + 64] = bytes(byte ^ 0xFF for byte in content[start : start + 64])
    path.write_bytes(content)
    if keep_time:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def flip_stored_text(path: Path, text: bytes) -> None:
    """Change one letter of a stored text: only a page's checksum can tell."""
    stat = path.stat()
    content = path.read_bytes()
    assert content.count(text) == 1
    path.write_bytes(content.replace(text, text[:-1] + b"#"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def a_broken_id_page(folder: Path) -> Settings:
    write(folder / "a.parquet")
    damage_column(write(folder / "bad.parquet"), "query_id")
    return None


def encrypted(folder: Path) -> Settings:
    class Kms(pe.KmsClient):
        def wrap_key(self, key: bytes, master: str) -> bytes:
            return key

        def unwrap_key(self, wrapped: bytes, master: str) -> bytes:
            return wrapped

    connection = pe.KmsConnectionConfig()
    wanted = pe.EncryptionConfiguration(footer_key="footer", column_keys={"column": ["document"]})
    factory = pe.CryptoFactory(lambda _: Kms())
    properties = factory.file_encryption_properties(connection, wanted)
    table = pa.table(PAIRS)
    path = folder / "bad.parquet"
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    return None


def gzipped(content: bytes) -> bytes:
    return gzip.compress(content)


def arrow_file(folder: Path) -> Settings:
    table = pa.table(PAIRS)
    with pa.ipc.new_file(folder / "bad.parquet", table.schema) as writer:
        writer.write_table(table)
    return None


def notes_beside(folder: Path) -> Settings:
    write(folder / "a.parquet")
    (folder / "bad.txt").write_text(f"{PAYLOAD} notes\n" * 3)
    return None


def nothing(folder: Path) -> Settings:
    return None


def only_hidden(folder: Path) -> Settings:
    write(folder / "_a.parquet")
    write(folder / ".b.parquet")
    write(folder / "_folder" / "c.parquet")
    return None


def a_path(relative: str, **more: Any) -> Make:
    """A good file, and a path that leads elsewhere."""

    def make(folder: Path) -> Settings:
        write(folder / "a.parquet")
        return {"input.path": str(folder / relative)} | more

    return make


def settings_of(**settings: Any) -> Make:
    """A good file with settings (`__` for a dot) that do not go with it."""

    def make(folder: Path) -> Settings:
        write(folder / "a.parquet")
        return {name.replace("__", "."): value for name, value in settings.items()}

    return make


def output_at(relative: str, path: str = ".") -> Make:
    """Input and output named relative to the folder."""

    def make(folder: Path) -> Settings:
        write(folder / "a.parquet")
        where = {"output.path": str(folder / relative), "input.path": str(folder / path)}
        return where

    return make


def linked_output(folder: Path) -> Settings:
    write(folder / "a.parquet")
    link = folder.parent / "link"
    link.symlink_to(folder)
    return {"output.path": str(link / "out")}


def link_in_circles(folder: Path) -> Settings:
    write(folder / "a.parquet")
    (folder / "below").mkdir()
    (folder / "below" / "bad").symlink_to(folder)
    return None


def link_to_itself(folder: Path) -> Settings:
    write(folder / "a.parquet")
    (folder / "bad.parquet").symlink_to(folder / "bad.parquet")
    return None


def link_to_nothing(folder: Path) -> Settings:
    write(folder / "a.parquet")
    (folder / "bad.parquet").symlink_to(folder / "gone")
    return None


def a_pipe(folder: Path) -> Settings:
    write(folder / "a.parquet")
    os.mkfifo(folder / "bad.parquet")
    return None


def a_pipe_itself(folder: Path) -> Settings:
    os.mkfifo(folder / "bad.parquet")
    return {"input.path": str(folder / "bad.parquet")}


def a_name_of_other_bytes(folder: Path) -> Settings:
    write(folder / "a.parquet").rename(os.fsdecode(os.fsencode(folder) + b"/bad\xff.parquet"))
    return None


def an_unreadable_file(folder: Path) -> Settings:
    write(folder / "bad.parquet").chmod(0)
    return None


def an_unreadable_folder(folder: Path) -> Settings:
    write(folder / "a.parquet")
    write(folder / "bad" / "b.parquet").parent.chmod(0)
    return None


def foreign_output(folder: Path) -> Settings:
    write(folder / "a.parquet")
    out = folder.parent / "out"
    out.mkdir()
    (out / "thesis.docx").write_text("years of work")
    return None


def output_is_a_file(folder: Path) -> Settings:
    write(folder / "a.parquet")
    (folder.parent / "out").write_text("a file")
    return None
