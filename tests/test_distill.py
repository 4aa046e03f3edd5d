"""The circle of jobs/distill.py on a tiny teacher: its scores train a student of fewer layers,
every stage is done once, and a training that was killed ends as one that was not."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

import rankmill
from rankmill.errors import ConfigError

sys.path.append(str(Path(__file__).parents[1] / "jobs"))

import distill
import students
from students import Lesson, ScoredLists, Student

pytestmark = pytest.mark.usefixtures("one_thread")
LISTS, HELD_OUT = 24, 4
LESSON = Lesson(learning_rate=3e-3, every=4)
WORDS = ["heat", "slip", "flow", "shear", "plate", "query", "rank", "list", "shard", "score"]
DOCUMENTS = [f"{first} of {second}" for first, second in combinations(WORDS, 2)]


@pytest.fixture
def teacher(tiny_model: Callable[[str], str]) -> Path:
    return Path(tiny_model("bert"))


@pytest.fixture
def data(teacher: Path, tmp_path: Path) -> ScoredLists:
    """Lists of five with the teacher's logits, as an export holds them."""
    rng = np.random.default_rng(1)
    rows = []
    scorer = rankmill.Scorer(str(teacher), device="cpu", precision="fp32")
    for _ in range(LISTS):
        query, documents = rng.choice(WORDS), rng.choice(DOCUMENTS, 5, replace=False).tolist()
        scores = scorer.score([(query, document) for document in documents]).tolist()
        rows.append({"query": query, "documents": documents, "scores": scores})
    (tmp_path / "training").mkdir()
    half = LISTS // 2
    pq.write_table(pa.Table.from_pylist(rows[:half]), tmp_path / "training/part-00000.parquet")
    pq.write_table(pa.Table.from_pylist(rows[half:]), tmp_path / "training/part-00001.parquet")
    return ScoredLists(tmp_path / "training", teacher, 64, HELD_OUT)


@pytest.fixture
def start(teacher: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Make the folder of a student that keeps the first layer."""

    def make(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        students.keep_layers(teacher, [0], folder / "start")
        return folder

    return make


def weights(model: Path) -> dict[str, torch.Tensor]:
    return load_file(model / "model.safetensors")


# Students


def test_a_student_is_its_teacher_with_other_layers_left_out(teacher: Path, tmp_path: Path) -> None:
    students.keep_layers(teacher, [1], tmp_path / "student")
    whole, kept = weights(teacher), weights(tmp_path / "student")
    for name, tensor in kept.items():
        assert torch.equal(tensor, whole[name.replace("encoder.layer.0.", "encoder.layer.1.")])
    assert len(whole) > len(kept)
    assert {name for name in whole if ".layer." not in name} <= set(kept)
    rankmill.Scorer(str(tmp_path / "student")).score([("heat", "slip flow")])


def test_the_margin_loss_is_over_every_two_documents_of_a_list() -> None:
    logits, teacher = torch.tensor([1.0, 4.0, -2.0]), torch.tensor([0.5, 1.0, 3.0])
    # A document with itself counts too, as 0: nine ordered pairs.
    errors = [
        ((logits[i] - logits[j]) - (teacher[i] - teacher[j])) ** 2
        for i in range(3)
        for j in range(3)
    ]
    found = students.list_loss(logits, teacher, "margin-mse")
    assert found == pytest.approx(sum(errors) / 9)
    assert students.list_loss(logits + 7.0, teacher, "margin-mse") == pytest.approx(found)
    assert students.list_loss(logits, teacher, "mse") == pytest.approx((0.25 + 9.0 + 25.0) / 3)


# Training


@pytest.mark.parametrize("loss", ["mse", "margin-mse"])
def test_a_student_comes_nearer_to_its_teacher(
    data: ScoredLists, start: Callable[[str], Path], loss: students.Loss
) -> None:
    folder = start("student")
    students.train(Student((0,), loss, 60), data, folder, LESSON)
    before, after = (students.held_out_loss(folder / name, data) for name in ("start", "trained"))
    assert after[loss] < 0.8 * before[loss]


class Killed(Exception):
    """The process is gone."""


class KilledLists(ScoredLists):
    """Lists whose reader is killed at the seventh step."""

    steps = 0

    def order(self, epoch: int) -> np.ndarray:
        self.steps += 1
        if self.steps == 7:
            raise Killed
        return super().order(epoch)


def test_a_killed_training_ends_with_the_weights_of_one_that_was_not(
    data: ScoredLists, start: Callable[[str], Path], teacher: Path, tmp_path: Path
) -> None:
    student = Student((0,), "mse", 10)
    whole, interrupted = start("whole"), start("interrupted")
    students.train(student, data, whole, LESSON)
    killed = KilledLists(tmp_path / "training", teacher, 64, HELD_OUT)
    with pytest.raises(Killed):
        students.train(student, killed, interrupted, LESSON)
    assert not (interrupted / "trained").exists()
    assert torch.load(interrupted / "state.pt", weights_only=True)["step"] == 4
    students.train(student, data, interrupted, LESSON)
    expected = weights(whole / "trained")
    for name, tensor in weights(interrupted / "trained").items():
        assert torch.equal(tensor, expected[name]), name


def test_held_out_lists_are_not_trained_on(data: ScoredLists) -> None:
    assert sorted(data.order(0)) == list(range(LISTS - HELD_OUT))
    assert data.order(0).tolist() == data.order(0).tolist() != data.order(1).tolist()


def test_too_few_lists_are_refused(data: ScoredLists, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{LISTS} lists less 20 held out"):
        ScoredLists(tmp_path / "training", teacher, 64, 20)


# The whole way


def test_the_circle_goes_round_once_and_again_does_nothing(
    teacher: Path, tmp_path: Path, ray_cluster: None
) -> None:
    rng = np.random.default_rng(2)
    lists = np.stack([rng.choice(len(DOCUMENTS), 8, replace=False) for _ in range(LISTS)])
    queries = [WORDS[i % len(WORDS)] for i in range(LISTS)]
    (tmp_path / "texts.parquet").touch()
    (tmp_path / "lists.json").write_text(json.dumps([queries, DOCUMENTS]))
    np.savez(tmp_path / "lists.npz", lists=lists)

    arguments = ["--work", str(tmp_path), "--teacher", str(teacher), "--queries", "12"]
    arguments += ["--held-out", str(HELD_OUT)]
    arguments += ["--students", "1", "--losses", "mse", "--steps", "3", "--threads", "1"]
    distill.main(arguments)
    candidates = pq.read_table(tmp_path / "candidates.parquet")
    assert len(set(candidates["query_id"].to_pylist())) == 12 + HELD_OUT
    assert candidates["query_id"].to_pylist()[-1] == LISTS - 1
    assert (tmp_path / "scored/_SUCCESS").exists()
    folder = tmp_path / "students/1_mse_3"
    assert set(json.loads((folder / "held_out.json").read_text())) == {"start", "trained"}
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}

    distill.main(arguments)
    assert made == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}

    target = tmp_path / "model"
    distill.main(["--export", str(folder / "trained"), str(target)])
    assert weights(target)["classifier.weight"].dtype == torch.float16
    pairs = [("heat", "slip of flow"), ("search", "rank of list")]
    exported, trained = (
        rankmill.Scorer(str(path)).score(pairs) for path in (target, folder / "trained")
    )
    assert exported == pytest.approx(trained, abs=0.05)


def test_a_model_is_judged_once(teacher: Path, tmp_path: Path) -> None:
    rows = [(q, d, 10.0 - d) for q in range(3) for d in range(4)]
    names = ["query_id", "query", "doc_id", "title", "text", "bm25_score", "bm25_rank"]
    table = [(q, WORDS[q], d, WORDS[d], DOCUMENTS[q + d], s, d + 1) for q, d, s in rows]
    columns = dict(zip(names, map(list, zip(*table))))
    pq.write_table(pa.table(columns), tmp_path / "candidates.parquet")
    qrels = pa.table({"query_id": [0, 1, 2], "doc_id": [1, 2, 0], "relevance": [1, 1, 1]})
    pq.write_table(qrels, tmp_path / "qrels.parquet")
    collections = {"small": distill.Collection(tmp_path)}
    distill.judge(tmp_path, {"teacher": str(teacher)}, collections)
    judged = json.loads((tmp_path / "judged.json").read_text())
    assert judged["teacher"]["small"]["model"]["queries"] == 3
    assert 0 < judged["teacher"]["small"]["model"]["bm25"] < 1
    distill.judge(tmp_path, {"teacher": "/a/folder/that/is/not/there"}, collections)
