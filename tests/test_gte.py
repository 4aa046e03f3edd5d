"""GTE checkpoints in their published layout: scored by the formulas, their code never run."""

from __future__ import annotations

import json
from math import erf
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import tiny_models
from rankmill import Scorer
from rankmill.config import ModelConfig
from rankmill.errors import ModelError
from rankmill.models.describe import describe
from rankmill.models.folder import FolderModel
from rankmill.models.gte import gte_settings
from rankmill.models.torch_encoder import TorchEncoder
from rankmill.profile import Profile
from rankmill.tokens import PairRules, TokenBatch
from rankmill.windows import assemble, cut

Floats = np.ndarray
PAIRS = [
    (query, document)
    for query in ("what is a shard", "シャードとは何ですか", "heat transfer " * 30)
    for document in ("A shard is a run.", "", "検索結果の順位 😀", "slip flow " * 90)
]
FP32 = Profile("torch", "fp32", "cpu", "any", threads=1, token_budget=2048)
PUBLISHED = {"ntk": {}, "plain": {"rope_scaling": None}, "no segments": {"type_vocab_size": 0}}


def described(folder: Path) -> FolderModel:
    return describe(ModelConfig(name=str(folder)))


# The model, from its formulas: post-norm BERT with rotary positions and gated blocks.


def normed(states: Floats, weights: dict[str, Floats], name: str, epsilon: float) -> Floats:
    centred = states - states.mean(-1, keepdims=True)
    spread = np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    return centred / spread * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(states: Floats, weights: dict[str, Floats], name: str) -> Floats:
    return states @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)


def gelu(values: Floats) -> Floats:
    return values * (1 + np.vectorize(erf)(values / np.sqrt(2))) / 2


def turned(vectors: Floats, frequencies: Floats) -> Floats:
    """Rotary positions of [length, head]: dimension i turns with dimension i + head / 2."""
    angles = np.arange(len(vectors))[:, None] * frequencies
    first, second = np.split(vectors, 2, axis=-1)
    return np.concatenate(
        [
            first * np.cos(angles) - second * np.sin(angles),
            second * np.cos(angles) + first * np.sin(angles),
        ],
        axis=-1,
    )


def frequencies(config: dict, head: int) -> Floats:
    exponents = np.arange(0, head, 2) / head
    scaling = config["rope_scaling"]
    if scaling is None:
        return config["rope_theta"] ** -exponents
    factor = scaling["factor"]
    return (config["rope_theta"] * factor) ** -exponents / factor ** (2 / head)


def reference(folder: Path, ids: list[int]) -> float:
    """The logit of one pair, in double precision."""
    config = json.loads((folder / "config.json").read_text())
    weights = {
        name.removeprefix("new."): value.astype(np.float64)
        for name, value in load_file(folder / "model.safetensors").items()
    }
    wide, heads = config["hidden_size"], config["num_attention_heads"]
    head, epsilon = wide // heads, config["layer_norm_eps"]
    states = weights["embeddings.word_embeddings.weight"][ids]
    if config["type_vocab_size"]:
        states = states + weights["embeddings.token_type_embeddings.weight"][0]
    states = normed(states, weights, "embeddings.LayerNorm", epsilon)
    for layer in range(config["num_hidden_layers"]):
        block = f"encoder.layer.{layer}"
        packed = np.split(linear(states, weights, f"{block}.attention.qkv_proj"), 3, axis=-1)
        seen = []
        for place in range(heads):
            query, key, value = (one[:, place * head : (place + 1) * head] for one in packed)
            turn = frequencies(config, head)
            scores = turned(query, turn) @ turned(key, turn).T / np.sqrt(head)
            chances = np.exp(scores - scores.max(-1, keepdims=True))
            seen.append(chances / chances.sum(-1, keepdims=True) @ value)
        attended = linear(np.concatenate(seen, -1), weights, f"{block}.attention.o_proj")
        states = normed(states + attended, weights, f"{block}.attn_ln", epsilon)
        up, gate = np.split(linear(states, weights, f"{block}.mlp.up_gate_proj"), 2, axis=-1)
        gated = linear(gelu(gate) * up, weights, f"{block}.mlp.down_proj")
        states = normed(states + gated, weights, f"{block}.mlp_ln", epsilon)
    pooled = np.tanh(linear(states[0], weights, "pooler.dense"))
    return float(linear(pooled, weights, "classifier")[0])


@pytest.fixture(params=PUBLISHED)
def published(request, tmp_path) -> Path:
    return tiny_models.gte_published(tmp_path, **PUBLISHED[request.param])


def test_scores_of_a_published_checkpoint_are_those_of_its_formulas(published):
    scorer = Scorer(str(published), device="cpu", precision="fp32", threads=1)
    tokenizer = scorer.tokenizer
    places = np.arange(len(PAIRS), dtype=np.int32) * 2
    pairs = tokenizer.tokenize([text for pair in PAIRS for text in pair], places, places + 1)
    windows = cut(pairs, tokenizer.rules)
    assert windows.lengths.max() == 128
    together = assemble(windows, tokenizer.template, np.arange(len(PAIRS)))
    expected = [
        reference(published, row[:length].tolist())
        for row, length in zip(together.input_ids, windows.lengths)
    ]
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(scorer.score(PAIRS), expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(scorer.model.score(together), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("length", [1, 5, 128, 129, 600])
def test_scaled_positions_do_not_depend_on_the_length(tmp_path, length):
    folder = tiny_models.gte_published(tmp_path)
    words = json.loads((folder / "config.json").read_text())["vocab_size"]
    ids = np.random.default_rng(length).integers(5, words, (1, length))
    score = TorchEncoder(folder, FP32).score(TokenBatch(ids, None, None))
    np.testing.assert_allclose(score, [reference(folder, ids[0].tolist())], rtol=0, atol=1e-4)


def test_the_code_that_a_published_checkpoint_names_is_never_run(tmp_path):
    folder = tiny_models.gte_published(
        tmp_path,
        auto_map={
            "AutoConfig": "configuration.NewConfig",
            "AutoModelForSequenceClassification": "modeling.NewForSequenceClassification",
        },
    )
    ran = tmp_path / "ran"
    for name in ("configuration.py", "modeling.py"):
        (folder / name).write_text(f"open({str(ran)!r}, 'w')\nraise SystemExit\n")
    scorer = Scorer(str(folder), device="cpu", precision="fp32", threads=1)
    assert np.isfinite(scorer.score(PAIRS)).all()
    assert not ran.exists()


def test_loading_a_published_checkpoint_prints_nothing(tmp_path, capfd):
    folder = tiny_models.gte_published(tmp_path)
    capfd.readouterr()
    Scorer(str(folder), device="cpu", precision="fp32", threads=1).score(PAIRS[:2])
    assert capfd.readouterr() == ("", "")


def test_what_the_config_leaves_out_has_the_published_default():
    given = gte_settings("m", {"hidden_size": 64, "num_attention_heads": 4})
    assert given["rope_parameters"] == {"rope_type": "default", "rope_theta": 10000.0}
    assert (given["vocab_size"], given["type_vocab_size"]) == (30528, 1)
    assert (given["layer_norm_eps"], given["hidden_act"]) == (1e-12, "gelu")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"position_embedding_type": "absolute"}, "position_embedding_type 'absolute'"),
        ({"layer_norm_type": "rms_norm"}, "layer_norm_type 'rms_norm'"),
        ({"logn_attention_scale": True}, "logn_attention_scale True"),
        ({"pack_qkv": False}, "pack_qkv False"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, "rope_scaling {'type': 'dynamic'"),
        ({"rope_scaling": "ntk"}, "rope_scaling 'ntk'"),
        (
            {"rope_scaling": {"type": "ntk", "factor": 2, "mixed_b": 0.6}},
            r"rope_scaling\.mixed_b 0\.6",
        ),
        ({"rope_scaling": {"type": "ntk"}}, r"rope_scaling\.factor None, expected a number"),
        ({"hidden_act": "nope"}, "cannot be built .*nope"),
        ({"type_vocab_size": 0, "num_hidden_layers": 1}, "do not match"),
    ],
)
def test_a_value_that_the_class_cannot_express_is_refused(tmp_path, changed, said):
    folder = tiny_models.gte_published(tmp_path)
    config = json.loads((folder / "config.json").read_text()) | changed
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=said) as refused:
        described(folder).check(PairRules(64, "document"))
    assert refused.value.exit_code == 2


def test_logn_clipping_alone_changes_nothing(tmp_path):
    folder = tiny_models.gte_published(tmp_path, logn_attention_clip1=True)
    described(folder).check(PairRules(64, "document"))


def test_a_published_masked_language_model_is_no_reranker(tmp_path):
    folder = tiny_models.gte_published(tmp_path, architectures=["NewForMaskedLM"])
    with pytest.raises(ModelError, match="not a sequence classifier"):
        described(folder)


def test_a_published_checkpoint_is_recorded_as_gte(tmp_path):
    assert described(tiny_models.gte_published(tmp_path)).to_json()["architecture"] == "gte"
