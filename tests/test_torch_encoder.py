"""Scoring on torch: a queue of batches, as a GPU works it off, and memory that is short.

There is no GPU in these tests. The queue's code is the same on a CPU, where each step is done at
once; that nothing in a model waits for a GPU is seen on a device from which nothing can be read.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from rankmill import Scorer
from rankmill.config import ModelConfig
from rankmill.models import AsyncModel, classifiers
from rankmill.models.classifiers import Classifier
from rankmill.models.describe import describe
from rankmill.models.folder import FolderModel
from rankmill.models.torch_encoder import TorchEncoder
from rankmill.profile import Profile
from rankmill.scorer import ScoredPairs, score_pairs
from rankmill.tokens import PairRules, Template, TokenBatch, TokenizedPairs, TokenizedTexts

FP32 = Profile("torch", "fp32", "cpu", "any", threads=1, token_budget=512)
RULES = PairRules(64, "document")
TEMPLATE = Template((5,), (6,), (6,), (0, 0, 0, 1, 1), False, 0, False)
# All that see everything and take masks from transformers; ModernBERT's layers are local, too.
PLAIN = ["bert", "electra", "roberta", "camembert", "xlm-roberta", "gte"]
LOCAL = ["modernbert", "modernbert-mean"]
CAUSAL = ["qwen2", "qwen3", "llama"]
ALL = [*PLAIN, *LOCAL, "deberta-v2", "jina-bert", *CAUSAL]
Tiny = Callable[[str], str]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models are faster without threads that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def described(folder: str) -> FolderModel:
    prompt = "qwen3-reranker" if Path(folder).name in CAUSAL else "auto"
    found = describe(ModelConfig(name=folder, prompt=prompt))
    assert isinstance(found, FolderModel)
    return found


def batch(*lengths: int, segments: bool = False) -> TokenBatch:
    longest = max(lengths)
    ids = np.random.default_rng(sum(lengths)).integers(5, 40, (len(lengths), longest))
    mask = (np.arange(longest) < np.array(lengths)[:, None]).astype(np.int64)
    ids[mask == 0] = 0
    kinds = np.zeros_like(ids) if segments else None
    return TokenBatch(ids, kinds, None if min(lengths) == longest else mask)


def pairs(lengths: list[int]) -> TokenizedPairs:
    """Pairs of one text each beside an empty query."""
    starts = np.cumsum([0, 0, *lengths])
    ids = np.random.default_rng(0).integers(7, 40, starts[-1]).astype(np.int32)
    texts = TokenizedTexts(ids, starts.astype(np.int64))
    count, number = np.array(lengths, np.int32), np.arange(len(lengths), dtype=np.int32)
    nothing = np.zeros_like(number)
    return TokenizedPairs(texts, nothing, number + 1, nothing, count, TEMPLATE.special)


# The queue


def queue(folder: str, load: Callable[[Path], Classifier], ahead: int) -> TorchEncoder:
    model = TorchEncoder(Path(folder), FP32, load)
    model.in_flight = ahead
    return model


def test_results_are_those_of_score_in_whatever_order_they_are_taken(tiny_model: Tiny) -> None:
    model = queue(tiny_model("bert"), classifiers.load, 3)
    assert isinstance(model, AsyncModel)
    batches = [batch(9, 4), batch(7, 7, 7), batch(30)]
    started = [model.start(one) for one in batches]
    found = [started[number].result() for number in (2, 0, 1)]
    for number, scores in zip((2, 0, 1), found, strict=True):
        assert scores.dtype == np.float32
        np.testing.assert_array_equal(scores, model.score(batches[number]))


@pytest.mark.parametrize("ahead", [1, 3])
def test_a_shards_scores_do_not_depend_on_how_many_batches_are_queued(
    tiny_model: Tiny, ahead: int
) -> None:
    given = pairs([*range(1, 60), 12, 12, 12])
    scored = run(queue(tiny_model("bert"), classifiers.load, ahead), given)
    alone = run(queue(tiny_model("bert"), classifiers.load, 1), given)
    np.testing.assert_array_equal(scored.scores, alone.scores)
    assert np.isfinite(scored.scores).all()
    assert not scored.degraded


def run(model: TorchEncoder, given: TokenizedPairs) -> ScoredPairs:
    return score_pairs(model, given, RULES, TEMPLATE, FP32)


class SmallMemory:
    """Loads a model whose body has no memory for more than so many tokens."""

    def __init__(self, tokens: int, says: str | None = None) -> None:
        self.tokens, self.says = tokens, says
        self.refused = 0
        self.held: list[weakref.ref[torch.Tensor]] = []

    def __call__(self, folder: Path) -> Classifier:
        model = classifiers.load(folder)
        model.body.encoder.layer[1].register_forward_pre_hook(self._allocate)
        return model

    def _allocate(self, _: nn.Module, given: tuple[Any, ...]) -> None:
        states = given[0]
        if states.shape[0] * states.shape[1] <= self.tokens:
            return
        self.refused += 1
        self.held.append(weakref.ref(states))
        if self.says is not None:
            raise RuntimeError(self.says)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("ahead", [1, 3])
def test_a_batch_without_memory_is_halved_and_the_shard_says_so(
    tiny_model: Tiny, ahead: int
) -> None:
    memory = SmallMemory(tokens=300)
    given = pairs([40] * 30)  # batches of 11 inputs of 43 tokens, which do not fit; 5 and 6 do
    scored = run(queue(tiny_model("bert"), memory, ahead), given)
    whole = run(queue(tiny_model("bert"), classifiers.load, 1), given)
    assert scored.degraded
    assert memory.refused >= 2
    np.testing.assert_allclose(scored.scores, whole.scores, atol=1e-6)


def test_a_single_input_without_memory_is_a_memory_error(tiny_model: Tiny) -> None:
    with pytest.raises(MemoryError, match=r"a batch of \(1, 43\) does not fit"):
        run(queue(tiny_model("bert"), SmallMemory(tokens=20), 3), pairs([40, 40, 3]))


@pytest.mark.parametrize(
    "says",
    [
        None,
        "[enforce fail at alloc_cpu.cpp:128] DefaultCPUAllocator: can't allocate memory: you tried",
        "CUDA error: out of memory",
        "MPS backend out of memory (MPS allocated: 8.00 GiB, other allocations: 1.00 GiB)",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_want_of_memory_shows_in_the_result_and_leaves_nothing_held(
    tiny_model: Tiny, says: str | None
) -> None:
    memory = SmallMemory(tokens=100, says=says)
    model = queue(tiny_model("bert"), memory, 3)
    before = model.start(batch(10, 10))
    gc.disable()
    try:
        unfit = model.start(batch(60, 60))
        assert [held() for held in memory.held] == [None]
    finally:
        gc.enable()
    for _ in range(2):
        with pytest.raises(MemoryError, match=r"a batch of \(2, 60\) does not fit"):
            unfit.result()
    np.testing.assert_array_equal(before.result(), model.score(batch(10, 10)))


def test_other_errors_are_not_taken_for_want_of_memory(tiny_model: Tiny) -> None:
    model = queue(tiny_model("bert"), SmallMemory(tokens=1, says="an illegal access"), 3)
    with pytest.raises(RuntimeError, match="an illegal access"):
        model.start(batch(10))


# What attention is given


class Attention(TorchFunctionMode):
    """Notes what every attention of torch's is given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[dict[str, Any]] = []

    def __torch_function__(
        self, function: Any, types: Any, places: Any = (), names: Any = None
    ) -> Any:
        if function is nn.functional.scaled_dot_product_attention:
            self.given.append({"attn_mask": None, "is_causal": False} | (names or {}))
        return function(*places, **(names or {}))


def attentions(model: Any, given: TokenBatch) -> list[dict[str, Any]]:
    with Attention() as seen:
        model.score(given)
    return seen.given


@pytest.mark.parametrize("kind", [*PLAIN, *CAUSAL])
def test_inputs_of_one_length_are_attended_without_a_mask(tiny_model: Tiny, kind: str) -> None:
    model = described(tiny_model(kind)).load_on_torch(FP32)
    seen = attentions(model, batch(20, 20, 20))
    assert len(seen) >= 2
    assert all(one["attn_mask"] is None for one in seen)
    # A causal model's last queries are told where they stand by a flag, which flash kernels know.
    assert all(one["is_causal"] == (kind in CAUSAL) for one in seen)


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_causal_model_needs_no_mask_for_padding_either(tiny_model: Tiny, kind: str) -> None:
    seen = attentions(described(tiny_model(kind)).load_on_torch(FP32), batch(20, 3))
    assert seen
    assert all(one["attn_mask"] is None for one in seen)


@pytest.mark.parametrize("kind", LOCAL)
def test_local_layers_alone_have_a_mask_and_only_beyond_their_window(
    tiny_model: Tiny, kind: str
) -> None:
    model = described(tiny_model(kind))
    window = model.settings["local_attention"] // 2
    loaded = model.load_on_torch(FP32)
    short = attentions(loaded, batch(window - 1, window - 1))
    assert [one["attn_mask"] for one in short] == [None] * len(short)
    long = attentions(loaded, batch(8 * window, 8 * window))
    masked = [one["attn_mask"] is not None for one in long]
    assert any(masked)
    assert not all(masked)


@pytest.mark.parametrize("kind", PLAIN)
def test_a_mask_for_padding_is_one_row_a_pair(tiny_model: Tiny, kind: str) -> None:
    seen = attentions(described(tiny_model(kind)).load_on_torch(FP32), batch(20, 3))
    assert {tuple(one["attn_mask"].shape) for one in seen} == {(2, 1, 1, 20)}


def test_texts_of_one_length_reach_attention_without_a_mask(tiny_model: Tiny) -> None:
    scorer = Scorer(tiny_model("bert"), device="cpu", backend="torch", precision="fp32")
    with Attention() as seen:
        scorer.score([("what is it", "bread and salt"), ("what is it", "salt and bread")])
    assert seen.given
    assert all(one["attn_mask"] is None for one in seen.given)


# A GPU's queue never has to wait


class Waits(TorchDispatchMode):
    """Notes what makes the processor wait for a GPU: values that it asks for, and copies to it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, places: Any = (), names: Any = None
    ) -> Any:
        result = function(*places, **(names or {}))
        name = function._schema.name
        if name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero"):
            self.found.append(name)
        source = next((one for one in places if isinstance(one, torch.Tensor)), None)
        if name in ("aten::_to_copy", "aten::copy_") and isinstance(result, torch.Tensor):
            origin = places[1] if name == "aten::copy_" else source
            if isinstance(origin, torch.Tensor) and origin.device != result.device:
                self.found.append(f"{name} {tuple(origin.shape)}")
        return result


@pytest.mark.parametrize("lengths", [(40, 3), (40, 40)], ids=["padded", "equal"])
@pytest.mark.parametrize("kind", [*PLAIN, *LOCAL, "jina-bert"])
def test_a_batch_is_queued_on_another_device_without_waiting_for_it(
    tiny_model: Tiny, kind: str, lengths: tuple[int, ...]
) -> None:
    """On torch's "meta" device, which knows shapes and computes nothing, so nothing can be read."""
    model = described(tiny_model(kind))
    parts = model.load_parts(model.path())
    body, head = parts.body.to("meta"), parts.head.to("meta")
    given = batch(*lengths)
    inputs = {"input_ids": torch.empty(given.input_ids.shape, dtype=torch.int64, device="meta")}
    if given.mask is not None:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.inference_mode():
        body(**inputs)  # what is moved once a process is moved now
        with Waits() as waits:
            states = body(**inputs).last_hidden_state
            logits = head(states.float(), inputs.get("attention_mask"))
    assert waits.found == []
    assert logits.device.type == "meta"
    assert logits.shape == (len(lengths),)


# Precision


@pytest.mark.parametrize("kind", ALL)
def test_in_fp16_scores_are_close_to_fp32s(tiny_model: Tiny, kind: str) -> None:
    model = described(tiny_model(kind))
    half = model.load_on_torch(Profile("torch", "fp16", "cpu", "any", 1, 512))
    exact = model.load_on_torch(FP32)
    for given in (batch(60, 2, 31), batch(17, 17)):
        np.testing.assert_allclose(half.score(given), exact.score(given), atol=0.02, rtol=0.02)


@pytest.fixture
def rounded_products() -> Iterator[None]:
    """A process that lets products be computed in TF32 or bfloat16."""
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.fp32_precision = "none"
    torch.backends.mkldnn.matmul.fp32_precision = "none"


def test_what_a_process_allows_elsewhere_changes_no_score(
    tiny_model: Tiny, request: pytest.FixtureRequest
) -> None:
    model = TorchEncoder(Path(tiny_model("bert")), FP32)
    settings: list[tuple[str, str]] = []

    def note(*_: object) -> None:
        cuda, cpu = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
        settings.append((cuda.fp32_precision, cpu.fp32_precision))

    model._body.register_forward_hook(note)
    expected = model.score(batch(30, 20))
    request.getfixturevalue("rounded_products")
    np.testing.assert_array_equal(model.score(batch(30, 20)), expected)
    assert settings[1] == ("ieee", "ieee")
    assert torch.get_float32_matmul_precision() == "medium"
    assert torch.backends.cuda.matmul.allow_tf32


def test_a_setting_for_all_libraries_stays_one(tiny_model: Tiny) -> None:
    model = TorchEncoder(Path(tiny_model("bert")), FP32)
    torch.backends.fp32_precision = "tf32"
    try:
        model.score(batch(5))
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.fp32_precision = "none"
    assert torch.backends.cuda.matmul.fp32_precision == "none"
