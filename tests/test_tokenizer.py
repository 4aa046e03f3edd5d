"""Tokenizers: pairs are those of the tokenizer's own pair call, whatever its kind."""

import json
import logging
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import sentencepiece
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertJapaneseTokenizer,
    PreTrainedTokenizerFast,
)

import tiny_models
from rankmill import Scorer, tokenizer_files
from rankmill.config import ColumnNames
from rankmill.encoding import calls, encode_texts
from rankmill.envelope import Envelope
from rankmill.errors import ConfigError, ModelError
from rankmill.stages import StageSettings, score, tokenize
from rankmill.template import NoTemplate, probe_template
from rankmill.tokenizer import PairTokenizer
from rankmill.tokens import PairRules
from rankmill.windows import assemble, cut


def saved(tokenizer, folder):
    tokenizer.save_pretrained(folder)
    return folder


# Each writes the files of a tokenizer into a folder.
KINDS = {
    "wordpiece": lambda folder: saved(tiny_models.wordpiece(), folder),
    "unigram": lambda folder: saved(tiny_models.unigram(), folder),
    "unigram, one separator": lambda folder: saved(
        tiny_models.unigram("<s> $A </s> $B </s>"), folder
    ),
    "byte bpe": lambda folder: saved(tiny_models.byte_bpe(), folder),
    "jina": tiny_models.jina_files,
    "llama": tiny_models.llama_files,
    "xlm-roberta, sentencepiece": tiny_models.xlm_roberta_spm_files,
    "deberta, sentencepiece": tiny_models.deberta_spm_files,
    "mecab and wordpiece": tiny_models.mecab_files,
    "mecab and characters": lambda folder: tiny_models.mecab_files(folder, "character"),
}
BOTH = pytest.mark.parametrize("truncation", ["document", "longest_first"])
STRATEGY = {"document": "only_second", "longest_first": "longest_first"}


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """A tokenizer of a kind, loaded from its files."""
    root = tmp_path_factory.mktemp("tokenizers")

    @cache
    def load(kind):
        return tokenizer_files.load(KINDS[kind](root / kind))

    return load


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request, load):
    return load(request.param)


@pytest.fixture(scope="module")
def wordpiece(load):
    return load("wordpiece")


@cache
def pair_tokenizer(tokenizer, rules):
    return PairTokenizer(tokenizer, rules)


def made(tokenizer, queries, documents, rules):
    number = np.arange(len(queries), dtype=np.int32)
    ours = pair_tokenizer(tokenizer, rules)
    pairs = ours.tokenize([*queries, *documents], number, number + np.int32(len(queries)))
    return ours, pairs


def put_together(ours, pairs):
    """The ids and segments of each pair as lists, without padding."""
    inputs = cut(pairs, ours.rules)
    batch = assemble(inputs, ours.template, np.arange(len(inputs)))
    ids = [row[:n].tolist() for row, n in zip(batch.input_ids, inputs.lengths)]
    if batch.segment_ids is None:
        return ids, None
    return ids, [row[:n].tolist() for row, n in zip(batch.segment_ids, inputs.lengths)]


def without_room(tokenizer, query, document, max_length):
    """Whether a query leaves the document no place: tokenizers raise then, or go beyond."""
    pair = tokenizer([query], [document], verbose=False)["input_ids"][0]
    alone = tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
    return len(pair) - len(alone) >= max_length


def check_equal(tokenizer, queries, documents, truncation, max_length):
    if truncation == "document":
        fit = [
            pair
            for pair in zip(queries, documents)
            if not without_room(tokenizer, *pair, max_length)
        ]
        queries, documents = [query for query, _ in fit], [document for _, document in fit]
    if not queries:
        return
    ours, pairs = made(tokenizer, queries, documents, PairRules(max_length, truncation))
    own = tokenizer(
        queries,
        documents,
        truncation=STRATEGY[truncation],
        max_length=max_length,
        verbose=False,
    )
    ids, segments = put_together(ours, pairs)
    assert ids == own["input_ids"]
    assert segments == own.get("token_type_ids")
    whole = tokenizer(queries, documents, verbose=False)["input_ids"]
    assert pairs.dropped.tolist() == [len(a) - len(b) for a, b in zip(whole, ids)]


# Equality with the tokenizer's own pair call

AWKWARD = [
    "",
    " ",
    "\u0301",  # a lone accent, nothing after normalisation in some tokenizers
    "\u200b\ufeff",
    "\x00\x01\x7f\u0085",  # only control characters
    "a\x00b",
    "日本の首都はどこですか。",
    "東京は、日本の首都であり世界最大の都市圏の一つ。ﾊﾝｶｸとＦＵＬＬ　ｗｉｄｔｈ",
    "السلام عليكم ورحمة الله",
    "שלום \u202eעולם\u202c",
    "👩‍👩‍👧‍👦😀 é e\u0301 ﬁ ① ㍿ ﷺ",
    "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L",
    "a" * 150,
    "あ" * 60,
    "[SEP] [CLS]x[MASK] </s><s> <pad>[PAD] ##ing ▁x <0x41>",
    "  two  spaces\tand\ntabs\u3000\u00a0 ",
    "What IS a Shard?",
    "long text " * 30,
]
TEXT = st.one_of(
    st.sampled_from(AWKWARD),
    st.text(max_size=40),
    st.lists(st.sampled_from(AWKWARD), min_size=1, max_size=4).map(" ".join),
)
LENGTHS = [5, 6, 7, 8, 13, 40, 99, 400]


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6),
    truncation=st.sampled_from(["document", "longest_first"]),
    max_length=st.sampled_from(LENGTHS),
)
def test_pairs_are_what_the_tokenizer_itself_makes(tokenizer, pairs, truncation, max_length):
    queries, documents = (list(texts) for texts in zip(*pairs))
    check_equal(tokenizer, queries, documents, truncation, max_length)


@BOTH
@pytest.mark.parametrize("max_length", [13, 40, 400])
def test_every_awkward_text_meets_every_other(tokenizer, truncation, max_length):
    queries = [query for query in AWKWARD for _ in AWKWARD]
    check_equal(tokenizer, queries, AWKWARD * len(AWKWARD), truncation, max_length)


def test_every_kind_has_a_template(tokenizer):
    assert pair_tokenizer(tokenizer, PairRules(64, "document")).own_pairs is None


@settings(max_examples=30, deadline=None)
@given(
    query=st.lists(st.sampled_from(AWKWARD[6:]), min_size=3, max_size=9).map(" ".join),
    document=TEXT,
    max_length=st.sampled_from([5, 8, 13, 40]),
)
def test_a_query_that_alone_fills_the_length_is_cut_to_three_quarters(
    tokenizer, query, document, max_length
):
    assume(without_room(tokenizer, query, document, max_length))
    ours, pairs = made(tokenizer, [query], [document], PairRules(max_length, "document"))
    first, second = (
        tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        for text in (query, document)
    )
    template, room = ours.template, max_length - ours.template.special
    share = min(max_length * 3 // 4, room)
    expected = [
        *template.before,
        *first[:share],
        *template.between,
        *second[: room - share],
        *template.after,
    ]
    if len(first) + len(second) > room:
        assert put_together(ours, pairs)[0] == [expected]
        assert pairs.dropped.tolist() == [
            len(first) + len(second) + template.special - len(expected)
        ]


@pytest.mark.parametrize("kind", ["wordpiece", "mecab and wordpiece"])
@BOTH
def test_texts_cut_on_the_left_keep_their_end(tmp_path, kind, truncation):
    left = tokenizer_files.load(KINDS[kind](tmp_path / "files"))
    left.truncation_side = "left"
    queries, documents = ["one two three", "q " * 30], ["a b c d e f g h " * 9, "x " * 40]
    for max_length in (43, 44):
        check_equal(left, queries, documents, truncation, max_length)


def test_a_saved_tokenizer_is_loaded_with_its_cutting_side(tmp_path):
    tiny_models.byte_bpe().save_pretrained(tmp_path)
    change_settings(tmp_path, truncation_side="left")
    loaded = PairTokenizer.load(tmp_path, PairRules(64, "document"))
    assert loaded.template == replace(probe_template(tiny_models.byte_bpe()), keep_end=True)


def test_texts_are_shared_by_pairs(wordpiece):
    ours = PairTokenizer(wordpiece, PairRules(64, "document"))
    numbers = [np.array(n, np.int32) for n in ([0, 0, 1], [1, 0, 0])]
    pairs = ours.tokenize(["one", "two three"], *numbers)
    own = wordpiece(["one", "one", "two three"], ["two three", "one", "one"])
    assert put_together(ours, pairs)[0] == own["input_ids"]
    assert len(pairs.texts.lengths) == 2


@pytest.mark.parametrize("kind", ["wordpiece", "mecab and wordpiece"])
@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 1025])
def test_any_number_of_texts_is_encoded(load, kind, count):
    texts = PairTokenizer(load(kind), PairRules(64, "document")).encode(["a b"] * count)
    assert texts.lengths.tolist() == [2] * count
    assert texts.ids.dtype == np.int32


def test_encoding_does_not_depend_on_the_call_before(wordpiece):
    ours = PairTokenizer(wordpiece, PairRules(64, "document"))
    before = ours.encode(["one two three", "x"])
    wordpiece(["one two three"], ["x"], truncation=True, max_length=4, padding="max_length")
    after = ours.encode(["one two three", "x"])
    assert after.ids.tolist() == before.ids.tolist()
    assert after.lengths.tolist() == before.lengths.tolist()


# What is dropped, and caps


def test_dropped_tokens_of_both_texts_are_counted(wordpiece):
    rules = PairRules(20, "document", max_query_tokens=2)
    ours, pairs = made(wordpiece, ["a b c d e", "a"], ["x " * 40, "x y"], rules)
    assert pairs.query_kept.tolist() == [2, 1]
    assert pairs.document_kept.tolist() == [15, 2]
    assert pairs.dropped.tolist() == [3 + 25, 0]
    assert cut(pairs, ours.rules).lengths.tolist() == [20, 6]


@pytest.mark.parametrize("cap", [17, 18, 60])
def test_a_cap_that_leaves_the_document_no_room_is_refused(wordpiece, cap):
    with pytest.raises(ConfigError, match="sees only 17 tokens"):
        PairTokenizer(wordpiece, PairRules(20, "document", cap))


def test_a_length_without_room_for_text_is_refused(wordpiece):
    with pytest.raises(ModelError, match=r"max_length 3 leaves no room beside the 3 special"):
        PairTokenizer(wordpiece, PairRules(3, "document"))


# Batches of pairs


def test_pairs_are_padded_on_the_right_to_the_longest_chosen(wordpiece):
    rules = PairRules(64, "document")
    ours, pairs = made(wordpiece, ["a"] * 3, ["x", "x y z", "x " * 50], rules)
    batch = assemble(cut(pairs, ours.rules), ours.template, np.array([1, 0]))
    assert batch.input_ids.shape == batch.segment_ids.shape == (2, 7)
    assert batch.input_ids[1, 5:].tolist() == [wordpiece.pad_token_id] * 2
    assert batch.mask.tolist() == [[1] * 7, [1] * 5 + [0] * 2]


@pytest.mark.parametrize(
    ("documents", "has_mask"), [(["x", "y"], False), (["x"], False), (["x", "x y"], True)]
)
def test_there_is_a_mask_only_where_lengths_differ(wordpiece, documents, has_mask):
    rules = PairRules(64, "document")
    ours, pairs = made(wordpiece, ["a"] * len(documents), documents, rules)
    batch = assemble(cut(pairs, ours.rules), ours.template, np.arange(len(pairs)))
    assert (batch.mask is not None) == has_mask


def test_only_tokenizers_with_segments_give_segments(tokenizer):
    ours, pairs = made(tokenizer, ["a"], ["b"], PairRules(64, "document"))
    own = tokenizer(["a"], ["b"])
    batch = assemble(cut(pairs, ours.rules), ours.template, np.array([0]))
    assert (batch.segment_ids is None) == ("token_type_ids" not in own)
    assert ours.template.special == tokenizer.num_special_tokens_to_add(pair=True)


# What the files mean


def change_settings(folder, **changes):
    file = folder / "tokenizer_config.json"
    held = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in held.items() if value is not None}))


@settings(max_examples=100, deadline=None)
@given(text=TEXT)
@pytest.mark.parametrize(
    ("kind", "file", "unknown", "offset"),
    [
        ("xlm-roberta, sentencepiece", "sentencepiece.bpe.model", 0, 1),
        ("deberta, sentencepiece", "spm.model", 3, 0),
    ],
)
def test_a_sentencepiece_model_alone_gives_its_own_ids(load, kind, file, unknown, offset, text):
    # Special tokens are not its matter; NUL ends its texts; and NEL is white space for Rust alone.
    assume(not re.search(r"<\w+>|</s>|\[[A-Z]+\]|[\x00\x85]", text))
    tokenizer = load(kind)
    pieces = sentencepiece.SentencePieceProcessor(model_file=f"{tokenizer.name_or_path}/{file}")
    expected = [
        tokenizer.unk_token_id if piece == unknown else piece + offset
        for piece in pieces.encode(text)
    ]
    assert PairTokenizer(tokenizer, RULES).encode([text]).ids.tolist() == expected


RULES = PairRules(64, "document")


def test_a_tokenizer_json_counts_where_its_class_leaves_out_a_step(tmp_path):
    folder = tiny_models.jina_files(tmp_path / "jina")
    filed = Tokenizer.from_file(str(folder / "tokenizer.json"))
    pairs = [("What IS a Shard", "HELLO Ｗorld"), ("", "E\u0301")]
    rebuilt = AutoTokenizer.from_pretrained(folder)(*(list(texts) for texts in zip(*pairs)))
    ours, found = made(tokenizer_files.load(folder), *zip(*pairs), RULES)
    ids, _ = put_together(ours, found)
    assert ids == [encoding.ids for encoding in filed.encode_batch(pairs)]
    assert ids != rebuilt["input_ids"]
    assert ours.template.pad_id == filed.token_to_id("<pad>")


def test_a_tokenizer_json_counts_where_its_class_has_another_template(tmp_path):
    tokenizer = tiny_models.wordpiece().backend_tokenizer
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", pair="[CLS] $A [SEP] $B:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    template = PairTokenizer.load(tmp_path, RULES).template
    assert (template.before, template.between, template.after) == ((2,), (3,), ())
    assert template.segments == (0, 0, 0, 1, 0)


def test_a_tokenizer_json_counts_where_its_class_forgets_a_token(tmp_path):
    tokenizer = tiny_models.wordpiece().backend_tokenizer
    tokenizer.add_tokens(["shardshard"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    ours = PairTokenizer.load(tmp_path, RULES)
    assert ours.encode(["shardshard"]).ids.tolist() == [ours.largest_id]


@pytest.mark.parametrize(("lower", "same"), [(True, True), (False, False)])
def test_settings_of_a_step_that_class_and_file_share_are_those_of_the_settings(
    tmp_path, lower, same
):
    tiny_models.wordpiece().backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    told = {"tokenizer_class": "BertTokenizer", "do_lower_case": lower}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told))
    texts = PairTokenizer.load(tmp_path, RULES).encode(["shard", "SHARD"])
    first, second = np.split(texts.ids, texts.starts[1:2])
    assert (first.tolist() == second.tolist()) == same


@pytest.mark.parametrize(
    ("changes", "types", "given"),
    [
        ({}, 2, True),
        ({}, 1, False),  # the model has one segment only
        ({"model_input_names": ["input_ids", "attention_mask"]}, 2, False),
        ({"backend": "custom"}, 2, False),  # transformers 5 wrote it, and means what it does
    ],
)
def test_segments_are_given_where_the_files_are_silent_and_the_model_has_them(
    tmp_path, changes, types, given
):
    folder = tiny_models.mecab_files(tmp_path / "files")
    config = {"model_type": "bert", "type_vocab_size": types}
    (folder / "config.json").write_text(json.dumps(config))
    change_settings(folder, **changes)
    template = PairTokenizer.load(folder, RULES).template
    assert template.has_segments == given
    assert template.segments == ((0, 0, 0, 1, 1) if given else (0, 0, 0, 0, 0))


def test_segments_are_given_for_a_bert_without_a_class_of_its_own(tmp_path):
    tiny_models.wordpiece().save_pretrained(tmp_path)
    change_settings(tmp_path, backend=None, model_input_names=None)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "type_vocab_size": 2}))
    assert PairTokenizer.load(tmp_path, RULES).template.segments == (0, 0, 0, 1, 1)


def test_a_class_that_names_its_inputs_keeps_them(load):
    # type_vocab_size is 2 in its config.json.
    assert not PairTokenizer(load("jina"), RULES).template.has_segments


# Files that cannot be used


@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta", "modernbert", "deberta-v2"])
def test_a_folder_without_a_tokenizer_is_named(tmp_path, architecture):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": architecture}))
    with pytest.raises(ModelError, match=str(tmp_path)):
        PairTokenizer.load(tmp_path, RULES)


@pytest.mark.parametrize("content", ["{", "{}", '{"model": {"type": "None"}}'])
def test_a_tokenizer_json_that_is_none_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "modernbert"}))
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=r"tokenizer in .* cannot be loaded"):
        PairTokenizer.load(tmp_path, RULES)


def in_a_process(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("package", ["fugashi", "unidic_lite"])
def test_without_mecab_the_extra_is_named(tmp_path, package):
    folder = tiny_models.mecab_files(tmp_path / "files")
    code = (
        "import sys; sys.modules[sys.argv[1]] = None\n"
        "from rankmill import tokenizer_files\n"
        "from rankmill.errors import ModelError\n"
        "try: tokenizer_files.load(sys.argv[2])\n"
        "except ModelError as error: print(error)\n"
    )
    done = in_a_process(code, package, folder)
    assert "MeCab, which is not installed" in done.stdout, done.stderr
    assert "pip install 'rankmill[japanese]'" in done.stdout


def test_a_missing_package_of_another_kind_is_named(tmp_path):
    folder = tiny_models.mecab_files(tmp_path / "files")
    change_settings(folder, word_tokenizer_type="sudachi")
    with pytest.raises(ModelError, match=r"needs a package that is missing: .*[Ss]udachi"):
        PairTokenizer.load(folder, RULES)


# Texts that are too much for a tokenizer


def test_a_text_beyond_mecabs_limit_is_tokenized(tmp_path):
    # Alone, MeCab ends the process here: see `tokenizer_files`.
    folder = tiny_models.mecab_files(tmp_path / "files")
    code = (
        "import sys\n"
        "from rankmill import tokenizer_files\n"
        "from rankmill.encoding import encode_texts\n"
        "print(encode_texts(tokenizer_files.load(sys.argv[1]), ['a' * 200_000]).lengths[0])\n"
    )
    done = in_a_process(code, folder)
    assert done.returncode == 0
    assert int(done.stdout) > 100_000


def test_long_texts_keep_every_character_when_mecab_has_them_in_pieces(load):
    words = load("mecab and wordpiece").word_tokenizer
    text = "ﷺ㍿" * 3000 + "日本の首都、東京。" * 4000
    whole = "صلى الله عليه وسلم株式会社" * 3000 + "日本の首都、東京。" * 4000
    assert "".join(words.tokenize(text)) == whole.replace(" ", "")


# Ids


@given(st.lists(st.integers(0, 1 << 21), max_size=40) | st.just([1] * 3000))
def test_texts_are_encoded_in_calls_of_few_texts_and_characters(sizes):
    found = list(calls(sizes))
    assert [n for call in found for n in range(call.start, call.stop)] == list(range(len(sizes)))
    for call in found:
        assert 1 <= call.stop - call.start <= 1024
        assert call.stop - call.start == 1 or sum(sizes[call]) <= 1 << 20
    for one, after in pairwise(found):
        together = sum(sizes[one]) + sizes[after.start]
        assert one.stop - one.start == 1024 or together > 1 << 20


def test_long_texts_are_encoded_as_they_are_alone(wordpiece):
    texts = ["東京は日本の首都 and a shard " * 9000, "x", "", "shard " * 180_000, "shard"]
    together, alone = encode_texts(wordpiece, texts), [encode_texts(wordpiece, [t]) for t in texts]
    assert together.lengths.tolist() == [len(one.ids) for one in alone]
    assert together.ids.tolist() == [i for one in alone for i in one.ids.tolist()]


WITHOUT_TRANSFORMERS = """
import pickle, sys
sys.modules["transformers"] = None
with open(sys.argv[1], "rb") as file:
    ours, texts = pickle.load(file)
print(ours.encode(texts).ids.tolist())
"""


def test_what_travels_needs_neither_its_files_nor_transformers(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer, "split_special_tokens", True)
    ours = PairTokenizer(tokenizer, RULES)
    assert ours.travels == tokenizer.is_fast
    if not ours.travels:
        return
    file = tmp_path / "tokenizer"
    file.write_bytes(pickle.dumps((ours, AWKWARD)))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRANSFORMERS, file], capture_output=True, text=True
    )
    assert done.stdout.strip() == str(ours.encode(AWKWARD).ids.tolist()), done.stderr


def test_the_largest_id_counts_added_tokens_and_gaps(tokenizer):
    ours = PairTokenizer(tokenizer, RULES)
    assert ours.largest_id == max(tokenizer.get_vocab().values()) == len(tokenizer) - 1
    ids = ours.encode(AWKWARD).ids
    assert ours.largest_id >= ids.max()


def test_the_largest_id_of_a_vocabulary_with_gaps():
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "far": 99}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    assert PairTokenizer(fast, RULES).largest_id == 99


# Tokenizers without a template: their own pair call, one pair at a time


def word_level(pair, **options):
    """A tokenizer of a few words that joins two texts in its own way."""
    words = ["[UNK]", "[CLS]", "[SEP]", "query", "document", "x", "a", "shard"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", pair=pair, special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **options)


class Rewriting(PreTrainedTokenizerFast):
    """Looks at the second text before it tokenizes the first, as no template can."""

    def __call__(self, text, text_pair=None, **options):
        if isinstance(text, list) and text_pair is not None:
            text = [f"{one} document" if two else one for one, two in zip(text, text_pair)]
        return super().__call__(text, text_pair, **options)


class RewritingInPython(BertJapaneseTokenizer):
    """The same, under transformers' own Python tokenizer."""

    def __call__(self, text, text_pair=None, **options):
        if isinstance(text, list) and text_pair is not None:
            text = [f"{one} は" if two else one for one, two in zip(text, text_pair)]
        return super().__call__(text, text_pair, **options)


SEGMENTS = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}


def rewriting(_):
    plain = word_level("[CLS] $A [SEP] $B")
    return Rewriting(tokenizer_object=plain.backend_tokenizer, unk_token="[UNK]")


def rewriting_in_python(folder):
    return RewritingInPython.from_pretrained(tiny_models.mecab_files(folder), **SEGMENTS)


WITHOUT_TEMPLATE = {
    "swapped": lambda _: word_level("[CLS] $B [SEP] $A"),
    "swapped, segments": lambda _: word_level("[CLS] $B:1 [SEP] $A:0 [SEP]:1", **SEGMENTS),
    "repeated": lambda _: word_level("$A [CLS] $B [SEP] $A"),
    "repeated, segments": lambda _: word_level("$A [CLS]:1 $B:1 [SEP] $A:2", **SEGMENTS),
    "rewriting": rewriting,
    "rewriting, in Python": rewriting_in_python,
    "cut on the left": lambda _: word_level("[CLS] $B [SEP] $A", truncation_side="left"),
}


@pytest.fixture(scope="module", params=WITHOUT_TEMPLATE)
def odd(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd") / "files"
    tokenizer = WITHOUT_TEMPLATE[request.param](folder)
    with pytest.raises(NoTemplate):
        probe_template(tokenizer)
    return tokenizer


def repeats(tokenizer):
    """How often a pair holds its query."""
    query, nothing = tokenizer(["x", ""], ["", ""], verbose=False)["input_ids"]
    return len(query) - len(nothing)


@settings(max_examples=30, deadline=None)
@given(
    pairs=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4),
    truncation=st.sampled_from(["document", "longest_first"]),
    max_length=st.sampled_from([8, 13, 40, 400]),
)
def test_without_a_template_pairs_are_the_tokenizers_own_too(odd, pairs, truncation, max_length):
    queries, documents = (list(texts) for texts in zip(*pairs))
    whole = odd(queries, documents, verbose=False)["input_ids"]
    if repeats(odd) > 1 and max(map(len, whole)) > max_length:
        return  # the tokenizer's own call then goes beyond max_length: the next test
    check_equal(odd, queries, documents, truncation, max_length)


@settings(max_examples=40, deadline=None)
@given(
    pairs=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4),
    truncation=st.sampled_from(["document", "longest_first"]),
    max_length=st.sampled_from([6, 7, 8, 13, 40]),
    cap=st.sampled_from([None, 1, 2]),
)
def test_without_a_template_no_pair_is_too_long(odd, pairs, truncation, max_length, cap):
    queries, documents = (list(texts) for texts in zip(*pairs))
    ours, found = made(odd, queries, documents, PairRules(max_length, truncation, cap))
    ids, _ = put_together(ours, found)
    whole = odd(queries, documents, verbose=False)["input_ids"]
    assert max(map(len, ids)) <= max_length
    assert found.dropped.tolist() == [len(a) - len(b) for a, b in zip(whole, ids)]
    if cap is None:
        assert all(a == b for a, b in zip(whole, ids) if len(a) <= max_length)


def test_without_a_template_a_query_is_capped_first():
    rules = PairRules(10, "document", max_query_tokens=2)
    ours, pairs = made(word_level("[CLS] $B [SEP] $A"), ["x a x a x"], ["shard " * 9], rules)
    assert put_together(ours, pairs)[0] == [[1, *[7] * 6, 2, 5, 6]]
    assert pairs.dropped.tolist() == [3 + 3]


def test_without_a_template_a_query_that_fills_the_length_leaves_the_document_a_place():
    rules = PairRules(8, "document")
    ours, pairs = made(word_level("[CLS] $B [SEP] $A"), ["x " * 30], ["shard " * 9], rules)
    assert put_together(ours, pairs)[0] == [[1, 7, 2, *[5] * 5]]


def test_a_text_that_stands_in_a_pair_twice_is_counted_twice():
    rules = PairRules(12, "document")
    ours, pairs = made(word_level("$A [CLS] $B [SEP] $A"), ["x a"], ["shard " * 9], rules)
    assert put_together(ours, pairs)[0] == [[5, 6, 1, *[7] * 6, 2, 5, 6]]
    assert pairs.dropped.tolist() == [3]


@pytest.mark.parametrize(
    "rules",
    [
        PairRules(64, "document", max_document_tokens=8),
        PairRules(64, "document", overflow="windows", stride=4),
    ],
)
def test_without_a_template_documents_are_neither_capped_nor_windowed(rules):
    with pytest.raises(ConfigError, match="cannot be capped or windowed"):
        PairTokenizer(word_level("[CLS] $B [SEP] $A"), rules)


def test_the_slow_way_is_said_once_and_why(caplog):
    swapped = PairTokenizer(word_level("[CLS] $B [SEP] $A"), RULES)
    assert caplog.records == []
    swapped.verify()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "every pair is tokenized whole" in caplog.text
    assert "one after the other" in caplog.text


def test_a_tokenizer_with_a_template_has_nothing_to_say(tokenizer, caplog):
    PairTokenizer(tokenizer, RULES).verify()
    assert caplog.records == []


class Endless(PreTrainedTokenizerFast):
    """Does not cut."""

    def __call__(self, text, text_pair=None, **options):
        return super().__call__(text, text_pair, **options | {"truncation": False})


def test_a_tokenizer_that_does_not_hold_to_the_length_is_refused():
    plain = word_level("[CLS] $A [SEP] $B")
    endless = Endless(tokenizer_object=plain.backend_tokenizer, unk_token="[UNK]")
    with pytest.raises(ModelError, match="Endless does not cut a pair to 64 tokens"):
        PairTokenizer(endless, PairRules(64, "longest_first")).verify()


# Scores

PAIRS = [
    (query, document)
    for query in ("what is a shard", "日本の首都", "検索結果の " * 40)
    for document in ("東京は日本の首都です。", "Shear flow " * 60, "", "\x00", "\u200b")
]


@torch.inference_mode()
def reference(folder, tokenizer, pairs, max_length):
    """transformers' scores of each pair alone."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    return [
        float(
            model(
                **tokenizer(
                    [query],
                    [document],
                    truncation="longest_first",
                    max_length=max_length,
                    return_token_type_ids=True,
                    return_tensors="pt",
                )
            ).logits
        )
        for query, document in pairs
    ]


def exact(folder):
    options = {"device": "cpu", "precision": "fp32", "threads": 1, "truncation": "longest_first"}
    return Scorer(str(folder), max_length=40, **options)


def test_japanese_bert_is_scored_with_its_own_words_and_segments(tiny_model):
    folder = tiny_model("bert-japanese")
    expected = reference(folder, AutoTokenizer.from_pretrained(folder), PAIRS, 40)
    assert np.std(expected) > 0.3
    np.testing.assert_allclose(exact(folder).score(PAIRS), expected, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def swapping(tmp_path_factory):
    """A model whose tokenizer puts the document first."""
    folder = tiny_models.bert(tmp_path_factory.mktemp("models") / "swapping")
    file = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $B:1 [SEP]:1 $A:0 [SEP]:0",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.save(str(file))
    return folder


def test_a_model_whose_tokenizer_has_no_template_is_scored_as_transformers_does(swapping, caplog):
    expected = reference(swapping, AutoTokenizer.from_pretrained(swapping), PAIRS, 40)
    assert np.std(expected) > 0.3
    np.testing.assert_allclose(exact(swapping).score(PAIRS), expected, rtol=0, atol=1e-4)
    assert "every pair is tokenized whole" in caplog.text


def test_pairs_made_whole_pass_through_the_tables_of_a_shard(swapping):
    scorer = exact(swapping)
    shard = [pair for pair in PAIRS if pair[1]]
    table = pa.table(
        {
            "query_id": ["q"] * len(shard),
            "query": [query for query, _ in shard],
            "doc_id": [str(n) for n in range(len(shard))],
            "document": [document for _, document in shard],
        }
    )
    stage = StageSettings(
        scorer.description,
        scorer.profile,
        scorer.tokenizer.rules,
        scorer.tokenizer.template,
        ColumnNames(),
        has_query_id=True,
        max_text_bytes=1 << 20,
        depth=None,
    )
    tokenized = tokenize(Envelope(0, rows=table), stage, scorer.tokenizer)
    travelled = Envelope.from_block(tokenized.to_block())[0]
    scored = score(
        travelled,
        scorer.tokenizer.rules,
        scorer.tokenizer.template,
        scorer.profile,
        scorer.model,
    )
    found = scored.scores.column("score").to_numpy()[scored.facts.column("pair").to_numpy()]
    np.testing.assert_allclose(found, scorer.score(shard), rtol=0, atol=1e-5)
