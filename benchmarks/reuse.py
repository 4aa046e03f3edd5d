"""What reusing an earlier run's scores saves, and what looking them up costs.

    python benchmarks/reuse.py [CANDIDATES.parquet] [--documents title,text] [--model demo]
        [--queries 225] [--depth 100] [--changed 0.05] [--rows 1000000]

With CANDIDATES (a table of pairs): a run, the text of a share of the documents changed, a second
run that reuses the first; seconds of both, with start-up, on a cluster that is already up.

With --rows (0: left out): that many made-up pairs through a scorer that costs nothing
(`stand_in.py`): without reuse, with everything reused, and with everything reused while the lists
come in another order, which makes every shard look into nearly every old score file.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import shutil
import tempfile
import time
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ceiling import make_input
from machine import describe_machine
from rankmill import cluster, job
from rankmill.completion import RunResult
from rankmill.config import ComputeConfig, load_config
from rankmill.settings import Setting
from stand_in import StandIn

_CANDIDATES = 100


def run(
    source: Path,
    output: Path,
    model: str,
    old: Path | None = None,
    double: StandIn | None = None,
    cut: Mapping[str, Setting] | None = None,
) -> tuple[float, RunResult]:
    """Seconds of a run and its result. cut: settings of the input."""
    overrides: dict[str, Setting] = {
        "input.path": str(source),
        "output.path": str(output),
        "model.name": model,
        "reuse": [] if old is None else [str(old)],
    }
    given = (cut or {}).items()
    overrides |= {f"input.{name}": value for name, value in given if value is not None}
    started = time.perf_counter()
    result = job.rerank(load_config(overrides=overrides), model=double)
    return time.perf_counter() - started, result


def change_documents(source: Path, target: Path, column: str, share: float) -> None:
    """The same table with another text for a share of the documents, chosen by their ids."""
    table = pq.read_table(source)
    drawn = [
        zlib.crc32(str(doc).encode()) % 10_000 < share * 10_000
        for doc in table.column("doc_id").to_pylist()
    ]
    texts = table.column(column).to_pylist()
    changed = [f"{text} Revised." if new else text for text, new in zip(texts, drawn)]
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, pa.array(changed)), target)


def shuffle_lists(source: Path, target: Path) -> None:
    """The same candidate lists in another order."""
    table = pq.read_table(source)
    lists = np.random.default_rng(1).permutation(table.num_rows // _CANDIDATES)
    rows = (lists[:, None] * _CANDIDATES + np.arange(_CANDIDATES)).ravel()
    target.mkdir()
    for number, part in enumerate(np.array_split(rows, 4)):
        pq.write_table(table.take(part), target / f"{number}.parquet", row_group_size=100_000)


def in_a_process(function: object, *arguments: object) -> None:
    """Run what takes memory that is not the driver's."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)  # type: ignore[arg-type]
    process.start()
    process.join()


def main() -> None:
    """Measure and print a line a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("candidates", type=Path, nargs="?")
    parser.add_argument("--documents", default="document", help="columns, joined by commas")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--queries", type=int)
    parser.add_argument("--depth", type=int)
    parser.add_argument("--changed", type=float, default=0.05)
    parser.add_argument("--rows", type=int, default=1_000_000)
    asked = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="rankmill-reuse-"))
    try:
        print(describe_machine())
        if asked.candidates is not None:
            old, new, columns = asked.candidates, root / "new.parquet", asked.documents.split(",")
            in_a_process(change_documents, old, new, columns[-1], asked.changed)
        if asked.rows:
            in_a_process(make_input, root / "in", asked.rows, 400)
            in_a_process(shuffle_lists, root / "in", root / "shuffled")
        with cluster.connected(ComputeConfig()):
            if asked.candidates is not None:
                table: dict[str, Setting] = {"columns": {"document": columns}}
                cut = table | {"limit": asked.queries, "depth": asked.depth}
                # The first run of a model converts it, and the first tasks import torch.
                run(old, root / "warm", asked.model, cut=table | {"limit": 2})
                full, _ = run(old, root / "old", asked.model, cut=cut)
                again, found = run(new, root / "new", asked.model, root / "old", cut=cut)
                counters = found.counters
                print(
                    f"{asked.model}: full {full:.1f} s, with {asked.changed:.0%} of the documents "
                    f"changed {again:.1f} s ({again / full:.1%}); {counters.pairs_scored:,} pairs "
                    f"scored, {counters.pairs_reused:,} reused"
                )
            if asked.rows:
                run(root / "in", root / "first", "stand-in", double=StandIn(), cut={"limit": 2})
                for name, source, old in (
                    ("scored", "in", None),
                    ("reused", "in", root / "scored"),
                    ("reused-shuffled", "shuffled", root / "scored"),
                ):
                    seconds, found = run(
                        root / source, root / name, "stand-in", old, double=StandIn()
                    )
                    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                    print(
                        f"{asked.rows:,} rows, {name}: {seconds:.1f} s, "
                        f"{asked.rows / seconds:,.0f} rows/s; {found.counters.pairs_reused:,} "
                        f"reused; driver's peak {peak:.0f} MiB"
                    )
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
