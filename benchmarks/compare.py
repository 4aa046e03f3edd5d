"""rankmill beside what users would run without it: the same pairs, one run, medians.

    python benchmarks/compare.py CANDIDATES.parquet [--shape NAME ...] [--pairs 192] [--rounds 3]
        [--peers PYTHON] [--int8] [--save NAME]

CANDIDATES has `query, title, text`. Each way (rankmill in fp32, bf16 and int8; sentence-
transformers' default, its bf16, its best batch size; with --peers also OpenVINO and ONNX through
the sentence-transformers 5.7 of another environment's interpreter) runs in a process of its own;
so do two from Parquet to Parquet on a cluster that is up, their start included: rankmill's job, and
Ray Data around `CrossEncoder.predict`. A round lets each way score the measured pairs once, in
turn, so that a noisy machine favours none; warm-up pairs are others, and so are those that --int8
quantizes each shape with. The matrix rates of the machine are measured before and after.

Prints a table a shape; --save writes benchmarks/figures/NAME.json, a plot beside it and the tables
in Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import random_models
from machine import describe_machine
from matrix_rates import matrix_rates
from rankmill import storage
from rankmill.config import load_config
from rankmill.models import presets
from rankmill.models.presets import Preset
from rankmill.quantize import quantize
from work import Cost, Measured, measure_pairs, plot, to_markdown

_WARM_UP = 48
_HERE = Path(__file__).parent
SHAPES = ("cross-encoder/ms-marco-MiniLM-L6-v2", "hotchpotch/japanese-reranker-tiny-v2")


@dataclass(frozen=True)
class Way:
    """One line of the table. `peer`: runs in the other environment."""

    name: str
    way: str
    backend: str
    precision: str
    best_batch: bool = False
    peer: bool = False


WAYS = (
    Way("sentence-transformers 6, default (fp32, batch 32)", "sentence-transformers", "", "fp32"),
    Way("sentence-transformers 6, fp32, best batch", "sentence-transformers", "", "fp32", True),
    Way("sentence-transformers 6, bf16", "sentence-transformers", "", "bf16"),
    Way("sentence-transformers 6, bf16, best batch", "sentence-transformers", "", "bf16", True),
    Way("5.7 ONNX, fp32, best batch", "sentence-transformers", "onnx", "fp32", True, True),
    Way("5.7 OpenVINO, fp32, best batch", "sentence-transformers", "openvino", "fp32", True, True),
    Way("5.7 OpenVINO, bf16, best batch", "sentence-transformers", "openvino", "bf16", True, True),
    Way("Ray Data around CrossEncoder.predict, with its start", "ray-data", "", "fp32"),
    Way("rankmill, torch, fp32", "rankmill", "torch", "fp32"),
    Way("rankmill, torch, bf16", "rankmill", "torch", "bf16"),
    Way("rankmill, OpenVINO, fp32", "rankmill", "openvino", "fp32"),
    Way("rankmill, OpenVINO, bf16", "rankmill", "openvino", "bf16"),
    Way("rankmill's job (bf16), with its start", "rankmill-job", "", "bf16"),
)
INT8 = Way("rankmill, OpenVINO, int8", "rankmill", "openvino", "auto")


class Worker:
    """A way's process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.facts = self._answer()

    def run(self) -> dict[str, float]:
        """Score the measured pairs once."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self) -> dict[str, Any]:
        """Let it tell what it measures last, and end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("A way ended early; its error stands above.")
        found: dict[str, Any] = json.loads(line)
        return found


@contextmanager
def working(python: str, asked: dict[str, Any]) -> Iterator[Worker]:
    """A worker, ended with the block."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(asked["threads"]),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "true",
    }
    process = subprocess.Popen(
        [python, str(_HERE / "way.py"), json.dumps(asked)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        yield Worker(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


@dataclass(frozen=True)
class Drawn:
    """Seeded pairs: `measured` and `warm` by name; `others`, the rest of the candidates."""

    pairs: dict[str, list[tuple[str, str]]]
    others: pa.Table


def read_pairs(candidates: str, count: int) -> Drawn:
    """Draw pairs to measure, and others to warm up with."""
    table = storage.read_table(candidates, ["query", "title", "text"])
    chosen = np.random.default_rng(0).choice(table.num_rows, count + _WARM_UP, replace=False)
    columns = [table.take(chosen)[name].to_pylist() for name in ("query", "title", "text")]
    pairs = [(query, f"{title} {text}") for query, title, text in zip(*columns, strict=True)]
    others = table.filter(pa.array(~np.isin(np.arange(table.num_rows), chosen)))
    return Drawn({"measured": pairs[:count], "warm": pairs[count:]}, others)


def quantized(model: Path, others: pa.Table, scratch: Path, max_length: int) -> Path:
    """An int8 folder of a model. What agrees is not asked: the weights are random."""
    sample = scratch / "sample.parquet"
    pq.write_table(others, sample)
    config = load_config(
        overrides={
            "input.path": str(sample),
            "input.columns.doc_id": None,
            "input.columns.document": ["title", "text"],
            "model.name": str(model),
            "model.max_length": max_length,
            "output.path": str(scratch / "int8"),
        }
    )
    return quantize(config, min_agreement=-1).folder


def compare(preset: Preset, drawn: Drawn, arguments: argparse.Namespace) -> list[Measured]:
    """Run every way over the pairs, round by round."""
    pairs = drawn.pairs
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        model = random_models.build(preset.name, Path(scratch))
        texts = Path(scratch, "pairs.json")
        texts.write_text(json.dumps(pairs), encoding="utf-8")
        chosen = [way for way in WAYS if arguments.peers or not way.peer]
        models = {way: str(model) for way in chosen}
        if arguments.int8:
            folder = quantized(model, drawn.others, Path(scratch), arguments.max_length)
            models[INT8] = str(folder)
        workers: dict[Way, Worker] = {}
        for way, name in models.items():
            asked = {
                "way": way.way,
                "backend": way.backend,
                "precision": way.precision,
                "best_batch": way.best_batch,
                "model": name,
                "pairs": str(texts),
                "threads": arguments.threads,
                "max_length": arguments.max_length,
            }
            python = arguments.peers if way.peer else sys.executable
            workers[way] = stack.enter_context(working(python, asked))
        found: dict[Way, list[dict[str, float]]] = {way: [] for way in workers}
        for _ in range(arguments.rounds):
            for way, worker in workers.items():
                found[way].append(worker.run())
        cost = measure_pairs(model, preset, pairs["measured"], arguments.max_length)
        return [
            Measured(
                name=way.name,
                precision="int8" if way is INT8 else way.precision,
                seconds=statistics.median(one["seconds"] for one in found[way]),
                processor_seconds=statistics.median(one["processor_seconds"] for one in found[way]),
                peak_mib=max(one["peak_mib"] for one in found[way]),
                leaves_out=way.way.startswith("rankmill"),
                **_batches(worker, cost, arguments.max_length),
                cost=cost,
            )
            for way, worker in workers.items()
        ]


def _batches(worker: Worker, cost: Cost, longest: int) -> dict[str, Any]:
    """A way's batch size, padding and seconds of tokenizing: a peer's as its process saw them,
    those of rankmill's `Scorer` by its profile and tokenizer."""
    seen = worker.end()
    if "profile" not in worker.facts:
        looked = {name: seen.get(name) for name in ("padding", "tokenizing")}
        return {"batch": worker.facts["batch_size"], **looked}
    profile = worker.facts["profile"]
    budget = profile["token_budget"]
    padding = cost.padding(budget, profile["pad_to_multiple_of"], longest)
    return {"batch": budget, "padding": padding, "tokenizing": cost.tokenizing_seconds}


def main() -> None:
    """Compare on every shape asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("candidates")
    parser.add_argument("--shape", action="append")
    parser.add_argument("--pairs", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument(
        "--peers", help="a Python that has sentence-transformers[onnx,openvino] 5.7"
    )
    parser.add_argument("--int8", action="store_true", help="quantize each shape, too")
    parser.add_argument("--save")
    arguments = parser.parse_args()
    drawn = read_pairs(arguments.candidates, arguments.pairs)
    before = matrix_rates(arguments.threads)
    shapes, tables = {}, []
    for name in arguments.shape or SHAPES:
        preset = presets.find(name)
        if preset is None:
            raise SystemExit(f"{name} is not a preset; `rankmill models` lists them.")
        lines = compare(preset, drawn, arguments)
        after = matrix_rates(arguments.threads)
        rates = {precision: max(before[precision], after[precision]) for precision in before}
        measured = ", ".join(f"{n} {r:.0f}" for n, r in rates.items())
        tables.append(
            f"{name}: {lines[0].cost.pairs} pairs of mean {lines[0].cost.lengths.mean():.0f} tokens"
            f"; matrix rates, G/s: {measured}\n\n{to_markdown(lines, rates)}\n"
        )
        print(tables[-1], flush=True)
        shapes[name] = {
            "matrix_rates": rates,
            "ways": [line.to_json(lines[0], rates) for line in lines],
        }
    if arguments.save:
        figures = _HERE / "figures"
        figures.mkdir(exist_ok=True)
        record = {
            "machine": describe_machine(),
            "settings": {
                k: v
                for k, v in vars(arguments).items()
                if k in ("pairs", "rounds", "threads", "max_length")
            },
            "shapes": shapes,
        }
        (figures / f"{arguments.save}.json").write_text(
            json.dumps(record, indent=1), encoding="utf-8"
        )
        plot(record, figures / f"{arguments.save}.png")
        (figures / f"{arguments.save}.md").write_text("\n".join(tables), encoding="utf-8")


if __name__ == "__main__":
    main()
