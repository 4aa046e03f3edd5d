"""Sequence classifiers of transformers on torch, loaded whole and taken apart: body and head.

The body gives the last hidden states that the head reads, in whatever precision and by whatever
backend; the head (pooler and classifier) turns them into logits, always in float32, because a
half-precision head collapses scores into ties (75 distinct values for 96 pairs against 96).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging

from rankmill.errors import ModelError
from rankmill.models.leading import keep_first_state


@dataclass(frozen=True)
class Classifier:
    """A cross-encoder in float32.

    body: called with input_ids and, where there are any, token_type_ids and attention_mask
    (int64 [batch, length]); gives an output with last_hidden_state [batch, length, hidden], or
    [batch, 1, hidden] where the head reads no other than the first.
    head: (states float32, mask or None) -> logits float32 [batch].
    """

    body: nn.Module
    head: nn.Module


class PooledHead(nn.Module):
    """Pooler over the states, then a linear layer: BERT, GTE and DeBERTa-v2."""

    def __init__(self, pooler: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.pooler = pooler
        self.classifier = classifier

    def forward(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Logits float32 [batch]."""
        logits: torch.Tensor = self.classifier(self.pooler(states))
        return logits.squeeze(-1)


class RobertaHead(nn.Module):
    """A block that takes the first state itself: XLM-R."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Logits float32 [batch]."""
        logits: torch.Tensor = self.classifier(states)
        return logits.squeeze(-1)


class ModernBertHead(nn.Module):
    """The first state or the mean over the mask, a prediction block, a linear layer."""

    def __init__(self, block: nn.Module, classifier: nn.Module, pooling: str) -> None:
        super().__init__()
        self.block = block
        self.classifier = classifier
        self.pooling = pooling

    def forward(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Logits float32 [batch]."""
        if self.pooling == "cls":
            pooled = states[:, 0]
        elif mask is None:
            pooled = states.mean(dim=1)
        else:
            seen = mask.unsqueeze(-1).to(states.dtype)
            pooled = (states * seen).sum(dim=1) / seen.sum(dim=1)
        logits: torch.Tensor = self.classifier(self.block(pooled))
        return logits.squeeze(-1)


def load(folder: Path, attention: Literal["sdpa", "eager"] | None = None) -> Classifier:
    """Load a checkpoint in float32. attention: transformers' implementation; None is its choice.

    Raises `ModelError` naming keys that are missing, unexpected or of another shape.
    """
    model = _from_folder(folder, attn_implementation=attention)
    model.eval()
    kind = model.config.model_type
    body: nn.Module = model.base_model
    if kind == "modernbert":
        head: nn.Module = ModernBertHead(
            model.head, model.classifier, model.config.classifier_pooling
        )
    elif kind == "xlm-roberta":
        head = RobertaHead(model.classifier)
    elif kind == "deberta-v2":
        head = PooledHead(model.pooler, model.classifier)
    else:
        pooler = body.get_submodule("pooler")
        body.register_module("pooler", None)
        head = PooledHead(pooler, model.classifier)
    if getattr(model.config, "classifier_pooling", "cls") == "cls":  # only ModernBERT has others
        keep_first_state(model.base_model)
    return Classifier(body, head)


def check(folder: Path) -> None:
    """Compare names and shapes of the weights with the class, without loading them.

    Raises `ModelError` as `load` does, or when the head does not give one logit.
    """
    _from_folder(folder, device_map={"": "meta"})


def _from_folder(folder: Path, **options: Any) -> PreTrainedModel:  # noqa: ANN401 - theirs
    config = _config(folder)
    try:
        with without_noise():
            model, info = AutoModelForSequenceClassification.from_pretrained(
                str(folder),
                config=config,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                **options,
            )
    except Exception as error:  # each class checks its config, and safetensors its file, its way
        raise _unusable(folder, error) from error
    _refuse_difference(
        folder,
        missing=sorted(info["missing_keys"]),
        unexpected=sorted(k for k in info["unexpected_keys"] if not k.endswith("position_ids")),
        reshaped=sorted(str(key[0]) for key in info["mismatched_keys"]),
    )
    loaded: PreTrainedModel = model
    return loaded


def _refuse_difference(
    folder: Path, missing: list[str], unexpected: list[str], reshaped: list[str]
) -> None:
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
    lines = [
        f"{len(keys)} {kind}: {', '.join(keys[:4])}{', …' if len(keys) > 4 else ''}"
        for kind, keys in kinds
        if keys
    ]
    if lines:
        raise ModelError(
            f"The weights in {folder} do not match the class that its config names: "
            f"{'; '.join(lines)}.",
            "Missing weights would be random numbers. Check that config.json belongs to them.",
        )


def _config(folder: Path) -> Any:  # noqa: ANN401 - transformers' configs share no typed base
    try:
        config = AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # each class checks its config in its own way
        raise _unusable(folder, error) from error
    if config.num_labels != 1:
        raise ModelError(
            f"The model in {folder} gives {config.num_labels} values a pair; a reranker gives one.",
            "Give a checkpoint with num_labels 1.",
        )
    return config


def _unusable(folder: Path, error: Exception) -> ModelError:
    return ModelError(
        f"The model in {folder} cannot be built from its config.json and weights: "
        f"{type(error).__name__}: {' '.join(str(error).split())}.",
        "Give a folder written by save_pretrained.",
    )


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
    """transformers draws and reports on stderr; callers keep their own setting of it."""
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
