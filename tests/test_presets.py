"""The presets: complete, consistent, and the numbers of the models' own configurations."""

import pytest
import yaml
from pydantic import ValidationError
from transformers import AutoTokenizer

from rankmill import Scorer
from rankmill.models.locate import EMBEDDED
from rankmill.models.presets import Preset, find, nearest, presets
from rankmill.models.prompt_sources import known_prompts

# name: (architecture, hidden, layers, heads, intermediate, vocab, positions)
SHAPES = {
    "demo": ("bert", 384, 6, 12, 1536, 12288, 512),
    "jinaai/jina-reranker-v1-tiny-en": ("jina-bert", 384, 4, 12, 1536, 61056, 8192),
    "jinaai/jina-reranker-v1-turbo-en": ("jina-bert", 384, 6, 12, 1536, 61056, 8192),
    "hotchpotch/japanese-reranker-tiny-v2": ("modernbert", 256, 3, 4, 1024, 102400, 8192),
    "hotchpotch/japanese-reranker-xsmall-v2": ("modernbert", 256, 10, 4, 1024, 102400, 8192),
    "hotchpotch/japanese-reranker-small-v2": ("modernbert", 384, 13, 6, 1536, 102400, 8192),
    "hotchpotch/japanese-reranker-base-v2": ("modernbert", 512, 19, 8, 2048, 102400, 8192),
    "cl-nagoya/ruri-v3-reranker-310m": ("modernbert", 768, 25, 12, 3072, 102400, 8192),
    "hotchpotch/japanese-reranker-cross-encoder-xsmall-v1": (
        *("xlm-roberta", 384, 6, 12, 1536, 250002, 514),
    ),
    "hotchpotch/japanese-reranker-cross-encoder-small-v1": (
        *("xlm-roberta", 384, 12, 12, 1536, 250002, 514),
    ),
    "hotchpotch/japanese-reranker-cross-encoder-base-v1": (
        *("bert", 768, 12, 12, 3072, 32768, 512),
    ),
    "hotchpotch/japanese-reranker-cross-encoder-large-v1": (
        *("bert", 1024, 24, 16, 4096, 32768, 512),
    ),
    "BAAI/bge-reranker-v2-m3": ("xlm-roberta", 1024, 24, 16, 4096, 250002, 8194),
    "hotchpotch/japanese-bge-reranker-v2-m3-v1": (
        *("xlm-roberta", 1024, 24, 16, 4096, 250002, 8194),
    ),
    "BAAI/bge-reranker-base": ("xlm-roberta", 768, 12, 12, 3072, 250002, 514),
    "mixedbread-ai/mxbai-rerank-base-v1": ("deberta-v2", 768, 12, 12, 3072, 128100, 512),
    "cross-encoder/ms-marco-MiniLM-L6-v2": ("bert", 384, 6, 12, 1536, 30522, 512),
    "cross-encoder/ms-marco-MiniLM-L12-v2": ("bert", 384, 12, 12, 1536, 30522, 512),
    "Alibaba-NLP/gte-multilingual-reranker-base": ("gte", 768, 12, 12, 3072, 250048, 8192),
    "Alibaba-NLP/gte-reranker-modernbert-base": ("modernbert", 768, 22, 12, 1152, 50368, 8192),
    "Qwen/Qwen3-Reranker-0.6B": ("causal-lm", 1024, 28, 16, 3072, 151669, 40960),
    "Qwen/Qwen3-Reranker-4B": ("causal-lm", 2560, 36, 32, 9728, 151669, 40960),
    "Qwen/Qwen3-Reranker-8B": ("causal-lm", 4096, 36, 32, 12288, 151669, 40960),
    "mixedbread-ai/mxbai-rerank-base-v2": ("causal-lm", 896, 24, 14, 4864, 151936, 32768),
    "mixedbread-ai/mxbai-rerank-large-v2": ("causal-lm", 1536, 28, 12, 8960, 151936, 32768),
}


def preset(name: str) -> Preset:
    found = find(name)
    assert found is not None
    return found


def test_names_are_unique_and_the_embedded_model_comes_first():
    names = [preset.name for preset in presets()]
    assert len(set(names)) == len(names)
    assert names[0] == "demo"
    assert set(names) == set(SHAPES)


@pytest.mark.parametrize("name", SHAPES)
def test_shape(name):
    p = preset(name)
    shape = (p.architecture, p.hidden, p.layers, p.heads, p.intermediate, p.vocab, p.positions)
    assert shape == SHAPES[name]
    assert p.hidden % p.heads == 0


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("hotchpotch/japanese-reranker-xsmall-v2", 36.8),
        ("hotchpotch/japanese-reranker-small-v2", 70.2),
        ("hotchpotch/japanese-reranker-base-v2", 132.4),
        ("BAAI/bge-reranker-v2-m3", 567.8),
        ("mixedbread-ai/mxbai-rerank-base-v1", 184.4),
        ("Alibaba-NLP/gte-multilingual-reranker-base", 306.0),
        ("jinaai/jina-reranker-v1-tiny-en", 33.0),
        ("Qwen/Qwen3-Reranker-0.6B", 595.8),
        ("Qwen/Qwen3-Reranker-4B", 4021.8),
        ("mixedbread-ai/mxbai-rerank-base-v2", 494.0),
        ("mixedbread-ai/mxbai-rerank-large-v2", 1543.7),
    ],
)
def test_parameters(name, millions):
    assert preset(name).parameters == pytest.approx(millions * 1e6, abs=0.05e6)


def test_what_is_not_supported_says_why():
    assert all((p.reason is None) == p.supported for p in presets())
    assert all(p.supported for p in presets())


@pytest.mark.parametrize("size", ["base", "large"])
def test_japanese_bert_says_which_packages_it_needs(size):
    p = preset(f"hotchpotch/japanese-reranker-cross-encoder-{size}-v1")
    assert p.supported
    assert "pip install 'rankmill[japanese]'" in str(p.note)


@pytest.mark.parametrize(
    ("architecture", "template"),
    [
        ("bert", "[CLS] q [SEP] d [SEP]"),
        ("deberta-v2", "[CLS] q [SEP] d [SEP]"),
        ("xlm-roberta", "<s> q </s></s> d </s>"),
        ("gte", "<s> q </s></s> d </s>"),
        ("jina-bert", "<s> q </s></s> d </s>"),
    ],
)
def test_pair_templates(architecture, template):
    found = {p.template for p in presets() if p.architecture == architecture}
    assert found == {template}


def test_the_template_of_the_embedded_model_is_the_one_that_its_tokenizer_has():
    tokenizer = Scorer("demo", device="cpu", precision="fp32").tokenizer
    own = tokenizer.template
    names = AutoTokenizer.from_pretrained(EMBEDDED).convert_ids_to_tokens
    parts = ["".join(names(list(ids))) for ids in (own.before, own.between, own.after)]
    assert preset("demo").template == f"{parts[0]} q {parts[1]} d {parts[2]}"


def test_xlm_roberta_never_uses_its_first_two_positions():
    assert preset("BAAI/bge-reranker-base").max_length == 512
    assert preset("BAAI/bge-reranker-v2-m3").max_length == 8192
    assert preset("cross-encoder/ms-marco-MiniLM-L6-v2").max_length == 512


def test_every_model_takes_the_recommended_length():
    for p in presets():
        trained_for = 256 if p.name == "demo" else 512
        assert p.recommended_length == (8192 if p.architecture == "causal-lm" else trained_for)
        assert p.recommended_length <= p.max_length


def test_causal_language_models_and_no_others_name_a_known_prompt():
    named = {p.name: p.prompt for p in presets() if p.prompt is not None}
    assert set(named) == {p.name for p in presets() if p.architecture == "causal-lm"}
    assert set(named.values()) == set(known_prompts()) == {"qwen3-reranker", "mxbai-rerank-v2"}


# Published tables: author's report on japanese-reranker v2. Average, JQaRA, JaCWIR, MIRACL, JSQuAD;
# seconds for about 150,000 pairs on RTX 5090, M4 Max MPS, M4 Max CPU.
RANKING = {
    "hotchpotch/japanese-reranker-tiny-v2": (0.8138, 0.6455, 0.9287, 0.7201, 0.9608),
    "hotchpotch/japanese-reranker-xsmall-v2": (0.8699, 0.7403, 0.9409, 0.8206, 0.9776),
    "hotchpotch/japanese-reranker-small-v2": (0.8856, 0.7633, 0.9586, 0.8385, 0.9821),
    "hotchpotch/japanese-reranker-base-v2": (0.8930, 0.7845, 0.9603, 0.8425, 0.9845),
    "hotchpotch/japanese-reranker-cross-encoder-xsmall-v1": (
        *(0.8131, 0.6136, 0.9376, 0.7411, 0.9602),
    ),
    "hotchpotch/japanese-reranker-cross-encoder-small-v1": (
        *(0.8254, 0.6247, 0.9390, 0.7776, 0.9604),
    ),
    "hotchpotch/japanese-reranker-cross-encoder-base-v1": (
        *(0.8484, 0.6711, 0.9337, 0.8180, 0.9708),
    ),
    "hotchpotch/japanese-reranker-cross-encoder-large-v1": (
        *(0.8661, 0.7099, 0.9364, 0.8406, 0.9773),
    ),
    "hotchpotch/japanese-bge-reranker-v2-m3-v1": (0.8584, 0.6918, 0.9372, 0.8423, 0.9624),
    "BAAI/bge-reranker-v2-m3": (0.8512, 0.6730, 0.9343, 0.8374, 0.9599),
    "cl-nagoya/ruri-v3-reranker-310m": (0.9171, 0.8688, 0.9506, 0.8670, 0.9820),
}
SECONDS = {
    "hotchpotch/japanese-reranker-tiny-v2": [2.1, 82, 702],
    "hotchpotch/japanese-reranker-xsmall-v2": [6.5, 303, 2300],
    "hotchpotch/japanese-reranker-small-v2": [15.2],
    "hotchpotch/japanese-reranker-base-v2": [32.5],
    "hotchpotch/japanese-reranker-cross-encoder-xsmall-v1": [20.5],
    "hotchpotch/japanese-reranker-cross-encoder-small-v1": [40.3],
    "hotchpotch/japanese-reranker-cross-encoder-base-v1": [96.8],
    "hotchpotch/japanese-reranker-cross-encoder-large-v1": [312.2],
    "hotchpotch/japanese-bge-reranker-v2-m3-v1": [310.6],
    "BAAI/bge-reranker-v2-m3": [310.7],
    "cl-nagoya/ruri-v3-reranker-310m": [81.4],
}
# The same author's model cards: seconds for JaCWIR on an RTX 3090.
JACWIR_SECONDS = {"xsmall": 196, "small": 265, "base": 481, "large": 1253}


@pytest.mark.parametrize("name", RANKING)
def test_ranking_figures_are_the_published_ones(name):
    average, *published = RANKING[name]
    figures = [f for f in preset(name).figures if f.metric != "seconds"]
    assert [(f.dataset, f.metric, f.value) for f in figures] == [
        ("JQaRA", "ndcg@10", published[0]),
        ("JaCWIR", "map@10", published[1]),
        ("MIRACL (ja)", "ndcg@10", published[2]),
        ("JSQuAD", "map@10", published[3]),
    ]
    assert sum(published) / 4 == pytest.approx(average, abs=1e-4)


@pytest.mark.parametrize("name", SECONDS)
def test_times_are_the_published_ones(name):
    figures = [f for f in preset(name).figures if "150,000" in f.dataset]
    assert [f.value for f in figures] == SECONDS[name]
    assert [str(f.settings).split(",")[0] for f in figures] == ["RTX 5090", "M4 Max", "M4 Max"][
        : len(figures)
    ]


@pytest.mark.parametrize("size", JACWIR_SECONDS)
def test_times_over_jacwir_are_the_published_ones(size):
    figures = preset(f"hotchpotch/japanese-reranker-cross-encoder-{size}-v1").figures
    assert [f.value for f in figures if f.settings == "RTX 3090"] == [JACWIR_SECONDS[size]]


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("cross-encoder/ms-marco-MiniLM-L6-v2", {"TREC DL 2019": 0.7430, "MS MARCO dev": 0.3901}),
        ("cross-encoder/ms-marco-MiniLM-L12-v2", {"TREC DL 2019": 0.7431, "MS MARCO dev": 0.3902}),
        ("jinaai/jina-reranker-v1-tiny-en", {"BEIR": 0.4854, "LoCo": 0.7029}),
        ("jinaai/jina-reranker-v1-turbo-en", {"BEIR": 0.4960, "LoCo": 0.6921}),
        ("Alibaba-NLP/gte-reranker-modernbert-base", {"BEIR": 0.5619, "LoCo": 0.9068}),
        ("mixedbread-ai/mxbai-rerank-base-v2", {"BEIR": 0.5557}),
        ("mixedbread-ai/mxbai-rerank-large-v2", {"BEIR": 0.5749}),
    ],
)
def test_figures_of_other_authors(name, published):
    ranking = {f.dataset: f.value for f in preset(name).figures}
    assert {dataset: ranking[dataset] for dataset in published} == published


def test_figures_are_not_inherited_from_the_model_above():
    with_figures = [p for p in presets() if p.figures]
    assert len({p.figures for p in with_figures}) == len(with_figures)
    assert {p.name for p in presets()} - {p.name for p in with_figures} == {
        "demo",
        "Alibaba-NLP/gte-multilingual-reranker-base",
        "Qwen/Qwen3-Reranker-0.6B",
        "Qwen/Qwen3-Reranker-4B",
        "Qwen/Qwen3-Reranker-8B",
    }


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("japanese-reranker-tiny-v2", "hotchpotch/japanese-reranker-tiny-v2"),
        ("BAAI/bge-rerank-v2-m3", "BAAI/bge-reranker-v2-m3"),
        ("cross-encoder/ms-marco-minilm-l6-v2", "cross-encoder/ms-marco-MiniLM-L6-v2"),
        ("dmeo", "demo"),
    ],
)
def test_nearest_names_what_was_meant(typed, meant):
    assert find(typed) is None
    assert nearest(typed)[0] == meant


def test_nearest_is_empty_for_a_name_like_no_other():
    assert nearest("s3://bucket/folder") == []


def test_presets_are_frozen():
    with pytest.raises(ValidationError):
        preset("demo").layers = 7  # type: ignore[misc]


def test_unknown_fields_are_errors():
    fields = yaml.safe_load(preset("demo").model_dump_json()) | {"layer": 6}
    with pytest.raises(ValidationError, match="layer"):
        Preset.model_validate(fields)
