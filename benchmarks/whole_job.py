"""The whole job, Parquet to Parquet, beside the bare scorer and beside what one writes without it.

    python benchmarks/whole_job.py CANDIDATES.parquet [--shape NAME] [--pairs 22500]
        [--naive-pairs 2000]

Measures, on one local cluster that is already up:
- the bare `Scorer.score` over the same pairs, in this process's share of the cores;
- `rankmill rerank` over the table (its default backend and precision), all rows;
- Ray Data's `read_parquet -> map_batches(CrossEncoder.predict) -> write_parquet` over the first
  --naive-pairs rows, with one actor that has all cores.

Prints pairs/s of each and their ratios, padding, the seconds to the first committed shard, and what
the job's processes spent of the processors, by what they did.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import random_models
from machine import describe_machine
from processor_time import ProcessorTime
from rankmill import Scorer, cluster, job
from rankmill.config import ComputeConfig, load_config
from rankmill.progress import Progress

_BATCH_ROWS = 1024
_WORTH_A_LINE = 0.3  # processor seconds


class Predict:
    """What a user would write: CrossEncoder.predict over batches."""

    def __init__(self, model: str, max_length: int, threads: int) -> None:
        import torch
        from sentence_transformers import CrossEncoder

        torch.set_num_threads(threads)
        self._model = CrossEncoder(model, device="cpu", max_length=max_length)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The batch with a column of scores."""
        pairs = list(zip(batch["query"], batch["document"], strict=True))
        return batch | {"score": self._model.predict(pairs)}


def naive(source: Path, output: Path, model: str, max_length: int, cores: int) -> float:
    """Seconds of the naive pipeline."""
    import ray

    started = time.perf_counter()
    ray.data.read_parquet(str(source)).map_batches(
        Predict,
        fn_constructor_args=(model, max_length, cores),
        batch_size=_BATCH_ROWS,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=max(cores - 1, 1),
    ).write_parquet(str(output))
    return time.perf_counter() - started


def rankmill_job(source: Path, output: Path, model: str, max_length: int) -> dict[str, Any]:
    """The manifest of a run, the seconds to its first committed shard, and processor seconds."""
    config = load_config(
        overrides={
            "input.path": str(source),
            "output.path": str(output),
            "model.name": model,
            "model.max_length": max_length,
        }
    )
    started = time.perf_counter()
    first: list[float] = []

    def listen(progress: Progress) -> None:
        if not first and progress.shards_done:
            first.append(time.perf_counter() - started)

    with ProcessorTime() as spent:
        result = job.rerank(config, listener=listen)
    return result.manifest | {
        "first_shard_seconds": first[0] if first else None,
        "processor_seconds": spent.by_title,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("candidates")
    parser.add_argument("--shape", default="hotchpotch/japanese-reranker-tiny-v2")
    parser.add_argument("--pairs", type=int, default=22_500)
    parser.add_argument("--naive-pairs", type=int, default=2_000)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="rankmill-job-"))
    try:
        model = str(random_models.build(arguments.shape, root / "model"))
        table = pq.read_table(arguments.candidates).slice(0, arguments.pairs)
        document = pc.binary_join_element_wise(
            *(table[name].cast(pa.string()) for name in ("title", "text")), " "
        )
        table = table.append_column("document", document).drop_columns(["title", "text"])
        pq.write_table(table, root / "all.parquet", row_group_size=5_000)
        pq.write_table(table.slice(0, arguments.naive_pairs), root / "some.parquet")

        scorer = Scorer(model, threads=arguments.threads, max_length=arguments.max_length)
        pairs = list(zip(table["query"].to_pylist(), document.to_pylist(), strict=True))
        scorer.score(pairs[-64:])
        started = time.perf_counter()
        with ProcessorTime() as spent:
            scorer.score(pairs)
        bare = len(pairs) / (time.perf_counter() - started)
        with cluster.connected(ComputeConfig()):
            manifest = rankmill_job(root / "all.parquet", root / "out", model, arguments.max_length)
            seconds = naive(
                root / "some.parquet", root / "naive", model, arguments.max_length,
                arguments.threads,
            )  # fmt: skip
    finally:
        shutil.rmtree(root)
    rate = manifest["pairs_per_second"]
    other = arguments.naive_pairs / seconds
    padding = manifest["padded_tokens"] / (manifest["tokens"] + manifest["padded_tokens"])
    print(describe_machine())
    print(f"{arguments.shape}: {json.dumps(manifest['profile'])}")
    print(f"bare Scorer              {bare:8.1f} pairs/s")
    print(f"whole job                {rate:8.1f} pairs/s  {rate / bare:5.2f} of the bare scorer")
    print(f"Ray Data + CrossEncoder  {other:8.1f} pairs/s  the job is {rate / other:.1f} times it")
    print(f"processor seconds: bare {spent.seconds:.1f}, the job", end="")
    for title, seconds in manifest["processor_seconds"].items():
        if seconds >= _WORTH_A_LINE:
            print(f"; {title} {seconds:.1f}", end="")
    print()
    print(f"padding {100 * padding:.2f} %, first shard after {manifest['first_shard_seconds']} s")


if __name__ == "__main__":
    main()
