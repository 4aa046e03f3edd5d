"""The architectures that rankmill scores, as data, and how a config.json names its own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rankmill.errors import ModelError

# How a weight of every JinaBERT's layers ends, whatever its config.json says.
JINA_BERT_KEY = ".mlp.gated_layers.weight"
# What lengths and the amount of work are computed from.
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings")
# Sizes of attention that a config may leave to others: heads that share keys, and their width.
_GROUPED = ("num_attention_heads", "num_key_value_heads", "head_dim")

Task = Literal["ForSequenceClassification", "ForCausalLM"]
_WANTED: dict[Task, tuple[str, str]] = {
    "ForSequenceClassification": (
        "a sequence classifier: it has no scoring head",
        "Give a cross-encoder (…ForSequenceClassification with one label).",
    ),
    "ForCausalLM": (
        "a causal language model: it has no tokens to answer with",
        "Give a reranker of the kind …ForCausalLM.",
    ),
}
# What such a model read when it was trained, none of its files say.
_DECODER_CLASSIFIER = (
    "a causal language model that answers with a token: its head is a classifier on the last token",
    "This version scores such a model only as …ForCausalLM: give the checkpoint that this one was "
    "converted from, if there is one.",
)


@dataclass(frozen=True)
class Architecture:
    """What is known of an architecture before any weight is read.

    feed_forward: matrices of hidden x intermediate a layer (two; three where the block is gated).
    after_padding: positions are counted from the padding id + 1, fairseq's way, so that the
        places of the table before it are never taken.
    task: how the class of a checkpoint that can score ends.
    openvino: its body and head were converted and compared with torch's, by the tests.
    """

    name: str
    feed_forward: int
    after_padding: bool = False
    task: Task = "ForSequenceClassification"
    openvino: bool = False

    def max_length(self, settings: dict[str, Any]) -> int:
        """The longest pair that the model has positions for, in tokens."""
        positions = int(settings["max_position_embeddings"])
        if not self.after_padding:
            return positions
        return positions - 1 - int(settings.get("pad_token_id", 1))

    def operations_per_token(self, settings: dict[str, Any]) -> float:
        """Two operations a weight: four attention matrices and the feed-forward block's.

        Heads may share keys and values and have a width of their own. A causal model's vocabulary
        costs nothing: one or two of its rows, once a pair.
        """
        hidden, inner = settings["hidden_size"], settings["intermediate_size"]
        heads = settings.get("num_attention_heads") or 1
        shared = settings.get("num_key_value_heads") or heads
        width = settings.get("head_dim") or hidden // heads
        weights = 2 * hidden * width * (heads + shared) + self.feed_forward * hidden * inner
        return 2.0 * settings["num_hidden_layers"] * weights


ARCHITECTURES = {
    one.name: one
    for one in (
        Architecture("bert", 2, openvino=True),
        Architecture("electra", 2, openvino=True),
        Architecture("roberta", 2, after_padding=True, openvino=True),
        Architecture("camembert", 2, after_padding=True, openvino=True),
        Architecture("xlm-roberta", 2, after_padding=True, openvino=True),
        Architecture("deberta-v2", 2, openvino=True),
        Architecture("modernbert", 3, openvino=True),
        Architecture("gte", 3, openvino=True),
        Architecture("jina-bert", 3, openvino=True),
        Architecture("qwen2", 3, task="ForCausalLM"),
        Architecture("qwen3", 3, task="ForCausalLM"),
        Architecture("llama", 3, task="ForCausalLM"),
    )
}

# Model types that are published with code of their own, which is not run: the architecture that
# computes the same.
_WITHOUT_THEIR_CODE = {"new": "gte"}


def architecture_of(name: str, settings: dict[str, Any]) -> Architecture:
    """The architecture that a config.json names.

    Raises `ModelError` when it needs code of its repository, is not supported, or is neither a
    sequence classifier nor a causal language model, as its kind must be.
    """
    kind = str(settings.get("model_type"))
    # JinaBERT calls itself bert.
    if settings.get("position_embedding_type") == "alibi":
        kind = "jina-bert"
    if settings.get("auto_map") and kind not in (*_WITHOUT_THEIR_CODE, "jina-bert"):
        raise ModelError(
            f"The config of {name} asks for code from its repository (auto_map).",
            "rankmill never runs it. Use a checkpoint of a class that transformers has.",
        )
    kind = _WITHOUT_THEIR_CODE.get(kind, kind)
    if kind not in ARCHITECTURES:
        raise ModelError(
            f"The model {name} is of the architecture {kind}, not supported in this version.",
            f"Supported: {', '.join(ARCHITECTURES)}.",
        )
    found, classes = ARCHITECTURES[kind], _classes(name, settings)
    if classes and not any(one.endswith(found.task) for one in classes):
        wanted, remedy = _WANTED[found.task]
        if found.task == "ForCausalLM" and classes[0].endswith("ForSequenceClassification"):
            wanted, remedy = _DECODER_CLASSIFIER
        raise ModelError(f"The model {name} is a {classes[0]}, not {wanted}.", remedy)
    return found


def _classes(name: str, settings: dict[str, Any]) -> list[str]:
    """The classes that a config.json names, which need not name any."""
    classes = settings.get("architectures") or []
    if not isinstance(classes, list) or not all(isinstance(one, str) for one in classes):
        raise ModelError(
            f"The config.json of {name} has architectures {classes!r}, which is no list of names.",
            f"Write it as a list: {json.dumps([classes])}."
            if isinstance(classes, str)
            else "Give a folder written by save_pretrained.",
        )
    return classes


def refuse_broken(config_file: Path, settings: dict[str, Any], found: Architecture) -> None:
    """Raise `ModelError` when a number that rankmill computes with is none."""
    pad = settings.get("pad_token_id", 1)
    if found.after_padding and (type(pad) is not int or pad < 0):
        raise ModelError(
            f"{config_file}: pad_token_id must be a whole number, found {pad!r}: positions are "
            "counted from it.",
            "Give a folder written by save_pretrained.",
        )
    needed = (*_SIZES, *(key for key in _GROUPED if settings.get(key) is not None))
    for key in needed:
        value = settings.get(key)
        if type(value) is not int or value < 1:
            raise ModelError(
                f"{config_file}: {key} must be a whole number above 0, found {value!r}.",
                "Give a folder written by save_pretrained.",
            )
