"""Scoring with a converted model on OpenVINO, on CPU. Neither torch nor transformers is needed.

One process serves a node: its streams share the weights and work on a batch each. Equal batches
give equal bits, whatever the number of streams and threads and the order of the batches (tested).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rankmill.errors import BackendUnfit
from rankmill.models.converted import BODY, HEAD
from rankmill.models.openvino_runtime import openvino
from rankmill.profile import BF16_INSTRUCTIONS, Profile
from rankmill.tokens import TokenBatch

_PRECISIONS = {"fp32": openvino.Type.f32, "bf16": openvino.Type.bf16}
# OpenVINO keeps what it prepares for every shape of a batch, by default 5,000 parts of each kind:
# 2 GiB. A shard brings some 70 to 100 shapes, nearly all of which come again in the next: with 300
# they are still there (of the processor's time 3 % less than with 50, 7 % for the smallest models).
_KEPT_FOR_SHAPES = 300
# So does its oneDNN, some 0.8 MiB a shape in bf16, by default 1,024 primitives: an actor's memory
# grew for a hundred shards. 600 hold those of a shard.
_PRIMITIVES, _KEPT_PRIMITIVES = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "600"
# The older name of the same variable.
_PRIMITIVES_ONCE = "DNNL_PRIMITIVE_CACHE_CAPACITY"
_NO_MEMORY = ("Failed to allocate", "can't alloc", "bad_alloc")


class OpenVinoEncoder:
    """A converted cross-encoder: body in the profile's precision, head in float32.

    entry: a folder of `converted` or `quantized`. Raises `BackendUnfit` when OpenVINO cannot
    compile it for this processor in that precision.
    """

    def __init__(self, entry: Path, profile: Profile) -> None:
        precision = _PRECISIONS[_unquantized(profile)]
        self._body = _compile(entry / BODY, precision, profile.streams, profile.threads)
        self._head = _compile(entry / HEAD, openvino.Type.f32, 1, 1)
        self._idle: list[tuple[Any, Any]] = []
        # One more than the streams, so that none of them waits for the next batch.
        self.in_flight = profile.streams + 1

    def score(self, batch: TokenBatch) -> npt.NDArray[np.float32]:
        """Raw logits, float32 [batch]. Raises `MemoryError` when the batch does not fit."""
        return self.start(batch).result()

    def start(self, batch: TokenBatch) -> _InFlight:
        """Begin with a batch, and do not wait for it."""
        return _InFlight(self, batch, self._idle.pop() if self._idle else self._requests())

    def finished(self, requests: tuple[Any, Any]) -> None:
        """Take back the buffers of a batch that succeeded."""
        self._idle.append(requests)

    def recover(self) -> None:
        """Make good after a batch that did not fit, in every stream that has nothing to do.

        What fails for want of memory fails again with inputs of the shape before (2026.4), until
        inputs of another come: so two are tried.
        """
        for length in (1, 2):
            small = TokenBatch(np.zeros((1, length), np.int64), None, None)
            started = [_InFlight(self, small, self._requests()) for _ in range(self.in_flight)]
            for one in started:
                one.wait()

    def _requests(self) -> tuple[Any, Any]:
        return self._body.create_infer_request(), self._head.create_infer_request()


class _InFlight:
    """A batch that OpenVINO works on, with buffers of body and head."""

    def __init__(
        self, model: OpenVinoEncoder, batch: TokenBatch, requests: tuple[Any, Any]
    ) -> None:
        self._model, self._requests = model, requests
        self._shape = batch.input_ids.shape
        self._mask = np.ones_like(batch.input_ids) if batch.mask is None else batch.mask
        segments = batch.segment_ids
        self._error: RuntimeError | None = None
        given = _wanted(
            requests[0],
            input_ids=batch.input_ids,
            attention_mask=self._mask,
            token_type_ids=np.zeros_like(self._mask) if segments is None else segments,
        )
        try:
            requests[0].start_async(given)
        except RuntimeError as error:
            self._error = error

    def wait(self) -> None:
        """Wait for the body; what goes wrong is kept for `result`."""
        try:
            self._requests[0].wait()
        except RuntimeError as error:
            self._error = self._error or error

    def result(self) -> npt.NDArray[np.float32]:
        """Raw logits, float32 [batch]. Raises `MemoryError` when the batch did not fit."""
        body, head = self._requests
        self.wait()
        if self._error is not None:
            if not any(said in str(self._error) for said in _NO_MEMORY):
                raise self._error
            self._model.recover()
            raise MemoryError(f"a batch of {self._shape} does not fit") from self._error
        head.infer(_wanted(head, states=body.get_output_tensor(0).data, mask=self._mask))
        scores: npt.NDArray[np.float32] = head.get_output_tensor(0).data.copy()
        self._model.finished(self._requests)
        return scores


def _wanted(request: Any, **given: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:  # noqa: ANN401
    """Those inputs that the graph has."""
    return {
        name: array
        for name, array in given.items()
        if any(name in one.get_names() for one in request.model_inputs)
    }


def _unquantized(profile: Profile) -> str:
    """The precision of the body, or of what an int8 graph leaves to floating point.

    There bf16 is 1.08 times as fast as fp32 (the embedded model) and costs no agreement.
    """
    if profile.precision != "int8":
        return profile.precision
    return "bf16" if profile.instructions in BF16_INSTRUCTIONS else "fp32"


def _compile(graph: Path, precision: Any, streams: int, threads: int) -> Any:  # noqa: ANN401 - untyped
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": threads,
        # Pinned threads of two processes would share cores while others stay idle.
        "ENABLE_CPU_PINNING": False,
        "CPU_RUNTIME_CACHE_CAPACITY": _KEPT_FOR_SHAPES,
    }
    try:
        with _few_primitives():
            compiled = openvino.Core().compile_model(graph, "CPU", settings)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1]
        raise BackendUnfit(f"OpenVINO cannot compile the model: {first}") from error
    used = compiled.get_property("INFERENCE_PRECISION_HINT")
    if used != precision:
        raise BackendUnfit(
            f"OpenVINO computes in {used.to_string()} on this processor, not in "
            f"{precision.to_string()}."
        )
    return compiled


@contextlib.contextmanager
def _few_primitives() -> Iterator[None]:
    """Bound oneDNN's cache, unless the user did: it asks once, when a first model is compiled.

    Not longer than that: torch has a oneDNN of its own, which reads the same variable.
    """
    if _PRIMITIVES in os.environ or _PRIMITIVES_ONCE in os.environ:
        yield
        return
    os.environ[_PRIMITIVES] = _KEPT_PRIMITIVES
    try:
        yield
    finally:
        os.environ.pop(_PRIMITIVES, None)  # another thread may have compiled, too
