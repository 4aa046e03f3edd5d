"""Pure inference for every preset's shape, scaled to 150,000 pairs, beside published seconds.

    python benchmarks/speed_table.py CANDIDATES.parquet [--shapes NAME ...] [--save NAME]

The published figures (seconds for about 150,000 pairs, tokenizing excluded) stand in the presets
with their hardware. Here: random weights of the same shapes, the default backend and precision,
seeded pairs cut to --max-length, tokenized beforehand; large models get fewer pairs. The pairs
are not the published ones, so mean tokens are printed, too: compare shapes, not hardware. Causal
models are given their prompt. Left out, and named at the end: models whose weights in float32 take
more than --most-gib, and those of a shape that was measured already.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import random_models
from compare import read_pairs
from machine import describe_machine
from rankmill.models.presets import Preset, presets
from rankmill.scorer import Scorer, score_pairs
from rankmill.windows import cut

_PUBLISHED = ("RTX 5090", "M4 Max, MPS", "M4 Max, CPU")
_SCALED_TO = 150_000
# Twice the parameters, half the pairs, from this size (of matrices, embeddings aside) on.
_FULL_PAIRS = 2e7
_GATED = ("modernbert", "gte", "jina-bert", "causal-lm")


def matrices(preset: Preset) -> int:
    """Weights of the layers' matrices; of causal models roughly, whose heads share keys."""
    width = 3 if preset.architecture in _GATED else 2
    layer = 4 * preset.hidden**2 + width * preset.hidden * preset.intermediate
    return preset.layers * layer


def choose(names: list[str] | None, most_gib: float) -> tuple[list[Preset], dict[str, str]]:
    """The presets to measure, small ones first, and why each of the others is left out."""
    unknown = set(names or ()) - {preset.name for preset in presets()}
    if unknown:
        raise SystemExit(f"no presets: {', '.join(sorted(unknown))}; `rankmill models` lists them")
    chosen: dict[tuple[object, ...], Preset] = {}
    left_out: dict[str, str] = {}
    for preset in sorted(presets(), key=matrices):
        if names and preset.name not in names:
            continue
        shape = (preset.architecture, preset.layers, preset.hidden, preset.intermediate)
        gib = 4 * (preset.parameters or matrices(preset)) / 2**30
        if gib > most_gib:
            left_out[preset.name] = f"{gib:.1f} GiB in float32, above {most_gib:g}"
        elif shape in chosen:
            left_out[preset.name] = f"of the shape of {chosen[shape].name}"
        else:
            chosen[shape] = preset
    return list(chosen.values()), left_out


def measure(
    preset: Preset, model: Path, pairs: list[tuple[str, str]], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Median seconds of the model alone over the pairs, scaled."""
    scorer = Scorer(
        str(model),
        device="cpu",
        threads=arguments.threads,
        max_length=arguments.max_length,
        prompt=preset.prompt or "auto",
    )
    texts = [text for pair in pairs for text in pair]
    number = np.arange(len(texts), dtype=np.int32).reshape(-1, 2)
    tokenizer = scorer.tokenizer
    tokens = tokenizer.tokenize(texts, number[:, 0], number[:, 1])
    seconds = []
    for _ in range(arguments.rounds + 1):
        started = time.perf_counter()
        score_pairs(scorer.model, tokens, tokenizer.rules, tokenizer.template, scorer.profile)
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds[1:])
    return {
        "model": preset.name,
        "layers": preset.layers,
        "hidden": preset.hidden,
        "backend": f"{scorer.profile.backend} {scorer.profile.precision}",
        "mean_tokens": round(float(cut(tokens, tokenizer.rules).lengths.mean())),
        "pairs_per_second": round(len(pairs) / median, 1),
        "seconds_150000": round(_SCALED_TO * median / len(pairs)),
        "published": {
            hardware: figure.value
            for hardware in _PUBLISHED
            for figure in preset.figures
            if figure.metric == "seconds" and (figure.settings or "").startswith(hardware)
        },
    }


def main() -> None:
    """Measure every preset's shape and print a line each, then what was left out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("candidates")
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--shapes", nargs="+", metavar="NAME", help="only these presets")
    parser.add_argument("--most-gib", type=float, default=8.0)
    parser.add_argument("--save")
    arguments = parser.parse_args()
    pairs = read_pairs(arguments.candidates, arguments.pairs).pairs["measured"]
    lines = []
    chosen, left_out = choose(arguments.shapes, arguments.most_gib)
    for preset in chosen:
        count = max(int(len(pairs) * min(_FULL_PAIRS / matrices(preset), 1)), 8)
        with tempfile.TemporaryDirectory() as folder:
            model = random_models.build(preset.name, Path(folder))
            line = measure(preset, model, pairs[:count], arguments)
        lines.append(line)
        published = ", ".join(f"{hw} {v:g} s" for hw, v in line["published"].items())
        print(
            f"{line['model']:52} {line['layers']:3d} x {line['hidden']:4d}  {line['backend']:14} "
            f"{line['pairs_per_second']:8.1f} pairs/s  {line['seconds_150000']:7,d} s  "
            f"({line['mean_tokens']} tokens)  {published}",
            flush=True,
        )
    for name, why in left_out.items():
        print(f"{name:52} left out: {why}")
    if arguments.save:
        figures = Path(__file__).parent / "figures"
        figures.mkdir(exist_ok=True)
        record = {"machine": describe_machine(), "lines": lines, "left_out": left_out}
        (figures / f"{arguments.save}.json").write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
