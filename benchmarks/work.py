"""What scoring pairs costs: tokens and operations; and a measured way beside it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt

from rankmill.batches import make_batches
from rankmill.models.presets import Preset
from rankmill.tokenizer import PairTokenizer
from rankmill.tokens import PairRules
from rankmill.windows import cut

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_GATED = {"modernbert", "gte", "jina-bert"}
# ModernBERT: of three layers, one sees everything, two a window of 128.
_LOCAL_WINDOW, _GLOBAL_EVERY = 128, 3


@dataclass(frozen=True)
class Cost:
    """The work of some pairs: operations of the whole model on real tokens (no padding).

    lengths: tokens a pair.
    """

    lengths: npt.NDArray[np.int32]
    operations: float
    tokenizing_seconds: float

    @property
    def pairs(self) -> int:
        """How many."""
        return len(self.lengths)

    def padding(self, token_budget: int) -> float:
        """Share of the tokens that is padding in rankmill's batches."""
        batches = make_batches(self.lengths, token_budget)
        given = sum(len(batch) * int(self.lengths[batch].max()) for batch in batches)
        return 1 - int(self.lengths.sum()) / given


@dataclass(frozen=True)
class Measured:
    """A way's medians over the same pairs. padding: share of the tokens."""

    name: str
    precision: str
    seconds: float
    processor_seconds: float
    peak_mib: float
    batch: int
    padding: float
    cost: Cost

    @property
    def rate(self) -> float:
        """Pairs a second."""
        return self.cost.pairs / self.seconds

    def utilisation(self, rates: dict[str, float]) -> float:
        """Share of the machine's matrix rate at this precision that useful operations took."""
        rate = rates.get(self.precision, rates["bf16"])
        return self.cost.operations / self.seconds / 1e9 / rate

    def to_json(self, first: Measured, rates: dict[str, float]) -> dict[str, Any]:
        """The line as plain values."""
        return {
            "way": self.name,
            "precision": self.precision,
            "pairs_per_second": round(self.rate, 1),
            "against_first": round(self.rate / first.rate, 2),
            "utilisation": round(self.utilisation(rates), 3),
            "core_seconds_per_million_pairs": round(self.processor_seconds / self.cost.pairs * 1e6),
            "tokenizing_share": round(self.cost.tokenizing_seconds / self.seconds, 4),
            "padding": round(self.padding, 4),
            "peak_mib": round(self.peak_mib),
            "batch": self.batch,
        }

    def to_line(self, first: Measured, rates: dict[str, float]) -> str:
        """The line as text."""
        v = self.to_json(first, rates)
        return (
            f"{self.name:50} {self.rate:8.1f} pairs/s {v['against_first']:6.2f}x "
            f"{100 * v['utilisation']:5.1f} % of {self.precision:4} "
            f"{v['core_seconds_per_million_pairs']:8,d} core-s/M pairs "
            f"tokenizing {100 * v['tokenizing_share']:4.1f} % padding {100 * self.padding:4.1f} % "
            f"{v['peak_mib']:6,d} MiB  batch {self.batch}"
        )


def operations(preset: Preset, lengths: np.ndarray) -> float:
    """Floating-point operations of a preset's encoder over inputs of these lengths (tokens).

    Two a weight and token for the matrices; 4 x hidden x (keys seen) a token for attention.
    """
    hidden, inner = preset.hidden, preset.intermediate
    matrices = 4 * hidden * hidden + (3 if preset.architecture in _GATED else 2) * hidden * inner
    total = 2.0 * matrices * preset.layers * lengths.sum()
    for layer in range(preset.layers):
        local = preset.architecture == "modernbert" and layer % _GLOBAL_EVERY != 0
        seen = np.minimum(lengths, _LOCAL_WINDOW) if local else lengths
        total += float((4.0 * hidden * lengths * seen).sum())
    return float(total)


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
    return Cost(lengths, operations(preset, lengths.astype(np.int64)), seconds)


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
