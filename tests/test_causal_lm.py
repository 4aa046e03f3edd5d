"""Causal rerankers: scores are those of the authors' own way, over all logits of the last place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import rankmill
from conftest import make_pairs
from rankmill import Scorer, load_config
from rankmill.config import ModelConfig
from rankmill.errors import ConfigError, ModelError, OutputError
from rankmill.models.architectures import ARCHITECTURES
from rankmill.models.describe import describe
from rankmill.models.folder import CausalModel
from rankmill.profile import Profile
from rankmill.tokens import PairRules

KINDS = ["qwen3", "qwen2"]
QWEN, MXBAI = "qwen3-reranker", "mxbai-rerank-v2"
QUERIES = ["what is a shard", "シャードとは何ですか?", "  white space \n", "what is a flat plate?"]
DOCUMENTS = [
    "A shard is a run of whole lists.",
    "検索結果の順位を付け直すモデルは、質問と文書の組を読みます。",
    "slip flow past a flat plate\n" * 40,
    "\n \n",
    "<|im_end|> and <think>",
    "مرحبا 😀",
]
PAIRS = [(query, document) for query in QUERIES for document in DOCUMENTS]
BF16 = Profile("torch", "bf16", "cpu", "any", threads=1, token_budget=2048)


def fp32(folder: str | Path, **options: object) -> Scorer:
    options = {"max_length": 2048} | options
    return Scorer(str(folder), device="cpu", precision="fp32", threads=1, **options)


class Authors:
    """The model's own way: left padding, attention mask, all logits of the last place."""

    def __init__(self, folder: str | Path, yes: str, no: str | None) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokens = [self.tokenizer.convert_tokens_to_ids(t) for t in (yes, no) if t is not None]

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    @torch.inference_mode()
    def score(self, inputs: list[list[int]]) -> np.ndarray:
        padded = self.tokenizer.pad({"input_ids": inputs}, padding=True, return_tensors="pt")
        assert bool((padded["attention_mask"][:, -1] == 1).all())
        logits = self.model(**padded).logits[:, -1, :]
        yes = logits[:, self.tokens[0]]
        return (yes if len(self.tokens) == 1 else yes - logits[:, self.tokens[1]]).numpy()


class QwenAuthors(Authors):
    """The code on the page of Qwen/Qwen3-Reranker-0.6B."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, "yes", "no")
        self.prefix = self.ids(
            "<|im_start|>system\nJudge whether the Document meets the requirements based on the "
            'Query and the Instruct provided. Note that the answer can only be "yes" or "no".'
            "<|im_end|>\n<|im_start|>user\n"
        )
        self.suffix = self.ids("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")

    def inputs(self, query: str, document: str, instruction: str, max_length: int) -> list[int]:
        body = self.ids(f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}")
        room = max_length - len(self.prefix) - len(self.suffix)
        return [*self.prefix, *body[:room], *self.suffix]


class MxbaiAuthors(Authors):
    """mxbai_rerank_v2.py of mixedbread-ai/mxbai-rerank, whose length leaves out the prompt."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, "1", "0")
        self.prefix = self.ids(
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful "
            "assistant.<|im_end|>\n<|im_start|>user\n"
        )
        self.line = self.ids("\n")
        self.task = self.ids(
            "You are a search relevance expert who evaluates how well documents match search "
            "queries. For each query-document pair, carefully analyze the semantic relationship "
            "between them, then provide your binary relevance judgment (0 for not relevant, 1 for "
            "relevant).\nRelevance:"
        )
        self.suffix = self.ids("<|im_end|>\n<|im_start|>assistant\n")
        self.end = [*self.line, *self.task, *self.suffix]

    def inputs(self, query: str, document: str, instruction: str | None, own: int) -> list[int]:
        told = f"instruction: {instruction}\n" if instruction else ""
        first = self.ids(f"{told}query: {query}")[: own * 3 // 4]
        second = [*self.line, *self.ids(f"document: {document}")][: own - len(first)]
        return [*self.prefix, *first, *second, *self.end]


WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"


@pytest.mark.parametrize("truncation", ["document", "longest_first"])
@pytest.mark.parametrize("kind", KINDS)
def test_qwen_scores_are_those_of_the_authors_code(tiny_model, kind, truncation):
    folder, limit = tiny_model(kind), 256
    authors = QwenAuthors(folder)
    inputs = [authors.inputs(*pair, WEB_SEARCH, limit) for pair in PAIRS]
    assert sum(len(one) == limit for one in inputs) == len(QUERIES)
    expected = authors.score(inputs)
    assert np.std(expected) > 0.2
    scorer = fp32(folder, prompt=QWEN, max_length=limit, truncation=truncation)
    np.testing.assert_allclose(scorer.score(PAIRS), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("instruction", [None, "Figure out the best passage: be strict."])
@pytest.mark.parametrize("kind", KINDS)
def test_mxbai_scores_are_those_of_the_authors_code(tiny_model, kind, instruction):
    folder, own = tiny_model(kind), 200
    authors = MxbaiAuthors(folder)
    inputs = [authors.inputs(*pair, instruction, own) for pair in PAIRS]
    limit = own + len(authors.prefix) + len(authors.end)
    assert sum(len(one) == limit for one in inputs) == len(QUERIES)
    expected = authors.score(inputs)
    assert np.std(expected) > 0.2
    scorer = fp32(folder, prompt=MXBAI, max_length=limit, instruction=instruction)
    np.testing.assert_allclose(scorer.score(PAIRS), expected, rtol=0, atol=1e-4)


def test_a_model_with_another_kind_of_tokenizer_is_scored_all_the_same(tiny_model):
    folder = tiny_model("llama")
    authors = QwenAuthors(folder)
    authors.tokenizer.pad_token = "</s>"  # of the mask's left side, never seen
    expected = authors.score([authors.inputs(*pair, WEB_SEARCH, 2048) for pair in PAIRS])
    scores = fp32(folder, prompt=QWEN).score(PAIRS)
    assert np.std(expected) > 0.2
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", [*KINDS, "llama"])
def test_a_score_does_not_depend_on_the_other_pairs_of_the_batch(tiny_model, kind):
    scorer = fp32(tiny_model(kind), prompt=QWEN)
    together = scorer.score(PAIRS)
    alone = np.concatenate([scorer.score([pair]) for pair in PAIRS])
    assert np.all(np.abs(together - alone) <= 1e-5 * np.maximum(1, np.abs(together)))


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_side_on_which_a_tokenizer_pads_does_not_matter(tiny_model, tmp_path, side):
    shutil.copytree(tiny_model("qwen3"), tmp_path / "model")
    settings = tmp_path / "model" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"padding_side": side}))
    assert AutoTokenizer.from_pretrained(tmp_path / "model").padding_side == side
    scores = fp32(tmp_path / "model", prompt=QWEN).score(PAIRS)
    np.testing.assert_array_equal(scores, fp32(tiny_model("qwen3"), prompt=QWEN).score(PAIRS))


def test_an_instruction_changes_scores_as_the_authors_code_has_it(tiny_model):
    folder, instruction = tiny_model("qwen3"), "Find passages about\nplates. "
    authors = QwenAuthors(folder)
    expected = authors.score([authors.inputs(*pair, instruction, 2048) for pair in PAIRS])
    usual = fp32(folder, prompt=QWEN)
    scores = fp32(folder, prompt=QWEN, instruction=instruction).score(PAIRS)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)
    assert np.max(np.abs(scores - usual.score(PAIRS))) > 0.1
    same = fp32(folder, prompt=QWEN, instruction=WEB_SEARCH).score(PAIRS)
    np.testing.assert_array_equal(same, usual.score(PAIRS))


# Memory and precision


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_vocabulary_is_kept_but_two_rows_in_float32(tiny_model, kind):
    description = described(tiny_model(kind), prompt=QWEN)
    model = description.load(BF16)
    assert {weight.dtype for weight in model._body.parameters()} == {torch.bfloat16}
    floating = [b.dtype for b in model._body.buffers() if b.is_floating_point()]
    assert set(floating) == {torch.float32}, "rotary frequencies"
    (rows,) = model._head.parameters()
    stored = load_torch(Path(description.path()) / "model.safetensors")
    output = stored.get("lm_head.weight", stored["model.embed_tokens.weight"])
    torch.testing.assert_close(rows, output[list(description.tokens)], rtol=0, atol=0)
    vocabulary = description.settings["vocab_size"]
    large = [m for m in model._body.modules() if isinstance(m, torch.nn.Linear)]
    assert vocabulary not in {size for linear in large for size in linear.weight.shape}


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_never_has_more_than_its_last_states(tiny_model, kind):
    scorer = fp32(tiny_model(kind), prompt=QWEN)
    ids = torch.randint(5, 500, (3, 7))
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 6 + [0]])
    states = scorer.model._body(input_ids=ids, attention_mask=mask).last_hidden_state
    assert states.shape == (3, 1, 32)
    ids[mask == 0] = 1
    other = scorer.model._body(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(states, other, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_scores_are_close_to_fp32_and_hardly_ever_tie(tiny_model, kind):
    words = ["what", "is", "a", "shard", "list", "query", "flow", "heat", "plate", "search"]
    choose = np.random.default_rng(3).choice
    pairs = [
        (" ".join(choose(words, 4)), " ".join(choose(words, int(length))))
        for length in choose(range(3, 40), 96)
    ]
    exact = fp32(tiny_model(kind), prompt=QWEN).score(pairs)
    scorer = Scorer(tiny_model(kind), device="cpu", precision="bf16", threads=1, prompt=QWEN)
    scores = scorer.score(pairs)
    assert len(np.unique(exact)) == 96
    assert len(np.unique(scores)) >= 94
    assert np.sqrt(np.mean((scores - exact) ** 2)) < 0.1 * np.std(exact)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_weights_stored_in_16_bits_are_scored_as_they_are(copied, stored):
    def rounded(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            tensors[name] = tensors[name].to(stored)

    folder = copied(rounded)
    authors = QwenAuthors(folder)
    expected = authors.score([authors.inputs(*pair, WEB_SEARCH, 2048) for pair in PAIRS])
    np.testing.assert_allclose(fp32(folder, prompt=QWEN).score(PAIRS), expected, rtol=0, atol=1e-4)


# Folders

Change = Callable[[dict[str, torch.Tensor]], object]


def described(folder: str | Path, **settings: object) -> CausalModel:
    found = describe(ModelConfig(name=str(folder), **settings))
    assert isinstance(found, CausalModel)
    return found


@pytest.fixture
def copied(tiny_model, tmp_path) -> Callable[..., Path]:
    """A copy of a tiny model's folder, its weights changed."""

    def copy(change: Change = lambda tensors: None, kind: str = "qwen3", **config: object) -> Path:
        folder = tmp_path / f"copy-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(tiny_model(kind), folder)
        file = folder / "model.safetensors"
        tensors = load_torch(file)
        change(tensors)
        save_torch(tensors, file, metadata={"format": "pt"})
        settings = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps(settings))
        return folder

    return copy


def check(folder: Path) -> None:
    described(folder, prompt=QWEN).check(PairRules(512, "document"))


def test_output_rows_may_be_missing_only_where_the_config_ties_them(copied):
    check(copied())
    assert "lm_head.weight" not in load_file(copied() / "model.safetensors")
    with pytest.raises(ModelError, match=r"1 missing: lm_head\.weight"):
        check(copied(tie_word_embeddings=False))
    with pytest.raises(ModelError, match=r"1 missing: lm_head\.weight"):
        check(copied(lambda w: w.pop("lm_head.weight"), "qwen2"))


REFUSED: dict[str, tuple[Change, dict[str, object], str]] = {
    "missing key": (lambda w: w.pop("model.norm.weight"), {}, r"1 missing: model\.norm\.weight"),
    "unexpected key": (lambda w: w.update(score=torch.zeros(3)), {}, "1 unexpected: score"),
    "reshaped": (
        lambda w: w.update({"model.norm.weight": torch.zeros(16)}),
        {},
        r"1 of another shape: model\.norm\.weight",
    ),
    "no row for a token": (
        lambda w: w.update(
            {"model.embed_tokens.weight": w["model.embed_tokens.weight"][:200].clone()}
        ),
        {"vocab_size": 200, "pad_token_id": None, "eos_token_id": None},
        "200 output rows, and none for token",
    ),
    "code of its own": (lambda w: None, {"auto_map": {"AutoModel": "m.M"}}, "asks for code"),
    "a classifier": (
        lambda w: None,
        {"architectures": ["Qwen3ForSequenceClassification"]},
        "is a Qwen3ForSequenceClassification, .* its head is a classifier on the last token",
    ),
    "no head at all": (
        lambda w: None,
        {"architectures": ["Qwen3Model"]},
        "is a Qwen3Model, .* it has no tokens to answer with",
    ),
    "heads as text": (lambda w: None, {"num_key_value_heads": "2"}, "must be a whole number"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_that_cannot_be_trusted_is_refused(copied, case):
    change, config, said = REFUSED[case]
    with pytest.raises(ModelError, match=said):
        check(copied(change, **config))


def test_a_folder_that_does_not_say_its_prompt_is_refused_with_the_choices(tiny_model):
    with pytest.raises(ModelError, match=r"which prompt .*\n.*mxbai-rerank-v2, qwen3-reranker"):
        Scorer(tiny_model("qwen3"))


@pytest.mark.parametrize("setting", ["instruction", "prompt"])
def test_a_cross_encoder_takes_neither_instruction_nor_prompt(tiny_model, setting):
    with pytest.raises(ConfigError, match=f"model.{setting} is set, but .* is a bert model"):
        Scorer(tiny_model("bert"), **{setting: QWEN})


def test_the_digest_covers_the_prompt_but_not_the_instruction(tiny_model):
    folder = tiny_model("qwen3")
    one, other = described(folder, prompt=QWEN), described(folder, prompt=MXBAI)
    assert one.digest != other.digest
    told = described(folder, prompt=QWEN, instruction="Judge.")
    assert (told.digest, told != one) == (one.digest, True)
    assert one.to_json()["prompt"] == QWEN


def test_loading_refuses_files_that_changed_since_they_were_described(copied):
    folder = copied()
    description = described(folder, prompt=QWEN)
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v + 1 for k, v in tensors.items()}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"has the digest \w{12}, the run's is"):
        description.load(BF16)


@pytest.mark.parametrize(
    ("kind", "sizes", "parameters"),
    [
        # Qwen3-Reranker-0.6B and mxbai-rerank-base-v2: parameters of the layers' matrices.
        ("qwen3", (1024, 3072, 28, 16, 8, 128), 595_776_512 - 151_669 * 1024 - 28 * 2304 - 1024),
        ("qwen2", (896, 4864, 24, 14, 2, None), 494_032_768 - 151_936 * 896 - 24 * 2944 - 896),
    ],
)
def test_operations_are_two_a_weight_of_the_layers(kind, sizes, parameters):
    names = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    names += ["num_key_value_heads", "head_dim"]
    settings = dict(zip(names, sizes))
    assert ARCHITECTURES[kind].operations_per_token(settings) == 2.0 * parameters


# Folders of sentence-transformers

TEMPLATE = """\
{%- set told = messages | selectattr("role", "eq", "system") | map(attribute="content") | first \
| default("Answer the question.") -%}
<|im_start|>system
Judge.<|im_end|>
<|im_start|>user
Instruct: {{ told }}
Query: {{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }}
Text: {{ messages | selectattr("role", "eq", "document") | map(attribute="content") | first }}\
<|im_end|>
<|im_start|>assistant

"""
# The same for messages whose content is a list of parts.
PARTS = """\
{%- set told = messages | selectattr("role", "eq", "system") | map(attribute="content") | first \
| default([{"text": "Answer the question."}]) -%}
Instruct: {{ told[0].text }}
Query: {{ (messages | selectattr("role", "eq", "query") | first).content[0].text }}
Text: {{ (messages | selectattr("role", "eq", "document") | first).content[0].text }}<|im_end|>
"""


@pytest.fixture(scope="module")
def saved(tiny_model, tmp_path_factory) -> Callable[..., tuple[Path, object]]:
    """A folder that sentence-transformers saved, and its own model of it."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder.modules import LogitScore

    def save(
        kind: str = "qwen3", template: str = TEMPLATE, single: bool = False, **options: object
    ) -> tuple[Path, object]:
        folder = tmp_path_factory.mktemp("saved") / "model"
        model = CrossEncoder(
            tiny_model(kind),
            device="cpu",
            processor_kwargs={"chat_template": template},
            activation_fn=torch.nn.Identity(),
            **options,
        )
        if single:
            model[1] = LogitScore(model[1].true_token_id)
        model.save_pretrained(str(folder))
        return folder, CrossEncoder(str(folder), device="cpu")

    return save


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("single", [False, True], ids=["yes and no", "yes"])
def test_scores_are_those_of_sentence_transformers(saved, kind, single):
    folder, theirs = saved(kind, single=single)
    scorer = fp32(folder)
    assert len(scorer.description.tokens) == (1 if single else 2)
    expected = theirs.predict(PAIRS)
    assert np.std(expected) > 0.2
    np.testing.assert_allclose(scorer.score(PAIRS), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("default", [False, True])
def test_prompts_of_sentence_transformers_are_instructions(saved, default):
    options = {"prompts": {"qa": "Be strict."}, "default_prompt_name": "qa" if default else None}
    folder, theirs = saved(**options)
    np.testing.assert_allclose(fp32(folder).score(PAIRS), theirs.predict(PAIRS), rtol=0, atol=1e-4)
    told = fp32(folder, instruction="Find plates.").score(PAIRS)
    expected = theirs.predict(PAIRS, prompt="Find plates.")
    np.testing.assert_allclose(told, expected, rtol=0, atol=1e-4)
    assert np.max(np.abs(told - fp32(folder).score(PAIRS))) > 0.1


def test_documents_are_cut_as_sentence_transformers_cuts_them(saved):
    folder, theirs = saved()
    theirs.max_seq_length = 128
    expected = theirs.predict(PAIRS)
    scores = fp32(folder, max_length=128).score(PAIRS)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)
    assert np.max(np.abs(scores - fp32(folder).score(PAIRS))) > 0.1


def test_messages_in_parts_are_read_as_sentence_transformers_writes_them(saved):
    folder, theirs = saved(template=PARTS)
    settings = json.loads((folder / "sentence_bert_config.json").read_text())
    assert settings["modality_config"]["message"]["format"] == "structured"
    np.testing.assert_allclose(
        fp32(folder, instruction="Judge.").score(PAIRS),
        theirs.predict(PAIRS, prompt="Judge."),
        rtol=0,
        atol=1e-4,
    )


# Jobs


def job_config(folder: Path, path: str, model: str, **settings: object) -> rankmill.RunConfig:
    return load_config(
        overrides={
            "input.path": path,
            "output.path": str(folder / "out"),
            "model.name": model,
            "model.prompt": QWEN,
            "model.precision": "fp32",
            "compute.workers": 1,
        }
        | {key.replace("__", "."): value for key, value in settings.items()}
    )


def digests(folder: Path) -> set[bytes]:
    files = (folder / "out/_rankmill/scores").glob("*.arrow")
    return {
        digest
        for file in files
        for digest in pa.ipc.open_file(file).read_all().column("pair").to_pylist()
    }


def with_instructions(table: pa.Table) -> pa.Table:
    told = ["Find plates.", None, "", "Be strict."]
    column = [told[i % 4] for i in range(table.num_rows)]
    return table.append_column("told", pa.array(column, pa.string()))


def by_the_scorer(table: pa.Table, model: str, usual: str | None) -> dict[str, float]:
    """Each doc_id's score, instruction by instruction."""
    found = {}
    for told in ("Find plates.", "Be strict.", usual):
        scorer = fp32(model, prompt=QWEN, instruction=told, max_length=512)
        rows = [row for row in table.to_pylist() if (row["told"] or usual) == told]
        scores = scorer.score([(row["query"], row["document"]) for row in rows])
        found |= {row["doc_id"]: float(score) for row, score in zip(rows, scores)}
    assert len(found) == table.num_rows
    return found


@pytest.mark.usefixtures("ray_cluster")
def test_a_job_reads_an_instruction_beside_every_row(tiny_model, tmp_path, write_pairs):
    table, model = with_instructions(make_pairs(3, 8)), tiny_model("qwen3")
    config = job_config(
        tmp_path,
        write_pairs(table),
        model,
        model__instruction="Judge.",
        input__columns__instruction="told",
    )
    result = rankmill.rerank(config)
    assert result.counters.rows_out == 24
    ranked = pq.read_table(result.output)
    expected = by_the_scorer(table, model, "Judge.")
    scores = dict(zip(ranked["doc_id"].to_pylist(), ranked["rerank_score"].to_pylist()))
    assert scores == pytest.approx(expected, abs=1e-4)
    assert np.std(list(expected.values())) > 0.2
    metadata = pq.read_schema(result.files[0]).metadata
    assert metadata[b"rankmill.model.prompt"] == QWEN.encode()

    first = digests(tmp_path)
    assert len(first) == 24
    changed = config.model_copy(
        update={"model": config.model.model_copy(update={"instruction": "Judge again."})}
    )
    with pytest.raises(OutputError, match=r'model\.instruction: "Judge." -> "Judge again."'):
        rankmill.rerank(changed)
    rankmill.rerank(changed, overwrite=True)
    # Half of the rows have an instruction of their own.
    assert len(digests(tmp_path) & first) == 12


@pytest.mark.usefixtures("ray_cluster")
def test_instructions_for_a_model_that_takes_none_are_refused(tiny_model, tmp_path, write_pairs):
    path = write_pairs(with_instructions(make_pairs(1, 4)))
    told = {"input__columns__instruction": "told"}
    config = job_config(tmp_path, path, tiny_model("bert"), model__prompt="auto", **told)
    with pytest.raises(ConfigError, match=r"column told holds instructions, but .* takes none"):
        rankmill.rerank(config)
    missing = job_config(tmp_path, path, tiny_model("qwen3"), input__columns__instruction="tell")
    with pytest.raises(rankmill.RankmillError, match=r"column tell \(instruction\) is missing"):
        rankmill.rerank(missing)


@pytest.mark.usefixtures("ray_cluster")
def test_a_dataset_takes_instructions_too(tiny_model):
    table, model = with_instructions(make_pairs(2, 4)), tiny_model("qwen3")
    scored = rankmill.rerank_dataset(
        ray.data.from_arrow(table),
        model,
        prompt=QWEN,
        columns={"instruction": "told"},
        device="cpu",
        precision="fp32",
        workers=1,
    ).take_all()
    scores = {row["doc_id"]: row["rerank_score"] for row in scored}
    assert scores == pytest.approx(by_the_scorer(table, model, WEB_SEARCH), abs=1e-4)


def test_a_row_whose_instruction_fills_the_length_goes_to_quarantine_alone(
    tiny_model, tmp_path, ray_cluster
):
    table = make_pairs(2, 3)
    given = ["judge the row"] * table.num_rows
    given[1] = "judge every word of it " * 400
    (tmp_path / "in").mkdir()
    pq.write_table(table.append_column("task", pa.array(given)), tmp_path / "in" / "c.parquet")
    config = load_config(
        overrides={
            "input.path": str(tmp_path / "in"),
            "input.columns.instruction": "task",
            "output.path": str(tmp_path / "out"),
            "model.name": tiny_model("qwen3"),
            "model.prompt": "qwen3-reranker",
            "compute.device": "cpu",
        }
    )
    result = rankmill.rerank(config)
    assert result.counters.rows_out == table.num_rows - 1
    assert result.counters.quarantine == {"instruction leaves no room in model.max_length": 1}
