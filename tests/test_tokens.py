"""Pairs put together from token ids, against the tokenizer's own pair call."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import tiny_models
from rankmill.errors import ConfigError, ModelError
from rankmill.tokenizer import PairTokenizer, probe_template
from rankmill.tokens import (
    PairRules,
    TokenizedPairs,
    TokenizedTexts,
    kept_tokens,
    pair_digests,
)
from rankmill.windows import assemble, cut

KINDS = {
    "wordpiece": tiny_models.wordpiece,
    "unigram": tiny_models.unigram,
    "unigram, one separator": lambda: tiny_models.unigram("<s> $A </s> $B </s>"),
    "byte bpe": tiny_models.byte_bpe,
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    return KINDS[request.param]()


@pytest.fixture(scope="module")
def wordpiece():
    return tiny_models.wordpiece()


def put_together(pairs, ours):
    """The ids and segments of each pair as lists, without padding."""
    inputs = cut(pairs, ours.rules)
    batch = assemble(inputs, ours.template, np.arange(len(inputs)))
    ids = [row[:n].tolist() for row, n in zip(batch.input_ids, inputs.lengths)]
    if batch.segment_ids is None:
        return ids, None
    return ids, [row[:n].tolist() for row, n in zip(batch.segment_ids, inputs.lengths)]


def tokenize(tokenizer, queries, documents, rules):
    ours = PairTokenizer(tokenizer, rules)
    number = np.arange(len(queries), dtype=np.int32)
    texts = ours.encode([*queries, *documents])
    return ours, ours.pairs(texts, number, number + np.int32(len(queries)))


def check_equal(tokenizer, queries, documents, truncation, max_length):
    rules = PairRules(max_length, truncation)
    ours, pairs = tokenize(tokenizer, queries, documents, rules)
    # Where the query leaves the document no room, tokenizers raise; what we do then is ours.
    room = max_length - ours.template.special
    lengths = pairs.texts.lengths
    if truncation == "document":
        keep = [n for n in range(len(queries)) if lengths[n] < room]
        queries, documents = [queries[n] for n in keep], [documents[n] for n in keep]
        if not keep:
            return
        ours, pairs = tokenize(tokenizer, queries, documents, rules)
    own = tokenizer(
        queries,
        documents,
        truncation="only_second" if truncation == "document" else "longest_first",
        max_length=max_length,
        verbose=False,
    )
    ids, segments = put_together(pairs, ours)
    assert ids == own["input_ids"]
    assert segments == own.get("token_type_ids")
    whole = tokenizer(queries, documents, verbose=False)["input_ids"]
    assert pairs.dropped.tolist() == [len(a) - len(b) for a, b in zip(whole, ids)]


# Equality with the tokenizer

AWKWARD = [
    "",
    " ",
    "\u0301",  # a lone accent, nothing after normalisation in some tokenizers
    "\u200b\ufeff",
    "日本の首都はどこですか。",
    "السلام عليكم ورحمة الله",
    "שלום עולם",
    "👩‍👩‍👧‍👦😀 é e\u0301 ﬁ ①",
    "a" * 150,
    "あ" * 60,
    "[SEP] [CLS]x[MASK] </s><s> <pad>[PAD] ##ing",
    "  two  spaces\tand\ntabs ",
    "what is a shard?",
    "long text " * 30,
]
TEXT = st.one_of(
    st.sampled_from(AWKWARD),
    st.text(max_size=40),
    st.lists(st.sampled_from(AWKWARD), min_size=1, max_size=4).map(" ".join),
)


@settings(max_examples=50, deadline=None)
@given(
    pairs=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6),
    truncation=st.sampled_from(["document", "longest_first"]),
    max_length=st.integers(5, 100),
)
def test_pairs_are_what_the_tokenizer_itself_makes(tokenizer, pairs, truncation, max_length):
    queries, documents = (list(texts) for texts in zip(*pairs))
    check_equal(tokenizer, queries, documents, truncation, max_length)


@pytest.mark.parametrize("truncation", ["document", "longest_first"])
@pytest.mark.parametrize("max_length", [13, 40, 400])
def test_every_awkward_text_meets_every_other(tokenizer, truncation, max_length):
    queries = [query for query in AWKWARD for _ in AWKWARD]
    check_equal(tokenizer, queries, AWKWARD * len(AWKWARD), truncation, max_length)


@pytest.mark.parametrize("truncation", ["document", "longest_first"])
def test_texts_cut_on_the_left_keep_their_end(truncation):
    left = tiny_models.wordpiece()
    left.truncation_side = "left"
    check_equal(left, ["one two three"] * 2, ["a b c d e f g h " * 9, "x"], truncation, 24)


def test_the_tokenizers_of_the_tests_pass_their_own_verification(tokenizer):
    for truncation in ("document", "longest_first"):
        PairTokenizer(tokenizer, PairRules(64, truncation)).verify()


def test_a_saved_tokenizer_is_loaded_with_its_cutting_side(tmp_path):
    tiny_models.byte_bpe().save_pretrained(tmp_path)
    saved = tmp_path / "tokenizer_config.json"
    settings = json.loads(saved.read_text()) | {"truncation_side": "left"}
    saved.write_text(json.dumps(settings))
    loaded = PairTokenizer.load(tmp_path, PairRules(64, "document"))
    assert loaded.template == replace(probe_template(tiny_models.byte_bpe()), keep_end=True)


# What is dropped, and caps


def kept(query, document, rules, special=3):
    found = kept_tokens(np.array([query], np.int32), np.array([document], np.int32), rules, special)
    return int(found[0][0]), int(found[1][0])


@pytest.mark.parametrize(
    ("query", "document", "expected"),
    [
        (5, 10, (5, 10)),
        (5, 1000, (5, 92)),
        (96, 1000, (96, 1)),
        (97, 0, (97, 0)),  # fits as it is
        (97, 1000, (75, 22)),  # alone fills the length: three quarters of it
        (5000, 1000, (75, 22)),
        (5000, 3, (75, 3)),
    ],
)
def test_the_query_stays_whole_unless_it_alone_fills_the_length(query, document, expected):
    assert kept(query, document, PairRules(100, "document")) == expected


@pytest.mark.parametrize("truncation", ["document", "longest_first"])
def test_a_query_cap_holds_for_every_pair(truncation):
    rules = PairRules(100, truncation, max_query_tokens=8)
    assert kept(50, 10, rules) == (8, 10)
    assert kept(50, 1000, rules) == (8, 89)
    assert kept(4, 1000, rules) == (4, 93)


@pytest.mark.parametrize("cap", [17, 18, 60])
def test_a_cap_that_leaves_the_document_no_room_is_refused(cap):
    with pytest.raises(ConfigError, match="sees only 17 tokens"):
        PairTokenizer(tiny_models.wordpiece(), PairRules(20, "document", cap))


@pytest.mark.parametrize("truncation", ["document", "longest_first"])
def test_a_document_cap_holds_for_every_pair(truncation):
    rules = PairRules(100, truncation, max_document_tokens=8)
    assert kept(10, 50, rules) == (10, 8)
    assert kept(1000, 50, rules) == ((75, 8) if truncation == "document" else (89, 8))
    assert kept(10, 4, rules) == (10, 4)


def test_a_cap_beyond_the_length_leaves_no_more_than_there_is():
    assert kept(500, 5, PairRules(20, "document", max_query_tokens=19)) == (17, 0)


def longest_first(query, document, room):
    """The rule of the tokenizers library (`truncate_encodings`), line by line."""
    if query + document <= room:
        return query, document
    one, two = query, document
    swap = one > two
    if swap:
        one, two = two, one
    two = one if one > room else max(one, room - one)
    if one + two > room:
        one = room // 2
        two = one + room % 2
    return (two, one) if swap else (one, two)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 40), st.integers(2, 4))
def test_the_longest_is_cut_first_by_the_librarys_rule(query, document, room, special):
    rules = PairRules(room + special, "longest_first")
    assert kept(query, document, rules, special) == longest_first(query, document, room)


@given(
    st.integers(0, 60),
    st.integers(0, 60),
    st.integers(5, 40),
    st.sampled_from(["document", "longest_first"]),
    st.one_of(st.none(), st.integers(1, 50)),
    st.one_of(st.none(), st.integers(1, 50)),
)
def test_no_pair_is_too_long_and_none_is_cut_without_need(
    query, document, length, truncation, query_cap, document_cap
):
    found = kept(query, document, PairRules(length, truncation, query_cap, document_cap))
    most = (min(query, query_cap or query), min(document, document_cap or document))
    assert sum(found) <= length - 3
    assert found[0] <= most[0]
    assert found[1] <= most[1]
    if sum(most) <= length - 3:
        assert found == most


def test_dropped_tokens_of_both_texts_are_counted(wordpiece):
    rules = PairRules(20, "document", max_query_tokens=2)
    queries, documents = ["a b c d e", "a"], ["x " * 40, "x y"]
    ours, pairs = tokenize(wordpiece, queries, documents, rules)
    assert pairs.query_kept.tolist() == [2, 1]
    assert pairs.document_kept.tolist() == [15, 2]
    assert pairs.dropped.tolist() == [3 + 25, 0]
    assert cut(pairs, ours.rules).lengths.tolist() == [20, 6]


# Batches of pairs


def test_pairs_are_padded_on_the_right_to_the_longest_chosen(wordpiece):
    ours, pairs = tokenize(
        wordpiece, ["a"] * 3, ["x", "x y z", "x " * 50], PairRules(64, "document")
    )
    batch = assemble(cut(pairs, ours.rules), ours.template, np.array([1, 0]))
    assert batch.input_ids.shape == batch.segment_ids.shape == (2, 7)
    assert batch.input_ids[1, 5:].tolist() == [wordpiece.pad_token_id] * 2
    assert batch.mask.tolist() == [[1] * 7, [1] * 5 + [0] * 2]


@pytest.mark.parametrize(
    ("documents", "has_mask"), [(["x", "y"], False), (["x"], False), (["x", "x y"], True)]
)
def test_there_is_a_mask_only_where_lengths_differ(wordpiece, documents, has_mask):
    ours, pairs = tokenize(wordpiece, ["a"] * len(documents), documents, PairRules(64, "document"))
    batch = assemble(cut(pairs, ours.rules), ours.template, np.arange(len(pairs)))
    assert (batch.mask is not None) == has_mask


def test_only_tokenizers_with_segments_give_segments(tokenizer):
    ours, pairs = tokenize(tokenizer, ["a"], ["b"], PairRules(64, "document"))
    own = tokenizer(["a"], ["b"])
    batch = assemble(cut(pairs, ours.rules), ours.template, np.array([0]))
    assert (batch.segment_ids is None) == ("token_type_ids" not in own)
    assert ours.template.special == tokenizer.num_special_tokens_to_add(pair=True)


def test_texts_are_shared_by_pairs(wordpiece):
    ours = PairTokenizer(wordpiece, PairRules(64, "document"))
    texts = ours.encode(["one", "two three"])
    numbers = [np.array(n, np.int32) for n in ([0, 0, 1], [1, 0, 0])]
    ids, _ = put_together(ours.pairs(texts, *numbers), ours)
    own = wordpiece(["one", "one", "two three"], ["two three", "one", "one"])
    assert ids == own["input_ids"]


@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 1025])
def test_any_number_of_texts_is_encoded(wordpiece, count):
    texts = PairTokenizer(wordpiece, PairRules(64, "document")).encode(["a b"] * count)
    assert texts.lengths.tolist() == [2] * count
    assert texts.ids.dtype == np.int32


def test_no_pairs_have_no_inputs():
    nothing = np.empty(0, np.int32)
    texts = TokenizedTexts(nothing, np.zeros(1, np.int64))
    pairs = TokenizedPairs(texts, nothing, nothing, nothing, nothing, 3)
    assert (len(pairs), len(pairs.dropped)) == (0, 0)
    assert len(cut(pairs, PairRules(64, "document"))) == 0


# Tokenizers that cannot be used


def word_level(pair):
    """A tokenizer of a few words that joins two texts in its own way."""
    words = ["[UNK]", "[CLS]", "[SEP]", "query", "document"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", pair=pair, special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def test_a_tokenizer_that_swaps_the_texts_is_refused():
    with pytest.raises(ModelError, match="first text of a pair before the second"):
        PairTokenizer(word_level("[CLS] $B [SEP] $A"), PairRules(64, "document"))


class Rewriting(PreTrainedTokenizerFast):
    """Looks at the second text before it tokenizes the first, as no template can."""

    def __call__(self, text, text_pair=None, **options):
        if isinstance(text, list) and text_pair is not None:
            text = [f"{one} document" if two else one for one, two in zip(text, text_pair)]
        return super().__call__(text, text_pair, **options)


def test_a_tokenizer_that_mixes_the_texts_is_refused():
    plain = word_level("[CLS] $A [SEP] $B")
    mixing = Rewriting(tokenizer_object=plain.backend_tokenizer, unk_token="[UNK]")
    PairTokenizer(plain, PairRules(64, "document")).verify()
    with pytest.raises(ModelError, match="Rewriting does not build a pair from its two texts"):
        PairTokenizer(mixing, PairRules(64, "document")).verify()


@pytest.mark.parametrize("truncation", ["document", "longest_first"])
def test_a_tokenizer_whose_template_repeats_a_text_is_refused(truncation):
    with pytest.raises(ModelError):
        PairTokenizer(word_level("$A [CLS] $B [SEP] $A"), PairRules(64, truncation)).verify()


def test_a_length_without_room_for_text_is_refused(wordpiece):
    with pytest.raises(ModelError, match=r"max_length 3 leaves no room beside the 3 special"):
        PairTokenizer(wordpiece, PairRules(3, "document"))


@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta", "modernbert", "deberta-v2"])
def test_a_folder_without_a_tokenizer_is_named(tmp_path, architecture):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": architecture}))
    with pytest.raises(ModelError, match=str(tmp_path)):
        PairTokenizer.load(tmp_path, PairRules(64, "document"))


# Digests


def test_a_digest_names_both_texts_and_which_is_which():
    texts = ["a", "b", "ab", ""]
    query, document = (n.ravel().astype(np.int32) for n in np.meshgrid(range(4), range(4)))
    digests = pair_digests(texts, texts, query, document)
    assert len(set(digests)) == 16
    assert {len(digest) for digest in digests} == {16}


def test_digests_are_the_same_in_every_version():
    def digest(content):
        return hashlib.blake2b(content, digest_size=16).digest()

    zero = np.zeros(1, np.int32)
    expected = digest(digest("質問".encode()) + digest(b"document"))
    assert pair_digests(["質問"], ["document"], zero, zero) == [expected]
