"""What `auto` resolves to: precision, tokens a batch, threads and streams."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankmill.config import AskedPrecision, ComputeConfig, ModelConfig
from rankmill.errors import ConfigError
from rankmill.profile import (
    Backend,
    Hardware,
    Profile,
    cuda_token_budget,
    make_profile,
    with_threads,
)

GIB = 2**30
# Operations a token of MiniLM-L6's shape, of BERT base's and of XLM-R large's.
MINILM, BASE, LARGE = 21e6, 170e6, 604e6
# And of japanese-reranker-tiny-v2's, the smallest.
TINY = 6e6


def profile(
    memory: int = 24 * GIB, operations: float = MINILM, bf16: bool = True, **compute: float
) -> Profile:
    hardware = Hardware(8, "a GPU", True, True, bf16, False, memory)
    return make_profile(
        ModelConfig(name="x"),
        ComputeConfig(**compute),
        "cuda",
        hardware,
        operations_per_token=operations,
    )


def test_a_gpu_without_bf16_computes_in_fp16():
    assert profile(bf16=True).precision == "bf16"
    assert profile(bf16=False).precision == "fp16"


def test_larger_models_fill_a_gpu_with_fewer_tokens():
    budgets = [profile(operations=operations).token_budget for operations in (MINILM, BASE, LARGE)]
    assert budgets == [32768, 16384, 8192]


def test_a_batch_fits_beside_the_weights():
    # XLM-R large in bf16: 1.1 GB of weights, 50 kB a token (24 values of 1,024 hidden).
    for memory in (4, 6, 8):
        budget = profile(memory * GIB, LARGE).token_budget
        assert budget * 24 * 1024 * 2 < memory * GIB - 1.1e9 - 1.5 * GIB
    assert profile(4 * GIB, LARGE).token_budget < profile(8 * GIB, LARGE).token_budget


def test_actors_that_share_a_gpu_share_its_memory():
    assert profile(8 * GIB, LARGE, gpus_per_worker=0.5) == profile(4 * GIB, LARGE)
    assert profile(8 * GIB, LARGE, gpus_per_worker=2) == profile(8 * GIB, LARGE)


@given(
    operations=st.floats(0, 1e12),
    memory=st.integers(0, 200 * GIB),
    more=st.integers(0, 100 * GIB),
    precision=st.sampled_from(["fp32", "bf16", "fp16"]),
)
def test_budgets_are_powers_of_two_that_grow_with_memory(operations, memory, more, precision):
    small, large = (cuda_token_budget(operations, precision, m) for m in (memory, memory + more))
    assert 1024 <= small <= large <= 32768
    assert small & (small - 1) == 0


@pytest.mark.parametrize("operations", [MINILM, BASE, LARGE])
def test_fp32_takes_no_more_tokens_than_bf16(operations):
    for memory in range(1, 40):
        fp32, bf16 = (cuda_token_budget(operations, p, memory * GIB) for p in ("fp32", "bf16"))
        assert fp32 <= bf16


def on_cpu(
    backend: Backend = "openvino",
    operations: float = MINILM,
    cores: int = 2,
    bf16: bool = True,
    precision: AskedPrecision = "auto",
    int8: bool = False,
    cpus_per_worker: int | None = None,
) -> Profile:
    instructions = "avx512_bf16" if bf16 else "avx2"
    return make_profile(
        ModelConfig(name="x", precision=precision),
        ComputeConfig(cpus_per_worker="auto" if cpus_per_worker is None else cpus_per_worker),
        "cpu",
        Hardware(cores, instructions, bf16, False, False, False),
        operations_per_token=operations,
        backend=backend,
        int8=int8,
    )


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_a_cpu_computes_in_bf16_where_it_has_it_and_in_fp32_elsewhere(backend):
    assert on_cpu(backend, bf16=True).precision == "bf16"
    assert on_cpu(backend, bf16=False).precision == "fp32"
    assert on_cpu(backend, bf16=False, precision="bf16").precision == "bf16"
    assert on_cpu(backend, bf16=False, int8=True).precision == "int8"


def test_a_cpu_refuses_fp16():
    with pytest.raises(ConfigError, match="fp16 is slower than fp32 on CPUs"):
        on_cpu(precision="fp16")


def test_larger_models_get_smaller_batches_on_openvino():
    budgets = [on_cpu(operations=one).token_budget for one in (TINY, MINILM, BASE, LARGE)]
    assert budgets == [4096, 2048, 1024, 1024]


def test_torch_gives_every_model_the_same_batches_on_a_cpu():
    assert {on_cpu("torch", one).token_budget for one in (TINY, MINILM, LARGE)} == {1024}


@pytest.mark.parametrize(
    ("cores", "threads", "streams"), [(1, 1, 1), (2, 2, 2), (8, 8, 8), (16, 16, 4), (64, 64, 16)]
)
def test_openvino_has_all_cores_in_streams_of_one_thread_and_of_four_on_large_nodes(
    cores, threads, streams
):
    found = on_cpu(cores=cores)
    assert (found.threads, found.streams) == (threads, streams)
    # A resume on such a node, of a run that began on another.
    assert with_threads(on_cpu(cores=3), ComputeConfig(), cores) == found


def test_openvino_keeps_to_the_cpus_of_its_worker():
    found = on_cpu(cores=16, cpus_per_worker=6)
    assert (found.threads, found.streams) == (6, 6)
    assert found.identity() == on_cpu(cores=2).identity(), "bits do not depend on either"


@pytest.mark.parametrize(("cores", "threads"), [(2, 1), (8, 1), (16, 4)])
def test_torch_has_an_actor_a_core_and_one_for_four_on_large_nodes(cores, threads):
    found = on_cpu("torch", cores=cores)
    assert (found.threads, found.streams) == (threads, 1)
    assert with_threads(found, ComputeConfig(), 64) == found, "its bits may depend on threads"
