"""The circle closed: a teacher's scores, made by rankmill itself, train students of fewer layers.

    python jobs/distill.py --students 0,2,4 0,3 --losses mse margin-mse --steps 300
    python jobs/distill.py --students 0,2,4 --steps 3000 --judge --collection FOLDER
    python jobs/distill.py --students 0,2,4 --steps 3000 --speed
    python jobs/distill.py --export .cache/distilled/students/0-2-4_mse_3000/trained MODEL

Stages, each kept in --work and skipped where it is done:
1. lists.npz           queries and documents, as jobs/train_demo_model.py mines them (--prose is
                       its option)
2. candidates.parquet  lists that the teacher was not trained on, and last the held-out ones
3. scored/             `rankmill.rerank` over them with the teacher, on Ray
4. training/           `rankmill.export` of that run: labeled lists of raw logits
5. students/NAME/      start/ (some of the teacher's layers), state.pt (the newest checkpoint),
                       trained/, and what each lost on the held-out lists
6. judged.json         with --judge: nDCG@10 of teacher and students, before and after training

The same command resumes. With a candidates.parquet of one's own in --work the first two stages are
left out. A student is chosen by its held-out loss; the demo's questions and the
collection only judge.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import rankmill
from judge_demo_model import Collection
from rankmill.models.locate import locate
from students import (
    Lesson,
    ScoredLists,
    Student,
    held_out_loss,
    keep_layers,
    refuse_other_kinds,
    refuse_other_lesson,
    train,
)
from train_demo_model import HELD_OUT, SEED, export, make_lists

DOCUMENTS = 7  # of a list: its own text, three from BM25, two from the bi-encoder, one at random
MAX_LENGTH = 192  # word pieces of a pair; one text in four is longer
JUDGED_LENGTH = 256
LOSSES = ("mse", "margin-mse")


def write_candidates(work: Path, queries: int, held_out: int) -> None:
    """Write a row a pair: the lists farthest from the teacher's training, then the held-out ones.

    The teacher took its lists from the front of a permutation: these come from its back.
    """
    lists = np.load(work / "lists.npz")["lists"]
    texts, documents = json.loads((work / "lists.json").read_text())
    trained = len(lists) - held_out
    unseen = np.random.default_rng([SEED, 0]).permutation(trained)[::-1][:queries]
    rows = [
        {
            "query_id": query,
            "query": texts[query],
            "doc_id": document,
            "document": documents[document],
        }
        for query in [*unseen.tolist(), *range(trained, len(lists))]
        for document in dict.fromkeys(lists[query, :DOCUMENTS].tolist())
    ]
    pq.write_table(pa.Table.from_pylist(rows), work / "candidates.tmp")
    (work / "candidates.tmp").replace(work / "candidates.parquet")


def score(work: Path, teacher: str) -> None:
    """Score the candidates with the teacher, and export its logits; both go on where they were."""
    config = rankmill.load_config(
        overrides={
            "input.path": str(work / "candidates.parquet"),
            "output.path": str(work / "scored"),
            "model.name": teacher,
            "model.max_length": MAX_LENGTH,
        }
    )
    rankmill.rerank(config)
    rankmill.export(work / "scored", work / "training", format="labeled-list", label="score")


def train_students(
    work: Path, teacher: Path, students: Iterable[Student], lesson: Lesson, held_out: int
) -> None:
    """Train one after the other; what each lost on held-out lists stands in its held_out.json."""
    data = ScoredLists(work / "training", teacher, MAX_LENGTH, held_out)
    for student in students:
        folder = work / "students" / student.name
        folder.mkdir(parents=True, exist_ok=True)
        refuse_other_lesson(folder, lesson, held_out)
        if not (folder / "start").exists():
            keep_layers(teacher, student.layers, folder / "start")
        train(student, data, folder, lesson)
        record = folder / "held_out.json"
        if not record.exists():
            found = {name: held_out_loss(folder / name, data) for name in ("start", "trained")}
            record.write_text(json.dumps(found))
        print(student.name, record.read_text(), flush=True)


def judge(work: Path, models: Mapping[str, str], collections: Mapping[str, Collection]) -> None:
    """Judge models on collections in bf16, each once: judged.json, by model and collection."""
    record = work / "judged.json"
    judged = json.loads(record.read_text()) if record.exists() else {}
    for model, path in models.items():
        for name, collection in collections.items():
            if name not in judged.setdefault(model, {}):
                scorer = rankmill.Scorer(
                    path, device="cpu", precision="bf16", max_length=JUDGED_LENGTH
                )
                gains = collection.judge(scorer.score(collection.pairs()))
                judged[model][name] = {order: asdict(gain) for order, gain in gains.items()}
                record.write_text(json.dumps(judged, indent=1))
            for order, gain in judged[model][name].items():
                print(f"{model}, {name}, {order}: nDCG@10 {gain['ndcg']:.4f}", flush=True)


def measure_speed(
    models: Mapping[str, str], pairs: list[tuple[str, str]], rounds: int = 5
) -> dict[str, float]:
    """Pairs a second of each model's `Scorer` in bf16: medians of rounds that take turns."""
    scorers = {
        name: rankmill.Scorer(path, device="cpu", precision="bf16", max_length=JUDGED_LENGTH)
        for name, path in models.items()
    }
    rates: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds + 1):
        for name, scorer in scorers.items():
            began = time.perf_counter()
            scorer.score(pairs)
            if turn:  # the first one warms up
                rates[name].append(len(pairs) / (time.perf_counter() - began))
    return {name: statistics.median(found) for name, found in rates.items()}


def main(arguments: Iterable[str] | None = None) -> None:
    """Read the arguments and do every stage that is not done."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, default=Path(".cache/distilled"))
    parser.add_argument("--packages", type=Path, nargs="*", default=[])
    parser.add_argument("--prose", type=Path, nargs="*", default=[])
    parser.add_argument("--mined", type=int, default=34_000, help="lists that are mined")
    parser.add_argument("--queries", type=int, default=12_000, help="lists that are scored")
    parser.add_argument(
        "--held-out", type=int, default=HELD_OUT, help="lists at the end that are not trained on"
    )
    parser.add_argument("--teacher", default="demo")
    parser.add_argument("--students", nargs="*", default=["0,2,4"], help="layers that are kept")
    parser.add_argument("--losses", nargs="*", choices=LOSSES, default=["mse"])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--judge", action="store_true", help="judge teacher and students")
    parser.add_argument("--collection", type=Path, help="judged beside the demo's questions")
    parser.add_argument("--depth", type=int, default=50, help="BM25's best that are judged")
    parser.add_argument("--speed", action="store_true", help="measure teacher and students")
    parser.add_argument("--export", type=Path, nargs=2, metavar=("TRAINED", "TARGET"))
    options = parser.parse_args(None if arguments is None else list(arguments))
    if options.export:
        trained, target = options.export
        export(trained, trained, target)
        return
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    if not (work / "candidates.parquet").exists():
        make_lists(work, options.packages, options.prose, options.mined)
        write_candidates(work, options.queries, options.held_out)
    teacher = locate(options.teacher).path()
    refuse_other_kinds(teacher)
    score(work, options.teacher)
    students = [
        Student(tuple(int(number) for number in layers.split(",")), loss, options.steps)
        for layers in options.students
        for loss in options.losses
    ]
    lesson = Lesson(options.learning_rate)
    train_students(work, teacher, students, lesson, options.held_out)
    models = {"teacher": str(teacher)}
    for student in students:
        folder = work / "students" / student.name
        models[f"{student.name} trained"] = str(folder / "trained")
        if options.judge:
            layers = ",".join(map(str, student.layers))
            models[f"{layers} untrained"] = str(folder / "start")
    if options.speed:
        for name, rate in measure_speed(models, Collection(None).pairs()[::20]).items():
            print(f"{name}: {rate:.0f} pairs/s", flush=True)
    if options.judge:
        folders: dict[str, Path | None] = {"demo": None}
        if options.collection:
            folders[options.collection.name] = options.collection
        collections = {
            f"{name}, {options.depth} best": Collection(folder, options.depth)
            for name, folder in folders.items()
        }
        judge(work, models, collections)


if __name__ == "__main__":
    main()
