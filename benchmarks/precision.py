"""What bf16 and int8 cost in nDCG@10: every precision over the same candidates.

    python benchmarks/precision.py CANDIDATES.parquet QRELS [--depth 50] [--model demo]
        [--int8 FOLDER] [--max-length 256]

CANDIDATES has query_id, query, doc_id, title, text and bm25_rank, as `rankmill demo` builds them,
too; QRELS is what `rankmill eval` takes. --int8 names what `rankmill quantize` made of the model.
Prints a line a precision: nDCG@10 and its difference from fp32.
"""

from __future__ import annotations

import argparse

import pyarrow.compute as pc

from machine import describe_machine
from rankmill import Scorer, evaluate, storage
from rankmill.config import AskedPrecision

_METRIC = "ndcg@10"


def main() -> None:
    """Score, judge and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("candidates")
    parser.add_argument("qrels")
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--int8")
    parser.add_argument("--max-length", type=int, default=256)
    asked = parser.parse_args()
    table = storage.read_table(asked.candidates)
    table = table.filter(pc.less_equal(table["bm25_rank"], asked.depth))
    query, title, text = (table[name].to_pylist() for name in ("query", "title", "text"))
    pairs = [(q, f"{a} {b}") for q, a, b in zip(query, title, text, strict=True)]
    ways: list[tuple[str, AskedPrecision]] = [(asked.model, "fp32"), (asked.model, "bf16")]
    if asked.int8:
        ways.append((asked.int8, "auto"))
    print(f"{describe_machine()}\n{len(pairs):,} pairs of {pc.count_distinct(table['query_id'])}")
    first = None
    for model, precision in ways:
        scorer = Scorer(model, device="cpu", precision=precision, max_length=asked.max_length)
        frame = table.select(["query_id", "doc_id"]).to_pandas()
        frame["rerank_score"] = scorer.score(pairs)
        found = evaluate(frame, asked.qrels, metrics=_METRIC).metrics[_METRIC]
        first = found if first is None else first
        name = "int8" if model == asked.int8 else precision
        print(f"{name} ({scorer.profile.backend}): {found:.4f} ({found - first:+.4f})", flush=True)


if __name__ == "__main__":
    main()
