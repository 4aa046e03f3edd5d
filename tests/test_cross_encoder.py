"""sentence-transformers' CrossEncoder ranks candidates of real collections as rankmill does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from sentence_transformers import CrossEncoder
from torch import nn

import tiny_models
from rankmill import Scorer

MAX_LENGTH = 128
CANDIDATES = 20
# A model, and how many queries it ranks candidates for: fewer where it is slow.
MODELS: dict[str, tuple[Callable[[Path], Path], int]] = {
    "MiniLM-L6": (tiny_models.minilm, 3),
    "japanese-reranker-tiny-v2": (
        partial(
            tiny_models.modernbert_ja,
            hidden_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=1024,
            local_attention=128,
        ),
        8,
    ),
    "XLM-R": (partial(tiny_models.xlm_roberta, hidden_size=128, max_position_embeddings=514), 8),
    "DeBERTa-v2": (partial(tiny_models.deberta_v2, hidden_size=128), 5),
    "GTE": (partial(tiny_models.gte, hidden_size=128), 5),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory) -> Iterator[tuple[str, int]]:
    build, queries = MODELS[request.param]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield str(build(tmp_path_factory.mktemp("model"))), queries
    torch.set_num_threads(before)


@pytest.mark.parametrize("collection", ["cranfield", "jaquad"])
def test_the_order_is_that_of_cross_encoder_wherever_scores_differ(shared_data, model, collection):
    folder, queries = model
    table = pq.read_table(shared_data / collection / "candidates.parquet")
    table = table.filter(pc.less_equal(table["bm25_rank"], CANDIDATES))
    rows = table.sort_by([("query_id", "ascending")]).slice(0, queries * CANDIDATES).to_pylist()
    assert len({row["query_id"] for row in rows}) == queries
    pairs = [(row["query"], f"{row['title']} {row['text']}") for row in rows]
    theirs = CrossEncoder(folder, device="cpu", max_length=MAX_LENGTH).predict(
        pairs, activation_fn=nn.Identity(), show_progress_bar=False
    )
    scorer = Scorer(
        folder,
        device="cpu",
        precision="fp32",
        max_length=MAX_LENGTH,
        truncation="longest_first",
        threads=1,
    )
    ours = scorer.score(pairs)
    for first in range(0, len(pairs), CANDIDATES):
        mine, other = ours[first : first + CANDIDATES], theirs[first : first + CANDIDATES]
        differ = other[:, None] - other[None, :] > 1e-4
        assert differ.sum() > CANDIDATES
        assert np.all((mine[:, None] > mine[None, :])[differ])


@pytest.mark.parametrize("default", ["search", None])
def test_a_prompt_that_cross_encoder_puts_before_queries_is_put_there(
    tiny_model, tmp_path, default
):
    prompts = {"search": "find what is "}
    encoder = CrossEncoder(
        tiny_model("bert"), device="cpu", prompts=prompts, default_prompt_name=default
    )
    encoder.save_pretrained(str(tmp_path / "saved"))
    pairs = [("a shard", "A shard is a run of whole lists."), ("x", "heat transfer in slip flow")]
    theirs = encoder.predict(pairs, activation_fn=nn.Identity())
    ours = Scorer(str(tmp_path / "saved"), device="cpu", precision="fp32").score(pairs)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    without = Scorer(tiny_model("bert"), device="cpu", precision="fp32").score(pairs)
    assert bool(np.max(np.abs(ours - without)) > 0.01) == (default is not None)
