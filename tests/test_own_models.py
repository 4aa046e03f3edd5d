"""A team's own models: LoRA adapters, and classes of one's own that score a folder."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from threading import Barrier

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

import rankmill
from conftest import make_pairs
from rankmill import Scorer, job, storage
from rankmill.config import ModelConfig, load_config
from rankmill.errors import ConfigError, ModelError, RunFailed
from rankmill.models import Description, jina_bert, locate
from rankmill.models.describe import describe
from rankmill.profile import Profile
from rankmill.settings import read_section
from rankmill.tokens import PairRules
from rankmill.windows import assemble, cut

PAIRS = [
    ("what is a shard", "A shard is a run of whole lists."),
    ("what is a shard", "slip flow past a flat plate " * 30),
    ("x", "検索結果の順位を付け直すモデルは、質問と文書の組を読みます。"),
    ("reading 😀 emoji", ""),
]
RULES = PairRules(64, "document")
FP32 = Profile("torch", "fp32", "cpu", "any", threads=1, token_budget=2048)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rankmill" / "models"


def fp32(folder: str | Path, **options: object) -> Scorer:
    return Scorer(str(folder), device="cpu", precision="fp32", threads=1, **options)


def described(folder: str | Path, **options: object) -> Description:
    return describe(read_section(ModelConfig, {"name": str(folder), **options}))


def assert_same(found: np.ndarray, expected: list[float]) -> None:
    assert np.std(expected) > 0.03
    limit = 1e-5 * np.maximum(1, np.abs(expected))
    assert np.all(np.abs(found - np.array(expected)) <= limit)


# LoRA adapters

QUERY = {"bert": ["query", "value"], "modernbert": ["Wqkv"]}


def trained(base: str | Path, **lora: object) -> PeftModel:
    """An adapter on a base, as if it had been trained: nothing of it is zero."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    adapted = get_peft_model(model, LoraConfig(r=4, **lora)).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            spread = 0.1 if "lora_" in name else 0.5 if "modules_to_save" in name else 0
            weight += spread * torch.randn(weight.shape, generator=generator)
    return adapted


@torch.inference_mode()
def peft_scores(adapted: PeftModel, tokenizer: str | Path) -> list[float]:
    """peft's own scores, unmerged, each pair alone."""
    encode = AutoTokenizer.from_pretrained(tokenizer)
    length = 128
    return [
        float(
            adapted(
                **encode([q], [d], truncation=True, max_length=length, return_tensors="pt")
            ).logits
        )
        for q, d in PAIRS
    ]


@pytest.fixture
def adapter(tiny_model, tmp_path) -> Callable[..., tuple[Path, list[float]]]:
    """Write an adapter of a tiny model: its folder, and peft's own scores."""

    def write(kind: str = "bert", base: Path | None = None, **lora: object):
        folder = tmp_path / "adapters" / "mine"
        start = base or tiny_model(kind)
        adapted = trained(start, **{"task_type": "SEQ_CLS", "target_modules": QUERY[kind]} | lora)
        adapted.save_pretrained(folder)
        return folder, peft_scores(adapted, tiny_model(kind))

    return write


def test_an_adapter_that_would_have_a_module_imported_is_refused(adapter):
    folder, _ = adapter()
    path = folder / "adapter_config.json"
    hostile = {"megatron_config": {"a": 1}, "megatron_core": "antigravity"}
    path.write_text(json.dumps(json.loads(path.read_text()) | hostile))
    with pytest.raises(ModelError, match=r"sets megatron_config in adapter_config\.json"):
        fp32(folder).score(PAIRS)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"target_modules": "all-linear", "task_type": None},
        {"use_rslora": True, "use_dora": True},
        {"bias": "all"},
        {"init_lora_weights": "pissa"},
    ],
    ids=["head saved", "every layer", "rs and dora", "biases", "first values of its base's"],
)
@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_an_adapter_scores_as_peft_does_unmerged(adapter, kind, lora):
    folder, expected = adapter(kind, **lora)
    assert_same(fp32(folder, max_length=128).score(PAIRS), expected)


HEADLESS = {
    "a bare encoder": ("bert", AutoModel, ["classifier"]),
    "a language model with a pooler": ("bert", AutoModelForPreTraining, ["classifier"]),
    "a language model": ("bert", AutoModelForMaskedLM, ["classifier", "pooler"]),
    "a ModernBERT language model": ("modernbert", AutoModelForMaskedLM, ["classifier"]),
    "a bare ModernBERT": ("modernbert", AutoModel, ["classifier", "head"]),
}


def headless(source: str, folder: Path, build: type) -> Path:
    """A base without a classifier, two labels in its config as transformers' default has it."""
    torch.manual_seed(11)
    config = AutoConfig.from_pretrained(source, num_labels=2, initializer_range=0.2)
    build.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("case", HEADLESS)
def test_an_adapter_may_bring_the_head_that_its_base_lacks(adapter, tiny_model, tmp_path, case):
    kind, build, saved = HEADLESS[case]
    base = headless(tiny_model(kind), tmp_path / "base", build)
    folder, expected = adapter(kind, base, modules_to_save=saved)
    assert_same(fp32(folder, max_length=128).score(PAIRS), expected)


CAUSAL = {"qwen3": ["q_proj", "v_proj"], "llama": ["o_proj", "down_proj"]}
PROMPT = "qwen3-reranker"


def causal_adapter(base: str | Path, folder: Path, **lora: object) -> PeftModel:
    """An adapter of a causal language model, saved; nothing of it is zero."""
    torch.manual_seed(7)
    lora = {"task_type": "CAUSAL_LM", "r": 4, "init_lora_weights": False} | lora
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**lora)).eval()
    perturb_saved(adapted)
    adapted.save_pretrained(folder)
    return adapted


def perturb_saved(adapted: PeftModel) -> None:
    """As if the whole modules that an adapter brings had been trained."""
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "modules_to_save" in name:
                weight += 0.1 * torch.randn(weight.shape)


@torch.inference_mode()
def answers(adapted: PeftModel, folder: Path) -> list[float]:
    """peft's own scores, unmerged, of the inputs that rankmill makes, each pair alone."""
    scorer = fp32(folder, prompt=PROMPT)
    tokenizer, (yes, no) = scorer.tokenizer, scorer.description.tokens
    found = []
    for query, document in PAIRS:
        texts = [tokenizer.query_text(query), tokenizer.document_text(document)]
        pairs = tokenizer.tokenize(texts, *np.array([[0], [1]], np.int32))
        batch = assemble(cut(pairs, tokenizer.rules), tokenizer.template, np.array([0]))
        last = adapted(input_ids=torch.from_numpy(batch.input_ids)).logits[0, -1]
        found.append(float(last[yes] - last[no]))
    return found


@pytest.mark.parametrize(
    "lora",
    [{}, {"target_modules": "all-linear"}, {"use_dora": True}, {"modules_to_save": ["norm"]}],
    ids=["some layers", "every layer", "dora", "a norm saved"],
)
@pytest.mark.parametrize("kind", CAUSAL)
def test_an_adapter_of_a_causal_reranker_scores_as_peft_does_unmerged(
    tiny_model, tmp_path, kind, lora
):
    chosen = {"target_modules": CAUSAL[kind]} | lora
    adapted = causal_adapter(tiny_model(kind), tmp_path / "lora", **chosen)
    base = fp32(tiny_model(kind), prompt=PROMPT).score(PAIRS)
    found = fp32(tmp_path / "lora", prompt=PROMPT).score(PAIRS)
    assert np.max(np.abs(found - base)) > 0.03
    assert_same(found, answers(adapted, tmp_path / "lora"))


def test_an_adapter_of_a_causal_preset_has_its_prompt(tiny_model, tmp_path, hub):
    hub("Qwen/Qwen3-Reranker-0.6B", tiny_model("qwen3"))
    causal_adapter(tiny_model("qwen3"), tmp_path / "lora", target_modules=["q_proj"])
    with pytest.raises(ModelError, match="nothing says which prompt"):
        described(tmp_path / "lora")
    name_base(tmp_path / "lora", "Qwen/Qwen3-Reranker-0.6B")
    assert described(tmp_path / "lora").prompt.name == PROMPT


def test_an_adapter_of_a_causal_reranker_that_sentence_transformers_saved_has_its_prompt(
    tiny_model, tmp_path
):
    text = '{{ (messages | selectattr("role", "eq", ROLE) | first).content }}'
    query, document = (text.replace("ROLE", f'"{role}"') for role in ("query", "document"))
    template = f"Query: {query}\nText: {document}\nSo:"
    encoder = CrossEncoder(
        tiny_model("qwen3"), device="cpu", processor_kwargs={"chat_template": template}
    )
    encoder.add_adapter(
        LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
    )
    encoder.save_pretrained(str(tmp_path / "lora"))
    expected = encoder.predict(PAIRS, activation_fn=nn.Identity(), batch_size=1)
    assert_same(fp32(tmp_path / "lora").score(PAIRS), expected.tolist())


def test_an_adapter_that_changes_one_end_of_tied_rows_is_refused(tiny_model, tmp_path):
    targets = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    causal_adapter(tiny_model("qwen3"), tmp_path / "tied", **targets)
    with pytest.raises(ModelError, match=r"changes .*lm_head.* whose rows its base ties"):
        described(tmp_path / "tied", prompt=PROMPT).check(PairRules(256, "document"))
    adapted = causal_adapter(tiny_model("qwen2"), tmp_path / "untied", **targets)
    found = fp32(tmp_path / "untied", prompt=PROMPT).score(PAIRS)
    assert_same(found, answers(adapted, tmp_path / "untied"))


def test_an_adapter_that_makes_a_classifier_of_a_causal_model_is_refused(tiny_model, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model("qwen3"), num_labels=1)
    lora = LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])
    get_peft_model(model, lora).save_pretrained(tmp_path / "lora")
    with pytest.raises(ModelError, match=r"makes a classifier \(SEQ_CLS\) of a causal"):
        described(tmp_path / "lora", prompt=PROMPT).check(PairRules(256, "document"))


JINA = {
    "head saved": {"target_modules": ["query", "value"], "modules_to_save": ["classifier"]},
    "gated blocks": {"target_modules": ["gated_layers", "wo"], "use_dora": True},
}


@pytest.mark.parametrize("case", JINA)
def test_an_adapter_of_a_jinabert_scores_as_peft_does_unmerged(tiny_model, tmp_path, case):
    base = tiny_model("jina-bert")
    settings = json.loads((Path(base) / "config.json").read_text())
    model = jina_bert.JinaBertClassifier(jina_bert.JinaBertConfig.read(settings, base))
    model.load_state_dict(load_file(Path(base) / "model.safetensors"))
    torch.manual_seed(8)
    lora = LoraConfig(r=4, init_lora_weights=False, **JINA[case])
    adapted = get_peft_model(model, lora).eval()
    perturb_saved(adapted)
    adapted.save_pretrained(tmp_path / "lora")
    name_base(tmp_path / "lora", base)
    encode = AutoTokenizer.from_pretrained(base)
    with torch.inference_mode():
        expected = [
            float(adapted(encode([q], [d], return_tensors="pt").input_ids)) for q, d in PAIRS
        ]
    found = fp32(tmp_path / "lora").score(PAIRS)
    assert np.max(np.abs(found - fp32(base).score(PAIRS))) > 0.03
    assert_same(found, expected)


def test_an_adapter_for_which_a_jinabert_has_no_place_is_refused(tiny_model, tmp_path):
    shutil.copytree(tiny_model("jina-bert"), tmp_path / "base")
    (tmp_path / "lora").mkdir()
    name = "base_model.model.bert.encoder.layer.0.intermediate.dense.weight"
    save_file({name: torch.zeros(4, 4)}, tmp_path / "lora" / "adapter_model.safetensors")
    config = LoraConfig(target_modules=["query"], base_model_name_or_path="base")
    config.save_pretrained(tmp_path / "lora")
    with pytest.raises(ModelError, match=r"no place for 1 weights .*intermediate\.dense"):
        described(tmp_path / "lora").check(RULES)


def test_what_neither_the_base_nor_the_adapter_has_is_refused_by_name(
    adapter, tiny_model, tmp_path
):
    base = headless(tiny_model("bert"), tmp_path / "base", AutoModelForMaskedLM)
    folder, _ = adapter("bert", base)
    said = r"2 missing: bert\.pooler\.dense\.bias, bert\.pooler\.dense\.weight.*\n.*modules_to_save"
    with pytest.raises(ModelError, match=said):
        described(folder).check(RULES)
    shutil.rmtree(folder)
    folder, _ = adapter("bert", base, task_type=None)
    with pytest.raises(ModelError, match=r"4 missing: .*classifier\.weight"):
        described(folder).check(RULES)


def test_an_adapter_of_sentence_transformers_keeps_the_head_of_its_base(tiny_model, tmp_path):
    encoder = CrossEncoder(tiny_model("bert"), device="cpu", max_length=128)
    encoder.add_adapter(LoraConfig(task_type="SEQ_CLS", r=4, init_lora_weights=False))
    encoder.save_pretrained(str(tmp_path / "adapter"))
    expected = encoder.predict(PAIRS, activation_fn=nn.Identity(), batch_size=1)
    assert_same(fp32(tmp_path / "adapter", max_length=128).score(PAIRS), expected.tolist())


def test_loading_an_adapter_prints_nothing(adapter, capfd):
    folder, _ = adapter()
    capfd.readouterr()
    fp32(folder).score(PAIRS)
    assert capfd.readouterr() == ("", "")


def test_an_adapter_is_merged_once_for_all_processes_of_a_node(adapter, cache):
    folder, _ = adapter()
    fp32(folder)
    (merged,) = cache.iterdir()
    made = (merged / "model.safetensors").stat().st_mtime_ns
    again = pickle.loads(pickle.dumps(described(folder)))
    again.load(FP32)
    assert list(cache.iterdir()) == [merged]
    assert (merged / "model.safetensors").stat().st_mtime_ns == made


def test_the_digest_of_an_adapter_covers_it_and_its_base(adapter, tiny_model, tmp_path):
    base = Path(shutil.copytree(tiny_model("bert"), tmp_path / "base"))
    folder, _ = adapter("bert", base)
    digests = [described(folder).digest]
    for changed in (base / "model.safetensors", folder / "adapter_model.safetensors"):
        tensors = load_file(changed)
        name = sorted(tensors)[0]
        save_file(tensors | {name: tensors[name] + 1}, changed, metadata={"format": "pt"})
        digests.append(described(folder).digest)
    assert len(set(digests)) == 3


def test_an_adapter_that_changed_since_it_was_described_is_not_merged(adapter, cache):
    folder, _ = adapter()
    description = described(folder)
    (folder / "adapter_config.json").write_text((folder / "adapter_config.json").read_text() + " ")
    with pytest.raises(ModelError, match="on this node are not those of the run"):
        description.tokenizer(RULES)
    assert not any(cache.iterdir())


def test_a_run_records_the_adapter_and_its_base(adapter, tiny_model):
    folder, _ = adapter()
    recorded = described(folder).to_json()
    assert recorded["name"] == str(folder)
    assert recorded["base"] == tiny_model("bert")


def test_an_adapter_and_its_base_may_both_be_on_the_hub(adapter, tiny_model, hub):
    folder, expected = adapter()
    name_base(folder, "team/base")
    hub("team/base", tiny_model("bert"))
    hub("team/adapter", folder)
    scorer = fp32("team/adapter", max_length=128)
    assert_same(scorer.score(PAIRS), expected)
    recorded = scorer.description.to_json()
    assert (recorded["base"], len(recorded["base_revision"])) == ("team/base", 40)


def test_an_adapter_from_the_hub_names_no_url(adapter, hub):
    folder, _ = adapter()
    name_base(folder, "s3://bucket/base")
    hub("team/adapter", folder)
    with pytest.raises(ModelError, match="s3://bucket/base is a URL, in an adapter from the hub"):
        described("team/adapter")


@pytest.mark.parametrize("named", ["base", "../base", "inside"])
def test_a_relative_base_is_found_beside_the_adapter_or_below_it(adapter, tiny_model, named):
    folder, expected = adapter()
    name_base(folder, named)
    at = folder / "inside" if named == "inside" else folder.parent / "base"
    shutil.copytree(tiny_model("bert"), at)
    assert_same(fp32(folder, max_length=128).score(PAIRS), expected)


def name_base(folder: Path, name: str) -> None:
    change(folder / "adapter_config.json", base_model_name_or_path=name)


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_the_tokenizer_is_the_adapters_where_it_has_one(adapter, tiny_model):
    folder, _ = adapter()
    base = described(folder).tokenizer(RULES).encode(["a rankmill"]).ids
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("bert"))
    tokenizer.add_tokens(["rankmill"])
    tokenizer.save_pretrained(folder)
    own = described(folder).tokenizer(RULES).encode(["a rankmill"]).ids
    assert len(own) == 2 < len(base)


def drop_a_matrix(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    del tensors[next(name for name in sorted(tensors) if "lora_B" in name)]
    save_file(tensors, folder / "adapter_model.safetensors")


def add_a_matrix(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors["base_model.model.bert.encoder.layer.7.lora_A.weight"] = torch.zeros(4, 32)
    save_file(tensors, folder / "adapter_model.safetensors")


def add_a_weight(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors["base_model.model.bert.gate.weight"] = torch.zeros(4)
    save_file(tensors, folder / "adapter_model.safetensors")


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


REFUSED_ADAPTERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickled": (pickled, r"only adapter_model\.bin \(nothing is ever unpickled\)"),
    "no weights": (
        lambda f: (f / "adapter_model.safetensors").unlink(),
        r"has no adapter_model\.safetensors: no weights",
    ),
    "broken weights": (
        lambda f: (f / "adapter_model.safetensors").write_bytes(b"x" * 99),
        "cannot be merged into its base: SafetensorError",
    ),
    "another kind": (
        lambda f: change(f / "adapter_config.json", peft_type="IA3"),
        "of the kind IA3; only LORA",
    ),
    "broken config": (
        lambda f: (f / "adapter_config.json").write_text("[]"),
        "is not the configuration of an adapter",
    ),
    "no base": (lambda f: name_base(f, ""), "names no base model"),
    "a base that is nowhere": (
        lambda f: name_base(f, "/no/such/base"),
        "The base of the adapter .* cannot be used: There is no model /no/such/base",
    ),
    "a base that the hub does not give": (
        lambda f: name_base(f, "bert-base-uncased"),
        "bert-base-uncased is not a local folder and could not be fetched from the hub",
    ),
    "a base that is an adapter": (lambda f: name_base(f, str(f)), "is an adapter itself"),
    "other sizes": (
        lambda f: change(f / "adapter_config.json", r=8),
        "cannot be merged into its base: RuntimeError: .*size mismatch",
    ),
    "other layers": (
        lambda f: change(f / "adapter_config.json", target_modules=["nothing"]),
        "cannot be merged into its base: .*nothing.* not found",
    ),
    "a matrix missing": (drop_a_matrix, r"1 missing: .*lora_B\.weight"),
    "a matrix too many": (add_a_matrix, r"1 unexpected: .*layer\.7\.lora_A\.weight"),
    "a weight too many": (add_a_weight, r"no place for 1 weights .*: bert\.gate\.weight"),
}


@pytest.mark.parametrize("case", REFUSED_ADAPTERS)
def test_an_adapter_that_does_not_fit_is_refused(adapter, cache, case):
    alter, said = REFUSED_ADAPTERS[case]
    folder, _ = adapter()
    alter(folder)
    with pytest.raises(ModelError, match=said) as refused:
        described(folder).check(RULES)
    assert refused.value.exit_code == 2
    assert not cache.exists() or not any(cache.iterdir())


def test_without_peft_an_adapter_says_what_to_install(adapter, monkeypatch):
    folder, _ = adapter()

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(ModelError, match=r"pip install 'rankmill\[lora\]'"):
        described(folder).check(RULES)


def test_a_run_with_an_adapter_scores_as_it_does(
    adapter, ray_cluster, write_pairs, tmp_path, monkeypatch
):
    folder, _ = adapter()
    table = make_pairs(6, 4)
    result = job.rerank(
        load_config(
            None,
            {
                "input.path": write_pairs(table),
                "output.path": str(tmp_path / "output"),
                "model": {"name": str(folder), "precision": "fp32"},
                "compute.workers": 1,
            },
        )
    )
    assert result.manifest["model"]["name"] == str(folder)
    compare_scores(tmp_path / "output", fp32(folder))


def compare_scores(output: Path, scorer: Scorer) -> None:
    ranked = pq.read_table(output)
    pairs = list(zip(ranked["query"].to_pylist(), ranked["document"].to_pylist()))
    np.testing.assert_allclose(
        ranked["rerank_score"].to_numpy(), scorer.score(pairs), rtol=0, atol=1e-5
    )


# Scorers of one's own


PAGE = Path(__file__).parents[1] / "docs" / "models.md"
OWN_HEAD = next(
    block
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    if "class TwoLayerHead" in block
)


@pytest.fixture
def module(tmp_path, monkeypatch) -> Iterator[Callable[[str, str], Path]]:
    """Write a module where Python finds it: its file."""
    folder = tmp_path / "installed"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    written: list[str] = []

    def write(name: str, source: str) -> Path:
        written.append(name)
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        (folder / f"{name}.py").write_text(source)
        return folder / f"{name}.py"

    yield write
    for name in written:
        sys.modules.pop(name, None)


@pytest.fixture
def headed(tiny_model, tmp_path) -> Path:
    """An encoder's folder with the weights of a head beside it."""
    folder = headless(tiny_model("bert"), tmp_path / "headed", AutoModel)
    generator = torch.Generator().manual_seed(9)
    shapes = {"0.weight": (8, 32), "0.bias": (8,), "2.weight": (1, 8), "2.bias": (1,)}
    head = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(head, folder / "head.safetensors")
    return folder


@torch.inference_mode()
def by_hand(folder: Path) -> list[float]:
    """What the page's class computes, written out for one pair at a time."""
    encode, encoder = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    head, scores = load_file(folder / "head.safetensors"), []
    for q, d in PAIRS:
        pair = encode([q], [d], truncation="only_second", max_length=128, return_tensors="pt")
        mean = encoder.eval()(**pair).last_hidden_state[0].mean(0)
        inner = torch.tanh(head["0.weight"] @ mean + head["0.bias"])
        scores.append(float(head["2.weight"] @ inner + head["2.bias"]))
    return scores


def test_the_readmes_class_scores(module, headed):
    module("my_rerankers", OWN_HEAD)
    scorer = fp32(headed, scorer="my_rerankers:TwoLayerHead", max_length=128)
    assert scorer.profile.backend == "custom"
    assert_same(scorer.score(PAIRS), by_hand(headed))


@pytest.mark.slow
def test_a_run_scores_with_the_readmes_class_and_code_that_changed_is_another_run(
    module, headed, write_pairs, tmp_path
):
    """In a cluster of its own, whose workers find the module by PYTHONPATH."""
    source = module("my_rerankers", OWN_HEAD)
    command = [
        *(sys.executable, "-m", "rankmill_command", "rerank", "--json"),
        *("--input", write_pairs(make_pairs(6, 4)), "--output", tmp_path / "output"),
        *("--model", headed, "--set", "model.scorer=my_rerankers:TwoLayerHead"),
        *("--set", "model.precision=fp32", "--set", "compute.workers=1"),
    ]
    module("rankmill_command", "from rankmill.cli import main\nmain()\n")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    found = [str(source.parent), environment.get("PYTHONPATH", "")]
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, found))}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            list(map(str, command)), env=environment, capture_output=True, text=True, timeout=200
        )

    done = run()
    assert done.returncode == 0, done.stderr[-3000:]
    manifest = json.loads(done.stdout)
    assert manifest["profile"]["backend"] == "custom"
    assert manifest["model"]["scorer"] == "my_rerankers:TwoLayerHead"
    compare_scores(tmp_path / "output", fp32(headed, scorer="my_rerankers:TwoLayerHead"))

    source.write_text(OWN_HEAD + "\n# better\n")
    again = run()
    assert again.returncode == 2
    assert "holds another run" in again.stderr


COUNTS = """
import numpy as np

class Counts:
    def __init__(self, folder, profile):
        self.factor = float((folder / "factor.txt").read_text())

    def score(self, batch):
        if batch.mask is None:
            lengths = np.full(len(batch.input_ids), batch.input_ids.shape[1])
        else:
            lengths = batch.mask.sum(1)
        return (self.factor * lengths).astype(np.float32)
"""


@pytest.fixture
def tokens_only(tiny_model, tmp_path) -> Path:
    """A folder that no architecture knows: a tokenizer and a number."""
    folder = tmp_path / "tokens-only"
    AutoTokenizer.from_pretrained(tiny_model("bert")).save_pretrained(folder)
    (folder / "factor.txt").write_text("0.5")
    return folder


def test_a_folder_with_nothing_but_a_tokenizer_can_be_scored(module, tokens_only):
    module("counting", COUNTS)
    scorer = fp32(tokens_only, scorer="counting:Counts", max_length=32)
    assert scorer.score([("x", ""), ("x", "x"), ("x", "x " * 99)]).tolist() == [2.0, 2.5, 16.0]
    assert scorer.description.operations_per_token > 0


def test_a_limit_in_the_config_of_an_unknown_architecture_holds(module, tokens_only):
    module("counting", COUNTS)
    assert described(tokens_only, scorer="counting:Counts").max_length(10_000) == 10_000
    config = {"model_type": "ours", "max_position_embeddings": 77}
    (tokens_only / "config.json").write_text(json.dumps(config))
    description = described(tokens_only, scorer="counting:Counts")
    assert description.max_length(10_000) == 77
    assert description.to_json()["architecture"] == "ours"


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_config_beside_a_scorer_that_is_no_object_is_refused(module, tokens_only, text):
    module("counting", COUNTS)
    (tokens_only / "config.json").write_text(text)
    with pytest.raises(ModelError, match="must hold a JSON object"):
        described(tokens_only, scorer="counting:Counts")


def test_the_digest_covers_the_folder_the_import_path_and_the_source(module, tokens_only):
    source = module("counting", COUNTS + "\nclass Same(Counts):\n    pass\n")
    (tokens_only / "below").mkdir()

    def digest(name: str = "Counts") -> str:
        return described(tokens_only, scorer=f"counting:{name}").digest

    digests = [digest(), digest("Same")]
    (tokens_only / "factor.txt").write_text("0.25")
    digests.append(digest())
    (tokens_only / "below" / "table.npz").write_bytes(b"1")
    digests.append(digest())
    source.write_text(source.read_text() + "# changed\n")
    digests.append(digest())
    assert len(set(digests)) == 5
    assert digest() == digests[-1]


def test_the_source_is_that_of_the_module_that_defines_the_class(module, tokens_only):
    defined = module("counting", COUNTS)
    module("exported", "from counting import Counts\n")
    before = described(tokens_only, scorer="exported:Counts").digest
    defined.write_text(COUNTS + "# changed\n")
    assert described(tokens_only, scorer="exported:Counts").digest != before


@pytest.mark.parametrize("what", ["code", "files"])
def test_a_worker_refuses_code_and_files_that_are_not_the_runs(module, tokens_only, what):
    source = module("counting", COUNTS)
    description = pickle.loads(pickle.dumps(described(tokens_only, scorer="counting:Counts")))
    description.fetch()
    description.load(FP32)
    changed = source if what == "code" else tokens_only / "factor.txt"
    changed.write_text(changed.read_text() + " ")
    for use in (description.fetch, lambda: description.load(FP32)):
        with pytest.raises(ModelError, match="are not those of the run"):
            use()


@pytest.mark.parametrize("package", [False, True])
def test_code_in_the_models_folder_is_refused_and_never_run(
    tokens_only, monkeypatch, tmp_path, package
):
    sign = tmp_path / "it-ran"
    source = f"open({str(sign)!r}, 'w')\n{COUNTS}"
    if package:
        (tokens_only / "in_model").mkdir()
        (tokens_only / "in_model" / "__init__.py").write_text(source)
        (tokens_only / "in_model" / "inner.py").write_text(COUNTS)
    else:
        (tokens_only / "in_model.py").write_text(source)
    monkeypatch.syspath_prepend(str(tokens_only))
    name = "in_model.inner:Counts" if package else "in_model:Counts"
    with pytest.raises(ModelError, match=r"lies in the model's folder .* is never run"):
        described(tokens_only, scorer=name)
    assert not sign.exists()


def test_a_class_that_a_module_takes_from_the_models_folder_is_refused(
    module, tokens_only, monkeypatch
):
    (tokens_only / "smuggled.py").write_text(COUNTS)
    monkeypatch.syspath_prepend(str(tokens_only))
    module("outside", "from smuggled import Counts\n")
    with pytest.raises(ModelError, match="lies in the model's folder"):
        described(tokens_only, scorer="outside:Counts")
    sys.modules.pop("smuggled")


@pytest.mark.parametrize(
    ("scorer", "said"),
    [
        ("no_such_module:Counts", "no_such_module cannot be imported on this machine"),
        ("counting.inner:Counts", r"counting\.inner cannot be imported on this machine"),
        ("broken:Counts", "broken cannot be imported on this machine: ZeroDivisionError"),
        ("counting:Sums", "counting has no class Sums with a method `score`"),
        ("counting:np", "counting has no class np with a method `score`"),
        ("counting:Silent", "counting has no class Silent with a method `score`"),
        ("builtins:Given", "builtins:Given has no source file"),
    ],
)
def test_a_class_that_is_not_there_is_refused(module, tokens_only, monkeypatch, scorer, said):
    module("counting", COUNTS + "\nclass Silent:\n    pass\n")
    module("broken", "1 / 0\n")
    given = type("Given", (), {"score": lambda self, batch: None, "__module__": "builtins"})
    monkeypatch.setattr("builtins.Given", given, raising=False)
    with pytest.raises(ModelError, match=said) as refused:
        described(tokens_only, scorer=scorer)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("scorer", ["counting", "counting:", ":Counts", "a b:C", "../x:C", "m:f()"])
def test_an_import_path_is_a_module_and_a_class(tokens_only, scorer):
    with pytest.raises(ConfigError, match="scorer"):
        described(tokens_only, scorer=scorer)


def test_a_backend_beside_a_scorer_is_refused(tokens_only):
    with pytest.raises(ConfigError, match="leave backend at auto"):
        described(tokens_only, scorer="counting:Counts", backend="torch")


def test_a_class_that_cannot_be_built_is_named(module, tokens_only):
    module("failing", "class Failing:\n    def __init__(self, folder): ...\n    score = None\n")
    module(
        "failing", "class Failing:\n    def __init__(self, folder): ...\n    def score(self): ..."
    )
    with pytest.raises(ModelError, match=r"failing:Failing could not be built .* TypeError"):
        fp32(tokens_only, scorer="failing:Failing")


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("np.zeros(len(batch.input_ids))", r"an array of float64 \[2\]"),
        ("np.zeros((len(batch.input_ids), 1), np.float32)", r"an array of float32 \[2, 1\]"),
        ("np.zeros(1, np.float32)", r"an array of float32 \[1\]"),
        ("[0.0, 0.0]", r"builtins\.list"),
        ("None", r"builtins\.NoneType"),
    ],
)
def test_an_answer_that_is_no_scores_is_an_error_that_names_the_class(
    module, tokens_only, answer, found
):
    source = COUNTS.replace("return (self.factor * lengths).astype(np.float32)", f"return {answer}")
    module("counting", source)
    scorer = fp32(tokens_only, scorer="counting:Counts")
    said = rf"counting:Counts\.score must give a numpy array of float32 \[2\].*it gave {found}"
    with pytest.raises(ModelError, match=said):
        scorer.score([("x", "x"), ("x", "x x")])


@pytest.mark.parametrize(
    ("scorer", "said"),
    [
        ("Unbuildable", r"Unbuildable could not be built from .*: ValueError: the head has no"),
        ("Columns", r"shard 0: own_scorers:Columns\.score must give .* float32 \[\d+, 1\]"),
    ],
)
def test_a_run_whose_scorer_fails_says_so(
    tokens_only, ray_cluster, write_pairs, tmp_path, capfd, scorer, said
):
    config = {
        "input.path": write_pairs(make_pairs(6, 4)),
        "output.path": str(tmp_path / "output"),
        "model": {"name": str(tokens_only), "scorer": f"own_scorers:{scorer}"},
        "compute.workers": 1,
    }
    with pytest.raises(RunFailed, match=said):
        job.rerank(load_config(None, config))
    assert "Traceback" not in capfd.readouterr().err


def test_a_scorer_that_runs_out_of_memory_gets_half_the_batch(module, tokens_only):
    head = "def score(self, batch):\n"
    limit = "        if len(batch.input_ids) > 2:\n            raise MemoryError\n"
    module("counting", COUNTS.replace(head, head + limit))
    scorer = fp32(tokens_only, scorer="counting:Counts")
    pairs = [("x", "x " * n) for n in range(9)]
    assert scorer.score(pairs).tolist() == [(n + 4) / 2 for n in range(9)]


def test_the_settings_that_name_a_run_leave_the_scorer_to_the_digest():
    paths = {"input.path": "in", "output.path": "out", "model.name": "demo"}
    plain = load_config(None, paths).result_settings()
    own = load_config(None, paths | {"model.scorer": "counting:Counts"}).result_settings()
    assert plain == own


def test_what_typing_a_scorer_needs_is_public():
    assert {"ScorerModel", "TokenBatch", "Profile"} <= set(rankmill.__all__)


# The cache of fetched and merged models


def test_several_that_fill_one_folder_of_the_cache_at_once_leave_one(cache):
    both_filling = Barrier(2, timeout=30)

    def fill(folder: Path) -> None:
        both_filling.wait()
        (folder / "whole").write_text("x")

    with ThreadPoolExecutor(2) as pool:
        tasks = [pool.submit(locate.cached, "mine", "key", fill) for _ in range(2)]
        first, second = (task.result() for task in tasks)
    assert first == second
    assert [path.name for path in first.iterdir()] == ["whole"]
    assert list(cache.iterdir()) == [first]


def test_a_folder_that_could_not_be_filled_is_not_in_the_cache(cache):
    def fill(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError("No space left on device")

    with pytest.raises(
        ModelError, match=r"cannot be kept in .*: No space left on device"
    ) as failed:
        locate.cached("mine", "key", fill)
    assert "XDG_CACHE_HOME" in str(failed.value)
    assert list(cache.iterdir()) == []


def test_a_relative_xdg_cache_home_means_nothing(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert storage.user_cache() == Path.home() / ".cache" / "rankmill"
