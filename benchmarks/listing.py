"""How long a folder of many objects on S3 takes to be listed and planned, and in how many requests.

    python benchmarks/listing.py [--objects 10000]

Needs nanio, which serves the objects on loopback and checks every signature. Each is a Parquet file
of one list. Prints seconds and requests by kind: of the listing, of the listing with its footers
(what a plan begins with), and of a run's output with as many parts, asked for its sizes.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from machine import describe_machine
from rankmill import listing, storage
from rankmill.storage_settings import StorageConfig
from rankmill.store import Store

_KEYS = {"AWS_ACCESS_KEY_ID": "listing", "AWS_SECRET_ACCESS_KEY": "listing-secret"}
_AT_ONCE = 500


class Requests(logging.Handler):
    """Counts what s3fs says that it asks for."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.counts: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Take one message."""
        if str(record.msg).startswith("CALL") and record.args:
            self.counts[str(record.args[0])] += 1  # type: ignore[index]


@contextmanager
def serving(folder: Path) -> Iterator[StorageConfig]:
    """A nanio of one's own on loopback; how it is reached."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    keys = {
        "NANIO_ACCESS_KEY": _KEYS["AWS_ACCESS_KEY_ID"],
        "NANIO_SECRET_KEY": _KEYS["AWS_SECRET_ACCESS_KEY"],
    }
    command = [sys.executable, "-m", "nanio", "serve", "--no-access-log", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--data-dir", str(folder)]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, env=os.environ | keys, stdout=log, stderr=log)
    try:
        yield StorageConfig(endpoint_url=f"http://127.0.0.1:{port}", region="us-east-1")
    finally:
        server.terminate()
        server.wait()


def fill(fs: Any, objects: int) -> None:  # noqa: ANN401 - s3fs has no annotations
    """Write the objects; waits for the server."""
    for second in range(60):
        try:
            fs.mkdir("bucket")
            break
        except OSError:
            if second == 59:
                raise
            time.sleep(1)
    names = ["query_id", "query", "doc_id", "document"]
    for first in range(0, objects, _AT_ONCE):
        files = {}
        for number in range(first, min(first + _AT_ONCE, objects)):
            content = io.BytesIO()
            row = [f"q{number}", f"what is {number}", f"d{number}", f"{number} is a number"]
            pq.write_table(pa.table([[value] for value in row], names=names), content)
            files[f"bucket/in/{number:06d}.parquet"] = content.getvalue()
        fs.pipe(files)


def main() -> None:
    """Fill a bucket and ask for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=10_000)
    objects = parser.parse_args().objects
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ |= _KEYS
    requests = Requests()
    logger = logging.getLogger("s3fs")
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as access:
        fill(storage.filesystem("s3://bucket", access)[0], objects)
        logger.addHandler(requests)
        logger.setLevel(logging.DEBUG)
        url = "s3://bucket/in"
        asked: dict[str, Callable[[], object]] = {
            "listed": lambda: storage.list_files([url], access),
            "listed by a glob": lambda: storage.list_files([f"{url}/*.parquet"], access),
            "listed, with every footer": lambda: listing.list_tables([url], access),
            "sizes of an output": lambda: Store(url, access).sizes(),
        }
        print(describe_machine())
        for name, ask in asked.items():
            requests.counts.clear()
            started = time.perf_counter()
            ask()
            seconds = time.perf_counter() - started
            kinds = ", ".join(
                f"{count:,} {kind}" for kind, count in sorted(requests.counts.items())
            )
            print(f"{objects:,} objects, {name}: {seconds:.1f} s; {kinds}", flush=True)


if __name__ == "__main__":
    main()
