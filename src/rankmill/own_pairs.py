"""Pairs of a tokenizer that has no template: each by the tokenizer's own pair call. Slower.

What comes out is of the same types as what is put together from texts: a pair is one text,
complete with its special tokens, under a template that adds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rankmill.encoding import STRATEGIES, EncodedPairs, calls, encode_pairs, encode_texts
from rankmill.errors import ModelError
from rankmill.template import pad_id
from rankmill.tokens import Int32, PairRules, Template, TokenizedPairs, TokenizedTexts, query_share

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class _Pair:
    """ids, segments: int32, what the model sees. dropped: tokens that it does not see."""

    ids: Int32
    segments: Int32 | None
    dropped: int


class OwnPairs:
    """A tokenizer's own pair call under a truncation rule.

    special: tokens of a pair of empty texts.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rules: PairRules) -> None:
        self._tokenizer = tokenizer
        self._rules = rules
        nothing = encode_pairs(tokenizer, [""], [""])
        self.special = len(nothing.ids[0])
        self.template = Template(
            before=(),
            between=(),
            after=(),
            segments=(0, 0, 0, 0, 0),
            has_segments=nothing.segments is not None,
            pad_id=pad_id(tokenizer),
            keep_end=False,
        )

    def tokenize(self, queries: Sequence[str], documents: Sequence[str]) -> TokenizedPairs:
        """Pairs of equally many queries and documents, cut to length.

        Text i of the result is pair i; padding after what the model sees stands for the tokens
        that it does not see, and the text after the last is empty.
        Raises `ModelError` when the tokenizer cannot cut a pair to the length.
        """
        pairs: list[_Pair] = []
        for call in calls([len(q) + len(d) for q, d in zip(queries, documents)]):
            pairs += self._chunk(queries[call], documents[call])
        number = np.arange(len(pairs), dtype=np.int32)
        lengths = [len(pair.ids) for pair in pairs]
        sizes = [length + pair.dropped for length, pair in zip(lengths, pairs)]
        starts = np.concatenate([[0], np.cumsum([*sizes, 0])]).astype(np.int64)
        ids = np.full(int(starts[-1]), self.template.pad_id, np.int32)
        segments = np.zeros_like(ids) if self.template.has_segments else None
        for pair, start in zip(pairs, starts.tolist()):
            ids[start : start + len(pair.ids)] = pair.ids
            if segments is not None and pair.segments is not None:
                segments[start : start + len(pair.ids)] = pair.segments
        return TokenizedPairs(
            TokenizedTexts(ids, starts, segments),
            query=number,
            document=np.full(len(pairs), len(pairs), np.int32),
            query_kept=np.array(lengths, np.int32),
            document_kept=np.zeros(len(pairs), np.int32),
            special=0,
        )

    def _chunk(self, queries: Sequence[str], documents: Sequence[str]) -> list[_Pair]:
        whole = encode_pairs(self._tokenizer, queries, documents)
        cap = self._rules.max_query_tokens
        capped = {
            query: query if cap is None else self._shortened(query, cap) for query in set(queries)
        }
        pairs = []
        for row, (query, document) in enumerate(zip(queries, documents)):
            length = len(whole.ids[row])
            if length > self._rules.max_length or capped[query] != query:
                cut = self._cut(capped[query], document)
                pairs.append(_pair(cut, 0, length))
            else:
                pairs.append(_pair(whole, row, length))
        return pairs

    def _cut(self, query: str, document: str) -> EncodedPairs:
        """One pair by the tokenizer's own truncation."""
        tokenizer, rules = self._tokenizer, self._rules
        if rules.truncation == "document":
            # Tokenizers cut a second text, never away: a query that leaves it no place is cut by
            # the rule that pairs with a template have, but leaves a place.
            most = rules.max_length - self.special - 1
            if self._query_tokens(query, document) > most:
                query = self._shortened(
                    query, min(query_share(rules, self.special), most), document
                )
        asked = rules.max_length
        while asked > self.special:
            cut = encode_pairs(tokenizer, [query], [document], STRATEGIES[rules.truncation], asked)
            excess = len(cut.ids[0]) - rules.max_length
            if excess <= 0:
                return cut
            # A text that stands in the pair twice was counted once: only the document was cut, or
            # either text.
            asked -= excess if rules.truncation == "document" else 1
        raise ModelError(
            f"{type(tokenizer).__name__} does not cut a pair to {rules.max_length} tokens.",
            "Raise model.max_length, or use a checkpoint with another tokenizer.",
        )

    def _shortened(self, query: str, most: int, document: str = "") -> str:
        """A query with at most `most` tokens in a pair: its longest such part, by bisection."""
        if self._query_tokens(query, document) <= most:
            return query
        fits, too_long = 0, len(query)
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            if self._query_tokens(self._part(query, middle), document) <= most:
                fits = middle
            else:
                too_long = middle
        return self._part(query, fits)

    def _part(self, query: str, characters: int) -> str:
        left = self._tokenizer.truncation_side == "left"
        return query[len(query) - characters :] if left else query[:characters]

    def _query_tokens(self, query: str, document: str) -> int:
        """Tokens of a pair that are neither special nor the document's."""
        pair = len(encode_pairs(self._tokenizer, [query], [document]).ids[0])
        return pair - self.special - len(encode_texts(self._tokenizer, [document]).ids)


def _pair(encoded: EncodedPairs, row: int, length: int) -> _Pair:
    ids = np.array(encoded.ids[row], np.int32)
    segments = None if encoded.segments is None else np.array(encoded.segments[row], np.int32)
    return _Pair(ids, segments, max(length - len(ids), 0))
