"""Models: scores are transformers' own, and a folder that cannot be trusted is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer
from transformers.utils import logging

import tiny_models
from rankmill import Scorer
from rankmill.config import ModelConfig
from rankmill.errors import ModelError
from rankmill.models.describe import describe
from rankmill.models.folder import FolderModel
from rankmill.models.torch_encoder import TorchEncoder
from rankmill.profile import Profile
from rankmill.tokens import PairRules, TokenBatch
from rankmill.windows import assemble, cut
from reference import Reference

KINDS = [
    *("bert", "electra", "roberta", "camembert", "xlm-roberta"),
    *("modernbert", "modernbert-mean", "deberta-v2", "gte"),
]
QUERIES = [
    "what is a shard",
    "x",
    "シャードとは何ですか。東京は日本の首都",
    "reading 😀 emoji 👩‍👩‍👧",
    "\u200b",
    "pneumonoultramicroscopic" * 12,
    "search results and heat transfer " * 60,
]
DOCUMENTS = [
    "A shard is a run of whole lists.",
    "検索結果の順位を付け直すモデルは、質問と文書の組を読みます。",
    "slip flow past a flat plate " * 150,
    "",
    " \u00ad\u200b",
    "😀",
    "ü" * 300,
    "[SEP] </s> literal specials [PAD] <pad>",
]
PAIRS = [(query, document) for query in QUERIES for document in DOCUMENTS]


def fp32(folder: str, **options: object) -> Scorer:
    return Scorer(folder, device="cpu", precision="fp32", threads=1, **options)


@pytest.mark.parametrize("truncation", ["document", "longest_first"])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_transformers_on_the_same_pair_alone(tiny_model, kind, truncation):
    folder = tiny_model(kind)
    scorer = fp32(folder, truncation=truncation)
    reference = Reference(folder, scorer.description.max_length(512))
    expected = [reference.score(query, document, truncation) for query, document in PAIRS]
    assert np.std(expected) > 0.3
    np.testing.assert_allclose(scorer.score(PAIRS), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_does_not_depend_on_the_other_pairs_of_the_batch(tiny_model, kind):
    scorer = fp32(tiny_model(kind))
    together = scorer.score(PAIRS)
    alone = np.concatenate([scorer.score([pair]) for pair in PAIRS])
    rest = scorer.score(PAIRS[1::2] + PAIRS[::-2])
    limit = 1e-5 * np.maximum(1, np.abs(together))
    assert np.all(np.abs(together - alone) <= limit)
    others = np.concatenate([together[1::2], together[::-2]])
    assert np.all(np.abs(others - rest) <= np.concatenate([limit[1::2], limit[::-2]]))


def test_500_pairs_of_cranfield_with_a_minilm_are_those_of_transformers(shared_data, tmp_path):
    folder = str(tiny_models.minilm(tmp_path / "minilm"))
    table = pq.read_table(shared_data / "cranfield" / "candidates.parquet")
    chosen = np.random.default_rng(20).choice(table.num_rows, 500, replace=False)
    pairs = [
        (row["query"], f"{row['title']} {row['text']}") for row in table.take(chosen).to_pylist()
    ]
    scores = fp32(folder, max_length=128).score(pairs)
    reference = Reference(folder, 128)
    expected = [reference.score(query, document, "document") for query, document in pairs]
    assert len(set(expected)) > 450
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)


BF16 = Profile("torch", "bf16", "cpu", "any", threads=1, token_budget=2048)


@pytest.mark.parametrize("kind", KINDS)
def test_in_bf16_pooler_head_and_rotary_frequencies_stay_float32(tiny_model, kind):
    model = TorchEncoder(Path(tiny_model(kind)), BF16)
    assert {weight.dtype for weight in model._body.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in model._head.parameters()} == {torch.float32}
    floating = {n: b.dtype for n, b in model._body.named_buffers() if b.is_floating_point()}
    assert set(floating.values()) <= {torch.float32}
    assert bool(floating) == kind.startswith(("modernbert", "gte"))


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_scores_are_close_to_fp32_and_hardly_ever_tie(tiny_model, kind):
    folder = tiny_model(kind)
    words = ["what", "is", "a", "shard", "list", "query", "flow", "heat", "plate", "search"]
    choose = np.random.default_rng(3).choice
    pairs = [
        (" ".join(choose(words, 4)), " ".join(choose(words, int(length))))
        for length in choose(range(3, 40), 96)
    ]
    exact = fp32(folder).score(pairs)
    scores = Scorer(folder, device="cpu", precision="bf16", threads=1).score(pairs)
    assert scores.dtype == np.float32
    assert len(np.unique(exact)) == 96
    assert len(np.unique(scores)) >= 94
    assert np.sqrt(np.mean((scores - exact) ** 2)) < 0.15 * np.std(exact)


@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        *(("bert", 128), ("electra", 128), ("modernbert", 512), ("gte-published", 128)),
        # Of 130 positions, those up to the padding id are never taken: 1, and 3.
        *(("xlm-roberta", 128), ("camembert", 128), ("roberta", 126)),
    ],
)
def test_the_length_is_capped_at_the_positions_of_the_model(tiny_model, kind, limit):
    description = described(tiny_model(kind))
    assert description.max_length(limit + 1) == limit
    assert description.max_length(limit - 1) == limit - 1


@pytest.mark.parametrize("kind", KINDS)
def test_loading_prints_nothing_and_leaves_the_progress_bars_of_transformers(
    tiny_model, kind, capfd
):
    folder = tiny_model(kind)
    capfd.readouterr()
    assert logging.is_progress_bar_enabled()
    fp32(folder).score(PAIRS[:2])
    assert capfd.readouterr() == ("", "")
    assert logging.is_progress_bar_enabled()


def test_a_batch_that_does_not_fit_is_a_memory_error(tiny_model):
    model = TorchEncoder(Path(tiny_model("bert")), BF16)
    ids = np.broadcast_to(np.array(5), (1 << 40, 100))
    with (
        pytest.warns(UserWarning, match="not writable"),
        pytest.raises(MemoryError, match="does not fit"),
    ):
        model.score(TokenBatch(ids, None, None))


# Folders: one that is right, and changes that make it wrong.

Change = Callable[[Path], None]


def described(folder: str | Path) -> FolderModel:
    return describe(ModelConfig(name=str(folder)))


@pytest.fixture
def copied(tiny_model, tmp_path) -> Callable[..., Path]:
    """A copy of a tiny model's folder, changed."""

    def copy(change: Change = lambda folder: None, kind: str = "bert") -> Path:
        folder = tmp_path / f"copy-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(tiny_model(kind), folder)
        change(folder)
        return folder

    return copy


def weights(change: Callable[[dict[str, np.ndarray]], object]) -> Change:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


def config(**values: object) -> Change:
    def apply(folder: Path) -> None:
        settings = json.loads((folder / "config.json").read_text()) | values
        (folder / "config.json").write_text(json.dumps(settings))

    return apply


def written(name: str, text: str) -> Change:
    return lambda folder: (folder / name).write_text(text) and None


def removed(pattern: str) -> Change:
    return lambda folder: [file.unlink() for file in folder.glob(pattern)] and None


def cut_in_half(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def sharded(folder: Path) -> None:
    """The same weights in two files and an index, as large models are saved."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-{part:05d}-of-00002.safetensors" for part in (1, 2)]
    of = {key: names[position % 2] for position, key in enumerate(sorted(tensors))}
    for name in names:
        part = {key: value for key, value in tensors.items() if of[key] == name}
        save_file(part, folder / name, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": of}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def sharded_with_one_missing(folder: Path) -> None:
    sharded(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def sharded_with_a_file_elsewhere(folder: Path) -> None:
    sharded(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00002-of", "../model-00002-of"))


def jina_bert(tensors: dict[str, np.ndarray]) -> None:
    """JinaBERT's names: gated blocks in place of BERT's, no position table."""
    for name in [name for name in tensors if "intermediate" in name or "position_emb" in name]:
        del tensors[name]
    for layer in range(2):
        block = f"bert.encoder.layer.{layer}.mlp"
        tensors[f"{block}.gated_layers.weight"] = np.zeros((128, 32), np.float32)


REFUSED: dict[str, tuple[Change, str]] = {
    "missing key": (
        weights(lambda w: w.pop("classifier.weight")),
        r"1 missing: classifier\.weight",
    ),
    "unexpected key": (
        weights(lambda w: w.update(gated=np.zeros(3, np.float32))),
        "1 unexpected: gated",
    ),
    "reshaped weight": (
        weights(lambda w: w.update({"classifier.weight": np.zeros((2, 32), np.float32)})),
        r"1 of another shape: classifier\.weight",
    ),
    "pickle only": (pickled, r"only pytorch_model\.bin \(nothing is ever unpickled\)"),
    "no weights": (removed("*.safetensors"), "no weights"),
    "another name": (
        lambda f: f.joinpath("model.safetensors").rename(f / "weights.safetensors") and None,
        r"has no model\.safetensors: only weights\.safetensors",
    ),
    "truncated weights": (cut_in_half, "not a readable safetensors file"),
    "empty weights": (written("model.safetensors", ""), "not a readable safetensors file"),
    "missing part": (sharded_with_one_missing, "names model-00002-of-00002.safetensors, which is"),
    "part elsewhere": (sharded_with_a_file_elsewhere, r"names \.\./model-00002"),
    "broken index": (
        lambda f: sharded(f) or written("model.safetensors.index.json", "[]")(f),
        "is not an index",
    ),
    "code of its own": (config(auto_map={"AutoModel": "m.M"}), r"asks for code .*auto_map"),
    "code of its own, of an unknown architecture": (
        config(model_type="fancy", auto_map={"AutoModel": "m.M"}),
        r"asks for code .*auto_map",
    ),
    "BERT over ALiBi's weights": (
        weights(jina_bert),
        r"are JinaBERT's, .* alibi\.\nFetch the config\.json",
    ),
    "ALiBi over BERT's weights": (
        config(position_embedding_type="alibi"),
        "feed_forward_type must be",
    ),
    "more tokens than embeddings": (
        config(vocab_size=7),
        r"of another shape|has the id \d+, the model only 7 word embeddings",
    ),
    "two labels": (config(id2label={"0": "no", "1": "yes"}), "gives 2 values a pair"),
    "not a classifier": (config(architectures=["BertForMaskedLM"]), "not a sequence classifier"),
    "a class that is no list": (
        config(architectures="BertForSequenceClassification"),
        r"architectures 'BertF.*', which is no list of names\.\n.*\[\"BertForSequence"
        r"Classification\"\]",
    ),
    "classes that are no names": (
        config(architectures=[3]),
        r"architectures \[3\], which is no list",
    ),
    "unknown architecture": (config(model_type="t5"), "of the architecture t5, not supported"),
    "no architecture": (config(model_type=["bert"]), r"architecture \['bert'\], not supported"),
    "no config": (removed("config.json"), "has no config.json"),
    "broken config": (written("config.json", "{"), "not valid JSON"),
    "a list as config": (written("config.json", "[]"), "must hold a JSON object, found a list"),
    "a size as text": (config(hidden_size="32"), "hidden_size must be a whole number"),
    "a size missing": (config(max_position_embeddings=None), "max_position_embeddings must be"),
    "impossible heads": (config(num_attention_heads=5), "not a multiple"),
    "unknown activation": (config(hidden_act="nope"), "cannot be built .*nope"),
    "no tokenizer": (removed("token*"), r"has no tokenizer: neither tokenizer\.json nor"),
    "broken tokenizer": (written("tokenizer.json", "{"), "tokenizer in .* cannot be loaded"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_that_cannot_be_trusted_is_refused(copied, case):
    change, said = REFUSED[case]
    folder = copied(change)
    with pytest.raises(ModelError, match=said) as refused:
        described(folder).check(PairRules(64, "document"))
    assert refused.value.exit_code == 2


def byte_bpe_in_two_files(folder: Path) -> None:
    """vocab.json and merges.txt, whatever the architecture's own tokenizer is."""
    pair = "<s> $A </s> </s> $B </s>"
    tokenizer = tiny_models.byte_bpe(tiny_models.FAIRSEQ_TOKENS, pair).backend_tokenizer
    tokenizer.model.save(str(folder))
    written("tokenizer_config.json", json.dumps({"tokenizer_class": "RobertaTokenizer"}))(folder)


VOCABULARIES: dict[str, Change] = {
    "vocab.json and merges.txt": byte_bpe_in_two_files,
    "spiece.model, beside MeCab": lambda f: tiny_models.mecab_spm_files(f) and None,
}


@pytest.mark.parametrize("case", VOCABULARIES)
def test_a_vocabulary_of_another_kind_of_tokenizer_will_do(tmp_path, case):
    folder = tiny_models.bert(tmp_path / "model", vocab_size=600)
    removed("token*")(folder)
    VOCABULARIES[case](folder)
    assert not (folder / "tokenizer.json").exists()
    scorer = fp32(str(folder), truncation="longest_first")
    first = 2 * np.arange(len(PAIRS), dtype=np.int32)
    texts = [text for pair in PAIRS for text in pair]
    pairs = scorer.tokenizer.tokenize(texts, first, first + np.int32(1))
    windows = cut(pairs, scorer.tokenizer.rules)
    own = AutoTokenizer.from_pretrained(folder)
    for number, (query, document) in enumerate(PAIRS):
        found = assemble(windows, scorer.tokenizer.template, np.array([number]))
        expected = own([query], [document], truncation="longest_first", max_length=128)
        assert found.input_ids.tolist() == expected["input_ids"]
    assert np.std(scorer.score(PAIRS)) > 0.03


@pytest.mark.parametrize("kind", ["xlm-roberta", "modernbert", "deberta-v2"])
def test_without_a_tokenizer_no_empty_one_takes_its_place(copied, kind):
    with pytest.raises(ModelError, match="has no tokenizer"):
        described(copied(removed("token*"), kind))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nobody/no-such-model", "not a local folder and could not be fetched from the hub"),
        ("models/mine", "not a local folder and could not be fetched from the hub"),
        ("ms-marco-minilm-l6", r"Did you mean cross-encoder/ms-marco-MiniLM-L6-v2\?"),
        (
            "cross-encoder/ms-marco-MiniLM-L6-v3",
            r"Did you mean cross-encoder/ms-marco-MiniLM-L6-v2\?",
        ),
        ("./models/mine", "not a preset, not a folder, not a hub id"),
        ("../models/mine", "not a preset, not a folder, not a hub id"),
        ("/no/such/folder", "not a preset, not a folder, not a hub id"),
        ("nope://bucket/model", "cannot be fetched: Paths that start with nope://"),
        ("a name/with spaces", "could not be fetched"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(name, said):
    with pytest.raises(ModelError, match=said) as refused:
        describe(ModelConfig(name=name))
    assert refused.value.exit_code == 2


def test_another_class_under_a_known_name_is_refused_with_its_code(copied):
    changed = config(auto_map={"AutoConfig": "configuration_xlm_roberta.XLMRobertaFlashConfig"})
    with pytest.raises(ModelError, match="asks for code"):
        described(copied(changed, "xlm-roberta"))


def test_a_hub_checkpoint_needs_no_preset(tiny_model, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--somebody--a-reranker"
    shutil.copytree(tiny_model("bert"), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    scorer = fp32("somebody/a-reranker")
    assert scorer.description.place.revision == commit
    assert scorer.score(PAIRS) == pytest.approx(fp32(tiny_model("bert")).score(PAIRS))


def test_stored_position_ids_of_older_checkpoints_are_not_unexpected(copied, tiny_model, capfd):
    def add(tensors: dict[str, np.ndarray]) -> None:
        tensors["bert.embeddings.position_ids"] = np.arange(128)[None]

    older = copied(weights(add))
    capfd.readouterr()
    assert fp32(str(older)).score(PAIRS) == pytest.approx(fp32(tiny_model("bert")).score(PAIRS))
    assert capfd.readouterr() == ("", "")


def test_weights_in_several_files_are_one_model(copied, tiny_model):
    several = fp32(str(copied(sharded))).score(PAIRS)
    assert several == pytest.approx(fp32(tiny_model("bert")).score(PAIRS))


def test_the_digest_is_that_of_the_files_wherever_they_are(copied, tiny_model):
    assert described(copied()).digest == described(tiny_model("bert")).digest
    assert described(copied()).digest != described(tiny_model("xlm-roberta")).digest


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_the_digest_changes_with_any_byte_of_what_makes_scores(copied, name):
    folder = copied()
    before = described(folder).digest
    change_last_byte(folder / name)
    assert described(folder).digest != before


def change_last_byte(file: Path) -> None:
    content = file.read_bytes().rstrip()
    # White space after JSON is still JSON.
    last = bytes([content[-1] ^ 1]) if file.suffix == ".safetensors" else content[-1:] + b" \n"
    file.write_bytes(content[:-1] + last)


def test_the_digest_does_not_change_with_a_readme(copied):
    folder = copied()
    before = described(folder).digest
    (folder / "README.md").write_text("# A model")
    (folder / "README.txt").write_text("A model")
    assert described(folder).digest == before


def test_loading_refuses_files_that_changed_since_they_were_described(copied):
    folder = copied()
    description = described(folder)
    change_last_byte(folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"has the digest \w{12}, the run's is"):
        description.load(BF16)


def test_loading_refuses_a_folder_that_is_not_on_this_node(copied):
    folder = copied()
    description = described(folder)
    shutil.rmtree(folder)
    with pytest.raises(ModelError, match="is not on this node"):
        description.load(BF16)
