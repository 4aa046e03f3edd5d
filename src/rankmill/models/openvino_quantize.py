"""Static int8 quantization of a converted body, with nncf (the extra `quantize`)."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rankmill.models.openvino_runtime import nothing_sent, openvino, without_telemetry
from rankmill.tokens import TokenBatch


@contextlib.contextmanager
def _loggers_kept() -> Iterator[None]:
    """nncf makes every logger that is made after it one of its own class."""
    kind = logging.getLoggerClass()
    try:
        yield
    finally:
        logging.setLoggerClass(kind)


with without_telemetry("nncf"), _loggers_kept():
    import nncf


def quantize(graph: Path, target: Path, batches: Sequence[TokenBatch]) -> None:
    """Write the int8 graph of a body. batches: inputs that show the ranges of its activations."""
    body = openvino.Core().read_model(graph)
    names = {name for one in body.inputs for name in one.get_names()}
    inputs = [{k: v for k, v in _inputs(batch).items() if k in names} for batch in batches]
    with _quiet(), nothing_sent():
        quantized = nncf.quantize(
            body,
            nncf.Dataset(inputs),
            subset_size=len(inputs),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
        )
    # Names that nncf leaves to OpenVINO count all operations that this process has made so far.
    for number, one in enumerate(quantized.get_ordered_ops()):
        one.set_friendly_name(f"{one.get_type_name()}_{number}")
    openvino.save_model(quantized, target, compress_to_fp16=False)


def _inputs(batch: TokenBatch) -> dict[str, npt.NDArray[np.int64]]:
    zeros = np.zeros_like(batch.input_ids)
    return {
        "input_ids": batch.input_ids,
        "attention_mask": zeros + 1 if batch.mask is None else batch.mask,
        "token_type_ids": zeros if batch.segment_ids is None else batch.segment_ids,
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """nncf draws bars and tells what it does on stdout."""
    level = nncf.nncf_logger.level
    nncf.nncf_logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        nncf.nncf_logger.setLevel(level)
