"""How fast is everything but the model? Many rows through a scorer that costs nothing.

    python benchmarks/ceiling.py [--rows 2000000] [--bytes 400]

Prints rows/s from Parquet to Parquet (after the cluster is up) and the driver's memory at a
quarter of the rows and at all of them: it must not grow with rows.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rankmill import cluster, job
from rankmill.config import ComputeConfig, load_config
from stand_in import StandIn

_CANDIDATES = 100
_ROWS_A_FILE = 250_000


def make_input(folder: Path, rows: int, width: int) -> None:
    """Write a candidate table of distinct documents of about `width` bytes a row."""
    folder.mkdir(parents=True)
    alphabet = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz    ", np.uint8)
    generator = np.random.default_rng(0)
    for number, first in enumerate(range(0, rows, _ROWS_A_FILE)):
        count = min(_ROWS_A_FILE, rows - first)
        letters = generator.choice(alphabet, (count, width - 60)).tobytes()
        offsets = np.arange(count + 1, dtype=np.int32) * (width - 60)
        text = pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(letters))
        query = (np.arange(first, first + count) // _CANDIDATES).astype(np.int64)
        table = pa.table(
            {
                "query_id": query,
                "query": pa.array([f"what does list {q} hold" for q in query.tolist()]),
                "doc_id": np.arange(first, first + count),
                "document": text,
            }
        )
        pq.write_table(table, folder / f"{number:04d}.parquet", row_group_size=100_000)


def run(folder: Path, output: Path, rows: int) -> dict[str, float]:
    """One run; seconds after the cluster is up, and this process's peak memory in MiB."""
    config = load_config(
        overrides={
            "input.path": str(folder),
            "input.limit": rows // _CANDIDATES,
            "output.path": str(output),
            "model.name": "stand-in",
            "model.backend": "torch",
        }
    )
    started = time.perf_counter()
    result = job.rerank(config, model=StandIn())
    seconds = time.perf_counter() - started
    assert result.counters.rows_out == rows, "every row must come out"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rows": rows, "seconds": seconds, "rows_per_second": rows / seconds, "peak_mib": peak}


def main() -> None:
    """Make the input, run a quarter of it, then all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--bytes", type=int, default=400)
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="rankmill-ceiling-"))
    try:
        # In a process of its own, so that its memory does not count as the driver's.
        maker = multiprocessing.get_context("spawn").Process(
            target=make_input, args=(root / "in", arguments.rows, arguments.bytes)
        )
        maker.start()
        maker.join()
        with cluster.connected(ComputeConfig()):
            for part in (4, 1):
                found = run(root / "in", root / f"out{part}", arguments.rows // part)
                print(json.dumps({key: round(value, 1) for key, value in found.items()}))
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
