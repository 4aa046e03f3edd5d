"""Bodies that compute only the states that the head reads give the scores of the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

import tiny_models
from rankmill.models import classifiers, jina_bert
from rankmill.models.classifiers import Classifier

# As in japanese-reranker-tiny-v2, the layers after the first are local (half a window is 8).
TWO_LOCAL = partial(tiny_models.modernbert, num_hidden_layers=3)
BUILDERS: dict[str, Callable[[Path], Path]] = {
    **{
        kind: tiny_models.BUILDERS[kind]
        for kind in ("bert", "electra", "roberta", "camembert", "xlm-roberta", "gte", "modernbert")
    },
    "modernbert, two local layers last": TWO_LOCAL,
    "modernbert, local layers only": partial(
        TWO_LOCAL, layer_types=["sliding_attention"] * 3, global_attn_every_n_layers=9
    ),
    "modernbert with biases": partial(TWO_LOCAL, attention_bias=True, mlp_bias=True),
    "bert, one layer": partial(tiny_models.bert, num_hidden_layers=1),
}
# Rows of one token up to many windows: alone, beside much longer ones, and all of one length.
BATCHES = [(1,), (7,), (8, 9), (16, 17, 18), (100,), (100, 100), (100, 3, 1, 40), (120, 24, 25, 26)]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models are faster without threads that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def inputs(lengths: tuple[int, ...], vocabulary: int, segments: bool) -> dict[str, torch.Tensor]:
    longest = max(lengths)
    generator = torch.Generator().manual_seed(sum(lengths))
    ids = torch.randint(5, vocabulary, (len(lengths), longest), generator=generator)
    given = {"input_ids": ids}
    if segments:
        given["token_type_ids"] = (torch.arange(longest) > longest // 2).long().expand_as(ids)
    if min(lengths) < longest:
        given["attention_mask"] = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    return given


@torch.inference_mode()
def scores(model: Classifier, given: dict[str, torch.Tensor], states: int) -> np.ndarray:
    found = model.body(**given).last_hidden_state
    assert found.shape[:2] == (len(given["input_ids"]), states)
    return model.head(found, given.get("attention_mask")).numpy()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", BUILDERS)
def test_scores_are_those_of_the_whole_model(tmp_path, kind, attention):
    folder = BUILDERS[kind](tmp_path / "model")
    whole = AutoModelForSequenceClassification.from_pretrained(
        folder, attn_implementation=attention
    ).eval()
    short = classifiers.load(folder, traced=attention == "eager")
    assert short.body.config._attn_implementation == attention
    seen = []
    for lengths in BATCHES:
        segments = getattr(whole.config, "type_vocab_size", 0) > 1
        given = inputs(lengths, whole.config.vocab_size, segments)
        with torch.inference_mode():
            expected = whole(**given).logits[:, 0].numpy()
        found = scores(short, given, states=1)
        assert np.all(np.abs(found - expected) <= 1e-5 * np.maximum(1, np.abs(expected)))
        seen += expected.tolist()
    assert np.std(seen) > 0.1


@pytest.mark.parametrize("max_scores", [None, 500, jina_bert.MAX_SCORES])
def test_a_jina_bert_scores_as_the_whole_one(tmp_path, max_scores):
    folder = tiny_models.jina_bert(tmp_path / "model")
    short = classifiers.load_jina(folder, "halved")
    whole = classifiers.load_jina(folder, "halved")
    whole.body._first_only = False
    short.body._max_scores = whole.body._max_scores = max_scores
    vocabulary = whole.body.embeddings["word_embeddings"].num_embeddings
    for lengths in BATCHES:
        given = inputs(lengths, vocabulary, segments=False)
        expected = scores(whole, given, states=max(lengths))
        found = scores(short, given, states=1)
        assert np.all(np.abs(found - expected) <= 1e-5 * np.maximum(1, np.abs(expected)))


def test_a_layer_computes_no_more_states_than_have_a_reader(tmp_path):
    body = classifiers.load(TWO_LOCAL(tmp_path / "model")).body
    computed: list[int] = []
    for layer in body.layers:
        layer.register_forward_hook(lambda _, __, output: computed.append(output.shape[1]))
    with torch.inference_mode():
        body(**inputs((100, 100), body.config.vocab_size, segments=False))
        body(**inputs((12, 12), body.config.vocab_size, segments=False))
    assert computed == [17, 9, 1, 12, 9, 1]


def test_means_need_every_state(tmp_path):
    folder = tiny_models.modernbert_mean(tmp_path / "model")
    model = classifiers.load(folder)
    given = inputs((30, 4), model.body.config.vocab_size, segments=False)
    scores(model, given, states=30)


@pytest.mark.parametrize("kind", ["bert", "modernbert, two local layers last", "gte"])
def test_in_bf16_scores_are_as_close_to_fp32_as_those_of_the_whole_model(tmp_path, kind):
    folder = BUILDERS[kind](tmp_path / "model")
    whole = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    given = inputs((120,) * 24 + (60,) * 24, whole.config.vocab_size, segments=False)
    with torch.inference_mode():
        exact = whole(**given).logits[:, 0].numpy()
        head = classifiers.load(folder).head
        states = whole.base_model.bfloat16()(**given).last_hidden_state.float()
        theirs = head(states, None).numpy() - exact
        short = classifiers.load(folder)
        short.body.bfloat16()
        ours = head(short.body(**given).last_hidden_state.float(), None).numpy() - exact
    assert np.sqrt(np.mean(ours**2)) < 2 * np.sqrt(np.mean(theirs**2))
