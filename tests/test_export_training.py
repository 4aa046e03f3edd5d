"""Exports train: `datasets` loads the files, sentence-transformers trains on them as they are, and
the loss falls; Ray Data feeds them straight into a Ray Train loop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import ray

import rankmill
from ranked_runs import candidates, commit_run, ranked_part

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parents[1]
QUERIES, STEPS = 16, 60
# What a query's candidates say, from the best to the worst, and how a teacher scores that.
ANSWERS = [
    ("heat transfer in slip flow", 4.0),
    ("boundary layers past a flat plate", 2.0),
    ("the query and each document together", -1.0),
    ("a run of whole candidate lists", -2.5),
    ("reading results in order", -4.0),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    scores = [[score - 0.1 * (q % 5) for _, score in ANSWERS] for q in range(QUERIES)]
    texts = [[f"{text} {q}" for text, _ in ANSWERS] for q in range(QUERIES)]
    table = candidates(scores, texts)
    half = len(ANSWERS) * QUERIES // 2
    parts = [ranked_part(table.slice(0, half)), ranked_part(table.slice(half))]
    return commit_run(tmp_path_factory.mktemp("run"), parts)


@pytest.fixture
def load(run: str, ray_cluster: None, tmp_path: Path) -> Callable[..., Any]:
    """Export, and load the files as a user would, without touching a column."""

    def call(**settings: Any) -> Any:
        output = rankmill.export(run, tmp_path / "training", **settings).output
        return datasets.load_dataset(
            "parquet",
            data_files=f"{output}/*.parquet",
            split="train",
            cache_dir=str(tmp_path / "cache"),
        )

    return call


def arguments(kind: Any, folder: Path) -> Any:
    return kind(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=8,
        learning_rate=3e-3,
        seed=1,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )


def losses(trainer: Any) -> tuple[float, float]:
    """On all the data, before training and after."""
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    return before, trainer.evaluate()["eval_loss"]


POSITIVES = {"positive_max_rank": 2}
QUESTION, BEST, WORST = "question 3", f"{ANSWERS[0][0]} 3", f"{ANSWERS[3][0]} 3"


@pytest.mark.parametrize(
    ("loss", "columns", "settings"),
    [
        ("BinaryCrossEntropyLoss", ["query", "document", "score"], {"format": "labeled-pair"}),
        (
            "BinaryCrossEntropyLoss",
            ["query", "document", "score"],
            {"format": "labeled-pair", "label": "binary", **POSITIVES},
        ),
        (
            "MSELoss",
            ["query", "document", "score"],
            {"format": "labeled-pair", "label": "score"},
        ),
        (
            "MarginMSELoss",
            ["query", "positive", "negative_1", "negative_2", "scores"],
            {"format": "n-tuple", "scores": True, "negatives": 2, **POSITIVES},
        ),
        (
            "ListNetLoss",
            ["query", "documents", "scores"],
            {"format": "labeled-list", "label": "score"},
        ),
        ("LambdaLoss", ["query", "documents", "scores"], {"format": "labeled-list"}),
    ],
)
def test_a_cross_encoder_learns_from_an_export(
    load: Callable[..., Any],
    tiny_model: Callable[[str], str],
    tmp_path: Path,
    loss: str,
    columns: list[str],
    settings: dict[str, Any],
) -> None:
    from sentence_transformers import cross_encoder

    data = load(**settings)
    assert data.column_names == columns
    model = cross_encoder.CrossEncoder(tiny_model("bert"), num_labels=1, device="cpu")
    trainer = cross_encoder.CrossEncoderTrainer(
        model=model,
        args=arguments(cross_encoder.CrossEncoderTrainingArguments, tmp_path),
        train_dataset=data,
        eval_dataset=data,
        loss=getattr(cross_encoder.losses, loss)(model),
    )
    before, after = losses(trainer)
    assert after < 0.9 * before
    best, worst = model.predict([(QUESTION, BEST), (QUESTION, WORST)])
    assert best > worst, "it learnt the opposite"


@pytest.mark.parametrize(
    ("loss", "settings"),
    [
        ("TripletLoss", {"format": "triplet", "negatives": 2, **POSITIVES}),
        ("MultipleNegativesRankingLoss", {"format": "triplet", "negatives": 2, **POSITIVES}),
        ("MultipleNegativesRankingLoss", {"format": "n-tuple", "negatives": 3, **POSITIVES}),
    ],
)
def test_an_embedding_model_learns_from_an_export(
    load: Callable[..., Any],
    tiny_model: Callable[[str], str],
    tmp_path: Path,
    loss: str,
    settings: dict[str, Any],
) -> None:
    import sentence_transformers
    from sentence_transformers.sentence_transformer import losses as embedding_losses

    data = load(**settings)
    model = sentence_transformers.SentenceTransformer(tiny_model("bert"), device="cpu")
    trainer = sentence_transformers.SentenceTransformerTrainer(
        model=model,
        args=arguments(sentence_transformers.SentenceTransformerTrainingArguments, tmp_path),
        train_dataset=data,
        eval_dataset=data,
        loss=getattr(embedding_losses, loss)(model),
    )
    before, after = losses(trainer)
    assert after < 0.9 * before
    question, best, worst = model.encode([QUESTION, BEST, WORST])
    assert model.similarity(question, best) > model.similarity(question, worst)


def test_ray_train_reads_an_export_with_ray_data(
    run: str, ray_cluster: None, tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    pairs = rankmill.export(run, tmp_path / "pairs", format="labeled-pair").output
    command = [sys.executable, ROOT / "jobs" / "train_from_export.py", pairs]
    command += ["--model", tiny_model("bert"), "--output", tmp_path / "trained", "--epochs", "4"]
    command += ["--batch", "8", "--learning-rate", "3e-3", "--max-length", "64"]
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["losses"][-1] < 0.9 * found["losses"][0]
    # What was trained on rankmill's scores gives scores to rankmill.
    best, worst = rankmill.Scorer(found["checkpoint"]).score([(QUESTION, BEST), (QUESTION, WORST)])
    assert best > worst
