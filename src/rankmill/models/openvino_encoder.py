"""Scoring with a converted model on OpenVINO, on CPU. Neither torch nor transformers is needed.

One process serves a node: its streams share the weights and work on a batch each. Equal batches
give equal bits, whatever the number of streams and threads and the order of the batches (tested).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rankmill.errors import BackendUnfit
from rankmill.models.converted import BODY, HEAD
from rankmill.models.openvino_runtime import openvino
from rankmill.profile import Profile
from rankmill.tokens import TokenBatch

_PRECISIONS = {"fp32": openvino.Type.f32, "bf16": openvino.Type.bf16}
_NO_MEMORY = ("Failed to allocate", "bad_alloc")


class OpenVinoEncoder:
    """A converted cross-encoder: body in the profile's precision, head in float32.

    entry: a folder of `converted`. Raises `BackendUnfit` when OpenVINO cannot compile it for this
    processor in that precision.
    """

    def __init__(self, entry: Path, profile: Profile) -> None:
        precision = _PRECISIONS[profile.precision]
        self._body = _compile(entry / BODY, precision, profile.streams, profile.threads)
        self._head = _compile(entry / HEAD, openvino.Type.f32, 1, 1)
        self._idle: list[_Requests] = []
        # One more than the streams, so that none of them waits for the next batch.
        self.in_flight = profile.streams + 1

    def score(self, batch: TokenBatch) -> npt.NDArray[np.float32]:
        """Raw logits, float32 [batch]. Raises `MemoryError` when the batch does not fit."""
        return self.start(batch).result()

    def start(self, batch: TokenBatch) -> _InFlight:
        """Begin with a batch, and do not wait for it."""
        if self._idle:
            requests = self._idle.pop()
        else:
            requests = _Requests(
                self._body.create_infer_request(), self._head.create_infer_request()
            )
        return _InFlight(batch, requests, self._idle)


@dataclass(frozen=True)
class _Requests:
    """What one batch in flight needs: buffers of body and head."""

    body: Any
    head: Any


class _InFlight:
    """A batch that OpenVINO works on."""

    def __init__(self, batch: TokenBatch, requests: _Requests, idle: list[_Requests]) -> None:
        self._requests, self._idle = requests, idle
        self._shape = batch.input_ids.shape
        self._mask = np.ones_like(batch.input_ids) if batch.mask is None else batch.mask
        segments = batch.segment_ids
        self._error: RuntimeError | None = None
        try:
            requests.body.start_async(
                _wanted(
                    requests.body,
                    input_ids=batch.input_ids,
                    attention_mask=self._mask,
                    token_type_ids=np.zeros_like(self._mask) if segments is None else segments,
                )
            )
        except RuntimeError as error:
            self._error = error

    def result(self) -> npt.NDArray[np.float32]:
        """Raw logits, float32 [batch]. Raises `MemoryError` when the batch did not fit."""
        body, head = self._requests.body, self._requests.head
        try:
            if self._error is not None:
                raise self._error
            body.wait()
            head.infer(_wanted(head, states=body.get_output_tensor(0).data, mask=self._mask))
            scores: npt.NDArray[np.float32] = head.get_output_tensor(0).data.copy()
        except RuntimeError as error:
            if any(said in str(error) for said in _NO_MEMORY):
                raise MemoryError(f"a batch of {self._shape} does not fit") from error
            raise
        finally:
            self._idle.append(self._requests)
        return scores


def _wanted(request: Any, **given: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:  # noqa: ANN401
    """Those inputs that the graph has."""
    return {
        name: array
        for name, array in given.items()
        if any(name in one.get_names() for one in request.model_inputs)
    }


def _compile(graph: Path, precision: Any, streams: int, threads: int) -> Any:  # noqa: ANN401 - untyped
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": threads,
        # Pinned threads of two processes would share cores while others stay idle.
        "ENABLE_CPU_PINNING": False,
    }
    try:
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
