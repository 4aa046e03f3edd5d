"""How well the embedded model ranks: nDCG@10 against BM25, alone and added to it.

    python jobs/judge_demo_model.py [--collection FOLDER] [--depth 50] [--precision bf16]

Without a collection the demo's own questions are judged. A collection is a folder with
`candidates.parquet` (query_id, query, doc_id, title, text, bm25_score, bm25_rank) and
`qrels.parquet` (query_id, doc_id, relevance).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import rankmill
from rankmill.demo.candidates import build_demo
from rankmill.fusion import first_stage, fuse
from rankmill.rank_settings import FuseConfig

HALF_AND_HALF = FuseConfig(column="bm25_score", method="minmax", weight=0.5)


@dataclass(frozen=True)
class Gain:
    """An order's mean nDCG@10 and BM25's over the same queries; low and high bound the
    difference (95 %)."""

    ndcg: float
    bm25: float
    difference: float
    low: float
    high: float
    queries: int


class Collection:
    """Candidates of BM25 and judgements: a folder's, or without one the demo's."""

    def __init__(self, folder: Path | None, depth: int = 50) -> None:
        self.candidates: pa.Table
        self.qrels: pa.Table
        if folder is None:
            self.candidates, self.qrels = build_demo(depth)
        else:
            candidates = pq.read_table(folder / "candidates.parquet")
            self.candidates = candidates.filter(pc.field("bm25_rank") <= depth)
            self.qrels = pq.read_table(folder / "qrels.parquet")
        self.rows: pd.DataFrame = self.candidates.to_pandas()

    def pairs(self) -> list[tuple[str, str]]:
        """The texts of every pair, in the order of the rows."""
        documents = self.rows["title"] + " " + self.rows["text"]
        return list(zip(self.rows["query"], documents, strict=True))

    def judge(self, scores: np.ndarray) -> dict[str, Gain]:
        """Judge the order by a model's scores, float32 [rows], alone and added to BM25's."""
        bm25 = first_stage(self.candidates["bm25_score"], "bm25_score")
        both = fuse(self.rows["query_id"].factorize()[0], scores, bm25, HALF_AND_HALF)
        return {"model": self._gain(scores), "model + BM25": self._gain(both)}

    def _gain(self, scores: np.ndarray) -> Gain:
        ranked = self.rows.assign(rerank_score=scores)
        found = rankmill.evaluate(ranked, self.qrels, metrics="ndcg@10", baseline="bm25_rank")
        assert found.baseline is not None, "a baseline was asked for"
        line = found.baseline.iloc[0]
        return Gain(
            ndcg=float(line.ranked),
            bm25=float(line.baseline),
            difference=float(line.difference),
            low=float(line.low),
            high=float(line.high),
            queries=found.queries_judged,
        )


def main() -> None:
    """Judge the demo's questions or a collection and print a line for each order."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--collection", type=Path)
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--max-length", type=int, default=256)
    options = parser.parse_args()
    collection = Collection(options.collection, options.depth)
    scorer = rankmill.Scorer(
        options.model, device="cpu", precision=options.precision, max_length=options.max_length
    )
    for name, gain in collection.judge(scorer.score(collection.pairs())).items():
        print(
            f"{name}: nDCG@10 {gain.ndcg:.4f}, BM25 {gain.bm25:.4f}, {gain.difference:+.4f} "
            f"(95 % {gain.low:+.4f} to {gain.high:+.4f}), {gain.queries} queries"
        )


if __name__ == "__main__":
    main()
