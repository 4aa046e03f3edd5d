"""Sequence classifiers of transformers on torch, loaded whole and taken apart: body and head.

The body gives the last hidden states that the head reads, in whatever precision and by whatever
backend; the head (pooler and classifier) turns them into logits, always in float32, because a
half-precision head collapses scores into ties (75 distinct values for 96 pairs against 96).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from rankmill.config import Slopes
from rankmill.encoding import without_noise
from rankmill.errors import ModelError
from rankmill.models.attention_masks import make_ready
from rankmill.models.gte import gte_settings
from rankmill.models.jina_bert import MAX_SCORES, JinaBertClassifier, JinaBertConfig
from rankmill.models.leading import keep_first_state
from rankmill.models.weights import weight_files

Model = TypeVar("Model", bound=nn.Module)
Weights = Mapping[str, torch.Tensor]

_BLOCK_HEADS = frozenset({"xlm-roberta", "roberta", "camembert", "electra"})

# The weights whose rows are the labels.
_LAST_LAYERS = ("classifier.weight", "classifier.out_proj.weight", "score.weight")
# Where language models keep the weights that predict tokens. No classifier uses them.
_LANGUAGE_HEADS = ("cls.", "lm_head.", "decoder.", "lm_predictions.", "mask_predictions.")
_CHECK_CONFIG = "Check that config.json belongs to them."
_CHECK_ADAPTER = "An adapter brings those that were in its modules_to_save when it was trained."


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


class BlockHead(nn.Module):
    """A block that takes the first state itself: RoBERTa and its kin, ELECTRA."""

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


def load(folder: Path, traced: bool = False) -> Classifier:
    """Load a checkpoint in float32. traced: to be recorded by a converter (`openvino_convert`).

    Raises `ModelError` naming keys that are missing, unexpected or of another shape.
    """
    model = _from_folder(folder, attn_implementation="eager" if traced else None)
    model.eval()
    kind = model.config.model_type
    body: nn.Module = model.base_model
    if kind == "modernbert":
        head: nn.Module = ModernBertHead(
            model.head, model.classifier, model.config.classifier_pooling
        )
    elif kind in _BLOCK_HEADS:
        head = BlockHead(model.classifier)
    elif kind == "deberta-v2":
        head = PooledHead(model.pooler, model.classifier)
    else:
        pooler = body.get_submodule("pooler")
        body.register_module("pooler", None)
        head = PooledHead(pooler, model.classifier)
    if getattr(model.config, "classifier_pooling", "cls") == "cls":  # only ModernBERT has others
        keep_first_state(model.base_model)
    if not traced:  # a converter makes its graph of the model's own masks
        make_ready(model.base_model, kind)
    return Classifier(body, head)


def load_jina(folder: Path, slopes: Slopes, traced: bool = False) -> Classifier:
    """A JinaBERT in float32, which transformers has no class for. traced: as for `load`.

    Traced it computes all attention scores in one block: OpenVINO's loops take 1.2 times as long
    at 512 tokens, 2.7 times at 2,000. One pair of 8,192 tokens then takes 3.4 GiB of memory in
    bf16 and 6.5 in fp32 with 12 heads.

    Raises `ModelError` as `load` does.
    """
    model = _jina_from_folder(folder, slopes, None if traced else MAX_SCORES)
    model.eval()
    pooler = model.bert.get_submodule("pooler")
    model.bert.register_module("pooler", None)
    model.bert.keep_first_state()
    return Classifier(model.bert, PooledHead(pooler, model.classifier))


def _jina_from_folder(
    folder: Path,
    slopes: Slopes,
    max_scores: int | None,
    given: Weights | None = None,
) -> JinaBertClassifier:
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        config = JinaBertConfig.read(settings, folder / "config.json")
        model = JinaBertClassifier(config, slopes, max_scores)
    found: dict[str, torch.Tensor] = {}
    for file in weight_files(str(folder), folder):
        found |= load_file(file)
    places = model.state_dict()
    _refuse_stray(folder, model, given or {})
    found |= given or {}
    both = places.keys() & found.keys()
    _refuse_difference(
        folder,
        missing=sorted(places.keys() - found.keys()),
        unexpected=sorted(found.keys() - places.keys()),
        reshaped=sorted(name for name in both if places[name].shape != found[name].shape),
        remedy=_CHECK_CONFIG if given is None else _CHECK_ADAPTER,
    )
    weights = {name: found[name].float() for name in places}
    model.load_state_dict(weights, assign=True)
    return model


def check(folder: Path) -> None:
    """Compare names and shapes of the weights with the class, without loading them.

    Raises `ModelError` as `load` does, or when the head does not give one logit.
    """
    _from_folder(folder, device_map={"": "meta"})


def load_completed(folder: Path, given: Weights) -> PreTrainedModel:
    """A checkpoint in float32 with some weights from elsewhere, by their names in the class.

    They take the place of its own, and of what it lacks: the checkpoint may be that of a language
    model, without a classifier.

    Raises `ModelError` naming keys that neither has, and given ones without a place in the class.
    """
    return complete(folder, _from_folder(folder, given), given)


def load_jina_completed(folder: Path, given: Weights) -> JinaBertClassifier:
    """A JinaBERT in float32 with some weights from elsewhere, as `load_completed`. It is for its
    weights: its slopes are not chosen."""
    return _jina_from_folder(folder, "halved", MAX_SCORES, given)


def complete(folder: Path, model: Model, given: Weights) -> Model:
    """The model with weights put into their places. Raises `ModelError` where there is none."""
    _refuse_stray(folder, model, given)
    model.load_state_dict(given, strict=False)
    return model


def _refuse_stray(folder: Path, model: nn.Module, given: Weights) -> None:
    places = model.state_dict()
    stray = sorted(k for k in given if k not in places or places[k].shape != given[k].shape)
    if stray:
        raise ModelError(
            f"{type(model).__name__} of {folder} has no place for {len(stray)} weights that are "
            f"to complete it: {_some(stray)}.",
            "Check that they were trained with this base.",
        )


def save(model: nn.Module, folder: Path, source: Path) -> None:
    """Write config.json (that of `source` for a class of ours) and safetensors."""
    if not isinstance(model, PreTrainedModel):
        weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        shutil.copyfile(source / "config.json", folder / "config.json")
        return
    with without_noise():
        model.save_pretrained(folder)


def _from_folder(
    folder: Path,
    given: Weights | None = None,
    **options: Any,  # noqa: ANN401 - theirs
) -> PreTrainedModel:
    config = read_config(folder)
    if given is not None:
        rows = [len(given[name]) for name in _LAST_LAYERS if name in given]
        named = config.architectures or []
        if rows:
            config.num_labels = rows[0]
        elif not any(str(one).endswith("ForSequenceClassification") for one in named):
            config.num_labels = 1  # the classifier is then missing by name
    if config.num_labels != 1:
        raise ModelError(
            f"The model in {folder} gives {config.num_labels} values a pair; a reranker gives one.",
            "Give a checkpoint with num_labels 1.",
        )
    unused = () if given is None else _LANGUAGE_HEADS
    kind = AutoModelForSequenceClassification
    return from_folder(folder, kind, given, unused, config=config, **options)


def from_folder(
    folder: Path,
    kind: Any,  # noqa: ANN401 - theirs
    given: Weights | None = None,
    unused: tuple[str, ...] = (),
    **options: Any,  # noqa: ANN401 - theirs
) -> PreTrainedModel:
    """A checkpoint in one of transformers' auto classes, in float32 unless `options` say otherwise.

    given: weights that come from elsewhere, which it may lack. unused: how names begin of weights
    that the class has no use for, and that the checkpoint may have all the same.

    Raises `ModelError` naming keys that are missing, unexpected or of another shape.
    """
    options = {"dtype": torch.float32} | options
    try:
        with without_noise():
            model, info = kind.from_pretrained(
                str(folder),
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
        missing=sorted(set(info["missing_keys"]) - set(given or ())),
        unexpected=sorted(
            key
            for key in info["unexpected_keys"]
            if not key.endswith("position_ids") and not key.startswith(unused)
        ),
        reshaped=sorted({str(key[0]) for key in info["mismatched_keys"]} - set(given or ())),
        remedy=_CHECK_CONFIG if given is None else _CHECK_ADAPTER,
    )
    loaded: PreTrainedModel = model
    return loaded


def _refuse_difference(
    folder: Path, missing: list[str], unexpected: list[str], reshaped: list[str], remedy: str
) -> None:
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
    lines = [f"{len(keys)} {kind}: {_some(keys)}" for kind, keys in kinds if keys]
    if lines:
        remedy = f"Missing weights would be random numbers. {remedy}"
        raise ModelError(
            f"The weights in {folder} do not match the class that its config names: "
            f"{'; '.join(lines)}.",
            remedy,
        )


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:4]) + (", …" if len(keys) > 4 else "")


def read_config(folder: Path) -> Any:  # noqa: ANN401 - transformers' configs share no typed base
    """config.json as transformers understands it. Raises `ModelError` for an impossible one."""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    try:
        if settings["model_type"] == "new":
            return AutoConfig.for_model("gte", **gte_settings(str(folder), settings))
        return AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except ModelError:
        raise
    except Exception as error:  # each class checks its config in its own way
        raise _unusable(folder, error) from error


def _unusable(folder: Path, error: Exception) -> ModelError:
    return ModelError(
        f"The model in {folder} cannot be built from its config.json and weights: "
        f"{type(error).__name__}: {' '.join(str(error).split())}.",
        "Give a folder written by save_pretrained.",
    )
