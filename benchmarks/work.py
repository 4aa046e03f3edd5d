"""What scoring pairs costs: tokens and operations; and a measured way beside it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt

from rankmill.batches import make_batches, pad_widths
from rankmill.models.presets import Preset
from rankmill.tokenizer import PairTokenizer
from rankmill.tokens import PairRules
from rankmill.windows import cut

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_GATED = {"modernbert", "gte", "jina-bert"}
# Whose layers rankmill has compute only the states that lead to the first one.
_LEADING = {"bert", "xlm-roberta", "modernbert", "gte", "jina-bert"}
# ModernBERT: of three layers, one sees everything, two a window of 128.
_LOCAL_WINDOW, _GLOBAL_EVERY = 128, 3


@dataclass(frozen=True)
class Cost:
    """The work of some pairs on real tokens (no padding).

    lengths: tokens a pair. operations: of the whole model; read: of them those that lead to a state
    that the head reads, which are all that rankmill does.
    """

    lengths: npt.NDArray[np.int32]
    operations: float
    read: float
    tokenizing_seconds: float

    @property
    def pairs(self) -> int:
        """How many."""
        return len(self.lengths)

    def padding(self, token_budget: int, multiple: int, longest: int) -> float:
        """Share of the tokens that is padding in rankmill's batches. longest: an input's tokens."""
        widths = pad_widths(self.lengths, multiple, longest)
        batches = make_batches(widths, token_budget)
        given = sum(len(batch) * int(widths[batch].max()) for batch in batches)
        return 1 - int(self.lengths.sum()) / given


@dataclass(frozen=True)
class Measured:
    """A way's medians over the same pairs.

    padding: share of the tokens; tokenizing: seconds; None where nobody looked. leaves_out: it does
    not compute states that nothing reads.
    """

    name: str
    precision: str
    seconds: float
    processor_seconds: float
    peak_mib: float
    batch: int | None
    padding: float | None
    tokenizing: float | None
    leaves_out: bool
    cost: Cost

    @property
    def rate(self) -> float:
        """Pairs a second."""
        return self.cost.pairs / self.seconds

    def utilisation(self, rates: dict[str, float]) -> float:
        """Share of the machine's matrix rate at this precision by the whole model's operations.

        What a way leaves out because nothing reads it counts as done.
        """
        return self.cost.operations / self._most(rates)

    def executed(self, rates: dict[str, float]) -> float:
        """The same by the operations that the way does, padding aside."""
        done = self.cost.read if self.leaves_out else self.cost.operations
        return done / self._most(rates)

    def _most(self, rates: dict[str, float]) -> float:
        return self.seconds * 1e9 * rates.get(self.precision, rates["bf16"])

    def to_json(self, first: Measured, rates: dict[str, float]) -> dict[str, Any]:
        """The line as plain values."""
        return {
            "way": self.name,
            "precision": self.precision,
            "pairs_per_second": round(self.rate, 1),
            "against_first": round(self.rate / first.rate, 2),
            "utilisation": round(self.utilisation(rates), 3),
            "executed": round(self.executed(rates), 3),
            "core_seconds_per_million_pairs": round(self.processor_seconds / self.cost.pairs * 1e6),
            "tokenizing_share": _share(self.tokenizing, self.seconds),
            "padding": _share(self.padding, 1),
            "peak_mib": round(self.peak_mib),
            "batch": self.batch,
        }

    def to_cells(self, first: Measured, rates: dict[str, float]) -> list[str]:
        """The line as text, a cell a name of `COLUMNS`."""
        v = self.to_json(first, rates)
        return [
            self.name,
            f"{self.rate:,.1f}",
            f"{v['against_first']:.2f}",
            f"{100 * v['utilisation']:.0f} % of {self.precision}",
            f"{100 * v['executed']:.0f} %",
            _percent(v["padding"]),
            _percent(v["tokenizing_share"]),
            f"{v['core_seconds_per_million_pairs']:,d}",
            f"{v['peak_mib']:,d}",
            str(self.batch or ""),
        ]


COLUMNS = (
    "way", "pairs/s", "times the first", "share of the matrix rate", "by what it does", "padding",
    "tokenizing", "core-s a million pairs", "memory, MiB", "batch",
)  # fmt: skip


def to_markdown(lines: list[Measured], rates: dict[str, float]) -> str:
    """A table of all ways over the same pairs."""
    rows = [list(COLUMNS), ["---"] * len(COLUMNS)]
    rows += [line.to_cells(lines[0], rates) for line in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _share(part: float | None, whole: float) -> float | None:
    return None if part is None else round(part / whole, 4)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def operations(preset: Preset, lengths: npt.NDArray[np.int64], only_read: bool = False) -> float:
    """Floating-point operations of a preset's encoder over inputs of these lengths (tokens).

    Two a weight and token for the matrices; 4 x hidden x (keys seen) a token for attention.
    only_read: of states that lead to the first one, without those of no reader.
    """
    hidden, inner = preset.hidden, preset.intermediate
    block = (3 if preset.architecture in _GATED else 2) * hidden * inner
    total = 0.0
    for given, seen, keys in _states(preset, lengths, only_read):
        # Keys and values of the states seen; queries, projection and block of those given.
        total += float((2.0 * seen * 2 * hidden * hidden).sum())
        total += float((2.0 * given * (2 * hidden * hidden + block)).sum())
        total += float((4.0 * hidden * given * keys).sum())
    return total


def _states(
    preset: Preset, lengths: npt.NDArray[np.int64], only_read: bool
) -> Iterator[tuple[npt.NDArray[np.int64], ...]]:
    """Of each layer, last first: states given, states seen, and keys that each of them attends."""
    given = np.ones_like(lengths) if only_read else lengths
    for layer in reversed(range(preset.layers)):
        local = preset.architecture == "modernbert" and layer % _GLOBAL_EVERY != 0
        seen = np.minimum(lengths, given + _LOCAL_WINDOW // 2) if local else lengths
        yield given, seen, np.minimum(seen, _LOCAL_WINDOW) if local else seen
        given = seen


def _first_is_read(model: Path, preset: Preset) -> bool:
    """Whether the head reads the first state alone, and rankmill leaves out what it does not need.

    `classifier_pooling` is ModernBERT's; all others read the first.
    """
    settings = json.loads((model / "config.json").read_text(encoding="utf-8"))
    return preset.architecture in _LEADING and settings.get("classifier_pooling", "cls") == "cls"


def measure_pairs(
    model: Path, preset: Preset, pairs: list[tuple[str, str]], max_length: int
) -> Cost:
    """Tokenize the pairs as rankmill does, with its clock running."""
    tokenizer = PairTokenizer.load(model, PairRules(max_length, "document"))
    started = time.perf_counter()
    texts: dict[str, int] = {}
    number = np.array([[texts.setdefault(t, len(texts)) for t in pair] for pair in pairs], np.int32)
    tokenized = tokenizer.tokenize(list(texts), number[:, 0], number[:, 1])
    seconds = time.perf_counter() - started
    lengths = cut(tokenized, tokenizer.rules).lengths
    counted = lengths.astype(np.int64)
    read = operations(preset, counted, only_read=_first_is_read(model, preset))
    return Cost(lengths, operations(preset, counted), read, seconds)


def plot(record: dict[str, Any], path: Path) -> None:
    """Bars of pairs/s, a panel a shape; rankmill's own ways stand out."""
    shapes = record["shapes"]
    figure, panels = plt.subplots(
        1, len(shapes), figsize=(7 * len(shapes), 5), squeeze=False, layout="constrained"
    )
    for panel, (name, shape) in zip(panels[0], shapes.items(), strict=True):
        lines = shape["ways"][::-1]
        rates = [line["pairs_per_second"] for line in lines]
        colours = ["#2b6cb0" if "rankmill" in line["way"] else "#a0aec0" for line in lines]
        bars = panel.barh([line["way"] for line in lines], rates, color=colours)
        panel.bar_label(
            bars,
            [f"{r:,.0f}  ({line['against_first']:.1f}x)" for r, line in zip(rates, lines)],
            padding=4,
        )
        panel.set_title(name)
        panel.set_xlabel("pairs/s")
        panel.margins(x=0.4)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(record["machine"], fontsize=9)
    figure.savefig(path, dpi=110)
