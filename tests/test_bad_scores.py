"""Scores that are not finite: never in a ranking, always with their reason, in every way to score.
A few of them are their rows' fault; more are the model's, and fail a job's shard.

The model is real and broken in two places: one word's weights are NaN, and its head overflows
float32 on some inputs, upwards or downwards.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer

import rankmill
import tiny_models
from rankmill import Scorer, job
from rankmill.config import load_config
from rankmill.errors import RunFailed
from rankmill.isolation import FEW_INPUTS
from rankmill.rows import BAD_SCORE
from reference import WindowReference

LENGTH, STRIDE = 40, 8
QUERY = "what is a shard"
WORDS = ["whole lists", "slip flow", "heat", "日本", "query", "boundary", "順位", "x", "0123", "a"]
DOCUMENTS = [
    *(f"shard {number} reads {word}" for number, word in enumerate(WORDS)),
    *(f"{word} of a candidate list " * 9 for word in WORDS),
    "flow past a flat plate",
    "reads candidates " * 20 + "of a plate",  # beyond the length
]


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tiny_models.modernbert(tmp_path_factory.mktemp("broken") / "model")
    weights = load_file(folder / "model.safetensors")
    (word,) = AutoTokenizer.from_pretrained(folder).encode(" plate", add_special_tokens=False)
    weights["model.embeddings.tok_embeddings.weight"][word] = np.nan
    weights["classifier.weight"][:] = 0
    weights["classifier.weight"][0, 1] = np.finfo(np.float32).max
    weights["head.norm.weight"][1] *= 5  # the head's input; beyond 1, its output is infinite
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.fixture(scope="module", params=["truncate", "windows"])
def overflow(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def good(broken: str, overflow: str) -> list[bool]:
    """Which documents transformers itself gives a finite score, in every window that counts."""
    reference = WindowReference(broken, LENGTH, STRIDE)
    counting = slice(None) if overflow == "windows" else slice(1)
    windows = [reference.windows(QUERY, document) for document in DOCUMENTS]
    seen = {str(score) for scores in windows for score in scores}
    assert {"nan", "inf", "-inf"} < seen
    found = [bool(np.isfinite(scores[counting]).all()) for scores in windows]
    assert 4 < sum(found) < len(found) - 4
    assert not found[-2]
    assert np.isnan(windows[-1][-1])
    return found


def exact(broken: str, overflow: str) -> Scorer:
    return Scorer(
        broken,
        device="cpu",
        precision="fp32",
        max_length=LENGTH,
        overflow=overflow,
        window_stride=STRIDE,
        threads=1,
    )


def test_the_scorer_gives_nan_for_them_and_ranks_them_last(broken, overflow, good):
    scorer = exact(broken, overflow)
    scores = scorer.score([(QUERY, document) for document in DOCUMENTS])
    assert np.isfinite(scores).tolist() == good
    assert np.isnan(scores).tolist() == [not one for one in good]
    order = scorer.rank(QUERY, DOCUMENTS).tolist()
    bad = [number for number, one in enumerate(good) if not one]
    assert order[-len(bad) :] == bad


def table(chosen: Sequence[int]) -> pa.Table:
    """One list of documents, and one of which nothing can be scored."""
    return pa.table(
        {
            "query_id": ["a"] * len(chosen) + ["b"],
            "query": [QUERY] * len(chosen) + ["a flat plate"],
            "doc_id": [*chosen, -1],
            "document": [*(DOCUMENTS[number] for number in chosen), "heat"],
        }
    )


@pytest.fixture
def job_of(
    broken, overflow, ray_cluster, write_pairs: Callable[..., str], tmp_path: Path
) -> Callable[[Sequence[int]], job.RunResult]:
    """A job over documents, in `tmp_path / "out"`."""

    def run(chosen: Sequence[int]) -> job.RunResult:
        config = load_config(
            overrides={
                "input.path": write_pairs(table(chosen)),
                "output.path": str(tmp_path / "out"),
                "model.name": broken,
                "model.precision": "fp32",
                "model.max_length": LENGTH,
                "model.overflow": overflow,
                "model.window.stride": STRIDE,
                "compute.workers": 1,
            }
        )
        return job.rerank(config)

    return run


def test_a_job_puts_a_few_into_quarantine_with_the_reason(good, job_of):
    chosen = [*range(8), 11, 16, 19, 20]
    fine, bad_ones = ([n for n in chosen if good[n] is wanted] for wanted in (True, False))
    result = job_of(chosen)
    ranked = pq.read_table(result.output)
    assert sorted(ranked["doc_id"].to_pylist()) == fine
    assert ranked["rerank_rank"].to_pylist() == list(range(1, len(fine) + 1))
    assert np.isfinite(ranked["rerank_score"].to_numpy()).all()

    private = Path(result.output) / "_rankmill"
    bad = pa.ipc.open_file(private / "quarantine/00000.arrow").read_all()
    assert bad["doc_id"].to_pylist() == [*bad_ones, -1]
    assert set(bad["reason"].to_pylist()) == {BAD_SCORE}
    stored = pa.ipc.open_file(private / "scores/00000.arrow").read_all()
    assert sorted(stored["score"].to_pylist()) == sorted(ranked["rerank_score"].to_pylist())
    manifest = json.loads((private / "manifest.json").read_bytes())
    assert manifest["quarantine"] == {BAD_SCORE: len(bad_ones) + 1}
    assert manifest["pairs_scored"] == manifest["rows_out"] == len(fine)
    assert manifest["degraded"] == [0]


@pytest.mark.parametrize("overflow", ["truncate"], indirect=True)
def test_a_job_with_more_than_a_few_fails_its_shard(good, job_of, tmp_path):
    assert good.count(False) > FEW_INPUTS
    said = f"fails on too many of the shard's {len(DOCUMENTS) + 1} inputs .* because {BAD_SCORE}"
    with pytest.raises(RunFailed, match=said) as failed:
        job_of(range(len(DOCUMENTS)))
    assert failed.value.exit_code == 1
    assert not (tmp_path / "out" / "_SUCCESS").exists()


@pytest.mark.parametrize("overflow", ["windows"], indirect=True)  # the shuffle takes seconds
def test_a_dataset_gives_them_an_error_and_neither_score_nor_rank(
    broken, overflow, good, ray_cluster
):
    ranked = rankmill.rerank_dataset(
        ray.data.from_arrow(table(range(len(DOCUMENTS)))),
        broken,
        device="cpu",
        precision="fp32",
        max_length=LENGTH,
        overflow=overflow,
        window_stride=STRIDE,
        workers=1,
    )
    rows = {row["doc_id"]: row for row in ranked.take_all()}
    assert len(rows) == len(DOCUMENTS) + 1
    fine = {number for number, one in enumerate(good) if one}
    for number, row in rows.items():
        added = ("rerank_score", "rerank_sigmoid", "rerank_rank", "rerank_tokens_dropped")
        assert {row[name] is not None for name in added} == {number in fine}
        assert row["rerank_error"] == (None if number in fine else BAD_SCORE)
    assert sorted(rows[number]["rerank_rank"] for number in fine) == list(range(1, len(fine) + 1))
