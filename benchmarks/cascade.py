"""A cascade beside its dear model alone: time and nDCG@10, whole jobs on one cluster.

    python benchmarks/cascade.py COLLECTION [--queries 75] [--depth 50] [--keep 5]
        [--cheap-length 64] [--model demo] [--cheap-model MODEL] [--save NAME]

COLLECTION holds candidates.parquet (query_id, query, doc_id, title, text, bm25_rank) and
qrels.parquet. A seeded draw of its queries is ranked by `stages:` (the cheap model, which is the
model itself unless one is named, at --cheap-length tokens for all pairs, the model at 512 for the
best --keep), and by the model at 512 tokens alone. Each way ranks one query first, which tells what
a job costs before it scores. Prints seconds and processor seconds (of all processes of the cluster,
which other work on the machine moves little) of the whole job and less that cost, the metrics, and
the paired interval of their difference. --save keeps them in figures/NAME.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from machine import describe_machine
from processor_time import ProcessorTime
from rankmill import cluster, evaluate, job, storage
from rankmill.config import ComputeConfig, load_config
from rankmill.settings import Setting

_SEED = 0
_METRIC = "ndcg@10"
_TIMES = ("seconds", "processor_seconds")


def draw(candidates: str, queries: int, depth: int) -> pa.Table:
    """The first `depth` candidates of so many queries, drawn with a seed, in the file's order."""
    table = pq.read_table(candidates)
    known = table["query_id"].unique().to_pylist()
    places = np.random.default_rng(_SEED).permutation(len(known))[:queries]
    chosen = pc.is_in(table["query_id"], pa.array([known[place] for place in places]))
    return table.filter(pc.and_(chosen, pc.less_equal(table["bm25_rank"], depth)))


def run(source: Path, output: Path, models: dict[str, Setting]) -> dict[str, Any]:
    """The manifest of a run with these models, and its processor seconds."""
    settings: dict[str, Setting] = {
        "input.path": str(source),
        "input.columns.document": ["title", "text"],
        "output.path": str(output),
    }
    with ProcessorTime() as spent:
        manifest = job.rerank(load_config(overrides=settings | models)).manifest
    return manifest | {"processor_seconds": spent.seconds}


def main() -> None:
    """Measure, print, and keep what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("collection")
    parser.add_argument("--queries", type=int, default=75)
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--keep", type=int, default=5)
    parser.add_argument("--cheap-length", type=int, default=64)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--cheap-model", help="a student of the model's, for example")
    parser.add_argument("--save")
    asked = parser.parse_args()
    dear: dict[str, Setting] = {"name": asked.model, "max_length": 512}
    cheap = dear | {"max_length": asked.cheap_length, "keep": asked.keep}
    cheap["name"] = asked.cheap_model or asked.model
    ways: dict[str, dict[str, Setting]] = {
        "cascade": {"stages": [cheap, dear]},
        "dear alone": {"model": dear},
    }
    qrels = str(Path(asked.collection, "qrels.parquet"))
    found: dict[str, Any] = {}
    ranks = []
    with tempfile.TemporaryDirectory(prefix="rankmill-cascade-") as folder:
        source = Path(folder, "candidates.parquet")
        table = draw(str(Path(asked.collection, "candidates.parquet")), asked.queries, asked.depth)
        pq.write_table(table, source)
        one = Path(folder, "one.parquet")
        pq.write_table(table.filter(pc.equal(table["query_id"], table["query_id"][0])), one)
        judged = storage.read_table(qrels)
        judged = judged.filter(pc.is_in(judged["query_id"], table["query_id"].unique()))
        with cluster.connected(ComputeConfig()):
            for name, models in ways.items():
                output = Path(folder, name.replace(" ", "-"))
                first = run(one, Path(folder, f"first-{output.name}"), models)
                manifest = run(source, output, models)
                ranked = storage.read_table(str(output))
                ranks.append(ranked)
                metrics = evaluate(ranked.to_pandas(), judged.to_pandas(), metrics=_METRIC).metrics
                found[name] = {
                    **{key: manifest[key] for key in _TIMES},
                    **{f"net_{key}": manifest[key] - first[key] for key in _TIMES},
                    "pairs_scored": manifest["pairs_scored"],
                    "tokens": manifest["tokens"],
                    "ndcg@10": metrics[_METRIC],
                }
    cascade, alone = (ranked.to_pandas() for ranked in ranks)
    both = cascade.merge(
        alone[["query_id", "doc_id", "rerank_rank"]].rename(columns={"rerank_rank": "dear_rank"})
    )
    compared = evaluate(both, judged.to_pandas(), metrics=_METRIC, baseline="dear_rank")
    assert compared.baseline is not None, "a baseline was asked for"
    difference = compared.baseline.set_index("metric").loc[_METRIC]
    found["difference"] = {key: float(difference[key]) for key in ("difference", "low", "high")}
    found["machine"], found["arguments"] = describe_machine(), vars(asked)
    cascade_found, dear_found = found["cascade"], found["dear alone"]
    print(found["machine"])
    for name in ways:
        times = found[name]
        print(
            f"{name:10} {times['seconds']:6.1f} s ({times['net_seconds']:.1f} net), processor "
            f"{times['processor_seconds']:6.1f} s ({times['net_processor_seconds']:.1f} net), "
            f"{times['tokens']:,} tokens, nDCG@10 {times[_METRIC]:.4f}"
        )
    faster = {
        key: dear_found[key] / cascade_found[key]
        for key in (*_TIMES, *(f"net_{each}" for each in _TIMES))
    }
    found["times_faster"] = faster
    print(", ".join(f"{key} {times:.2f} times faster" for key, times in faster.items()))
    print(
        f"nDCG@10 {difference['difference']:+.4f} "
        f"({difference['low']:+.4f} to {difference['high']:+.4f})"
    )
    if asked.save:
        kept = Path(__file__).parent / "figures" / f"{asked.save}.json"
        found["arguments"].pop("collection")
        for key in ("model", "cheap_model"):
            if name := found["arguments"][key]:  # a hub id as it is, of a folder its last two names
                found["arguments"][key] = "/".join(Path(name).parts[-2:])
        kept.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
