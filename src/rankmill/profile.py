"""What `auto` resolves to: backend, precision, device, threads, token budget.

A profile is found once, by a probe on a worker node at the first start of a run; it is stored
with the run and binds every resume, because batches and bits depend on it.
"""

from __future__ import annotations

import gc
import math
import os
import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rankmill.config import ComputeConfig, ModelConfig
from rankmill.errors import ConfigError

# Raised whenever rankmill's own code changes what a score is, so that old scores are not reused
# and old runs are not resumed.
SCORING_VERSION = 3

Backend = Literal["torch", "openvino"]
Device = Literal["cpu", "cuda", "mps"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]

# Padded tokens a batch. CPU: `benchmarks/budget.py`, bf16, one thread of a 2-core AVX512-BF16
# machine, pairs/s at 512 | 1,024 | 2,048 | 4,096 tokens: tiny-v2 shape 265 | 330 | 365 | 282;
# MiniLM-L6 shape 46 | 48 | 49 | 45; XLM-R base 7.8 | 7.7 | 7.2 (padding 0.5 | 1.8 | 3.9 | 7.6 %).
# MPS is not measured: chosen small enough for 8 GB with a 568 M-parameter model. CUDA: see
# `cuda_token_budget`.
TOKEN_BUDGET: dict[Literal["cpu", "mps"], int] = {"cpu": 1024, "mps": 8192}
# OpenVINO, 2 streams, bf16, the same machine idle, pairs/s at 1,024 | 2,048 | 4,096 tokens: tiny-v2
# shape (6e6 operations a token) 745 | 863 | 913; MiniLM-L6 (2e7) 116 | 114 | 109; xsmall-v2 (2e7)
# 96 | 97 | 92; XLM-R base (2e8) 17.0 | 16.3 | 13.8. So: up to so many operations, so many tokens.
OPENVINO_TOKEN_BUDGET = ((1e7, 4096), (1e8, 2048), (math.inf, 1024))
# OpenVINO prepares itself for every shape of a batch, and computes faster where a width is a
# multiple of 8: in shards of 1,324 pairs MiniLM-L6's shape takes 3 % less of the processor than
# without, and 120 MiB less memory, for 1.5 % more padding.
_OPENVINO_PADS_TO = 8
# None of these is measured yet (`benchmarks/gpu.py` does). A batch should keep a GPU busy for as
# long as Python takes to queue the next, some 10 ms for a dozen layers; beyond that it only adds
# padding.
_CUDA_OPERATIONS = 4e12
_CUDA_MOST, _CUDA_FEWEST = 32768, 1024
_CUDA_FEWEST_WANTED = 8192
# Bytes for what is there beside weights and batches: CUDA's context and libraries.
_CUDA_CONTEXT = 1.5 * 2**30
# Values alive at once for a token, in hidden sizes: a layer's input, queries, keys, values and
# their result (8 with what is copied), and a gated block of four times the width (4 x 4).
_VALUES_ALIVE = 24
# Threads of one scoring actor, or of one stream of OpenVINO's: one, so that no core waits for
# another, until a copy of the model for every core would take too much memory, and a shard has too
# few batches for as many streams.
_CORES_FOR_SINGLE_THREADS = 8
_THREADS_ON_LARGE_NODES = 4

# Of `Hardware.instructions`, those with products of bf16.
BF16_INSTRUCTIONS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})


@dataclass(frozen=True)
class Hardware:
    """What a node has, as far as profiles care. `instructions`: of the CPU, or the GPU's name.

    cuda_memory: bytes of one GPU.
    """

    cores: int
    instructions: str
    bf16: bool
    cuda: bool
    cuda_bf16: bool
    mps: bool
    cuda_memory: int = 0


@dataclass(frozen=True)
class Profile:
    """How scores are computed. Part of a run's identity.

    backend: "custom" for a class of the user's own, which is given the profile and answers for
    keeping to its device, precision and threads. threads: of one scoring actor. streams: batches
    that it works on at once, with equal shares of the threads. pad_to_multiple_of: tokens, of a
    batch's width.
    """

    backend: str
    precision: Precision
    device: Device
    instructions: str
    threads: int
    token_budget: int
    streams: int = 1
    pad_to_multiple_of: int = 1
    scoring_version: int = SCORING_VERSION

    def to_json(self) -> dict[str, Any]:
        """Plain values, as stored in run.json."""
        return asdict(self)

    def identity(self) -> dict[str, Any]:
        """What of it names a run: all that scores depend on.

        OpenVINO's are the same bits over any number of threads and streams; torch's need not be.
        """
        free = ("threads", "streams") if self.backend == "openvino" else ()
        return {name: value for name, value in self.to_json().items() if name not in free}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Profile:
        """The stored profile of an earlier start."""
        return cls(**values)


def probe(device: str) -> Hardware:
    """Look at the node this runs on. torch is asked only where a GPU may be wanted."""
    flags = _cpu_flags()
    bf16 = bool(flags & BF16_INSTRUCTIONS)
    instructions = next(
        (name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "bf16") if name in flags),
        platform.machine(),
    )
    cuda = cuda_bf16 = mps = False
    memory = 0
    gpu = device
    if device in ("cuda", "mps"):
        import torch

        cuda = torch.cuda.is_available()
        gpu = torch.cuda.get_device_name() if cuda and device == "cuda" else device
        cuda_bf16 = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
        memory = torch.cuda.get_device_properties(0).total_memory if cuda else 0
        mps = torch.backends.mps.is_available()
    instructions = gpu if device in ("cuda", "mps") else instructions
    return Hardware(_cores(), instructions, bf16, cuda, cuda_bf16, mps, memory)


def make_profile(
    model: ModelConfig,
    compute: ComputeConfig,
    device: Device,
    hardware: Hardware,
    *,
    operations_per_token: float,
    backend: Backend = "torch",
    int8: bool = False,
) -> Profile:
    """Resolve every `auto` but the backend's, which is decided in `backend`.

    operations_per_token: of the model (see `Description`); the token budget goes by it. int8:
    the model's files are of that precision, whatever the processor has.

    Raises `ConfigError` for a device or precision that is not there.
    """
    if device == "cuda" and not hardware.cuda:
        raise ConfigError(
            "compute.device is cuda, but torch sees no GPU on the node it was to run on.",
            "Set compute.device to auto or cpu, or install torch's CUDA build.",
        )
    if device == "mps" and not hardware.mps:
        raise ConfigError(
            "compute.device is mps, but torch sees no Apple GPU.", "Set compute.device to cpu."
        )
    has_bf16 = {"cpu": hardware.bf16, "cuda": hardware.cuda_bf16, "mps": False}[device]
    precision: Literal["auto"] | Precision = "int8" if int8 else model.precision
    if precision == "auto":
        precision = "bf16" if has_bf16 else ("fp16" if device == "cuda" else "fp32")
    if precision == "fp16" and device == "cpu":
        raise ConfigError(
            "model.precision fp16 is slower than fp32 on CPUs and less exact.",
            "Use bf16 or fp32.",
        )
    if backend == "openvino":
        budget = next(t for most, t in OPENVINO_TOKEN_BUDGET if operations_per_token <= most)
    elif device == "cuda":
        memory = hardware.cuda_memory * min(compute.gpus_per_worker, 1.0)
        budget = cuda_token_budget(operations_per_token, precision, memory)
    else:
        budget = TOKEN_BUDGET[device]
    asked = compute.cpus_per_worker
    found = Profile(
        backend=backend if model.scorer is None else "custom",
        precision=precision,
        device=device,
        instructions=hardware.instructions,
        threads=_threads(device, hardware.cores) if asked == "auto" else asked,
        token_budget=budget,
        pad_to_multiple_of=_OPENVINO_PADS_TO if backend == "openvino" else 1,
    )
    return with_threads(found, compute, hardware.cores)


def cuda_token_budget(operations_per_token: float, precision: Precision, memory: float) -> int:
    """Padded tokens a batch on a GPU: as many as keep it busy and surely fit. A power of two.

    memory: bytes that an actor may use. Half of what CUDA and the weights leave of it is taken,
    for masks, for attention that keeps its scores (DeBERTa-v2's), for what the allocator cannot
    join. Hidden size and weights are taken from the operations, and rather too large: as if the
    model had six layers, and a word table as large as all of them.
    """
    busy = _CUDA_OPERATIONS / max(operations_per_token, 1.0)
    width = 4 if precision == "fp32" else 2
    weights = width * operations_per_token
    hidden = math.sqrt(operations_per_token / (6 * 24))
    free = max(memory - _CUDA_CONTEXT - weights, 0.0) / 2
    fits = free / max(width * _VALUES_ALIVE * hidden, 1.0)
    budget = min(max(busy, _CUDA_FEWEST_WANTED), fits, _CUDA_MOST)
    return max(1 << int(math.log2(max(budget, 1.0))), _CUDA_FEWEST)


def with_threads(found: Profile, compute: ComputeConfig, cores: int) -> Profile:
    """The same profile for a node of other size, as far as that changes no bits."""
    if found.backend != "openvino":
        return found
    threads = cores if compute.cpus_per_worker == "auto" else compute.cpus_per_worker
    return replace(found, threads=threads, streams=max(threads // _threads("cpu", threads), 1))


def free_memory(device: Device) -> None:
    """Give back what a model held that is no longer referred to."""
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()


def _threads(device: Device, cores: int) -> int:
    if device != "cpu" or cores <= _CORES_FOR_SINGLE_THREADS:
        return 1
    return _THREADS_ON_LARGE_NODES


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return set()
    for line in text.splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()
