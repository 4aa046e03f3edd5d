"""How far does a score move with the other pairs of its batch? In fp32, in bf16 and in int8.

    python benchmarks/batch_effect.py MODEL CANDIDATES.parquet [--pairs 128] [--max-length 512]
        [--int8 FOLDER]

Scores the same pairs alone, in rankmill's batches (near in length), and in batches of eight drawn
at random (padded heavily). Prints differences from the scores alone, and the spread of the scores.
"""

from __future__ import annotations

import argparse
from typing import Literal

import numpy as np
import numpy.typing as npt

from rankmill import storage
from rankmill.config import AskedPrecision
from rankmill.profile import Backend
from rankmill.scorer import Scorer, score_pairs
from rankmill.windows import Windows, assemble, cut

_RANDOM_BATCH = 8


def in_batches(
    scorer: Scorer, windows: Windows, batches: list[npt.NDArray[np.int64]]
) -> npt.NDArray[np.float32]:
    """Scores float32 [pairs], each of one window, scored in the batches given."""
    scores = np.empty(len(windows), np.float32)
    for chosen in batches:
        scores[chosen] = scorer.model.score(assemble(windows, scorer.tokenizer.template, chosen))
    return scores


def main() -> None:
    """Measure and print a line for each precision and way of batching."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("candidates")
    parser.add_argument("--document", default="text")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=128)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--prompt", default="auto")
    parser.add_argument("--backend", choices=["torch", "openvino"], default="torch")
    parser.add_argument("--int8", help="the same model as `rankmill quantize` made it")
    arguments = parser.parse_args()
    table = storage.read_table(arguments.candidates, ["query", arguments.document])
    draw = np.random.default_rng(0)
    rows = table.take(draw.choice(table.num_rows, arguments.pairs, replace=False))
    texts = rows["query"].to_pylist() + rows[arguments.document].to_pylist()
    number = np.arange(arguments.pairs, dtype=np.int32)
    shuffled = draw.permutation(arguments.pairs)
    random = [shuffled[i : i + _RANDOM_BATCH] for i in range(0, arguments.pairs, _RANDOM_BATCH)]

    exact = None
    backend: Backend | Literal["auto"] = arguments.backend
    ways: list[tuple[str, AskedPrecision, Backend | Literal["auto"]]] = [
        (arguments.model, "fp32", backend),
        (arguments.model, "bf16", backend),
    ]
    if arguments.int8:
        ways.append((arguments.int8, "auto", "auto"))
    for model, precision, backend in ways:
        scorer = Scorer(
            model,
            device="cpu",
            precision=precision,
            threads=arguments.threads,
            max_length=arguments.max_length,
            prompt=arguments.prompt,
            backend=backend,
        )
        rules, template = scorer.tokenizer.rules, scorer.tokenizer.template
        wrapped = [scorer.tokenizer.query_text(text) for text in texts[: arguments.pairs]]
        wrapped += map(scorer.tokenizer.document_text, texts[arguments.pairs :])
        pairs = scorer.tokenizer.tokenize(wrapped, number, number + np.int32(arguments.pairs))
        windows = cut(pairs, rules)
        alone = in_batches(scorer, windows, [np.array([one]) for one in range(arguments.pairs)])
        exact = alone if exact is None else exact
        own = score_pairs(scorer.model, pairs, rules, template, scorer.profile)
        others = {
            "rankmill's batches": own.scores,
            "batches of 8 at random": in_batches(scorer, windows, random),
            "fp32 alone": exact,
        }
        used, spread = scorer.profile.precision, alone.std()
        print(f"{used}: {arguments.pairs} pairs, scores alone spread {spread:.3g}")
        for name, scores in others.items():
            moved = np.abs(scores - alone)
            print(
                f"  against {name:22s}  largest {moved.max():.2g}  "
                f"root mean square {np.sqrt(np.mean(moved**2)):.2g}"
            )


if __name__ == "__main__":
    main()
