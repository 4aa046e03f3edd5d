"""Sequence classifiers of transformers on torch: BERT, XLM-R, ModernBERT, DeBERTa-v2.

The body runs in the profile's precision; pooler and classifier always in float32, because a
half-precision head collapses scores into ties (75 distinct values for 96 pairs against 96).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging

from rankmill.errors import ModelError
from rankmill.profile import Profile
from rankmill.tokens import TokenBatch

_NO_CPU_MEMORY = "can't allocate memory"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchEncoder:
    """A loaded cross-encoder."""

    def __init__(self, folder: Path, profile: Profile) -> None:
        if profile.device == "cpu":
            torch.set_num_threads(profile.threads)
        self._device = torch.device(profile.device)
        model = _load(folder)
        _split_precision(model, _DTYPES[profile.precision])
        self._model = model.to(self._device).eval()

    @torch.inference_mode()
    def score(self, batch: TokenBatch) -> npt.NDArray[np.float32]:
        """Raw logits, float32 [batch]. Raises `MemoryError` when the batch does not fit."""
        inputs = {"input_ids": self._put(batch.input_ids)}
        if batch.segment_ids is not None:
            inputs["token_type_ids"] = self._put(batch.segment_ids)
        if batch.mask is not None:
            inputs["attention_mask"] = self._put(batch.mask)
        try:
            logits: torch.Tensor = self._model(**inputs).logits
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or _NO_CPU_MEMORY in str(error):
                raise MemoryError(f"a batch of {batch.input_ids.shape} does not fit") from error
            raise
        scores: npt.NDArray[np.float32] = logits.float().squeeze(-1).cpu().numpy()
        return scores

    def _put(self, array: npt.NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)


def check_keys(folder: Path, files: Sequence[Path]) -> None:
    """Compare names and shapes of the weights in `files` with the class, without loading them.

    Raises `ModelError` naming keys that are missing, unexpected or of another shape, or when the
    head does not give one logit.
    """
    config = _config(folder)
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config)
    except Exception as error:  # each class checks its config in its own way
        raise _unusable(folder, error) from error
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    # Tied or rebuilt tensors (position ids) are not stored by newer versions.
    optional = {n for n in wanted if n.endswith("position_ids")}
    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(str(file), framework="numpy") as weights:
                for name in weights.keys():  # noqa: SIM118 - not a dict
                    found[name] = tuple(weights.get_slice(name).get_shape())
        except Exception as error:  # noqa: BLE001 - safetensors raises its own untyped error
            raise ModelError(f"{file} is not a readable safetensors file: {error}.") from None
    _refuse_difference(
        folder,
        missing=sorted(wanted.keys() - found.keys() - optional),
        unexpected=sorted(
            n for n in found.keys() - wanted.keys() if not n.endswith("position_ids")
        ),
        reshaped=sorted(n for n in wanted.keys() & found.keys() if wanted[n] != found[n]),
    )


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
        f"{folder / 'config.json'} does not describe a model that can be built: "
        f"{type(error).__name__}: {' '.join(str(error).split())}.",
        "Give a folder written by save_pretrained.",
    )


@contextlib.contextmanager
def _without_progress_bar() -> Iterator[None]:
    """transformers draws on stderr; callers keep their own setting of it."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _load(folder: Path) -> PreTrainedModel:
    config = _config(folder)
    with _without_progress_bar():
        model, info = AutoModelForSequenceClassification.from_pretrained(
            str(folder),
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    _refuse_difference(
        folder,
        missing=sorted(info["missing_keys"]),
        unexpected=sorted(k for k in info["unexpected_keys"] if not k.endswith("position_ids")),
        reshaped=sorted(str(key[0]) for key in info["mismatched_keys"]),
    )
    loaded: PreTrainedModel = model
    return loaded


def _split_precision(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Cast the encoder to `dtype`; leave pooler and head in float32 and feed them float32."""
    if dtype == torch.float32:
        return
    body: nn.Module = model.base_model
    pooler = getattr(body, "pooler", None)
    for module in body.children():
        if module is not pooler:
            # Not module.to: it casts buffers, too, and the frequencies of rotary positions rounded
            # to bf16 (by up to 2^-9) turn keys 512 places away by as much as 0.7 radian.
            for weight in module.parameters():
                weight.data = weight.data.to(dtype)
    if isinstance(pooler, nn.Module):
        pooler.register_forward_pre_hook(lambda _, inputs: tuple(value.float() for value in inputs))
    body.register_forward_hook(_float_states)


def _float_states(_: nn.Module, __: Any, output: Any) -> Any:  # noqa: ANN401 - a torch hook
    output["last_hidden_state"] = output["last_hidden_state"].float()
    return output
