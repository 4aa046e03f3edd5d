"""The demo: a real search problem, reranked by the real job, judged before and after."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from rankmill import job, runs, storage
from rankmill.completion import RunResult
from rankmill.config import load_config
from rankmill.demo.candidates import build_demo
from rankmill.errors import OutputError
from rankmill.evaluate import Evaluation, evaluate
from rankmill.progress import Listener

# Two cores score these in about half a minute; all questions at depth 50 take ten times that.
QUESTIONS, DEPTH, MAX_LENGTH = 120, 20, 256
METRICS = ("ndcg@10", "map@10", "mrr@10", "hit@1", "recall@10")
_TOP = 3


@dataclass(frozen=True)
class Sample:
    """A question with its first documents before and after; right answers are marked True.

    what: how the question was chosen.
    """

    what: str
    question: str
    before: tuple[tuple[str, bool], ...]
    after: tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class DemoResult:
    """What the demo made. `candidates` and `qrels` are files of the input that it built."""

    run: RunResult
    candidates: Path
    qrels: Path
    evaluation: Evaluation
    samples: tuple[Sample, ...]


def run_demo(
    folder: Path, say: Callable[[str], None], listener: Listener | None, model: str = "demo"
) -> DemoResult:
    """Build candidates from the standard library's documentation, rerank and judge them.

    folder: gets `input/` and `ranked/`; an earlier demo's are replaced. say: is told each step.

    Raises `OutputError` when the folder holds anything else, and what `job.rerank` raises.
    """
    candidates, qrels = folder / "input" / "candidates.parquet", folder / "input" / "qrels.parquet"
    _clear(folder)
    say("1. Building a search problem from the documentation of Python's standard library:")
    table, judgements = build_demo(DEPTH, QUESTIONS)
    candidates.parent.mkdir(parents=True)
    pq.write_table(table, candidates)
    pq.write_table(judgements, qrels)
    say(f"   {QUESTIONS} questions with labelled answers, BM25's {DEPTH} best documents for each:")
    say(f"   {table.num_rows:,} rows in {candidates}")

    say("2. Scoring every pair with the embedded cross-encoder on a local Ray cluster:")
    config = load_config(
        overrides={
            "input.path": str(candidates),
            "input.columns.document": ["title", "text"],
            "output.path": str(folder / "ranked"),
            "model.name": model,
            "model.max_length": MAX_LENGTH,
        }
    )
    result = job.rerank(config, listener=listener)

    say("3. Judging BM25's order and the new one against the labels:")
    ranked = storage.read_table(result.output)
    found = evaluate(ranked, str(qrels), metrics=METRICS, baseline="bm25_rank")
    samples = _samples(ranked.to_pandas(), judgements.to_pandas())
    return DemoResult(result, candidates, qrels, found, samples)


def _clear(folder: Path) -> None:
    """Remove an earlier demo, and nothing else."""
    if not folder.exists():
        return
    ours = {folder / "input", folder / "ranked"}
    inside = {folder / "input" / name for name in ("candidates.parquet", "qrels.parquet")}
    found = set(folder.iterdir())
    known = found | set((folder / "input").glob("*")) <= ours | inside
    made_here = not (folder / "ranked").exists() or (folder / "ranked" / runs.RUN).exists()
    if not (known and made_here):
        raise OutputError(
            f"The folder {folder} holds files that are not of an earlier demo.",
            "Choose another one with --output.",
        )
    for path in ours:
        shutil.rmtree(path, ignore_errors=True)


def _samples(ranked: pd.DataFrame, judgements: pd.DataFrame) -> tuple[Sample, ...]:
    """The question that gained most, the median one, and the one that lost most.

    Gain: the reciprocal rank of the first right answer, after less before.
    """
    right = set(zip(judgements["query_id"], judgements["doc_id"]))
    first = {
        order: ranked.sort_values(order).groupby("query_id", sort=False)
        for order in ("bm25_rank", "rerank_rank")
    }
    answered = ranked[[pair in right for pair in zip(ranked["query_id"], ranked["doc_id"])]]
    best = answered.groupby("query_id")[["bm25_rank", "rerank_rank"]].min()
    gain = (1 / best["rerank_rank"] - 1 / best["bm25_rank"]).sort_values(kind="stable")
    chosen = {"gained most": -1, "in the middle": len(gain) // 2, "lost most": 0}
    samples = []
    for what, place in chosen.items() if len(gain) else ():
        query = gain.index[place]
        lists = [
            tuple(
                (str(doc), (query, doc) in right)
                for doc in first[order].get_group(query)["doc_id"].head(_TOP)
            )
            for order in ("bm25_rank", "rerank_rank")
        ]
        question = str(ranked.loc[ranked["query_id"] == query, "query"].iloc[0])
        samples.append(Sample(what, question, *lists))
    return tuple(samples)
