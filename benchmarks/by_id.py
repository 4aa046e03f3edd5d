"""What the `ids` layout costs: candidates by id over a corpus, through a scorer that costs nothing.

    python benchmarks/by_id.py [--rows 1000000] [--documents 200000] [--bytes 400] [--join]

Prints rows/s from Parquet to Parquet (after the cluster is up) and the driver's peak memory.
`--join` treats the corpus as too large to be held by every node; `--apart` shuffles the candidates.
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

from rankmill import cluster, job, partitions
from rankmill.config import ComputeConfig, load_config
from stand_in import StandIn

_CANDIDATES = 100
_ROWS_A_GROUP = 100_000


def make_input(folder: Path, rows: int, documents: int, width: int, apart: bool) -> None:
    """Write candidates, queries and a corpus of random letters."""
    generator = np.random.default_rng(0)
    alphabet = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz    ", np.uint8)
    letters = generator.choice(alphabet, (documents, width)).tobytes()
    offsets = np.arange(documents + 1, dtype=np.int32) * width
    text = pa.StringArray.from_buffers(documents, pa.py_buffer(offsets), pa.py_buffer(letters))
    names = np.array([f"d{number:09d}" for number in range(documents)])
    query = np.arange(rows) // _CANDIDATES
    candidates = pa.table({"query_id": query, "doc_id": generator.choice(names, rows)})
    if apart:
        candidates = candidates.take(generator.permutation(rows))
    asked = np.arange(rows // _CANDIDATES)
    tables = {
        "candidates": candidates,
        "queries": pa.table({"query_id": asked, "query": [f"what of {n}" for n in asked]}),
        "documents": pa.table({"doc_id": names, "document": text}),
    }
    for name, table in tables.items():
        (folder / name).mkdir(parents=True)
        pq.write_table(table, folder / name / "0.parquet", row_group_size=_ROWS_A_GROUP)


def main() -> None:
    """Make the input and run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--bytes", type=int, default=400)
    parser.add_argument("--join", action="store_true")
    parser.add_argument("--apart", action="store_true")
    asked = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="rankmill-by-id-"))
    try:
        # In a process of its own, so that its memory does not count as the driver's.
        arguments = (root / "in", asked.rows, asked.documents, asked.bytes, asked.apart)
        context = multiprocessing.get_context("spawn")
        maker = context.Process(target=make_input, args=arguments)
        maker.start()
        maker.join()
        if asked.join:
            partitions.BROADCAST_BYTES = partitions.PARTITION_BYTES = 16 << 20
        settings = {
            "input.layout": "ids",
            "input.path": str(root / "in" / "candidates"),
            "input.queries": str(root / "in" / "queries"),
            "input.documents": str(root / "in" / "documents"),
            "output.path": str(root / "out"),
            "model.name": "stand-in",
            "model.backend": "torch",
        }
        with cluster.connected(ComputeConfig()):
            started = time.perf_counter()
            result = job.rerank(load_config(overrides=settings), model=StandIn())
            seconds = time.perf_counter() - started
        assert result.counters.rows_out == asked.rows, "every row must come out"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        found = {"rows_per_second": asked.rows / seconds, "seconds": seconds, "peak_mib": peak}
        print(json.dumps({key: round(value, 1) for key, value in found.items()}))
        print(json.dumps(result.manifest["staging"]))
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
