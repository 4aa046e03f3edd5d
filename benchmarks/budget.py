"""Which token budget suits this machine? Pairs/s for several budgets, and streams of OpenVINO.

    python benchmarks/budget.py MODEL CANDIDATES.parquet [--backend torch] [--threads 2]

Interleaves the ways over several rounds and prints medians, so that a noisy machine does not
favour one of them. Where others compute beside it, take the second column: pairs for each second
of CPU time, times the threads (with one stream, threads that wait for each other count as busy).
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import numpy as np

from rankmill import storage
from rankmill.scorer import Scorer, score_pairs

BUDGETS = (256, 512, 1024, 2048, 4096, 8192)


def main() -> None:
    """Measure and print one line a way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("candidates")
    parser.add_argument("--document", nargs="+", default=["title", "text"])
    parser.add_argument("--backend", choices=["torch", "openvino"], default="openvino")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS)
    parser.add_argument("--pairs", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    table = storage.read_table(arguments.candidates, ["query", *arguments.document])
    chosen = np.random.default_rng(0).choice(table.num_rows, arguments.pairs, replace=False)
    rows = table.take(chosen)
    parts = [rows[name].to_pylist() for name in arguments.document]
    texts = rows["query"].to_pylist() + [" ".join(words) for words in zip(*parts, strict=True)]

    scorer = Scorer(
        arguments.model,
        backend=arguments.backend,
        device="cpu",
        precision=arguments.precision,
        threads=arguments.threads,
    )
    tokenizer, number = scorer.tokenizer, np.arange(arguments.pairs, dtype=np.int32)
    pairs = tokenizer.tokenize(texts, number, number + np.int32(arguments.pairs))
    streams = arguments.streams if arguments.backend == "openvino" else [1]
    ways = [
        replace(scorer.profile, streams=count, token_budget=budget)
        for count in streams
        for budget in arguments.budgets
    ]
    models = {count: scorer.description.load(replace(ways[0], streams=count)) for count in streams}
    wall: dict[int, list[float]] = {number: [] for number in range(len(ways))}
    busy: dict[int, list[float]] = {number: [] for number in range(len(ways))}
    padding = {}
    for _ in range(arguments.rounds + 1):
        for number_of, way in enumerate(ways):
            started, before = time.perf_counter(), time.process_time()
            scored = score_pairs(
                models[way.streams], pairs, tokenizer.rules, tokenizer.template, way
            )
            wall[number_of].append(time.perf_counter() - started)
            busy[number_of].append(time.process_time() - before)
            padding[number_of] = scored.padded_tokens / scored.tokens
    print(f"{arguments.backend} {arguments.precision}, {arguments.threads} thread(s)")
    for number_of, way in enumerate(ways):
        rate = arguments.pairs / statistics.median(wall[number_of][1:])
        cpu = arguments.threads * arguments.pairs / statistics.median(busy[number_of][1:])
        print(
            f"{way.streams} stream(s) {way.token_budget:6d} tokens  {rate:6.1f} pairs/s  "
            f"{cpu:6.1f} by CPU time  {100 * padding[number_of]:5.1f} % padding"
        )


if __name__ == "__main__":
    main()
