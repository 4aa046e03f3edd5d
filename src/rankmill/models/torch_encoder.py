"""Scoring with a model's body and head on torch, on CPU or GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from rankmill.models import classifiers
from rankmill.models.classifiers import Classifier
from rankmill.profile import Profile
from rankmill.tokens import TokenBatch

_NO_CPU_MEMORY = "can't allocate memory"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchEncoder:
    """A loaded cross-encoder: body in the profile's precision, head in float32."""

    def __init__(
        self,
        folder: Path,
        profile: Profile,
        load: Callable[[Path], Classifier] = classifiers.load,
    ) -> None:
        if profile.device == "cpu":
            torch.set_num_threads(profile.threads)
        self._device = torch.device(profile.device)
        model = load(folder)
        _cast(model.body, _DTYPES[profile.precision])
        self._body = model.body.to(self._device)
        self._head = model.head.to(self._device)

    @torch.inference_mode()
    def score(self, batch: TokenBatch) -> npt.NDArray[np.float32]:
        """Raw logits, float32 [batch]. Raises `MemoryError` when the batch does not fit."""
        inputs = {"input_ids": self._put(batch.input_ids)}
        if batch.segment_ids is not None:
            inputs["token_type_ids"] = self._put(batch.segment_ids)
        if batch.mask is not None:
            inputs["attention_mask"] = self._put(batch.mask)
        try:
            states: torch.Tensor = self._body(**inputs).last_hidden_state
            logits: torch.Tensor = self._head(states.float(), inputs.get("attention_mask"))
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or _NO_CPU_MEMORY in str(error):
                raise MemoryError(f"a batch of {batch.input_ids.shape} does not fit") from error
            raise
        scores: npt.NDArray[np.float32] = logits.cpu().numpy()
        return scores

    def _put(self, array: npt.NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)


def _cast(body: nn.Module, dtype: torch.dtype) -> None:
    """Cast weights, not buffers.

    The frequencies of rotary positions rounded to bf16 (by up to 2^-9) turn keys 512 places away
    by as much as 0.7 radian.
    """
    for weight in body.parameters():
        weight.data = weight.data.to(dtype)
