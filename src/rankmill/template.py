"""The template of a pair: found by tokenizing one, trusted once probes agree with it.

With a template each distinct text is tokenized once and pairs are put together from ids.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, get_args

import numpy as np

from rankmill.encoding import STRATEGIES, EncodedPairs, encode_pairs, encode_texts
from rankmill.tokens import (
    PairRules,
    Template,
    TokenizedPairs,
    TokenizedTexts,
    Truncation,
    kept_tokens,
)
from rankmill.windows import assemble, cut

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Pairs, row by row: both languages, white space at the edges, specials as text, a lone accent,
# nothing at all, and texts far too long on either side and on both.
PROBE_QUERIES = [
    "what is a shard",
    " シャード ",
    "A " * 20,
    "x",
    "",
    "[SEP] </s>",
    "e\u0301😀",
    "y " * 9,
]
PROBE_DOCUMENTS = [
    "A shard is a run of whole lists.",
    "検索  結果😀の順位\n",
    "long text " * 30,
    "",
    "  text",
    "<s>[CLS] <pad> query",
    "\u0301 Ａ",
    "z " * 8,
]
# Tokens of room for both texts. Odd and even: a rule may favour one text with the last place.
_ROOMS: dict[Truncation, tuple[int, ...]] = {"document": (5,), "longest_first": (7, 8, 45)}


class NoTemplate(Exception):
    """Pairs are not their two texts between the same special tokens; the message says how."""


def probe_template(tokenizer: PreTrainedTokenizerBase) -> Template:
    """The template with which pairs are exactly those of the tokenizer's own pair call.

    Raises `NoTemplate` when there is none. The outcome depends on the tokenizer alone, so every
    process that loads the same files finds the same.
    """
    found = _find(tokenizer)
    texts = encode_texts(tokenizer, PROBE_QUERIES + PROBE_DOCUMENTS)
    longest = int(texts.lengths[: len(PROBE_QUERIES)].max())
    wrong = ""
    probes = []
    for truncation in get_args(Truncation):
        for room in _ROOMS[truncation]:
            # `only_second` needs room for the longest query.
            length = found.special + room + (longest if truncation == "document" else 0)
            rules = PairRules(length, truncation)
            own = encode_pairs(
                tokenizer, PROBE_QUERIES, PROBE_DOCUMENTS, STRATEGIES[truncation], length
            )
            probes.append((rules, own))
    for template in (found, replace(found, odd_to_query=True)):
        differences = (_difference(texts, template, rules, own) for rules, own in probes)
        wrong = next(filter(None, differences), "")
        if not wrong:
            return template
    raise NoTemplate(wrong)


def _find(tokenizer: PreTrainedTokenizerBase) -> Template:
    """The special tokens of a pair: what is left when the ids of both texts are taken out."""
    texts = encode_texts(tokenizer, [PROBE_QUERIES[0], PROBE_DOCUMENTS[0]])
    query, document = (
        texts.ids[start:stop].tolist() for start, stop in zip(texts.starts, texts.starts[1:])
    )
    pair = encode_pairs(tokenizer, PROBE_QUERIES[:1], PROBE_DOCUMENTS[:1])
    ids = pair.ids[0]
    first = _place(query, ids, 0)
    second = _place(document, ids, first + len(query))
    parts = [
        slice(0, first),
        slice(first, first + len(query)),
        slice(first + len(query), second),
        slice(second, second + len(document)),
        slice(second + len(document), len(ids)),
    ]
    kinds = pair.segments[0] if pair.segments else [0] * len(ids)
    before, first_text, between, second_text, after = (
        max(kinds[part], default=0) for part in parts
    )
    return Template(
        before=tuple(ids[parts[0]]),
        between=tuple(ids[parts[2]]),
        after=tuple(ids[parts[4]]),
        segments=(before, first_text, between, second_text, after),
        has_segments=pair.segments is not None,
        pad_id=pad_id(tokenizer),
        keep_end=tokenizer.truncation_side == "left",
    )


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id for places without a token; 0 where the tokenizer names none (they are masked)."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0


def _place(text: list[int], ids: list[int], start: int) -> int:
    for place in range(start, len(ids) - len(text) + 1):
        if text and ids[place : place + len(text)] == text:
            return place
    raise NoTemplate("the ids of the two texts are not found in the pair's, one after the other")


def _difference(
    texts: TokenizedTexts, template: Template, rules: PairRules, own: EncodedPairs
) -> str:
    """Which probe is put together otherwise than the tokenizer does it; empty for none."""
    number = np.arange(len(PROBE_QUERIES), dtype=np.int32)
    documents = number + np.int32(len(PROBE_QUERIES))
    lengths = texts.lengths
    kept = kept_tokens(
        lengths[number], lengths[documents], rules, template.special, template.odd_to_query
    )
    pairs = TokenizedPairs(texts, number, documents, *kept, template.special)
    inputs = cut(pairs, rules)
    batch = assemble(inputs, template, number)
    for row, length in enumerate(inputs.lengths.tolist()):
        same = batch.input_ids[row, :length].tolist() == own.ids[row]
        if batch.segment_ids is not None and own.segments is not None:
            same = same and batch.segment_ids[row, :length].tolist() == own.segments[row]
        if not same:
            strategy = STRATEGIES[rules.truncation]
            return f"probe {row} differs under {strategy}, max_length {rules.max_length}"
    return ""
