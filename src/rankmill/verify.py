"""Verifying a model: does it give the scores that were published with it?

What tests with random weights cannot tell (is the tokenizer the model's own, is an ambiguous
setting read as its authors meant it) published scores of the real weights can.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankmill import storage
from rankmill.config import ModelConfig
from rankmill.errors import ModelError
from rankmill.models import presets
from rankmill.models.describe import describe
from rankmill.models.locate import locate
from rankmill.models.published import Published, Source, find, published
from rankmill.scorer import Scorer


@dataclass(frozen=True)
class Comparison:
    """The published scores of one source beside those found. variant: None where there is one."""

    variant: str | None
    source: Source
    found: tuple[float, ...]

    @property
    def matches(self) -> bool:
        """Whether every score is within the source's tolerance."""
        pairs = zip(self.source.examples, self.found, strict=True)
        return all(abs(found - one.score) <= self.source.tolerance for one, found in pairs)


@dataclass(frozen=True)
class Verification:
    """What was found for a model. model: where the weights came from, its name if from the hub."""

    name: str
    model: str
    comparisons: tuple[Comparison, ...]

    @property
    def matching(self) -> tuple[str | None, ...]:
        """The variants that give all published scores of all sources; (None,) without variants."""
        wrong = {one.variant for one in self.comparisons if not one.matches}
        return tuple(
            v for v in dict.fromkeys(c.variant for c in self.comparisons) if v not in wrong
        )

    @property
    def matches(self) -> bool:
        """Whether the model, in one of its variants, gives all published scores."""
        return bool(self.matching)

    def to_json(self) -> dict[str, Any]:
        """Plain values: expected, found and difference for each example."""
        return {
            "model": self.name,
            "weights": self.model,
            "matches": self.matches,
            "matching_variants": [name for name in self.matching if name is not None],
            "examples": [
                {
                    "variant": one.variant,
                    "source": one.source.source,
                    "computed": one.source.computed,
                    "tolerance": one.source.tolerance,
                    "query": example.query,
                    "document": example.document,
                    "expected": example.score,
                    "found": found,
                    "difference": found - example.score,
                }
                for one in self.comparisons
                for example, found in zip(one.source.examples, one.found, strict=True)
            ],
        }


def verify(name: str, model: str | None = None) -> Verification:
    """Score the published examples of a model in float32 on the CPU.

    model: a folder, on disk or on an object store, or a hub id, with a copy of its weights.

    Raises `ModelError` when no scores are published here or the weights cannot be reached.
    """
    known = find(name)
    if known is None:
        raise _unknown(name)
    found = model or name
    describe(ModelConfig(name=found))  # says why, where it cannot be scored at all
    return compare(known, locate(found).path(), found)


def _unknown(name: str) -> ModelError:
    message = f"No published scores of {name} are known here."
    if storage.is_folder(name):
        return ModelError(
            message, f"Say whose they are: rankmill models verify NAME --model {name}"
        )
    near = [] if presets.find(name) else [one for one in presets.nearest(name) if find(one)]
    if near:
        return ModelError(message, f"Did you mean {near[0]}?")
    return ModelError(message, f"They are of {', '.join(one.name for one in published())}.")


def compare(known: Published, folder: Path, model: str | None = None) -> Verification:
    """Score a model's published examples with the files of a folder, in each of its variants.

    model: what the folder is called in the result.
    """
    comparisons = []
    for variant in known.variants or [None]:
        changes = {} if variant is None else known.variants[variant]
        with _changed(folder, changes) as files:
            # Truncation as in the sources, which leave it to transformers.
            scorer = Scorer(str(files), device="cpu", precision="fp32", truncation="longest_first")
            for source in known.sources:
                pairs = [(one.query, one.document) for one in source.examples]
                scores = tuple(scorer.score(pairs).tolist())
                comparisons.append(Comparison(variant, source, scores))
    return Verification(known.name, model or known.name, tuple(comparisons))


@contextmanager
def _changed(folder: Path, changes: Mapping[str, str]) -> Iterator[Path]:
    """The same files with another config.json."""
    if not changes:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="rankmill-") as other:
        for file in folder.iterdir():
            Path(other, file.name).symlink_to(file.resolve())
        config = Path(other, "config.json")
        settings = json.loads(config.read_text(encoding="utf-8"))
        config.unlink()
        config.write_text(json.dumps(settings | changes), encoding="utf-8")
        yield Path(other)
