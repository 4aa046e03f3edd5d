"""A student: some layers of its teacher, trained on the teacher's scores.

Used by `jobs/distill.py`. Nothing here draws at random but the order of the lists, which is a
function of the seed and the epoch: a training that was killed goes on from its newest checkpoint
and ends with the weights of one that was not.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rankmill.errors import ConfigError
from train_demo_model import SEED, score_pairs

LISTS_A_STEP = 8
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")

Loss = Literal["mse", "margin-mse"]


@dataclass(frozen=True)
class Lesson:
    """What students of one teacher share. learning_rate: the highest; every: steps from
    checkpoint to checkpoint."""

    learning_rate: float = 3e-4
    every: int = 100


@dataclass(frozen=True)
class Student:
    """The teacher's layers that are kept, what is minimised, and for how many steps."""

    layers: tuple[int, ...]
    loss: Loss
    steps: int

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f"{'-'.join(map(str, self.layers))}_{self.loss}_{self.steps}"


class ScoredLists:
    """An export of labeled lists, as piece numbers ready to be put together into pairs.

    Lists stand in the run's order, so the last `held_out` are those that the candidates end with.
    Raises `ConfigError` when what is left does not fill one step.
    """

    def __init__(self, exported: Path, model: Path, max_length: int, held_out: int) -> None:
        parts = sorted(exported.glob("part-*.parquet"))
        rows = pa.concat_tables([pq.read_table(part) for part in parts])
        tokenizer = AutoTokenizer.from_pretrained(model)
        cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id

        def pieces(texts: Sequence[str]) -> list[list[int]]:
            encoded = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=512)
            return encoded["input_ids"]

        self.pairs: list[list[tuple[list[int], list[int]]]] = []
        queries = pieces(rows["query"].to_pylist())
        for query, documents in zip(queries, rows["documents"].to_pylist()):
            first = [cls, *query[: max_length // 2], sep]
            room = max_length - len(first) - 1
            self.pairs.append([(first, [*found[:room], sep]) for found in pieces(documents)])
        self.scores = [torch.tensor(scores) for scores in rows["scores"].to_pylist()]
        self.trained = len(self.pairs) - held_out
        if self.trained < LISTS_A_STEP:
            raise ConfigError(
                f"{len(self.pairs)} lists less {held_out} held out leave fewer than the "
                f"{LISTS_A_STEP} of one step.",
                "Bring more queries, or hold fewer out (--held-out).",
            )

    def order(self, epoch: int) -> np.ndarray:
        """The numbers of the lists that are trained on, int64 [trained], as an epoch takes them."""
        return np.random.default_rng([SEED, epoch]).permutation(self.trained)

    def loss(self, model: torch.nn.Module, rows: Sequence[int], loss: Loss) -> torch.Tensor:
        """The mean of these lists' losses: a scalar with gradients."""
        logits = score_pairs(model, [pair for row in rows for pair in self.pairs[row]])
        sizes = [len(self.pairs[row]) for row in rows]
        targets = [self.scores[row] for row in rows]
        lists = zip(torch.split(logits, sizes), targets)
        return torch.stack([list_loss(found, wanted, loss) for found, wanted in lists]).mean()


def list_loss(logits: torch.Tensor, teacher: torch.Tensor, loss: Loss) -> torch.Tensor:
    """Mean squared error of a list's logits, or of the differences between any two of them.

    The second is MarginMSE (Hofstätter et al. 2020, arXiv 2010.02666) over all pairs of documents
    instead of one positive and one negative: it leaves the level of a list free. The mean over all
    pairs is twice the variance of the error.
    """
    error = logits - teacher
    if loss == "margin-mse":
        return 2.0 * (error - error.mean()).square().mean()
    return error.square().mean()


def refuse_other_kinds(teacher: Path) -> None:
    """Raise `ConfigError` for a teacher whose pairs `score_pairs` cannot put together."""
    kind = json.loads((teacher / "config.json").read_text(encoding="utf-8")).get("model_type")
    missing = [name for name in TOKENIZER_FILES if not (teacher / name).exists()]
    if kind != "bert" or missing:
        raise ConfigError(
            f"The teacher in {teacher} is of the kind {kind}"
            + (f" and lacks {' and '.join(missing)}." if missing else "."),
            "Students are made of BERT cross-encoders with a tokenizer.json.",
        )


def refuse_other_lesson(folder: Path, lesson: Lesson, held_out: int) -> None:
    """Keep what a student is taught by in its folder.

    Raises `ConfigError` where it was begun otherwise.
    """
    told = {"learning_rate": lesson.learning_rate, "held_out": held_out}
    record = folder / "lesson.json"
    if not record.exists():
        record.write_text(json.dumps(told))
    elif (begun := json.loads(record.read_text())) != told:
        raise ConfigError(
            f"{folder} was begun with {begun}, now {told} is asked.",
            "Ask for the same, or remove the folder.",
        )


def keep_layers(teacher: Path, layers: Sequence[int], target: Path) -> None:
    """Write a model that keeps those layers of the teacher, its embeddings, pooler and head.

    Raises `IndexError` for a layer that the teacher does not have.
    """
    model = AutoModelForSequenceClassification.from_pretrained(teacher, dtype="float32")
    encoder = model.base_model.encoder
    encoder.layer = torch.nn.ModuleList(encoder.layer[number] for number in layers)
    model.config.num_hidden_layers = len(encoder.layer)
    temporary = target.with_suffix(".tmp")
    model.save_pretrained(temporary)
    for name in TOKENIZER_FILES:
        shutil.copy(teacher / name, temporary)
    temporary.rename(target)


def train(student: Student, data: ScoredLists, folder: Path, lesson: Lesson) -> Path:
    """Train folder/start to folder/trained, from the newest checkpoint if there is one.

    A rate that rises over the first 5 % of the steps and falls to zero in a straight line. Dropout
    is off: it would be noise on a target that is exact.
    """
    trained = folder / "trained"
    if trained.exists():
        return trained
    model = AutoModelForSequenceClassification.from_pretrained(
        folder / "start", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    ).train()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=lesson.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=0.01,
        fused=True,
    )
    first = _resume(folder / "state.pt", model, optimizer)
    steps_an_epoch = data.trained // LISTS_A_STEP
    began, running = time.monotonic(), 0.0
    for step in range(first, student.steps):
        epoch, place = divmod(step, steps_an_epoch)
        rows = data.order(epoch)[place * LISTS_A_STEP :][:LISTS_A_STEP].tolist()
        rise, fall = (step + 1) / (0.05 * student.steps), 1.0 - step / student.steps
        for group in optimizer.param_groups:
            group["lr"] = lesson.learning_rate * min(rise, fall)
        loss = data.loss(model, rows, student.loss)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        running += loss.item()
        if (step + 1) % lesson.every == 0:
            pace = (time.monotonic() - began) / (step + 1 - first)
            mean = running / lesson.every
            print(f"{student.name} step {step + 1} loss {mean:.3f} {pace:.2f} s a step", flush=True)
            running = 0.0
            _save(folder / "state.pt", model, optimizer, step + 1)
    temporary = folder / "trained.tmp"
    model.save_pretrained(temporary)
    for name in TOKENIZER_FILES:
        shutil.copy(folder / "start" / name, temporary)
    temporary.rename(trained)
    return trained


def held_out_loss(model: Path, data: ScoredLists) -> dict[str, float]:
    """Both losses over the held-out lists, and how often the teacher's first is the student's."""
    student = AutoModelForSequenceClassification.from_pretrained(model, dtype="float32").eval()
    found: dict[str, list[float]] = {"mse": [], "margin-mse": [], "same first": []}
    with torch.inference_mode():
        for row in range(data.trained, len(data.pairs)):
            logits, teacher = score_pairs(student, data.pairs[row]), data.scores[row]
            for loss in ("mse", "margin-mse"):
                found[loss].append(float(list_loss(logits, teacher, loss)))
            found["same first"].append(float(logits.argmax() == teacher.argmax()))
    return {name: statistics.fmean(values) for name, values in found.items()}


def _resume(saved: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Take over a checkpoint, if there is one; returns the steps that were done."""
    if not saved.exists():
        return 0
    state = torch.load(saved, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def _save(saved: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write a checkpoint whole or not at all."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    torch.save(state, saved.with_suffix(".tmp"))
    saved.with_suffix(".tmp").replace(saved)
