"""How well the embedded model ranks: nDCG@10 against BM25, alone and added to it.

    python jobs/judge_demo_model.py [--collection FOLDER] [--depth 50] [--precision bf16]

Without a collection the demo's own questions are judged. A collection is a folder with
`candidates.parquet` (query_id, query, doc_id, title, text, bm25_score, bm25_rank) and
`qrels.parquet` (query_id, doc_id, relevance).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

import rankmill
from rankmill.demo.candidates import build_demo
from rankmill.fusion import first_stage, fuse
from rankmill.rank_settings import FuseConfig

HALF_AND_HALF = FuseConfig(column="bm25_score", method="minmax", weight=0.5)


def main() -> None:
    """Judge the demo's questions or a collection and print a line for each order."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--collection", type=Path)
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--max-length", type=int, default=256)
    options = parser.parse_args()
    if options.collection is None:
        candidates, qrels = build_demo(options.depth)
    else:
        candidates = pq.read_table(options.collection / "candidates.parquet")
        candidates = candidates.filter(pc.field("bm25_rank") <= options.depth)
        qrels = pq.read_table(options.collection / "qrels.parquet")
    rows = candidates.to_pandas()
    documents = rows["title"] + " " + rows["text"]
    scorer = rankmill.Scorer(
        options.model, device="cpu", precision=options.precision, max_length=options.max_length
    )
    model = scorer.score(list(zip(rows["query"], documents, strict=True)))
    bm25 = first_stage(candidates["bm25_score"], "bm25_score")
    both = fuse(rows["query_id"].factorize()[0], model, bm25, HALF_AND_HALF)
    for name, scores in (("model", model), ("model + BM25", both)):
        ranked = rows.assign(rerank_score=scores)
        found = rankmill.evaluate(ranked, qrels, metrics="ndcg@10", baseline="bm25_rank")
        assert found.baseline is not None, "a baseline was asked for"
        line = found.baseline.iloc[0]
        print(
            f"{name}: nDCG@10 {line.ranked:.4f}, BM25 {line.baseline:.4f}, {line.difference:+.4f} "
            f"(95 % {line.low:+.4f} to {line.high:+.4f}), {found.queries_judged} queries"
        )


if __name__ == "__main__":
    main()
