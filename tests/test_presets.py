"""The presets: complete, consistent, and the numbers of the models' own configurations."""

import pytest
import yaml
from pydantic import ValidationError

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
        ("jinaai/jina-reranker-v1-tiny-en", 33.0),
        ("Qwen/Qwen3-Reranker-0.6B", 595.8),
        ("Qwen/Qwen3-Reranker-4B", 4021.8),
        ("mixedbread-ai/mxbai-rerank-base-v2", 494.0),
        ("mixedbread-ai/mxbai-rerank-large-v2", 1543.7),
    ],
)
def test_parameters(name, millions):
    assert preset(name).parameters == pytest.approx(millions * 1e6, abs=0.05e6)


def test_five_architectures_are_supported_and_the_rest_say_why_not():
    supported = {p.architecture for p in presets() if p.supported}
    assert supported == {"bert", "xlm-roberta", "modernbert", "deberta-v2", "causal-lm"}
    assert all(p.reason for p in presets() if not p.supported)
    needs_packages = preset("hotchpotch/japanese-reranker-cross-encoder-base-v1")
    assert not needs_packages.supported
    assert "fugashi" in str(needs_packages.reason)


def test_xlm_roberta_never_uses_its_first_two_positions():
    assert preset("BAAI/bge-reranker-base").max_length == 512
    assert preset("BAAI/bge-reranker-v2-m3").max_length == 8192
    assert preset("cross-encoder/ms-marco-MiniLM-L6-v2").max_length == 512


def test_every_model_takes_the_recommended_length():
    for p in presets():
        assert p.recommended_length == (8192 if p.architecture == "causal-lm" else 512)
        assert p.recommended_length <= p.max_length


def test_causal_language_models_and_no_others_name_a_known_prompt():
    named = {p.name: p.prompt for p in presets() if p.prompt is not None}
    assert set(named) == {p.name for p in presets() if p.architecture == "causal-lm"}
    assert set(named.values()) == set(known_prompts()) == {"qwen3-reranker", "mxbai-rerank-v2"}


@pytest.mark.parametrize(
    ("name", "average"),
    [
        ("hotchpotch/japanese-reranker-tiny-v2", 0.8138),
        ("hotchpotch/japanese-reranker-xsmall-v2", 0.8699),
        ("hotchpotch/japanese-reranker-small-v2", 0.8856),
        ("hotchpotch/japanese-reranker-base-v2", 0.8930),
        ("hotchpotch/japanese-reranker-cross-encoder-xsmall-v1", 0.8131),
        ("hotchpotch/japanese-reranker-cross-encoder-small-v1", 0.8254),
        ("hotchpotch/japanese-reranker-cross-encoder-base-v1", 0.8484),
        ("hotchpotch/japanese-reranker-cross-encoder-large-v1", 0.8661),
        ("hotchpotch/japanese-bge-reranker-v2-m3-v1", 0.8584),
        ("BAAI/bge-reranker-v2-m3", 0.8512),
        ("cl-nagoya/ruri-v3-reranker-310m", 0.9171),
    ],
)
def test_figures_average_to_the_published_average(name, average):
    ranking = {f.dataset: f for f in preset(name).figures if f.metric != "seconds"}
    assert set(ranking) == {"JQaRA", "JaCWIR", "MIRACL (ja)", "JSQuAD"}
    assert sum(f.value for f in ranking.values()) / 4 == pytest.approx(average, abs=1e-4)
    assert {d: f.metric for d, f in ranking.items()} == {
        "JQaRA": "ndcg@10",
        "JaCWIR": "map@10",
        "MIRACL (ja)": "ndcg@10",
        "JSQuAD": "map@10",
    }


def test_figures_are_not_inherited_from_the_model_above():
    assert preset("BAAI/bge-reranker-base").figures == ()
    assert preset("jinaai/jina-reranker-v1-turbo-en").figures == ()


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
