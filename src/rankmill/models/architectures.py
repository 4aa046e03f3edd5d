"""The architectures that rankmill scores, as data, and how a config.json names its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankmill.errors import ModelError

# What lengths and the amount of work are computed from.
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings")


@dataclass(frozen=True)
class Architecture:
    """What is known of an architecture before any weight is read.

    feed_forward: matrices of hidden x intermediate a layer (two; three where the block is gated).
    vocabulary: the file of its own tokenizer, for folders without tokenizer.json.
    unused_positions: places of the position table that no token ever takes.
    openvino: its body and head were converted and compared with torch's, by the tests.
    """

    name: str
    feed_forward: int
    vocabulary: str | None = None
    unused_positions: int = 0
    openvino: bool = False

    def operations_per_token(self, settings: dict[str, Any]) -> float:
        """Two operations a weight: four attention matrices and the feed-forward block's."""
        hidden, inner = settings["hidden_size"], settings["intermediate_size"]
        weights = 4 * hidden * hidden + self.feed_forward * hidden * inner
        return 2.0 * settings["num_hidden_layers"] * weights


ARCHITECTURES = {
    one.name: one
    for one in (
        Architecture("bert", 2, "vocab.txt", openvino=True),
        # fairseq's layout: positions are counted from the padding index + 1.
        Architecture(
            "xlm-roberta", 2, "sentencepiece.bpe.model", unused_positions=2, openvino=True
        ),
        Architecture("deberta-v2", 2, "spm.model", openvino=True),
        Architecture("modernbert", 3, openvino=True),
    )
}


def architecture_of(name: str, settings: dict[str, Any]) -> Architecture:
    """The architecture that a config.json names.

    Raises `ModelError` when it asks for code of its repository, is not supported, or is no
    sequence classifier.
    """
    if settings.get("auto_map"):
        raise ModelError(
            f"The config of {name} asks for code from its repository (auto_map).",
            "rankmill never runs it. Use a checkpoint of a class that transformers has.",
        )
    kind = str(settings.get("model_type"))
    if settings.get("position_embedding_type") == "alibi":
        kind = "jina-bert (ALiBi)"
    if kind not in ARCHITECTURES:
        raise ModelError(
            f"The model {name} is of the architecture {kind}, not supported in this version.",
            f"Supported: {', '.join(ARCHITECTURES)}.",
        )
    classes = settings.get("architectures") or []
    if classes and not any(str(c).endswith("ForSequenceClassification") for c in classes):
        raise ModelError(
            f"The model {name} is a {classes[0]}, not a sequence classifier: it has no scoring "
            "head.",
            "Give a cross-encoder (…ForSequenceClassification with one label).",
        )
    return ARCHITECTURES[kind]


def refuse_broken(config_file: Path, settings: dict[str, Any]) -> None:
    """Raise `ModelError` when a size that rankmill computes with is no whole number above 0."""
    for key in _SIZES:
        value = settings.get(key)
        if type(value) is not int or value < 1:
            raise ModelError(
                f"{config_file}: {key} must be a whole number above 0, found {value!r}.",
                "Give a folder written by save_pretrained.",
            )
