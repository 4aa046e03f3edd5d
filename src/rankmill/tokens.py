"""Pairs as token ids, and how much of each text counts. Pure functions over numpy arrays.

Where ids and template come from: `tokenizer`. How a pair is put together: `windows`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from rankmill.config import ModelConfig

Truncation = Literal["document", "longest_first"]
Overflow = Literal["truncate", "windows"]
Pooling = Literal["max", "mean"]
Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]

# A query that alone fills the length is cut to three quarters of it when no cap is given, as in
# FlagEmbedding's rerankers (`query_max_length = max_length * 3 // 4`); tokenizers only raise.
_QUERY_SHARE = (3, 4)


@dataclass(frozen=True)
class TokenizedTexts:
    """Token ids of distinct texts, without special tokens.

    ids: int32, all texts' ids one after another; starts: int64 [texts + 1]. segments: int32, the
    segment id of each token where the template does not give it (see `own_pairs`).
    """

    ids: Int32
    starts: npt.NDArray[np.int64]
    segments: Int32 | None = None

    @property
    def lengths(self) -> Int32:
        """int32 [texts]: tokens a text."""
        return np.diff(self.starts).astype(np.int32)


@dataclass(frozen=True)
class TokenizedPairs:
    """Distinct pairs of distinct texts, and how much of them counts.

    query, document: int32 [pairs], indices into `texts`. query_kept, document_kept: int32
    [pairs], the tokens that the model sees of each, in one input or in several windows.
    special: tokens of an input that are the template's own.
    """

    texts: TokenizedTexts
    query: Int32
    document: Int32
    query_kept: Int32
    document_kept: Int32
    special: int

    def __len__(self) -> int:
        return len(self.query)

    @property
    def dropped(self) -> Int32:
        """int32 [pairs]: tokens of both texts that the model does not see."""
        lengths = self.texts.lengths
        whole = lengths[self.query] + lengths[self.document]
        return (whole - self.query_kept - self.document_kept).astype(np.int32)


@dataclass(frozen=True)
class Template:
    """The special tokens of a pair: before, between and after, and each part's segment id.

    keep_end: texts are cut on the left. odd_to_query: see `kept_tokens`.
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    segments: tuple[int, int, int, int, int]
    has_segments: bool
    pad_id: int
    keep_end: bool
    odd_to_query: bool = False

    @property
    def special(self) -> int:
        """How many tokens of a pair are the template's own."""
        return len(self.before) + len(self.between) + len(self.after)


@dataclass(frozen=True)
class TokenBatch:
    """Model input: arrays [batch, length]; `mask` is None where all lengths are equal."""

    input_ids: npt.NDArray[np.int64]
    segment_ids: npt.NDArray[np.int64] | None
    mask: npt.NDArray[np.int64] | None


@dataclass(frozen=True)
class PairRules:
    """How pairs are cut, in tokens. max_length counts special tokens; the caps do not.

    stride and pooling are those of windows (see `windows`); pairs that fit know neither.
    """

    max_length: int
    truncation: Truncation
    max_query_tokens: int | None = None
    max_document_tokens: int | None = None
    overflow: Overflow = "truncate"
    stride: int = 0
    pooling: Pooling = "max"

    @classmethod
    def of(cls, asked: ModelConfig, max_length: int) -> PairRules:
        """The rules that a configuration asks for. max_length: with the model's own limit."""
        return cls(
            max_length,
            asked.truncation,
            asked.max_query_tokens,
            asked.max_document_tokens,
            asked.overflow,
            asked.window.stride,
            asked.window.pool,
        )


def query_share(rules: PairRules, special: int) -> int:
    """How many tokens stay of a query that alone fills the length, when it has no cap."""
    share, of = _QUERY_SHARE
    return min(rules.max_length * share // of, rules.max_length - special)


def kept_tokens(
    query: Int32, document: Int32, rules: PairRules, special: int, odd_to_query: bool = False
) -> tuple[Int32, Int32]:
    """How many tokens of each text count. All arrays int32 [pairs].

    Caps come first. `document`: the query stays, and the document takes what is left of the
    length, or with `overflow: windows` stays, too. Without caps the former is the tokenizer's
    `only_second`, as long as the query leaves the document any room.
    `longest_first`: the rule of the tokenizers library: the longer text is cut
    down to what the shorter leaves; when both are too long, each takes half. Of an odd number of
    places the longer text then has the last, or with `odd_to_query` the query, as in
    transformers' Python tokenizers (`truncate_sequences`).
    """
    room = rules.max_length - special
    if rules.max_document_tokens is not None:
        document = np.minimum(document, rules.max_document_tokens)
    if rules.truncation == "document":
        if rules.max_query_tokens is not None:
            kept_query = np.minimum(query, min(rules.max_query_tokens, room))
        else:
            fits = (query < room) | (query + document <= room)
            kept_query = np.where(fits, query, query_share(rules, special))
        left = room - kept_query
        # Windows without room for a token could never cover a document.
        most = np.where(left > 0, document, 0) if rules.overflow == "windows" else left
        return kept_query.astype(np.int32), np.minimum(document, most).astype(np.int32)
    if rules.max_query_tokens is not None:
        query = np.minimum(query, rules.max_query_tokens)
    short = np.minimum(query, document)
    kept_long = np.where(short > room, short, np.maximum(short, room - short))
    too_long = short + kept_long > room
    kept_short = np.where(too_long, room // 2, short)
    kept_long = np.where(too_long, room // 2 + room % 2, kept_long)
    fits = query + document <= room
    query_is_long = (query > document) | (odd_to_query & too_long)
    kept_query = np.where(fits, query, np.where(query_is_long, kept_long, kept_short))
    kept_document = np.where(fits, document, np.where(query_is_long, kept_short, kept_long))
    return kept_query.astype(np.int32), kept_document.astype(np.int32)


def query_keys(queries: Sequence[str]) -> npt.NDArray[np.uint64]:
    """uint64 [queries]: the first half of each text's digest, by which score files are found."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=16).digest() for text in queries)
    return np.frombuffer(digests, "<u8")[::2].astype(np.uint64)


def pair_digests(
    queries: Sequence[str], documents: Sequence[str], query: Int32, document: Int32
) -> list[bytes]:
    """128-bit digests of pairs given as indices into distinct texts: BLAKE2b over both digests."""
    first = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in queries]
    second = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in documents]
    return [
        hashlib.blake2b(first[q] + second[d], digest_size=16).digest()
        for q, d in zip(query.tolist(), document.tolist())
    ]
