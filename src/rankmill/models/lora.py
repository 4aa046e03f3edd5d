"""Merging a LoRA adapter into its base with peft."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, cast

from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

from rankmill.errors import ModelError
from rankmill.models import causal_lm, classifiers
from rankmill.models.adapter import CONFIG, WEIGHTS
from rankmill.models.architectures import architecture_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rankmill.models.jina_bert import JinaBertClassifier

# How peft names what it stores: `base_model.model.` and the module's own name in the classifier.
_PREFIX = "base_model.model."
_LORA = "lora_"
# With `bias="all"` names hold the wrappers that peft puts around a module, the same weight comes
# twice, and a module that was saved whole comes with the one that it replaced.
_WRAPPER = re.compile(r"\.(base_layer|modules_to_save)\.")
_REPLACED = ".original_module."
# Settings of LoraConfig that say which matrices there are and how they are added; and those that
# only say how the adapter came about.
_MATRICES = frozenset(
    {"task_type", "r", "target_modules", "exclude_modules", "lora_alpha", "fan_in_fan_out", "bias"}
    | {"use_rslora", "modules_to_save", "init_lora_weights", "layers_to_transform", "use_dora"}
    | {"layers_pattern", "rank_pattern", "alpha_pattern", "lora_bias", "layer_replication"}
    | {"trainable_token_indices", "target_parameters"}
    # What these two asked of the first values is in the adapter; peft checks that it is said.
    | {"loftq_config", "eva_config"}
)
_OF_TRAINING = frozenset(
    {"peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision"}
    | {"inference_mode", "lora_dropout", "megatron_core"}
    | {"corda_config", "lora_ga_config", "runtime_config"}
)


def merge(base: Path, adapter: Path, target: Path) -> None:
    """Write the merged model to a folder: float32 safetensors and config.json.

    float32 whatever the base is stored in, so that merging rounds nothing. An adapter may bring
    whole modules (`modules_to_save`, most often a new head): they complete the base, or replace
    what it has.

    Raises `ModelError` naming the weights that neither the base nor the adapter has, that have no
    place in the model, or that its config ties to others.
    """
    try:
        stored = load_file(adapter / WEIGHTS)
        config = _config(adapter)
    except ModelError:
        raise
    except Exception as error:  # safetensors and peft check their files each in their way
        raise _unusable(adapter, error) from error
    low_rank = {key: weight for key, weight in stored.items() if _LORA in key}
    model = _load_base(base, adapter, stored, config.task_type)
    # The whole modules are in their places; by itself peft would wrap the head once more.
    config.task_type = config.modules_to_save = None
    config.base_model_name_or_path, config.inference_mode = str(base), True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are for those who train
            # Its type says PreTrainedModel; any module will do.
            adapted = PeftModel(cast("PreTrainedModel", model), config)
            expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
            _refuse_difference(adapter, {key for key in expected if _LORA in key}, set(low_rank))
            set_peft_model_state_dict(adapted, low_rank)
            merged = adapted.merge_and_unload(safe_merge=True)
    except ModelError:
        raise
    except Exception as error:
        raise _unusable(adapter, error) from error
    classifiers.save(merged, target, base)


def _config(adapter: Path) -> LoraConfig:
    """What adapter_config.json says of the matrices, and nothing else that it may say.

    Raises `ModelError` for a setting that asks for more: peft would import a module for one.
    """
    stored = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    usual = LoraConfig()
    others = [
        name
        for name, value in stored.items()
        if name not in _MATRICES | _OF_TRAINING and value and value != getattr(usual, name, None)
    ]
    if others:
        raise ModelError(
            f"The adapter in {adapter} sets {', '.join(sorted(others))} in {CONFIG}, which this "
            "version does not merge.",
            "Merge it with peft (merge_and_unload, save_pretrained) and give the merged model.",
        )
    return LoraConfig(**{name: value for name, value in stored.items() if name in _MATRICES})


def _load_base(
    base: Path, adapter: Path, stored: classifiers.Weights, task: str | None
) -> PreTrainedModel | JinaBertClassifier:
    """The base in the class that scores it, with the adapter's whole modules in their places."""
    whole = {
        _WRAPPER.sub(".", key.removeprefix(_PREFIX)): weight
        for key, weight in stored.items()
        if _LORA not in key and _REPLACED not in key
    }
    settings = json.loads((base / "config.json").read_text(encoding="utf-8"))
    kind = architecture_of(str(base), settings | {"architectures": None})
    if kind.name == "jina-bert":
        return classifiers.load_jina_completed(base, whole)
    if kind.task != "ForCausalLM":
        return classifiers.load_completed(base, whole)
    if task == "SEQ_CLS":
        raise ModelError(
            f"The adapter in {adapter} makes a classifier (SEQ_CLS) of a causal language model, "
            "which this version scores by the tokens that it answers with.",
            "Train it with the task type CAUSAL_LM, or give an adapter of a cross-encoder.",
        )
    return causal_lm.load_completed(base, whole, changed=stored)


def _refuse_difference(adapter: Path, expected: set[str], found: set[str]) -> None:
    """peft would leave a missing matrix zero or random, and pass over one too many."""
    missing, unexpected = sorted(expected - found), sorted(found - expected)
    if missing or unexpected:
        kind, keys = ("missing", missing) if missing else ("unexpected", unexpected)
        raise ModelError(
            f"The weights in {adapter} are not those that its adapter_config.json names: "
            f"{len(keys)} {kind}: {', '.join(keys[:4])}{', …' if len(keys) > 4 else ''}.",
            "Check that adapter_config.json and the base belong to them.",
        )


def _unusable(adapter: Path, error: Exception) -> ModelError:
    return ModelError(
        f"The adapter in {adapter} cannot be merged into its base: "
        f"{type(error).__name__}: {' '.join(str(error).split())}.",
        "Give a folder written by peft's save_pretrained, with the base that it was trained on.",
    )
