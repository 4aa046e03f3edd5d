"""Which token budget suits this machine? Pairs/s of one scoring thread for several budgets.

    python benchmarks/budget.py MODEL CANDIDATES.parquet [--threads 1] [--pairs 384]

Interleaves the budgets over several rounds and prints medians, so that a noisy machine does not
favour one of them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import numpy as np

from rankmill import storage
from rankmill.scorer import Scorer, score_pairs

BUDGETS = (512, 1024, 2048, 4096, 8192, 16384)


def main() -> None:
    """Measure and print one line a budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("candidates")
    parser.add_argument("--document", default="text")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    table = storage.read_table(arguments.candidates, ["query", arguments.document])
    chosen = np.random.default_rng(0).choice(table.num_rows, arguments.pairs, replace=False)
    rows = table.take(chosen)
    texts = rows["query"].to_pylist() + rows[arguments.document].to_pylist()

    scorer = Scorer(arguments.model, threads=arguments.threads)
    number = np.arange(arguments.pairs, dtype=np.int32)
    pairs = scorer.tokenizer.pairs(
        scorer.tokenizer.encode(texts), number, number + np.int32(arguments.pairs)
    )
    seconds: dict[int, list[float]] = {budget: [] for budget in BUDGETS}
    padding = {}
    for _ in range(arguments.rounds + 1):
        for budget in BUDGETS:
            profile = replace(scorer.profile, token_budget=budget)
            started = time.perf_counter()
            scored = score_pairs(
                scorer.model, pairs, scorer.tokenizer.rules, scorer.tokenizer.template, profile
            )
            seconds[budget].append(time.perf_counter() - started)
            padding[budget] = scored.padded_tokens / scored.tokens
    print(
        f"{scorer.profile.precision}, {arguments.threads} thread(s), {scorer.profile.instructions}"
    )
    for budget in BUDGETS:
        median = statistics.median(seconds[budget][1:])
        rate = arguments.pairs / median
        print(f"{budget:6d} tokens  {rate:6.1f} pairs/s  {100 * padding[budget]:5.1f} % padding")


if __name__ == "__main__":
    main()
