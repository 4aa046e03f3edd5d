"""Prompts: token ids are those that the authors' own code makes of the same texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import tiny_models
from rankmill.errors import ConfigError, InputError, ModelError
from rankmill.models.prompt_sources import find_prompt, known_prompts, token_ids
from rankmill.prompt_tokenizer import PromptTokenizer
from rankmill.prompts import Prompt, PromptQuery
from rankmill.tokens import PairRules, TokenizedPairs
from rankmill.windows import assemble, cut

QWEN, MXBAI = known_prompts()["qwen3-reranker"], known_prompts()["mxbai-rerank-v2"]
WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"
# One string for everything, with white space that a tokenizer may join with the texts.
CHAT = Prompt(
    name="chat",
    pieces=("{instruction}Query: {query}\n\nText:\n{document} \n<|im_end|>\n",),
    instructed="<|im_start|>{text}<|im_end|>\n",
    true_token="yes",
)
WHOLE = PairRules(100_000, "document")


BACKENDS = {"qwen": cache(tiny_models.qwen_bpe), "metaspace": cache(tiny_models.metaspace_bpe)}


@pytest.fixture(scope="module")
def qwen():
    return BACKENDS["qwen"]()


@cache
def uncut(backend: str, prompt: Prompt) -> PromptTokenizer:
    return PromptTokenizer(BACKENDS[backend](), prompt, WHOLE)


def tokenized(
    tokenizer: PromptTokenizer, query: str, document: str, instruction: str | None = None
) -> TokenizedPairs:
    texts = [tokenizer.query_text(query, instruction), tokenizer.document_text(document)]
    return tokenizer.pairs(tokenizer.encode(texts), *np.array([[0], [1]], np.int32))


def ids_of(tokenizer: PromptTokenizer, pairs: TokenizedPairs) -> list[int]:
    inputs = cut(pairs, tokenizer.rules)
    return assemble(inputs, tokenizer.template, np.array([0])).input_ids[0].tolist()


# What the authors' code tokenizes, written down here a second time.


def qwen_strings(query: str, document: str, instruction: str | None) -> list[str]:
    """The page of Qwen/Qwen3-Reranker-0.6B: prefix, body and suffix."""
    return [
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query "
        'and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
        "<|im_start|>user\n",
        f"<Instruct>: {instruction or WEB_SEARCH}\n<Query>: {query}\n<Document>: {document}",
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ]


def mxbai_strings(query: str, document: str, instruction: str | None) -> list[str]:
    """mxbai_rerank_v2.py of mixedbread-ai/mxbai-rerank."""
    told = f"instruction: {instruction}\n" if instruction else ""
    return [
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
        "<|im_end|>\n<|im_start|>user\n",
        f"{told}query: {query}",
        "\n",
        f"document: {document}",
        "\n",
        "You are a search relevance expert who evaluates how well documents match search queries. "
        "For each query-document pair, carefully analyze the semantic relationship between them, "
        "then provide your binary relevance judgment (0 for not relevant, 1 for relevant).\n"
        "Relevance:",
        "<|im_end|>\n<|im_start|>assistant\n",
    ]


def chat_strings(query: str, document: str, instruction: str | None) -> list[str]:
    told = f"<|im_start|>{instruction}<|im_end|>\n" if instruction else ""
    return [f"{told}Query: {query}\n\nText:\n{document} \n<|im_end|>\n"]


STRINGS = {"qwen3-reranker": qwen_strings, "mxbai-rerank-v2": mxbai_strings, "chat": chat_strings}


def authors_ids(backend, prompt, query, document, instruction=None):
    strings = STRINGS[prompt.name](query, document, instruction)
    return [i for s in strings for i in backend(s, add_special_tokens=False)["input_ids"]]


TEXTS = st.one_of(
    st.text(max_size=40),
    st.text(alphabet=" \n\t\r\u3000\u00a0?.!'s1<>|:", max_size=12),
    st.sampled_from(
        [
            "",
            " ",
            "\n",
            "what is a shard?\n",
            "検索結果の順位は？",
            "👩‍👩‍👧 emoji 😀",
            "مرحبا بالعالم",
            "\u0301combining",
            "<|im_end|>",
            "<|im_end",
            "|im_end|>",
            "<Document>: not mine {query} {document} {instruction} {text}",
            "<think>",
        ]
    ),
)


@pytest.mark.parametrize("prompt", [QWEN, MXBAI], ids=lambda p: p.name)
@settings(max_examples=200, deadline=None)
@given(query=TEXTS, document=TEXTS, instruction=st.none() | TEXTS)
@example(query="what?", document="\nnext line", instruction="judge.\n")
def test_texts_tokenized_once_give_the_ids_of_the_authors_strings(
    qwen, prompt, query, document, instruction
):
    ours = uncut("qwen", prompt)
    assert ours.template.special > 20, "the prompt was not taken apart"
    pairs = tokenized(ours, query, document, instruction)
    expected = authors_ids(qwen, prompt, query, document, instruction)
    assert ids_of(ours, pairs) == expected
    assert pairs.dropped.tolist() == [0]


@pytest.mark.parametrize(
    ("backend", "prompt"),
    [("metaspace", QWEN), ("metaspace", MXBAI), ("metaspace", CHAT), ("qwen", CHAT)],
)
@settings(max_examples=60, deadline=None)
@given(query=TEXTS, document=TEXTS, instruction=st.none() | TEXTS)
@example(query="q", document="d\n\n", instruction=None)
def test_where_texts_and_prompt_grow_together_pairs_are_tokenized_whole(
    backend, prompt, query, document, instruction
):
    ours = uncut(backend, prompt)
    assert ours.template.special == 0, "the prompt was taken apart"
    pairs = tokenized(ours, query, document, instruction)
    expected = authors_ids(BACKENDS[backend](), prompt, query, document, instruction)
    assert ids_of(ours, pairs) == expected
    assert pairs.dropped.tolist() == [0]


KINDS = [("qwen", QWEN), ("qwen", MXBAI), ("qwen", CHAT), ("metaspace", QWEN)]


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0]}, {kind[1].name}")
def kind(request):
    backend, prompt = request.param
    return BACKENDS[backend](), prompt


@pytest.mark.parametrize("truncation", ["document", "longest_first"])
def test_a_document_is_cut_where_the_authors_code_cuts_it(kind, truncation):
    backend, prompt = kind
    query, document = "what is a shard?", "A shard is a run of whole lists. " * 60
    whole = authors_ids(backend, prompt, query, document)
    after = len(same_end(whole, authors_ids(backend, prompt, query, "0")))
    limit = len(whole) - 200
    ours = PromptTokenizer(backend, prompt, PairRules(limit, truncation))
    pairs = tokenized(ours, query, document)
    assert ids_of(ours, pairs) == whole[: limit - after] + whole[-after:]
    assert pairs.dropped.tolist() == [200]


def same_end(one: list[int], other: list[int]) -> list[int]:
    """The last items that are the same."""
    count = 0
    while one[-1 - count] == other[-1 - count]:
        count += 1
    return one[len(one) - count :]


@pytest.mark.parametrize("room", [-1, 0, 1])
def test_a_pair_is_cut_only_when_it_does_not_fit(kind, room):
    backend, prompt = kind
    query, document = "what is a shard?\n", "A shard is a run of lists?"
    whole = authors_ids(backend, prompt, query, document)
    ours = PromptTokenizer(backend, prompt, PairRules(len(whole) + room, "document"))
    pairs = tokenized(ours, query, document)
    assert (ids_of(ours, pairs) == whole) == (room >= 0)
    assert pairs.dropped.tolist() == [max(-room, 0)]
    assert cut(pairs, ours.rules).lengths.tolist() == [len(whole) + min(room, 0)]


@pytest.mark.parametrize("truncation", ["document", "longest_first"])
def test_the_prompt_and_the_instruction_stay_whole_when_the_query_is_cut(qwen, truncation):
    query, document = "how do bees find their way? " * 100, "By the sun, by landmarks. " * 100
    rules = PairRules(320, truncation)
    ours = PromptTokenizer(qwen, QWEN, rules, "Judge as a beekeeper.")
    pairs = tokenized(ours, query, document)
    text = qwen.decode(ids_of(ours, pairs))
    start, end = qwen_strings("\0", "\0", "Judge as a beekeeper.")[1].split("\0", 1)
    before, between, after = (
        qwen_strings("", "", None)[0] + start,
        end.split("\0")[0],
        qwen_strings("", "", None)[2],
    )
    assert text.startswith(before + "how do bees")
    assert text.endswith(after)
    kept = text.removeprefix(before).removesuffix(after)
    kept_query, found, kept_document = kept.partition(between)
    assert found
    assert query.startswith(kept_query)
    assert document.startswith(kept_document)
    assert cut(pairs, ours.rules).lengths.tolist() == [320]
    tokens = [len(qwen(" " + t)["input_ids"]) for t in (query, document, kept_query, kept_document)]
    assert pairs.dropped.tolist() == [tokens[0] + tokens[1] - tokens[2] - tokens[3]]
    share = tokens[2] / (tokens[2] + tokens[3])
    assert share == pytest.approx(0.75 if truncation == "document" else 0.5, abs=0.02)


def test_max_query_tokens_counts_the_query_alone(qwen):
    query = "how do bees find their way home"
    tokens = qwen(" " + query)["input_ids"]
    rules = PairRules(400, "document", max_query_tokens=len(tokens))
    ours = PromptTokenizer(qwen, QWEN, rules, "An instruction that is far longer than the query.")
    assert tokenized(ours, query, "d").dropped.tolist() == [0]
    less = PromptTokenizer(qwen, QWEN, replace(rules, max_query_tokens=3))
    pairs = tokenized(less, query, "d")
    assert pairs.dropped.tolist() == [len(tokens) - 3]
    shown = qwen.decode(tokens[:3])
    assert f"<Query>:{shown}\n<Document>: d" in qwen.decode(ids_of(less, pairs))


def test_the_same_query_is_cut_for_one_document_and_whole_for_another(qwen):
    ours = PromptTokenizer(qwen, QWEN, PairRules(300, "document"))
    room = 300 - len(authors_ids(qwen, QWEN, "", ""))
    query = "1" * (room - 20)  # a token each
    texts = [ours.query_text(query), ours.document_text("d"), ours.document_text("d " * 500)]
    number = np.array([[0, 0, 0], [1, 2, 1]], np.int32)
    pairs = ours.pairs(ours.encode(texts), *number)
    inputs = cut(pairs, ours.rules)
    batch = assemble(inputs, ours.template, np.arange(3))
    rows = [row[:n].tolist() for row, n in zip(batch.input_ids, inputs.lengths)]
    assert rows[0] == rows[2] == authors_ids(qwen, QWEN, query, "d")
    assert len(rows[1]) == 300
    assert pairs.dropped[0] == pairs.dropped[2] == 0 < pairs.dropped[1]


def test_windows_over_a_document_leave_the_texts_in_place(kind):
    """What is shown of a text is its first tokens, as `assemble` takes them."""
    backend, prompt = kind
    ours = PromptTokenizer(backend, prompt, PairRules(600, "document"))
    pairs = tokenized(ours, "what is a shard?", "A shard is a run of whole lists.")
    lengths = pairs.texts.lengths
    assert pairs.query_kept[0] == lengths[pairs.query[0]]
    assert pairs.document_kept[0] == lengths[pairs.document[0]]


def test_an_instruction_takes_the_place_of_the_usual_one(qwen):
    ours = PromptTokenizer(qwen, QWEN, WHOLE)
    configured = PromptTokenizer(qwen, QWEN, WHOLE, "Judge.")
    usual = authors_ids(qwen, QWEN, "q", "d")
    judge = authors_ids(qwen, QWEN, "q", "d", "Judge.")
    assert ids_of(ours, tokenized(ours, "q", "d")) == usual
    assert ids_of(ours, tokenized(ours, "q", "d", "Judge.")) == judge
    assert ids_of(configured, tokenized(configured, "q", "d")) == judge
    assert ids_of(configured, tokenized(configured, "q", "d", WEB_SEARCH)) == usual


def test_queries_with_other_instructions_are_other_texts(qwen):
    ours = PromptTokenizer(qwen, QWEN, WHOLE)
    texts = {ours.query_text("q"), ours.query_text("q", "a"), ours.query_text("q", "b")}
    assert len(texts) == 3
    assert ours.query_text("q", WEB_SEARCH) == ours.query_text("q")


def test_the_place_of_the_query_does_not_depend_on_what_the_texts_say(qwen):
    ours = PromptTokenizer(qwen, QWEN, WHOLE)
    text = ours.query_text("<Query>: {text}", "say <Query>: {query}\n<Query>: ")
    assert isinstance(text, PromptQuery)
    assert text[text.start :] == "<Query>: {text}\n"


def test_an_instruction_that_fills_the_length_is_an_input_error(qwen):
    ours = PromptTokenizer(qwen, QWEN, PairRules(300, "document"))
    with pytest.raises(InputError, match=r"the prompt takes \d+ of 300 tokens") as refused:
        tokenized(ours, "q", "d", "secret words " * 200)
    assert "secret" not in str(refused.value)


def test_a_length_without_room_beside_the_prompt_is_refused(kind):
    backend, prompt = kind
    fixed = len(authors_ids(backend, prompt, "", ""))
    with pytest.raises(ModelError, match=rf"max_length {fixed} leaves no room beside the {fixed}"):
        PromptTokenizer(backend, prompt, PairRules(fixed, "document"))
    with pytest.raises(ConfigError, match=r"max_query_tokens is 20, but .* only 20 tokens"):
        PromptTokenizer(backend, prompt, PairRules(fixed + 20, "document", 20))


def test_verify_accepts_what_the_authors_code_does(kind):
    backend, prompt = kind
    PromptTokenizer(backend, prompt, PairRules(512, "longest_first", 9), "Judge.").verify()


def test_verify_refuses_ids_that_differ(qwen):
    ours = PromptTokenizer(qwen, QWEN, PairRules(512, "document"))
    ours.template = replace(ours.template, between=ours.template.between[:-1])
    with pytest.raises(ModelError, match="does not build the prompt qwen3-reranker"):
        ours._compare(ours.query_text("q"), ours.document_text("d"))


def test_white_space_around_texts_goes_where_the_prompt_strips_it(qwen):
    stripping = PromptTokenizer(qwen, QWEN.model_copy(update={"strips": True}), WHOLE)
    found = ids_of(stripping, tokenized(stripping, " q\n", "\n d ", " i "))
    assert found == authors_ids(qwen, QWEN, "q", "d", "i")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"pieces": ["{query}"]}, "once each and in order"),
        ({"pieces": ["{document}", "{query}"]}, "once each and in order"),
        ({"pieces": ["{query}{query}{document}"]}, "once each and in order"),
        ({"pieces": ["{query}{document}"]}, "once where something stands for it"),
        ({"pieces": ["{instruction}", "{query}{document}"]}, "in the same piece"),
        ({"pieces": ["{query}{instruction}{document}"]}, "in the same piece"),
        ({"instructed": "no mark"}, "must hold {text} once"),
        ({"pieces": ["{query}{document}"], "instructed": None}, "must say where it stands"),
        ({"true_token": None}, "true_token"),
        ({"piece": []}, "Extra inputs"),
    ],
    ids=repr,
)
def test_an_impossible_prompt_is_refused(changed, said):
    with pytest.raises(ValidationError, match=said):
        Prompt.model_validate(QWEN.model_dump() | changed)


def test_tokens_are_found_by_their_words_or_given_by_their_ids(qwen):
    yes, no = qwen.convert_tokens_to_ids(["yes", "no"])
    assert token_ids(qwen, QWEN) == (yes, no)
    assert token_ids(qwen, CHAT) == (yes,)
    assert token_ids(qwen, CHAT.model_copy(update={"true_token": 7, "false_token": 0})) == (7, 0)
    with pytest.raises(ModelError, match="no token 'maybe'"):
        token_ids(qwen, CHAT.model_copy(update={"true_token": "maybe"}))


# Where a prompt comes from.


def test_presets_name_their_prompts(qwen, tmp_path):
    for name, prompt in [
        ("Qwen/Qwen3-Reranker-0.6B", QWEN),
        ("Qwen/Qwen3-Reranker-8B", QWEN),
        ("mixedbread-ai/mxbai-rerank-large-v2", MXBAI),
    ]:
        assert find_prompt(name, "auto", tmp_path, qwen) == prompt
    # What is asked for goes before what the name says.
    assert find_prompt("Qwen/Qwen3-Reranker-4B", MXBAI.name, tmp_path, qwen) == MXBAI


def test_without_a_source_the_choices_are_named(qwen, tmp_path):
    with pytest.raises(ModelError, match="which prompt it was trained with") as refused:
        find_prompt("models/mine", "auto", tmp_path, qwen)
    assert "one of: mxbai-rerank-v2, qwen3-reranker" in str(refused.value)
    with pytest.raises(ModelError, match=r"no prompt qwen\.\n.*auto or one of: mxbai-rerank-v2"):
        find_prompt("models/mine", "qwen", tmp_path, qwen)


ROLES = (
    "{%- for m in messages if m.role == 'system' %}<|im_start|>{{ m.content }}<|im_end|>\n"
    "{% endfor %}"
    "Query: {{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }}\n"
    "Text: {{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }}"
    "<|im_end|>\n<think>\n\n"  # of which rendering drops the last
)
Saved = Callable[..., tuple[Path, object]]


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """The files that sentence-transformers 6.2 writes beside a causal model, some changed."""

    def save(template: str | None = ROLES, **changed: object) -> tuple[Path, object]:
        kinds = ["base.modules.transformer.Transformer"]
        kinds += ["cross_encoder.modules.logit_score.LogitScore"]
        files: dict[str, object] = {
            "modules.json": [
                {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.{kind}"}
                for i, (path, kind) in enumerate(zip(["", "1_LogitScore"], kinds))
            ],
            "sentence_bert_config.json": {
                "transformer_task": "text-generation",
                "modality_config": {
                    name: {"method": "forward", "method_output_name": "logits"} | more
                    for name, more in (("text", {}), ("message", {"format": "flat"}))
                },
                "module_output_name": "causal_logits",
            },
            "config_sentence_transformers.json": {"prompts": {}, "default_prompt_name": None},
            "1_LogitScore/config.json": {"true_token_id": 5, "false_token_id": 3},
        }
        (tmp_path / "1_LogitScore").mkdir(exist_ok=True)
        for name, value in (files | changed).items():
            if value is not None:
                (tmp_path / name).write_text(json.dumps(value))
        tokenizer = tiny_models.qwen_bpe()
        tokenizer.chat_template = template
        return tmp_path, tokenizer

    return save


def test_a_chat_template_is_read_as_a_prompt(saved):
    prompt = find_prompt("mine", "auto", *saved())
    assert prompt.pieces == ("{instruction}{query}\nText: {document}<|im_end|>\n<think>\n",)
    assert prompt.plain == "Query: "
    assert prompt.instructed == "<|im_start|>{text}<|im_end|>\nQuery: "
    assert (prompt.true_token, prompt.false_token, prompt.instruction) == (5, 3, None)
    assert not prompt.strips


def test_a_saved_default_prompt_is_the_usual_instruction(saved):
    values = {"prompts": {"web": "Judge.", "qa": "Answer."}, "default_prompt_name": "qa"}
    prompt = find_prompt("mine", "auto", *saved(**{"config_sentence_transformers.json": values}))
    assert prompt.instruction == "Answer."


def test_settings_for_the_template_are_passed_on(saved):
    template = ROLES + "{% if add_generation_prompt %}answer: {% endif %}"
    settings = {
        "modality_config": {"message": {"format": "flat"}},
        "processing_kwargs": {
            "chat_template": {"add_generation_prompt": True, "max_length": 5},
            "text": {"truncation": True},
        },
    }
    changed = {"sentence_bert_config.json": settings}
    assert find_prompt("mine", "auto", *saved(template, **changed)).pieces[-1].endswith("answer: ")


def test_one_token_may_be_all_that_is_scored(saved):
    config = {"1_LogitScore/config.json": {"true_token_id": 5, "false_token_id": None}}
    assert find_prompt("mine", "auto", *saved(**config)).false_token is None


def test_a_template_may_strip_texts_but_not_change_them_otherwise(saved):
    stripping = ROLES.replace("| first", "| first | trim").replace("m.content", "m.content | trim")
    assert find_prompt("mine", "auto", *saved(stripping)).strips
    for change in ("| upper", "| e", "| replace('\\n', ' ')"):
        with pytest.raises(ModelError, match=r"chat template (changes the texts|does not show)"):
            find_prompt("mine", "auto", *saved(ROLES.replace("| first", f"| first {change}")))


def test_a_template_without_a_place_for_instructions_takes_none(saved):
    prompt = find_prompt("mine", "auto", *saved(ROLES[ROLES.index("Query") :]))
    assert prompt.instructed is None
    assert prompt.pieces[0].startswith("Query: {query}")
    bare = find_prompt("mine", "auto", *saved(ROLES[ROLES.index("{{ messages") :]))
    assert bare.pieces[0].startswith("{query}\nText")


SAVED_UNFIT: dict[str, tuple[str | None, dict[str, object], str]] = {
    "no template": (None, {}, "no chat template for pairs"),
    "chat of users": ("{{ messages[0].content }}", {}, "a query and then a document, once"),
    "document first": (
        "{{ messages[-1].content }} {{ messages[-2].content }}",
        {},
        "a query and then a document, once",
    ),
    "broken template": ("{{ nothing.at.all }}", {}, "cannot be rendered"),
    "another module": (ROLES, {"modules.json": [{"type": "a.Pooling"}]}, "the modules Pooling"),
    "a folder elsewhere": (
        ROLES,
        {"modules.json": [{"type": "a.Transformer"}, {"type": "a.LogitScore", "path": "../x"}]},
        r"leads to another folder \(\.\./x\)",
    ),
    "no list": (ROLES, {"modules.json": {}}, "holds a dict, not a list"),
    "no score": (ROLES, {"1_LogitScore/config.json": None}, "missing or not valid JSON"),
    "no token": (ROLES, {"1_LogitScore/config.json": {}}, "make no prompt"),
    "text pairs": (
        ROLES,
        {"sentence_bert_config.json": {"modality_config": {"text": {}}}},
        "no chat template for pairs",
    ),
    "lower case": (
        ROLES,
        {
            "sentence_bert_config.json": {
                "modality_config": {"message": {"format": "flat"}},
                "do_lower_case": True,
            }
        },
        "more than a forward pass",
    ),
    "other tokens": (
        ROLES,
        {
            "sentence_bert_config.json": {
                "modality_config": {"message": {"format": "flat"}},
                "processing_kwargs": {"text": {"add_special_tokens": True}},
            }
        },
        "more than a forward pass",
    ),
    "default prompt elsewhere": (
        ROLES[ROLES.index("Query") :],
        {"config_sentence_transformers.json": {"prompts": {"a": "b"}, "default_prompt_name": "a"}},
        "does not put the default prompt before the query",
    ),
}


@pytest.mark.parametrize("case", SAVED_UNFIT)
def test_saved_files_that_make_no_prompt_are_refused(saved, case):
    template, changed, said = SAVED_UNFIT[case]
    with pytest.raises(ModelError, match=said) as refused:
        find_prompt("mine", "auto", *saved(template, **changed))
    assert "set model.prompt to one of: mxbai-rerank-v2, qwen3-reranker" in str(refused.value)
