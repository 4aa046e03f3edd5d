"""How well the embedded model ranks: nDCG@10 against BM25, alone and added to it.

    python -m rankmill.demo.judge [--collection FOLDER] [--depth 50] [--precision bf16]

Without a collection the demo's own questions are judged. A collection is a folder with
`candidates.parquet` (query_id, query, doc_id, title, text, bm25_score, bm25_rank) and
`qrels.parquet` (query_id, doc_id, relevance).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rankmill.demo.candidates import build_demo

MODEL = Path(__file__).parent / "model"
FUSED_WEIGHT = 0.5  # BM25's min-max normalised score and the model's, half and half


def score_pairs(
    folder: Path, candidates: pa.Table, precision: str = "fp32", max_length: int = 256
) -> np.ndarray:
    """The model's logits for each (query, title and text) row: float32 [rows].

    `precision` is "fp32", or "bf16" for the body alone: pooler and classifier stay in fp32.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    texts = [candidates[column].cast(pa.string()) for column in ("title", "text")]
    documents = pc.binary_join_element_wise(*texts, " ").to_pylist()
    queries = candidates["query"].to_pylist()
    order = np.argsort([len(text) for text in documents], kind="stable")
    scores = np.empty(len(order), np.float32)
    for start in range(0, len(order), 32):
        rows = order[start : start + 32]
        batch = tokenizer(
            [queries[row] for row in rows],
            [documents[row] for row in rows],
            padding=True,
            truncation="only_second",
            max_length=max_length,
            return_tensors="pt",
        )
        with torch.inference_mode():
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                states = model.bert(**batch).last_hidden_state
            logits = model.classifier(model.bert.pooler(states.float()))
            scores[rows] = logits.squeeze(-1).numpy()
    return scores


def ndcg_at_10(candidates: pa.Table, qrels: pa.Table, scores: np.ndarray) -> np.ndarray:
    """nDCG@10 of every judged query, ordered by `scores`, highest first, ties in row order.

    Gain is the relevance, discount log2(rank + 1), the ideal is over all judged documents, as
    trec_eval has it. Returns float64 [judged queries]; a query without candidates counts 0.
    """
    judged: dict[str, dict[str, int]] = {}
    for row in qrels.to_pylist():
        if row["relevance"] > 0:
            judged.setdefault(str(row["query_id"]), {})[str(row["doc_id"])] = row["relevance"]
    lists: dict[str, list[str]] = {query_id: [] for query_id in judged}
    query_ids, doc_ids = candidates["query_id"].to_pylist(), candidates["doc_id"].to_pylist()
    for row in np.argsort(-scores, kind="stable"):
        lists.setdefault(str(query_ids[row]), []).append(str(doc_ids[row]))
    discount = 1.0 / np.log2(np.arange(2, 12))
    values = []
    for query_id, relevance in judged.items():
        gains = np.array([relevance.get(doc_id, 0) for doc_id in lists[query_id][:10]], float)
        ideal = np.array(sorted(relevance.values(), reverse=True)[:10], float)
        values.append(float(gains @ discount[: len(gains)] / (ideal @ discount[: len(ideal)])))
    return np.array(values)


def normalized(candidates: pa.Table, scores: np.ndarray) -> np.ndarray:
    """Scores moved to 0..1 within each query (a list of equal scores becomes 0): float64."""
    query_ids = candidates["query_id"].to_numpy(zero_copy_only=False)
    result = np.zeros(len(scores))
    for query_id in dict.fromkeys(query_ids.tolist()):
        rows = query_ids == query_id
        low, high = scores[rows].min(), scores[rows].max()
        if high > low:
            result[rows] = (scores[rows] - low) / (high - low)
    return result


def paired_interval(difference: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of a mean over queries, from 10,000 bootstrap samples."""
    drawn = np.random.default_rng(seed).integers(0, len(difference), (10_000, len(difference)))
    low, high = np.percentile(difference[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def judge(
    folder: Path,
    candidates: pa.Table,
    qrels: pa.Table,
    precision: str = "fp32",
    say: Callable[[str], None] = print,
) -> None:
    """Say nDCG@10 of BM25, the model, and both, with paired intervals of the gain over BM25."""
    bm25 = candidates["bm25_score"].to_numpy()
    scores = score_pairs(folder, candidates, precision)
    both = FUSED_WEIGHT * normalized(candidates, bm25)
    both += (1 - FUSED_WEIGHT) * normalized(candidates, scores)
    before = ndcg_at_10(candidates, qrels, bm25)
    say(f"{len(before)} queries, {candidates.num_rows} pairs; BM25 {before.mean():.4f}")
    for name, ranking in (("model", scores), ("model + BM25", both)):
        after = ndcg_at_10(candidates, qrels, ranking)
        low, high = paired_interval(after - before)
        gain = (after - before).mean()
        say(f"{name}: {after.mean():.4f}, {gain:+.4f} over BM25 (95 % {low:+.4f} to {high:+.4f})")


def main() -> None:
    """Judge the demo's questions or a collection and print a line for each order."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--collection", type=Path)
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    options = parser.parse_args()
    if options.collection is None:
        candidates, qrels = build_demo(options.depth)
    else:
        candidates = pq.read_table(options.collection / "candidates.parquet")
        candidates = candidates.filter(pc.field("bm25_rank") <= options.depth)
        qrels = pq.read_table(options.collection / "qrels.parquet")
    judge(options.model, candidates, qrels, options.precision)


if __name__ == "__main__":
    main()
