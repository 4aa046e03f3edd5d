"""rankmill's Scorer beside sentence-transformers' CrossEncoder, in one run, on the same pairs.

    python benchmarks/compare.py MODEL CANDIDATES.parquet [--pairs 256] [--rounds 3]

MODEL is a folder saved in float32. Every round runs each way once, in turn, over the same pairs;
the table shows medians and their ratio to sentence-transformers' default. The pairs that warm
things up are others.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from sentence_transformers import CrossEncoder

from rankmill import storage
from rankmill.scorer import Scorer

Pairs = list[tuple[str, str]]
_WARM_UP = 16


def ways(model: str, threads: int, max_length: int) -> dict[str, Callable[[Pairs], object]]:
    """What is compared, by name."""
    fp32 = Scorer(model, device="cpu", precision="fp32", threads=threads, max_length=max_length)
    bf16 = Scorer(model, device="cpu", precision="bf16", threads=threads, max_length=max_length)
    default = CrossEncoder(model, device="cpu", max_length=max_length)
    half = CrossEncoder(
        model, device="cpu", max_length=max_length, model_kwargs={"dtype": torch.bfloat16}
    )
    return {
        "sentence-transformers (default: fp32, batch 32)": default.predict,
        "sentence-transformers bf16": half.predict,
        "rankmill fp32": fp32.score,
        "rankmill bf16": bf16.score,
    }


def main() -> None:
    """Measure and print a line a way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("candidates")
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=512)
    arguments = parser.parse_args()
    table = storage.read_table(arguments.candidates, ["query", "title", "text"])
    count = arguments.pairs + _WARM_UP
    rows = table.take(np.random.default_rng(0).choice(table.num_rows, count, replace=False))
    columns = [rows[name].to_pylist() for name in ("query", "title", "text")]
    pairs = [(query, f"{title} {text}") for query, title, text in zip(*columns, strict=True)]

    compared = ways(arguments.model, arguments.threads, arguments.max_length)
    seconds: dict[str, list[float]] = {name: [] for name in compared}
    for run in compared.values():
        run(pairs[arguments.pairs :])
    for _ in range(arguments.rounds):
        for name, run in compared.items():
            torch.set_num_threads(arguments.threads)
            started = time.perf_counter()
            run(pairs[: arguments.pairs])
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    first = next(iter(medians.values()))
    for name, median in medians.items():
        rate = arguments.pairs / median
        print(f"{name:50} {rate:7.1f} pairs/s  {first / median:5.2f}x")


if __name__ == "__main__":
    main()
