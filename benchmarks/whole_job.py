"""The whole job, Parquet to Parquet, beside the bare scorer and beside what one writes without it.

    python benchmarks/whole_job.py CANDIDATES.parquet [--shape NAME] [--pairs 22500]
        [--naive-pairs 2000] [--rounds 3] [--save NAME]

Every round measures, one after the other, and each on the model that was converted beforehand:
- the bare `Scorer.score` over the pairs;
- `rankmill rerank` over the same (its default backend and precision), on a cluster that is up;
- Ray Data's `read_parquet -> map_batches(CrossEncoder.predict) -> write_parquet` on that cluster,
  with one actor that has all cores, over --naive-pairs of them, a seeded draw, and over a quarter
  of these. The difference is its pace without its start, by which it is said what all would take.

Prints medians: pairs/s of each and their ratios, padding, the seconds to the first committed shard,
and what the job's processes spent of the processors in the last round. --save keeps all rounds in
figures/NAME.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import naive
import random_models
from machine import describe_machine
from processor_time import ProcessorTime
from rankmill import Scorer, cluster, job
from rankmill.config import ComputeConfig, load_config
from rankmill.progress import Progress

_WORTH_A_LINE = 0.3  # processor seconds


def read(candidates: str, pairs: int) -> pa.Table:
    """So many candidates, title and text as one document."""
    table = pq.read_table(candidates).slice(0, pairs)
    document = pc.binary_join_element_wise(
        *(table[name].cast(pa.string()) for name in ("title", "text")), " "
    )
    return table.append_column("document", document).drop_columns(["title", "text"])


def measure_bare(scorer: Scorer, table: pa.Table) -> dict[str, Any]:
    """Seconds of the scorer alone."""
    pairs = list(zip(*(table[name].to_pylist() for name in ("query", "document")), strict=True))
    started = time.perf_counter()
    with ProcessorTime() as spent:
        scorer.score(pairs)
    return {"seconds": time.perf_counter() - started, "processor_seconds": spent.seconds}


def measure_job(source: Path, output: Path, model: str, max_length: int) -> dict[str, Any]:
    """What a run costs. first_shard: seconds until a shard is committed."""
    config = load_config(
        overrides={
            "input.path": str(source),
            "output.path": str(output),
            "model.name": model,
            "model.max_length": max_length,
        }
    )
    first: list[float] = []

    def listen(progress: Progress) -> None:
        if not first and progress.shards_done:
            first.append(time.perf_counter() - started)

    started = time.perf_counter()
    with ProcessorTime() as spent:
        manifest = job.rerank(config, listener=listen).manifest
    return {
        "seconds": time.perf_counter() - started,
        "first_shard": first[0] if first else None,
        "padding": manifest["padded_tokens"] / (manifest["tokens"] + manifest["padded_tokens"]),
        "processor_seconds": spent.by_title,
    }


def measure_naive(
    sources: list[Path], scratch: Path, model: str, max_length: int, cores: int
) -> dict[str, Any]:
    """Seconds over fewer pairs and over more, and pairs/s between both."""
    fewer, more = (
        naive.run(source, scratch / f"naive-{source.stem}", model, max_length, cores)
        for source in sources
    )
    rows = [pq.read_metadata(source).num_rows for source in sources]
    pace = (rows[1] - rows[0]) / (more - fewer)
    return {"rows": rows, "seconds": [fewer, more], "pace": pace, "start": more - rows[1] / pace}


def measure(arguments: argparse.Namespace, root: Path) -> list[dict[str, Any]]:
    """All rounds."""
    model = str(random_models.build(arguments.shape, root / "model"))
    table = read(arguments.candidates, arguments.pairs)
    pq.write_table(table, root / "all.parquet", row_group_size=5_000)
    drawn = np.random.default_rng(0).permutation(table.num_rows)[: arguments.naive_pairs]
    sources = [root / "fewer.parquet", root / "more.parquet"]
    for source, count in zip(sources, (len(drawn) // 4, len(drawn)), strict=True):
        pq.write_table(table.take(drawn[:count]), source)
    scorer = Scorer(model, threads=arguments.threads, max_length=arguments.max_length)
    scorer.score([("a query", "a document")])
    rounds = []
    for number in range(arguments.rounds):
        scratch = root / str(number)
        scratch.mkdir()
        found = {"bare": measure_bare(scorer, table)}
        with cluster.connected(ComputeConfig()):
            asked = (scratch, model, arguments.max_length)
            found["job"] = measure_job(root / "all.parquet", scratch / "out", *asked[1:])
            found["naive"] = measure_naive(sources, *asked, arguments.threads)
        rounds.append(found)
        print(json.dumps(found), flush=True)
    return rounds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("candidates")
    parser.add_argument("--shape", default="hotchpotch/japanese-reranker-tiny-v2")
    parser.add_argument("--pairs", type=int, default=22_500)
    parser.add_argument("--naive-pairs", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rankmill-job-") as root:
        rounds = measure(arguments, Path(root))

    def median(way: str, key: str) -> float:
        return statistics.median(found[way][key] for found in rounds)

    count = arguments.pairs
    bare, whole, pace = median("bare", "seconds"), median("job", "seconds"), median("naive", "pace")
    other = median("naive", "start") + count / pace
    print(describe_machine())
    print(f"{arguments.shape}, {count:,} pairs, medians of {arguments.rounds}")
    print(f"bare Scorer              {count / bare:8.1f} pairs/s  {bare:7.1f} s")
    print(f"whole job                {count / whole:8.1f} pairs/s  {whole:7.1f} s", end="")
    print(f"  {bare / whole:.2f} of the bare scorer")
    print(
        f"Ray Data + CrossEncoder  {pace:8.1f} pairs/s  {other:7.1f} s with its start of ", end=""
    )
    print(f"{median('naive', 'start'):.1f} s: {other / whole:.1f} times the job's")
    print(f"  its pace without its start, the job with its own: {count / whole / pace:.1f} times")
    print(f"padding {100 * median('job', 'padding'):.2f} %, ", end="")
    print(f"first shard committed after {median('job', 'first_shard'):.1f} s")
    print(
        f"processor seconds: bare {median('bare', 'processor_seconds'):.1f}; the job's last", end=""
    )
    for title, seconds in rounds[-1]["job"]["processor_seconds"].items():
        if seconds >= _WORTH_A_LINE:
            print(f"; {title} {seconds:.1f}", end="")
    print()
    if arguments.save:
        record = {"machine": describe_machine(), "shape": arguments.shape, "rounds": rounds}
        kept = Path(__file__).parent / "figures" / f"{arguments.save}.json"
        kept.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
