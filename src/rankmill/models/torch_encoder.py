"""Scoring with a model's body and head on torch, on CPU or GPU.

A GPU works through a queue. `start` puts a batch at its end and does not wait, so the next batches
are put together, copied and queued while the GPU computes. Copies in both directions go through
pinned memory, which they need in order not to wait. On a CPU the same steps run at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from rankmill.models import Pending, classifiers
from rankmill.models.classifiers import Classifier
from rankmill.profile import Profile
from rankmill.tokens import Float32, TokenBatch

# On a GPU one batch is computed, one waits behind it, and one is put together. What is queued holds
# no more than its inputs and scores: all batches use the same memory in turn.
_AHEAD = 3
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# How torch says that memory is short where it has no class for it: in this order a CPU's, Apple's
# and that of CUDA's own libraries.
_NO_MEMORY = ("can't allocate memory", "out of memory", "STATUS_ALLOC_FAILED")


class TorchEncoder:
    """A loaded cross-encoder: body in the profile's precision, head in float32.

    in_flight: batches that may be queued (see `AsyncModel`); one on a CPU.
    """

    def __init__(
        self,
        folder: Path,
        profile: Profile,
        load: Callable[[Path], Classifier] = classifiers.load,
    ) -> None:
        if profile.device == "cpu":
            torch.set_num_threads(profile.threads)
        self._device = torch.device(profile.device)
        self._queued = profile.device == "cuda"
        self.in_flight = _AHEAD if self._queued else 1
        model = load(folder)
        _cast(model.body, _DTYPES[profile.precision])
        self._body = model.body.to(self._device)
        self._head = model.head.to(self._device)

    def score(self, batch: TokenBatch) -> npt.NDArray[np.float32]:
        """Raw logits, float32 [batch]. Raises `MemoryError` when the batch does not fit."""
        return self.start(batch).result()

    def start(self, batch: TokenBatch) -> Pending:
        """Queue a batch, and do not wait for it where there is a queue."""
        try:
            return self._start(batch)
        except RuntimeError as error:
            if not _is_short_of_memory(error):
                raise
        # Only now is the error gone, and with its traceback whatever the batch held.
        self._release()
        return _Unfit(batch.input_ids.shape)

    @torch.inference_mode()
    def _start(self, batch: TokenBatch) -> Pending:
        inputs = {"input_ids": self._put(batch.input_ids)}
        if batch.segment_ids is not None:
            inputs["token_type_ids"] = self._put(batch.segment_ids)
        if batch.mask is not None:
            inputs["attention_mask"] = self._put(batch.mask)
        with _exact_products():
            states: torch.Tensor = self._body(**inputs).last_hidden_state
            logits: torch.Tensor = self._head(states.float(), inputs.get("attention_mask"))
        scores = torch.empty(len(logits), dtype=torch.float32, pin_memory=self._queued)
        scores.copy_(logits, non_blocking=self._queued)
        done = None
        if self._queued:
            # Blocking: who waits takes no core from the tokenizers.
            done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            done.record()
        return _Queued(self, batch.input_ids.shape, scores, done)

    def _put(self, array: npt.NDArray[Any]) -> torch.Tensor:
        given = torch.from_numpy(array)
        if self._queued:
            given = given.pin_memory()
        return given.to(self._device, non_blocking=self._queued)

    def _release(self) -> None:
        """Give back what torch holds in reserve, so that the next batch finds it in one piece."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        elif self._device.type == "mps":
            torch.mps.empty_cache()


@dataclass(frozen=True)
class _Queued:
    """A batch in the queue. done: passed when `scores` are there; None when they are already."""

    model: TorchEncoder
    shape: tuple[int, ...]
    scores: torch.Tensor
    done: torch.cuda.Event | None

    def result(self) -> Float32:
        try:
            if self.done is not None:
                self.done.synchronize()
            scores: Float32 = self.scores.numpy()
            return scores
        except RuntimeError as error:
            if not _is_short_of_memory(error):
                raise
        self.model._release()
        return _Unfit(self.shape).result()


@dataclass(frozen=True)
class _Unfit:
    """A batch for which there was no memory."""

    shape: tuple[int, ...]

    def result(self) -> Float32:
        raise MemoryError(f"a batch of {self.shape} does not fit")


def _is_short_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(
        said in str(error) for said in _NO_MEMORY
    )


@contextlib.contextmanager
def _exact_products() -> Iterator[None]:
    """Products of float32 in float32, whatever this process allows elsewhere.

    A notebook that allowed TF32 (on CPUs: bfloat16) for its training would otherwise get other
    scores than a job. torch reads the setting when a product is queued, so it is put back at once.
    """
    cuda: Any = torch.backends.cuda
    cpu: Any = torch.backends.mkldnn
    libraries = (cuda.matmul, cpu.matmul)
    allowed = [(library, library.fp32_precision) for library in libraries]
    rounded = [(library, how) for library, how in allowed if how not in ("none", "ieee")]
    try:
        for library, _ in rounded:
            library.fp32_precision = "ieee"
        yield
    finally:
        for library, how in rounded:
            library.fp32_precision = "none"  # what it says is then torch.backends' own
            if library.fp32_precision != how:
                library.fp32_precision = how


def _cast(body: nn.Module, dtype: torch.dtype) -> None:
    """Cast weights, not buffers.

    The frequencies of rotary positions rounded to bf16 (by up to 2^-9) turn keys 512 places away
    by as much as 0.7 radian.
    """
    for weight in body.parameters():
        weight.data = weight.data.to(dtype)
