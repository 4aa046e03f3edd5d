"""How fast this machine multiplies matrices: the ceiling that utilisation is measured against.

    python benchmarks/matrix_rates.py [--threads 2]

Prints GFLOP/s (int8: giga-operations/s) of large products: fp32 and bf16 through torch (oneDNN),
int8 through OpenVINO, which is what an int8 model runs on here.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import openvino as ov
import torch
from openvino import opset13 as ops

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


def _int8_rate(threads: int) -> float:
    """A chain of quantized products with constant weights, as a quantized model has them."""
    data = ops.parameter([_SIZE, _SIZE], np.float32)
    weights = np.random.default_rng(0).standard_normal((_SIZE, _SIZE), np.float32)
    state, chain = data, 4
    for _ in range(chain):
        low, high = np.float32(-4), np.float32(4)
        left = ops.fake_quantize(state, low, high, low, high, 256)
        low, high = np.float32(weights.min()), np.float32(weights.max())
        right = ops.fake_quantize(ops.constant(weights), low, high, low, high, 255)
        state = ops.matmul(left, right, False, True)
    model = ov.Model([state], [data])
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
    value = np.random.default_rng(1).standard_normal((_SIZE, _SIZE), np.float32)
    return _rate(lambda: request.infer([value]), 2.0 * chain * _SIZE**3)


def matrix_rates(threads: int) -> dict[str, float]:
    """Giga-operations/s of this machine by precision: fp32, bf16, int8."""
    torch.set_num_threads(threads)
    return {
        "fp32": _torch_rate(torch.float32),
        "bf16": _torch_rate(torch.bfloat16),
        "int8": _int8_rate(threads),
    }


def main() -> None:
    """Measure and print a line a precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    for name, rate in matrix_rates(parser.parse_args().threads).items():
        print(f"{name}  {rate:8.1f} G/s")


if __name__ == "__main__":
    main()
