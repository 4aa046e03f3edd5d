"""Scorer: pairs in, raw scores out, in this process and without Ray."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from rankmill import Scorer
from rankmill.batches import pad_widths
from rankmill.config import ModelConfig
from rankmill.errors import ConfigError, InputError, ModelError
from rankmill.models import ScorerModel
from rankmill.models.describe import describe
from rankmill.scorer import ScoredPairs, score_pairs
from rankmill.tokens import TokenBatch, TokenizedPairs
from rankmill.windows import cut

QUERY = "what is a shard"
DOCUMENTS = [
    "A shard is a run of whole candidate lists.",
    "Shear flow past a flat plate.",
    "検索結果の順位",
    "Reranking orders search results by reading the query and each document together. " * 4,
    "x",
]
PAIRS = [(QUERY, document) for document in DOCUMENTS] + [("x", DOCUMENTS[0])]


@pytest.fixture(scope="module")
def scorer(tiny_model) -> Scorer:
    """From a path object; elsewhere a text names the folder."""
    return Scorer(Path(tiny_model("bert")), device="cpu", precision="fp32", threads=1)


def test_scores_are_float32_in_the_order_given(scorer):
    scores = scorer.score(PAIRS)
    assert scores.dtype == np.float32
    assert scores.shape == (6,)
    assert len(np.unique(scores)) == 6
    np.testing.assert_allclose(scorer.score(PAIRS[::-1]), scores[::-1], atol=1e-5)


def test_the_order_of_a_pair_matters(scorer):
    one, other = scorer.score([("a shard", "what is it"), ("what is it", "a shard")])
    assert one != other


def test_equal_pairs_get_equal_scores_and_are_scored_once(scorer):
    scores = scorer.score([PAIRS[0], PAIRS[1], PAIRS[0], PAIRS[0]])
    assert scores[0] == scores[2] == scores[3] != scores[1]
    # Repeats leave the batch, and so every bit, as it was.
    np.testing.assert_array_equal(scorer.score(PAIRS * 3), np.tile(scorer.score(PAIRS), 3))


def test_no_pairs_have_no_scores(scorer):
    scores = scorer.score([])
    assert scores.dtype == np.float32
    assert scores.shape == (0,)


def test_empty_texts_are_texts(scorer):
    scores = scorer.score([("", ""), (QUERY, ""), ("", "x")])
    assert np.all(np.isfinite(scores))
    assert len(np.unique(scores)) == 3


def test_pairs_may_come_from_any_iterable_of_twos(scorer):
    expected = scorer.score(PAIRS)
    np.testing.assert_array_equal(scorer.score(list(map(list, PAIRS))), expected)
    np.testing.assert_array_equal(scorer.score(pair for pair in PAIRS), expected)
    np.testing.assert_array_equal(scorer.score(np.array(PAIRS)), expected)


def test_rank_gives_indices_best_first_and_keeps_the_order_of_ties(scorer):
    documents = [*DOCUMENTS, DOCUMENTS[1], DOCUMENTS[0]]
    order = scorer.rank(QUERY, documents)
    scores = scorer.score([(QUERY, document) for document in documents])
    assert order.dtype == np.int64
    assert sorted(order) == list(range(7))
    assert np.all(np.diff(scores[order]) <= 0)
    places = order.tolist()
    assert places.index(5) == places.index(1) + 1
    assert places.index(6) == places.index(0) + 1


def test_rank_of_nothing_is_nothing(scorer):
    assert scorer.rank(QUERY, []).shape == (0,)


def test_queries_are_capped_before_documents(tiny_model):
    model = tiny_model("bert")
    capped = Scorer(model, device="cpu", precision="fp32", threads=1, max_query_tokens=3)
    one, other = capped.score([("what is a shard", "lists"), ("what is a plate", "lists")])
    assert one == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize(
    "pair",
    ["ab", ("one",), ("one", "two", "three"), ("query", None), (1, 2), 5, ("lone", "\ud800")],
    ids=repr,
)
def test_what_is_not_a_pair_of_texts_is_refused_by_its_place(scorer, pair):
    with pytest.raises(InputError, match=r"^Pair 1 is not a query and a document"):
        scorer.score([PAIRS[0], pair])


def test_one_text_is_not_a_list_of_documents(scorer):
    with pytest.raises(InputError, match="documents must be a list of texts"):
        scorer.rank(QUERY, "a document")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"device": "gpu"}, "device: .*found 'gpu'"),
        ({"precision": "int8"}, "precision: .* found 'int8'"),
        ({"precision": "fp16", "device": "cpu"}, "fp16 is slower than fp32 on CPUs"),
        ({"max_length": 0}, "max_length: .* greater than 0"),
        ({"max_length": "512"}, "max_length: .* integer"),
        ({"max_query_tokens": 512}, r"max_query_tokens \(512\) must be below max_length \(512\)"),
        ({"truncation": "query"}, "truncation: .* found 'query'"),
        ({"threads": 0}, "threads must be a whole number above 0, found 0"),
        ({"threads": True}, "threads must be a whole number above 0, found True"),
        ({"revision": ""}, "revision"),
    ],
    ids=repr,
)
def test_a_wrong_setting_is_a_config_error_that_names_it(tiny_model, setting, said):
    with pytest.raises(ConfigError, match=said) as refused:
        Scorer(tiny_model("bert"), **setting)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("name", [None, 5, ""])
def test_a_name_that_is_no_text_is_a_config_error(name):
    with pytest.raises(ConfigError, match="name"):
        Scorer(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_is_a_config_error(tiny_model):
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        Scorer(tiny_model("bert"), device="cuda")


def test_a_length_without_room_for_text_is_refused(tiny_model):
    with pytest.raises(ModelError, match="max_length 3 leaves no room"):
        Scorer(tiny_model("bert"), max_length=3)


NO_RAY = """
import sys
import rankmill
scorer = rankmill.Scorer(sys.argv[1], device="cpu")
print(len(scorer.score([("query", "document")])), "ray" in sys.modules)
"""


def test_ray_is_not_imported(tiny_model):
    done = subprocess.run(
        [sys.executable, "-c", NO_RAY, tiny_model("bert")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("1 False\n", "")


class SmallMemory:
    """A model on a machine that holds so many pairs at once."""

    def __init__(self, model: ScorerModel, pairs: int) -> None:
        self.model, self.pairs = model, pairs
        self.batches: list[int] = []

    def score(self, batch: TokenBatch) -> np.ndarray:
        size = len(batch.input_ids)
        if size > self.pairs:
            raise MemoryError
        self.batches.append(size)
        return self.model.score(batch)


@pytest.fixture(scope="module")
def forty(scorer) -> TokenizedPairs:
    texts = scorer.tokenizer.encode([QUERY, *(f"list {i} of " + "shard " * i for i in range(40))])
    number = np.arange(1, 41, dtype=np.int32)
    return scorer.tokenizer.pairs(texts, np.zeros(40, np.int32), number)


def score_in_one_batch(scorer: Scorer, model: ScorerModel, pairs: TokenizedPairs) -> ScoredPairs:
    profile = replace(scorer.profile, token_budget=40 * 128)
    return score_pairs(model, pairs, scorer.tokenizer.rules, scorer.tokenizer.template, profile)


@pytest.mark.parametrize("fits", [39, 7, 1])
def test_a_batch_that_does_not_fit_is_halved_until_it_does(scorer, forty, fits):
    whole = score_in_one_batch(scorer, scorer.model, forty)
    assert not whole.degraded
    small = SmallMemory(scorer.model, fits)
    halved = score_in_one_batch(scorer, small, forty)
    assert halved.degraded
    assert sum(small.batches) == 40
    assert max(small.batches) <= fits
    np.testing.assert_allclose(halved.scores, whole.scores, rtol=0, atol=1e-5)


def test_a_pair_that_does_not_fit_alone_is_a_memory_error(scorer, forty):
    with pytest.raises(MemoryError):
        score_in_one_batch(scorer, SmallMemory(scorer.model, 0), forty)


def test_costs_count_the_tokens_that_the_model_saw_and_the_padding_beside_them(scorer, forty):
    lengths = cut(forty, scorer.tokenizer.rules).lengths
    whole = score_in_one_batch(scorer, scorer.model, forty)
    assert whole.windows == 40
    assert whole.tokens == lengths.sum()
    widths = pad_widths(lengths, scorer.profile.pad_to_multiple_of, 512)
    assert whole.padded_tokens == 40 * widths.max() - lengths.sum()
    alone = score_in_one_batch(scorer, SmallMemory(scorer.model, 1), forty)
    assert (alone.tokens, alone.padded_tokens) == (lengths.sum(), (widths - lengths).sum())


def test_a_score_that_is_not_a_number_stays_with_its_pair_and_ranks_last(scorer, tmp_path):
    """A model whose weights for one word are broken."""
    source = scorer.description.path()
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    word = scorer.tokenizer.encode(["plate"]).ids[0]
    tensors["bert.embeddings.word_embeddings.weight"][word] = np.nan
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})

    broken = Scorer(str(tmp_path), device="cpu", precision="fp32", threads=1)
    scores = broken.score(PAIRS)
    assert np.isnan(scores).tolist() == [False, True, False, False, False, False]
    expected = scorer.score(PAIRS)
    np.testing.assert_allclose(np.delete(scores, 1), np.delete(expected, 1), atol=1e-5)
    assert broken.rank(QUERY, DOCUMENTS)[-1] == 1


def test_the_description_and_profile_say_what_was_resolved(scorer, tiny_model):
    assert scorer.description == describe(ModelConfig(name=tiny_model("bert")))
    assert scorer.profile.precision == "fp32"
    assert scorer.profile.device == "cpu"
    assert scorer.profile.threads == 1
