"""What `auto` resolves to on GPUs: precision, and how many tokens a batch may have."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankmill.config import ComputeConfig, ModelConfig
from rankmill.profile import Hardware, Profile, cuda_token_budget, make_profile

GIB = 2**30
# Operations a token of MiniLM-L6's shape, of BERT base's and of XLM-R large's.
MINILM, BASE, LARGE = 21e6, 170e6, 604e6


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
