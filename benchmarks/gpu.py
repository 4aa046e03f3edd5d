"""rankmill on a GPU, beside sentence-transformers at equal precision: one run, medians.

    python benchmarks/gpu.py [CANDIDATES.parquet] [--shape NAME ...] [--pairs 4096] [--rounds 5]
        [--sizes 32 128 512] [--budgets ...] [--actors 1 2 4] [--device cuda] [--save NAME]

CANDIDATES has `query, title, text`; without it texts are made up (seeded, some 240 tokens on
average). Each round lets each way score all pairs once, in turn, texts to scores; warm-up pairs are
others. Then, on pairs that are tokenized already: token budgets, the share of time that the GPU
computes, what makes the processor wait for it, and several processes on one GPU. The rates of large
matrix products are measured on the same device before and after; utilisation is against those
before.

Busy is the time in which any kernel or copy ran (CUPTI's records of one pass, overlaps counted
once) over the median time of a pass without those records, which slow the processor but not the
kernels.

Exit code 2 where there is no GPU. `--device cpu` runs everything but what only a GPU has.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import queue
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder

import random_models
from compare import SHAPES, read_pairs
from machine import describe_machine
from rankmill import Scorer
from rankmill.models import presets
from rankmill.profile import Profile
from rankmill.scorer import score_pairs
from rankmill.tokens import TokenizedPairs
from work import Cost, measure_pairs

Pairs = list[tuple[str, str]]
_HERE = Path(__file__).parent
_WARM_UP = 48
_BUDGETS = (4096, 8192, 16384, 32768, 65536, 131072)
_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
_WORDS = ("reads", "whole", "lists", "and", "writes", "them", "back", "ranked", "by", "a", "model")


def made_up(count: int) -> dict[str, Pairs]:
    """Pairs of texts whose lengths vary as passages do: a few words to some hundreds."""
    generator = np.random.default_rng(0)
    lengths = np.minimum(generator.lognormal(5.2, 0.6, count + _WARM_UP), 600).astype(int) + 2
    pairs = [
        (f"what is list {number}", " ".join(generator.choice(_WORDS, length)))
        for number, length in enumerate(lengths)
    ]
    return {"measured": pairs[:count], "warm": pairs[count:]}


def wait(device: str) -> None:
    """Until the device has done all that was queued."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], object], device: str) -> float:
    """Wall seconds until the work is done on the device, too."""
    wait(device)
    started = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - started


def matrix_rates(device: str) -> dict[str, float]:
    """Giga-operations/s of large products, by precision; float32 is exact (no TF32)."""
    size, rounds = (8192, 10) if device == "cuda" else (1024, 3)
    found = {}
    for name, dtype in _PRECISIONS.items():
        given = [torch.randn(size, size, device=device).to(dtype) for _ in range(2)]
        multiply = partial(torch.matmul, *given)
        taken = [seconds_of(multiply, device) for _ in range(rounds + 2)][2:]
        found[name] = 2.0 * size**3 / statistics.median(taken) / 1e9
    return found


@contextlib.contextmanager
def peak_memory(device: str, into: dict[str, float]) -> Iterator[None]:
    """Notes how many MiB of the GPU tensors take at most in the block beyond those before it."""
    if device != "cuda":
        yield
        return
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    yield
    into["batches_mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20


@dataclass(frozen=True)
class Bench:
    """A shape's model and pairs on a device."""

    folder: Path
    device: str
    pairs: dict[str, Pairs]
    cost: Cost
    rounds: int
    rates: dict[str, float]

    def scorer(self, precision: Any) -> Scorer:  # noqa: ANN401 - a name that argparse checked
        """rankmill in one precision, on torch."""
        return Scorer(str(self.folder), device=self.device, precision=precision, backend="torch")  # type: ignore[arg-type]

    def medians(
        self, ways: dict[str, tuple[str, Callable[[], object]]]
    ) -> dict[str, dict[str, float]]:
        """Lines by name of ways (precision, work), in turn, round by round."""
        taken: dict[str, list[float]] = {name: [] for name in ways}
        memory: dict[str, dict[str, float]] = {name: {} for name in ways}
        for _ in range(self.rounds + 1):
            for name, (_, work) in ways.items():
                with peak_memory(self.device, memory[name]):
                    taken[name].append(seconds_of(work, self.device))
        found = {}
        for name, (precision, _) in ways.items():
            seconds = statistics.median(taken[name][1:])
            found[name] = {
                "pairs_per_second": self.cost.pairs / seconds,
                "utilisation": self.cost.operations / seconds / 1e9 / self.rates[precision],
                "seconds": seconds,
                **memory[name],
            }
        return found


def against_peers(bench: Bench, sizes: Sequence[int]) -> dict[str, dict[str, float]]:
    """Texts to scores: sentence-transformers at several batch sizes, and rankmill."""
    ways: dict[str, tuple[str, Callable[[], object]]] = {}
    measured = bench.pairs["measured"]
    for precision, dtype in _PRECISIONS.items():
        peer = CrossEncoder(
            str(bench.folder),
            device=bench.device,
            max_length=512,
            model_kwargs={"dtype": dtype},
        )
        peer.predict(bench.pairs["warm"])
        for size in sizes:
            ways[f"sentence-transformers, {precision}, batch {size}"] = (
                precision,
                partial(peer.predict, measured, batch_size=size),
            )
        scorer = bench.scorer(precision)
        scorer.score(bench.pairs["warm"])
        name = f"rankmill, {precision}, {scorer.profile.token_budget} tokens"
        ways[name] = precision, partial(scorer.score, measured)
    return bench.medians(ways)


def tokenized(scorer: Scorer, pairs: Pairs) -> TokenizedPairs:
    """The pairs as a scoring actor gets them."""
    texts: dict[str, int] = {}
    number = np.array([[texts.setdefault(t, len(texts)) for t in pair] for pair in pairs], np.int32)
    return scorer.tokenizer.tokenize(list(texts), number[:, 0], number[:, 1])


def scoring(scorer: Scorer, pairs: TokenizedPairs, profile: Profile) -> Callable[[], Any]:
    """What an actor does with a shard."""
    tokenizer = scorer.tokenizer
    return lambda: score_pairs(scorer.model, pairs, tokenizer.rules, tokenizer.template, profile)


def budgets(bench: Bench, wanted: Sequence[int]) -> dict[str, dict[str, float]]:
    """bf16 on tokenized pairs, for several token budgets; the profile's is marked."""
    scorer = bench.scorer("bf16")
    pairs = tokenized(scorer, bench.pairs["measured"])
    works = {}
    for budget in sorted({*wanted, scorer.profile.token_budget}):
        mark = " (the profile's)" if budget == scorer.profile.token_budget else ""
        works[f"{budget} tokens{mark}"] = scoring(
            scorer, pairs, replace(scorer.profile, token_budget=budget)
        )
    found = bench.medians({name: ("bf16", work) for name, work in works.items()})
    for name, work in works.items():
        scored = work()
        found[name]["padding"] = scored.padded_tokens / scored.tokens
        found[name]["halved"] = float(scored.degraded)
    return found


def union(spans: Sequence[tuple[float, float]]) -> float:
    """How long any of the spans (start, end) lasted."""
    covered, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        covered += max(end - max(start, until), 0.0)
        until = max(until, end)
    return covered


def busy(work: Callable[[], object], device: str, seconds: float) -> dict[str, float]:
    """The GPU's busy share of a pass that takes `seconds`, and how often the processor waited."""
    if device != "cuda":
        return {}
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as record:
        work()
        wait(device)
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in record.events()
        if event.device_type.name == "CUDA"
    ]
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = sum("synchroniz" in str(one.message) for one in said)
    return {"busy": union(spans) / 1e6 / seconds, "waits": waits}


def device_share(bench: Bench) -> dict[str, dict[str, float]]:
    """An actor's work in each precision: its rate, how busy the GPU is, and what waits."""
    found: dict[str, dict[str, float]] = {}
    for precision in _PRECISIONS:
        scorer = bench.scorer(precision)
        pairs = tokenized(scorer, bench.pairs["measured"])
        work = scoring(scorer, pairs, scorer.profile)
        name = f"rankmill, {precision}, tokenized"
        found |= bench.medians({name: (precision, work)})
        found[name] |= busy(work, bench.device, found[name]["seconds"])
    return found


def _actor(bench: Bench, barrier: Any, seconds: Any) -> None:  # noqa: ANN401 - multiprocessing's
    scorer = bench.scorer("bf16")
    work = scoring(scorer, tokenized(scorer, bench.pairs["measured"]), scorer.profile)
    work()
    for _ in range(bench.rounds):
        barrier.wait()
        seconds.put(seconds_of(work, bench.device))


def _answer(seconds: Any, workers: Sequence[Any]) -> float:  # noqa: ANN401 - multiprocessing's
    while True:
        try:
            return float(seconds.get(timeout=5))
        except queue.Empty:
            if any(worker.exitcode for worker in workers):
                for worker in workers:
                    worker.terminate()
                raise SystemExit("A process ended early; its error stands above.") from None


def actors(bench: Bench, counts: Sequence[int]) -> dict[str, dict[str, float]]:
    """bf16, tokenized: several processes on the device, each with all the pairs."""
    spawn = multiprocessing.get_context("spawn")
    found = {}
    for count in counts:
        barrier, seconds = spawn.Barrier(count), spawn.Queue()
        workers = [
            spawn.Process(target=_actor, args=(bench, barrier, seconds)) for _ in range(count)
        ]
        for worker in workers:
            worker.start()
        taken = []
        for _ in range(bench.rounds):
            taken.append(max(_answer(seconds, workers) for _ in range(count)))
        for worker in workers:
            worker.join()
        slowest = statistics.median(taken)
        found[f"{count} process(es)"] = {
            "pairs_per_second": count * bench.cost.pairs / slowest,
            "utilisation": count * bench.cost.operations / slowest / 1e9 / bench.rates["bf16"],
        }
    return found


def to_lines(title: str, lines: dict[str, dict[str, float]]) -> str:
    """A table; ratios are to its first line."""
    first = next(iter(lines.values()))["pairs_per_second"]
    text = [f"\n{title}"]
    for name, line in lines.items():
        rate = line["pairs_per_second"]
        parts = [f"{name:45s} {rate:10,.1f} pairs/s {rate / first:6.2f}x"]
        parts.append(f"utilisation {100 * line['utilisation']:5.1f} %")
        for key, form in (
            ("busy", "GPU busy {:.1%}"),
            ("waits", "waits {:.0f}"),
            ("padding", "padding {:.1%}"),
            ("halved", "halved {:.0f}"),
            ("batches_mib", "{:,.0f} MiB of batches"),
        ):
            if key in line:
                parts.append(form.format(line[key]))
        text.append("  ".join(parts))
    return "\n".join(text)


def describe_device(device: str) -> str:
    """The machine, and its GPU."""
    if device != "cuda":
        return describe_machine()
    card = torch.cuda.get_device_properties(0)
    return (
        f"{card.name}, {card.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}, "
        f"driver settings as found; {describe_machine()}"
    )


def main() -> None:
    """Measure every shape asked for, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("candidates", nargs="?")
    parser.add_argument("--shape", action="append")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--pairs", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--budgets", type=int, nargs="+", default=_BUDGETS)
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--save")
    arguments = parser.parse_args()
    device = arguments.device
    if device == "cuda" and not torch.cuda.is_available():
        build = "CUDA" if torch.version.cuda else "CPU"
        print(
            f"No GPU: torch {torch.__version__} (a {build} build) sees none. Run this on a machine "
            "with an NVIDIA GPU and torch's CUDA build; --device cpu only tries the command.",
            file=sys.stderr,
        )
        raise SystemExit(2)
    pairs = (
        read_pairs(arguments.candidates, arguments.pairs).pairs
        if arguments.candidates
        else made_up(arguments.pairs)
    )
    rates = matrix_rates(device)
    record: dict[str, Any] = {"machine": describe_device(device), "shapes": {}}
    print(record["machine"])
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.shape or (*SHAPES, "BAAI/bge-reranker-v2-m3"):
            preset = presets.find(name)
            if preset is None:
                raise SystemExit(f"{name} is not a preset; `rankmill models` lists them.")
            folder = random_models.build(name, Path(scratch))
            cost = measure_pairs(folder, preset, pairs["measured"], 512)
            bench = Bench(folder, device, pairs, cost, arguments.rounds, rates)
            tables = {
                "Texts to scores": against_peers(bench, arguments.sizes),
                "A scoring actor": device_share(bench),
                "Token budgets (bf16)": budgets(bench, arguments.budgets),
                "Processes on one device (bf16)": actors(bench, arguments.actors),
            }
            print(f"\n{name}: {cost.pairs} pairs of mean {cost.lengths.mean():.0f} tokens")
            for title, lines in tables.items():
                print(to_lines(title, lines), flush=True)
            record["shapes"][name] = tables
    after = matrix_rates(device)
    record["rates"] = {name: (rates[name], after[name]) for name in rates}
    print("\nMatrix rates before and after, G/s: ", end="")
    print(", ".join(f"{name} {b:,.0f} {a:,.0f}" for name, (b, a) in record["rates"].items()))
    if arguments.save:
        figures = _HERE / "figures"
        figures.mkdir(exist_ok=True)
        (figures / f"{arguments.save}.json").write_text(
            json.dumps(record, indent=1), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
