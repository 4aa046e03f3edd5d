"""How fast this machine multiplies matrices: the ceiling that utilisation is measured against.

    python benchmarks/matrix_rates.py [--threads 2]

Prints GFLOP/s (int8: giga-operations/s) of large products: fp32 and bf16 by the faster of torch and
OpenVINO (on AMD torch's fp32 products reach half of OpenVINO's), int8 through OpenVINO, which is
what an int8 model runs on here.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from rankmill.models.openvino_runtime import openvino as ov

ops = ov.opset13

_SIZE = 2048
_ROUNDS = 7


def _rate(multiply: Callable[[], object], operations: float) -> float:
    multiply()
    seconds = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        multiply()
        seconds.append(time.perf_counter() - started)
    return operations / statistics.median(seconds) / 1e9


def _torch_rate(dtype: torch.dtype) -> float:
    left, right = (torch.randn(_SIZE, _SIZE).to(dtype) for _ in range(2))
    return _rate(lambda: left @ right, 2.0 * _SIZE**3)


def _openvino_rate(threads: int, precision: ov.Type, quantized: bool = False) -> float:
    """A chain of products with constant weights, as a model has them; int8 when `quantized`."""
    data = ops.parameter([_SIZE, _SIZE], np.float32)
    weights = np.random.default_rng(0).standard_normal((_SIZE, _SIZE), np.float32)
    state, chain = data, 4
    for _ in range(chain):
        left, right = state, ops.constant(weights / np.float32(np.sqrt(_SIZE)))
        if quantized:
            left, right = _quantized(left, 4.0, 256), _quantized(right, 0.1, 255)
        state = ops.matmul(left, right, False, True)
    model = ov.Model([state], [data])
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": precision,
    }
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
    value = np.random.default_rng(1).standard_normal((_SIZE, _SIZE), np.float32)
    return _rate(lambda: request.infer([value]), 2.0 * chain * _SIZE**3)


def _quantized(node: ov.Node, limit: float, levels: int) -> ov.Node:
    low, high = np.float32(-limit), np.float32(limit)
    return ops.fake_quantize(node, low, high, low, high, levels)


def matrix_rates(threads: int) -> dict[str, float]:
    """Giga-operations/s of this machine by precision: fp32, bf16, int8; the better library's."""
    torch.set_num_threads(threads)
    return {
        "fp32": max(_torch_rate(torch.float32), _openvino_rate(threads, ov.Type.f32)),
        "bf16": max(_torch_rate(torch.bfloat16), _openvino_rate(threads, ov.Type.bf16)),
        "int8": _openvino_rate(threads, ov.Type.f32, quantized=True),
    }


def main() -> None:
    """Measure and print a line a precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    for name, rate in matrix_rates(parser.parse_args().threads).items():
        print(f"{name}  {rate:8.1f} G/s")


if __name__ == "__main__":
    main()
