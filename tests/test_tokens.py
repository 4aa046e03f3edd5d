"""The arithmetic of pairs: how many tokens of each text stay, and digests."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankmill.tokens import (
    PairRules,
    TokenizedPairs,
    TokenizedTexts,
    kept_tokens,
    pair_digests,
)
from rankmill.windows import cut

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


def test_no_pairs_have_no_inputs():
    nothing = np.empty(0, np.int32)
    texts = TokenizedTexts(nothing, np.zeros(1, np.int64))
    pairs = TokenizedPairs(texts, nothing, nothing, nothing, nothing, 3)
    assert (len(pairs), len(pairs.dropped)) == (0, 0)
    assert len(cut(pairs, PairRules(64, "document"))) == 0


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
