"""Models of the true shapes score as transformers' own classes do, whatever the batch.

Weights are random and vocabularies small; widths, depths, heads, windows and positions are those
of the models' published configurations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny_models
from rankmill.config import ModelConfig
from rankmill.models import ScorerModel
from rankmill.models.describe import describe
from rankmill.models.folder import FolderModel
from rankmill.profile import Profile
from rankmill.scorer import score_pairs
from rankmill.tokenizer import PairTokenizer
from rankmill.tokens import PairRules, TokenizedPairs, Truncation
from rankmill.windows import assemble, cut
from reference import Reference

MINILM = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
BERT = partial(tiny_models.bert, **MINILM, max_position_embeddings=512)
XLM_R = partial(tiny_models.xlm_roberta, **MINILM, max_position_embeddings=514)
MODERNBERT = partial(
    tiny_models.modernbert_ja,
    num_attention_heads=4,
    hidden_size=256,
    intermediate_size=1024,
    max_position_embeddings=8192,
    local_attention=128,
    norm_eps=1e-5,
)
DEBERTA = partial(
    tiny_models.deberta_v2,
    hidden_size=768,
    num_attention_heads=12,
    intermediate_size=3072,
    max_position_embeddings=512,
    position_buckets=256,
    layer_norm_eps=1e-7,
)
GTE = partial(
    tiny_models.gte,
    hidden_size=768,
    num_attention_heads=12,
    intermediate_size=3072,
    max_position_embeddings=8192,
)
# Depths are true but those of the large models, which are cut to 2 layers for time.
SHAPES: dict[str, Callable[[Path], Path]] = {
    "ms-marco-MiniLM-L6-v2": partial(BERT, num_hidden_layers=6),
    "ms-marco-MiniLM-L12-v2": partial(BERT, num_hidden_layers=12),
    "japanese-reranker-cross-encoder-xsmall-v1": partial(XLM_R, num_hidden_layers=6),
    "japanese-reranker-cross-encoder-small-v1": partial(XLM_R, num_hidden_layers=12),
    "bge-reranker-v2-m3": partial(
        tiny_models.xlm_roberta,
        num_hidden_layers=2,
        num_attention_heads=16,
        hidden_size=1024,
        intermediate_size=4096,
        max_position_embeddings=8194,
    ),
    "mxbai-rerank-base-v1": partial(DEBERTA, num_hidden_layers=2),
    "gte-multilingual-reranker-base": partial(GTE, num_hidden_layers=2),
    "japanese-reranker-tiny-v2": partial(MODERNBERT, num_hidden_layers=3),
    "japanese-reranker-tiny-v2, mean": partial(
        MODERNBERT, num_hidden_layers=3, classifier_pooling="mean"
    ),
    "japanese-reranker-xsmall-v2": partial(MODERNBERT, num_hidden_layers=10),
    "japanese-reranker-small-v2": partial(
        MODERNBERT,
        num_hidden_layers=13,
        num_attention_heads=6,
        hidden_size=384,
        intermediate_size=1536,
    ),
}
LIMIT = 512
FP32 = Profile("torch", "fp32", "cpu", "any", threads=2, token_budget=2048)

# Beyond the half window and the window, and the limit itself.
LENGTHS = (20, 65, 128, 129, 256, 512)
ODD = [
    ("シャードとは何ですか。", "東京は日本の首都であり、世界最大の都市圏の一つです。"),
    ("reading 😀 emoji", "👩‍👩‍👧 🇯🇵 ❤️"),
    ("ما هي الشظية", "השבר הוא רצף של רשימות"),
    ("pneumonoultramicroscopic" * 6, "ü" * 60),
    ("\u200b", " \u00ad\u200b"),
    ("x", ""),
    ("[SEP] </s>", "[PAD] <pad> [CLS] <s>"),
]
LONG_DOCUMENT = ("what is heat transfer", "slip flow past a flat plate " * 200)
LONG_QUERIES = [
    ("シャードとは何ですか " * 200, "A shard is a run of whole lists."),
    ("search results " * 300, "検索結果の順位を付け直す " * 300),
]


@dataclass(frozen=True)
class Shape:
    """A loaded model of rankmill and its reference."""

    description: FolderModel
    model: ScorerModel
    reference: Reference

    def tokenizer(self, truncation: Truncation = "document") -> PairTokenizer:
        return self.description.tokenizer(PairRules(self.reference.max_length, truncation))

    def score(self, pairs: list[tuple[str, str]], truncation: Truncation) -> np.ndarray:
        tokenizer = self.tokenizer(truncation)
        tokenized = tokenized_pairs(tokenizer, pairs)
        rules, template = tokenizer.rules, tokenizer.template
        return score_pairs(self.model, tokenized, rules, template, FP32).scores

    def of_length(self, length: int) -> tuple[str, str]:
        """A pair of exactly that many tokens."""
        tokenizer = self.tokenizer()

        def tokens(text: str) -> int:
            return int(tokenizer.encode([text]).lengths[0])

        words = ("a", "is", "list", "of", "the", "run")
        word = next(w for w in words if tokens(" ".join([w] * 9)) == 9)
        query = "what is a shard"
        rest = length - tokenizer.template.special - tokens(query)
        return query, " ".join([word] * rest)


def tokenized_pairs(tokenizer: PairTokenizer, pairs: list[tuple[str, str]]) -> TokenizedPairs:
    queries = np.arange(len(pairs), dtype=np.int32) * 2
    return tokenizer.tokenize([text for pair in pairs for text in pair], queries, queries + 1)


def loaded(build: Callable[[Path], Path], folder: Path, max_length: int = LIMIT) -> Shape:
    description = describe(ModelConfig(name=str(build(folder))))
    return Shape(description, description.load(FP32), Reference(str(folder), max_length))


@pytest.fixture(scope="module", params=SHAPES)
def shape(request, tmp_path_factory) -> Iterator[Shape]:
    before = torch.get_num_threads()
    yield loaded(SHAPES[request.param], tmp_path_factory.mktemp("shape"))
    torch.set_num_threads(before)


def test_scores_are_those_of_transformers_on_each_pair_alone(shape):
    pairs = [shape.of_length(length) for length in LENGTHS] + ODD + [LONG_DOCUMENT, *LONG_QUERIES]
    expected = [shape.reference.score(*pair, "document") for pair in pairs]
    assert np.std(expected) > 0.05  # 500 times the tolerance
    np.testing.assert_allclose(shape.score(pairs, "document"), expected, rtol=0, atol=1e-4)


def test_pairs_cut_longest_first_score_as_transformers_cuts_them(shape):
    expected = [shape.reference.score(*pair, "longest_first") for pair in LONG_QUERIES]
    scores = shape.score(LONG_QUERIES, "longest_first")
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)


def test_scores_do_not_depend_on_neighbours_or_their_order(shape):
    tokenizer = shape.tokenizer()
    pairs = [shape.of_length(length) for length in LENGTHS if length <= 256] + ODD
    windows = cut(tokenized_pairs(tokenizer, pairs), tokenizer.rules)

    def scored(*chosen: int) -> np.ndarray:
        return shape.model.score(assemble(windows, tokenizer.template, np.array(chosen)))

    alone = np.concatenate([scored(number) for number in range(len(pairs))])
    order = np.random.default_rng(4).permutation(len(pairs))
    together = np.empty_like(alone)
    together[order] = scored(*order)
    layers = shape.description.settings["num_hidden_layers"]
    limit = (1e-5 if layers <= 12 else 1e-4) * np.maximum(1, np.abs(alone))
    assert np.all(np.abs(together - alone) <= limit)
    apart = alone[:, None] - alone[None, :] > limit[:, None] + limit[None, :]
    assert np.all((together[:, None] > together[None, :])[apart])


def test_the_longest_pair_of_a_modernbert_scores_as_in_transformers(tmp_path):
    tiny = loaded(SHAPES["japanese-reranker-tiny-v2"], tmp_path, max_length=8192)
    assert tiny.description.max_length(10_000) == 8192
    pair = tiny.of_length(8192)
    expected = tiny.reference.score(*pair, "document")
    np.testing.assert_allclose(tiny.score([pair], "document"), [expected], rtol=0, atol=1e-4)
