"""JinaBERT: compared with its formulas written out in numpy, within bounded memory."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import tiny_models
from rankmill.errors import ModelError
from rankmill.models.jina_bert import (
    JinaBertClassifier,
    JinaBertConfig,
    alibi_slopes,
)
from rankmill.tokenizer import PairTokenizer
from rankmill.tokens import PairRules

# Spelled out, so that nothing of the rule under test makes the expectation.
TWELVE = {
    "standard": [-1, -2, -3, -4, -5, -6, -7, -8, -0.5, -1.5, -2.5, -3.5],
    "halved": [-1, -2, -3, -4, -5, -6, -7, -8, -1.5, -2.5, -3.5, -4.5],
}
SLOPES = {
    **{(12, rule): [2.0**power for power in powers] for rule, powers in TWELVE.items()},
    (3, "halved"): [2.0**-4, 2.0**-8, 2.0**-3],
    (8, "halved"): [2.0**-power for power in range(1, 9)],
}
TINY = tiny_models.jina_bert_settings(vocab_size=200, num_hidden_layers=4)
TURBO = tiny_models.jina_bert_settings(vocab_size=200, num_hidden_layers=6)


def small(heads: int, layers: int = 2) -> dict:
    return tiny_models.jina_bert_settings(
        vocab_size=200,
        hidden_size=8 * heads,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=32,
        # Large enough to be seen in the states.
        layer_norm_eps=1e-2,
    )


def classifier(settings, slopes="halved", **options) -> JinaBertClassifier:
    with torch.device("meta"):
        model = JinaBertClassifier(JinaBertConfig.read(settings, "config.json"), slopes, **options)
    model.load_state_dict(weights(json.dumps(settings)), assign=True)
    return model.eval()


@cache
def weights(settings: str) -> dict[str, torch.Tensor]:
    return tiny_models.jina_bert_weights(json.loads(settings))


def pairs(lengths, seed=0):
    """Token ids, segment ids and mask, int64 [pairs, longest]; other ids where rows are padded."""
    random = np.random.default_rng(seed)
    ids = random.integers(0, 200, (len(lengths), max(lengths)))
    segments = random.integers(0, 2, ids.shape)
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    return tuple(torch.from_numpy(array) for array in (ids, segments, mask))


@torch.inference_mode()
def scores(model, ids, segments=None, mask=None) -> np.ndarray:
    return model(ids, segments, mask).numpy()


class Plain:
    """The formulas, in float64, for one pair at a time and one head after the other."""

    def __init__(self, settings, rule="halved"):
        stored = weights(json.dumps(settings))
        self.weights = {name: values.double().numpy() for name, values in stored.items()}
        self.heads = settings["num_attention_heads"]
        self.layers = settings["num_hidden_layers"]
        self.eps = settings["layer_norm_eps"]
        self.slopes = SLOPES[self.heads, rule]

    def norm(self, name, x):
        centred = x - x.mean(-1, keepdims=True)
        x = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + self.eps)
        return x * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def linear(self, name, x):
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def attention(self, layer, x):
        size = x.shape[1] // self.heads
        q, k, v = (self.linear(f"{layer}.self.{name}", x) for name in ("query", "key", "value"))
        context = np.empty_like(x)
        place = np.arange(len(x))
        for head, slope in enumerate(self.slopes):
            of = slice(head * size, (head + 1) * size)
            for i in range(len(x)):
                score = q[i, of] @ k[:, of].T / math.sqrt(size) - slope * np.abs(i - place)
                share = np.exp(score - score.max())
                context[i, of] = share @ v[:, of] / share.sum()
        return context

    def states(self, ids, segments):
        embeddings = "bert.embeddings"
        x = self.weights[f"{embeddings}.word_embeddings.weight"][ids]
        x = x + self.weights[f"{embeddings}.token_type_embeddings.weight"][segments]
        x = self.norm(f"{embeddings}.LayerNorm", x)
        for number in range(self.layers):
            layer = f"bert.encoder.layer.{number}"
            context = self.attention(f"{layer}.attention", x)
            dense = self.linear(f"{layer}.attention.output.dense", context)
            a = self.norm(f"{layer}.attention.output.LayerNorm", dense + x)
            u = a @ self.weights[f"{layer}.mlp.gated_layers.weight"].T
            half = u.shape[1] // 2
            opening = u[:, :half] * 0.5 * (1 + np.vectorize(math.erf)(u[:, :half] / math.sqrt(2)))
            wo = self.linear(f"{layer}.mlp.wo", opening * u[:, half:])
            x = self.norm(f"{layer}.mlp.layernorm", wo + a)
        return x

    def score(self, ids, segments):
        first = self.states(ids, segments)[0]
        return self.linear("classifier", np.tanh(self.linear("bert.pooler.dense", first)))[0]

    def scores(self, ids, segments, lengths):
        rows = zip(ids.numpy(), segments.numpy(), lengths)
        return np.array([self.score(row[:n], types[:n]) for row, types, n in rows])


# Scores


@pytest.mark.parametrize("rule", ["standard", "halved"])
@pytest.mark.parametrize("settings", [TINY, TURBO], ids=["tiny", "turbo"])
def test_scores_of_padded_batches_are_those_of_the_formulas(settings, rule):
    lengths = [1, 2, 7, 30, 80]
    batch = pairs(lengths)
    expected = Plain(settings, rule).scores(*batch[:2], lengths)
    assert np.std(expected) > 0.3
    found = scores(classifier(settings, rule), *batch)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("heads", [3, 8])
def test_other_numbers_of_heads_follow_the_formulas(heads):
    lengths = [5, 40]
    batch = pairs(lengths)
    expected = Plain(small(heads)).scores(*batch[:2], lengths)
    np.testing.assert_allclose(scores(classifier(small(heads)), *batch), expected, atol=1e-4)


def test_states_of_8192_tokens_are_those_of_the_formulas():
    settings = small(3, layers=1)
    ids, segments, _ = pairs([8192])
    expected = Plain(settings).states(ids[0].numpy(), segments[0].numpy())
    with torch.inference_mode():
        found = classifier(settings).bert(ids, segments).last_hidden_state[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_without_segment_ids_all_are_0():
    model, (ids, segments, mask) = classifier(small(3)), pairs([9, 20])
    without = scores(model, ids, None, mask)
    np.testing.assert_array_equal(without, scores(model, ids, segments * 0, mask))
    assert np.abs(without - scores(model, ids, segments, mask)).min() > 1e-3


@pytest.mark.parametrize("max_scores", [1 << 24, 50_000, None])
def test_a_padded_pair_scores_as_it_does_alone(max_scores):
    lengths = [3, 120, 17, 1, 60]
    model, (ids, segments, mask) = classifier(TINY, max_scores=max_scores), pairs(lengths)
    alone = [
        scores(model, ids[row : row + 1, :n], segments[row : row + 1, :n])[0]
        for row, n in enumerate(lengths)
    ]
    np.testing.assert_allclose(scores(model, ids, segments, mask), alone, rtol=0, atol=1e-5)


def test_a_mask_of_ones_is_no_mask():
    model, (ids, segments, _) = classifier(TINY), pairs([50, 50])
    masked = scores(model, ids, segments, torch.ones_like(ids))
    np.testing.assert_allclose(masked, scores(model, ids, segments), rtol=0, atol=1e-5)


# Slopes


@pytest.mark.parametrize(("heads", "rule"), SLOPES)
def test_slopes_follow_their_rule(heads, rule):
    assert alibi_slopes(heads, rule) == SLOPES[heads, rule]


@pytest.mark.parametrize("heads", [1, 2, 4, 16, 64])
def test_for_a_power_of_two_both_rules_are_the_papers(heads):
    expected = [2.0 ** (-8 * k / heads) for k in range(1, heads + 1)]
    assert alibi_slopes(heads, "standard") == alibi_slopes(heads, "halved") == expected


def test_the_rule_of_the_slopes_moves_scores():
    batch = pairs([40, 60])
    moved = scores(classifier(TINY, "standard"), *batch) - scores(classifier(TINY), *batch)
    assert np.abs(moved).min() > 1e-3


# Blocks of query rows


@pytest.mark.parametrize("max_scores", [1, 12 * 3 * 100, 12 * 3 * 100 * 33, 12 * 3 * 100 * 50])
def test_blocks_do_not_change_scores(max_scores):
    batch = pairs([100, 3, 64])
    whole = scores(classifier(TINY, max_scores=None), *batch)
    blocks = scores(classifier(TINY, max_scores=max_scores), *batch)
    np.testing.assert_allclose(blocks, whole, rtol=1e-5, atol=0)


PEAK = """
import torch
from rankmill.models.jina_bert import JinaBertClassifier, JinaBertConfig

def peak():
    # Not getrusage: its peak is at least that of the process which started this one.
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status["VmHWM"].split()[0]) // 1024

model = JinaBertClassifier(JinaBertConfig(200, 2, 96, 1, 12, 64, 1e-12))

def run(length, padded):
    ids = torch.zeros(1, length, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[0, length - padded :] = 0
    with torch.inference_mode():
        assert model(ids, None, mask if padded else None).isfinite().all()

run(64, 3)
before = peak()
run(8192, PADDED)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("padded", [0, 1000])
def test_at_8192_tokens_attention_takes_a_few_blocks_of_memory(padded):
    code = PEAK.replace("PADDED", str(padded))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # Three blocks of 64 MiB and the states; the whole bias alone would be 3,072 MiB.
    assert int(done.stdout) < 320


# Precision


def test_a_bf16_body_with_a_float32_head_is_close_to_fp32_and_hardly_ever_ties():
    batch = pairs(np.random.default_rng(1).integers(4, 30, 96))
    exact = scores(classifier(TINY), *batch)
    model = classifier(TINY)
    model.bert.embeddings.to(torch.bfloat16)
    model.bert.encoder.to(torch.bfloat16)
    found = scores(model, *batch)
    assert found.dtype == np.float32
    assert len(np.unique(found)) >= 94
    assert np.sqrt(np.mean((found - exact) ** 2)) < 0.1 * np.std(exact)


# Checkpoints


@pytest.mark.parametrize(("layers", "published"), [(4, 33_046_273), (6, 37_771_777)])
def test_names_shapes_and_number_of_weights_are_the_published_ones(layers, published):
    settings = tiny_models.jina_bert_settings(num_hidden_layers=layers)
    with torch.device("meta"):
        model = JinaBertClassifier(JinaBertConfig.read(settings, "config.json"))
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    assert shapes == tiny_models.jina_bert_shapes(settings)
    assert sum(weight.numel() for weight in model.parameters()) == published


def test_a_model_built_on_meta_is_whole_once_its_weights_are_assigned():
    model = JinaBertClassifier(JinaBertConfig.read(small(3), "config.json"))
    model.load_state_dict(weights(json.dumps(small(3))))
    batch = pairs([5, 12])
    np.testing.assert_array_equal(scores(classifier(small(3)), *batch), scores(model, *batch))


def test_num_labels_of_the_config_means_nothing():
    config = JinaBertConfig.read({**TINY, "num_labels": 2, "id2label": {}}, "config.json")
    assert JinaBertClassifier(config).classifier.out_features == 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"hidden_size": None}, "hidden_size must be a whole number above 0, found None"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number above 0, found 0"),
        ({"vocab_size": "61056"}, "vocab_size must be a whole number above 0, found '61056'"),
        ({"type_vocab_size": True}, "type_vocab_size must be a whole number above 0, found True"),
        ({"num_attention_heads": 5}, "hidden_size must be a multiple of the 5 heads, found 384"),
        ({"layer_norm_eps": None}, "layer_norm_eps must be a number between 0 and 1, found None"),
        ({"layer_norm_eps": -1e-12}, "layer_norm_eps must be a number between 0 and 1"),
        ({"hidden_act": "silu"}, "hidden_act must be \"gelu\" for JinaBERT, found 'silu'"),
        ({"feed_forward_type": "reglu"}, "feed_forward_type must be \"geglu\" .* found 'reglu'"),
        ({"feed_forward_type": None}, 'feed_forward_type must be "geglu"'),
        ({"position_embedding_type": "absolute"}, 'position_embedding_type must be "alibi"'),
    ],
)
def test_a_config_of_something_else_is_refused(changed, said):
    with pytest.raises(ModelError, match=f"^mine/config.json: {said}"):
        JinaBertConfig.read({**TINY, **changed}, Path("mine/config.json"))


def test_the_tiny_folder_loads_with_its_tokenizer(tiny_model):
    folder = Path(tiny_model("jina-bert"))
    settings = json.loads((folder / "config.json").read_text())
    stored = load_file(folder / "model.safetensors")
    model = JinaBertClassifier(JinaBertConfig.read(settings, folder / "config.json"))
    model.load_state_dict(stored)

    tokenizer = PairTokenizer.load(folder, PairRules(64, "document"))
    tokenizer.verify()
    template = tokenizer.template
    assert (template.before, template.between, template.after) == ((0,), (2, 2), (2,))
    assert (template.pad_id, settings["pad_token_id"], template.has_segments) == (1, 0, False)
    texts = tokenizer.encode(["A SHARD", "a shard"])
    np.testing.assert_array_equal(*np.split(texts.ids, 2))


# Conversion


@pytest.mark.parametrize("max_scores", [4000, None], ids=["in blocks", "in one block"])
def test_converted_to_openvino_it_gives_the_same_states_at_any_shape(max_scores):
    openvino = pytest.importorskip("rankmill.models.openvino_runtime").openvino
    model = classifier(small(12), max_scores=max_scores)
    names = ["input_ids", "token_type_ids", "attention_mask"]
    example = dict(zip(names, pairs([7, 20])))
    converted = openvino.convert_model(model.bert, example_input=example)
    loops = [op for op in converted.get_ops() if op.get_type_name() == "Loop"]
    assert len(loops) == (2 if max_scores else 0)
    compiled = openvino.Core().compile_model(
        converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    )
    for lengths in ([1], [9, 2, 5], [300], [300, 3], [40, 1, 1, 1, 1, 40], [64, 65]):
        batch = pairs(lengths)
        (states,) = compiled([tensor.numpy() for tensor in batch]).values()
        with torch.inference_mode():
            expected = classifier(small(12), max_scores=None).bert(*batch)
            expected = expected.last_hidden_state.numpy()
        np.testing.assert_allclose(states, expected, rtol=0, atol=1e-4)
        head = model.head(torch.from_numpy(states)).detach().numpy()
        np.testing.assert_allclose(head, scores(model, *batch), rtol=0, atol=1e-4)
