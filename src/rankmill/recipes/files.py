"""Files of a local copy: found by pattern, read some at a time, faults named by file and line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO, cast

import pyarrow as pa

from rankmill import storage
from rankmill.errors import InputError

_GZIP = b"\x1f\x8b"


def find(source: str, *patterns: str) -> list[str]:
    """The files below a folder that match the first pattern that any file matches, in name order.

    A source that is a file is what it is. Raises `InputError` naming what was looked for.
    """
    if not storage.is_folder(source):
        return [file.url for file in storage.list_files([source])]
    for pattern in patterns:
        try:
            found = storage.list_files([storage.join(source, pattern)])
        except InputError:
            continue
        return [file.url for file in found]
    raise InputError(
        f"{source} holds no {' and no '.join(patterns)}.",
        "Give the folder of a local copy in the layout in which the benchmark is published.",
    )


def find_one(source: str, *patterns: str) -> str:
    """The one file that `find` finds. Raises `InputError` where there are several."""
    found = find(source, *patterns)
    if len(found) > 1:
        raise InputError(
            f"{source} holds {len(found)} files like {patterns[0]}; one was expected.",
            "Give the file itself.",
        )
    return found[0]


def read_json(path: str) -> dict[str, object]:
    """A JSON file that holds an object. Raises `InputError` for any other."""
    with storage.reaching(path), storage.open_input(path) as file:
        return _object(file.read(), path)


def json_lines(paths: Sequence[str]) -> Iterator[tuple[dict[str, object], str]]:
    """Each object of some files of JSON lines, also gzipped, and where it stands."""
    for line, where in text_lines(paths):
        yield _object(line, where), where


def text_lines(paths: Sequence[str]) -> Iterator[tuple[bytes, str]]:
    """Each line of some files, also gzipped, that is not empty, and where it stands."""
    for path in paths:
        with storage.reaching(path), storage.open_input(path) as file:
            packed = file.read(2) == _GZIP
            file.seek(0)
            lines = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file
            try:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        yield line.rstrip(b"\r\n"), f"line {number} of {path}"
            except (EOFError, zlib.error):
                raise InputError(
                    f"{path} is damaged or ends too early.", "Fetch the file again."
                ) from None


def parquet_rows(paths: Sequence[str], columns: Sequence[str]) -> Iterator[tuple[pa.Table, str]]:
    """Some columns of some Parquet files, some thousand rows at a time, and where they are from."""
    for path in paths:
        for batch in storage.read_batches([path], columns):
            yield pa.Table.from_batches([batch]), path


def text_of(values: Mapping[str, object], name: str, where: str) -> str:
    """The text of a field. Raises `InputError` naming the field where it is not valid text."""
    value = values.get(name)
    if not isinstance(value, str):
        raise InputError(
            f"The field {name} in {where} must hold text, found {type(value).__name__}."
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"The field {name} in {where} is not valid Unicode.") from None
    return value


def ids_of(values: Mapping[str, object], name: str, where: str) -> list[str]:
    """The ids in a field. Raises `InputError` naming the field where it is no list of texts."""
    value = values.get(name)
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise InputError(f"The field {name} in {where} must hold a list of ids.")
    return value


def _object(content: bytes, where: str) -> dict[str, object]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InputError(f"{where} does not hold a JSON object.", "Fetch the file again.")
    return value
