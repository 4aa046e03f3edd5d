"""A causal model's tokenizer: each distinct text of a prompt once, and the ids in between.

Stands in for `PairTokenizer`. The prompt is taken apart where its tokenizer breaks it anyway;
where a tokenizer lets texts and prompt grow together, every pair is tokenized whole.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from rankmill import tokenizer_files
from rankmill.encoding import encode_texts
from rankmill.errors import ConfigError, InputError, ModelError
from rankmill.prompt_spans import breaks, extended, same_start, within
from rankmill.prompts import Prompt, PromptQuery
from rankmill.tokens import (
    Int32,
    PairRules,
    Template,
    TokenizedPairs,
    TokenizedTexts,
    Truncation,
    kept_tokens,
)
from rankmill.windows import assemble, cut, refuse_stride

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("rankmill")

# Ends and beginnings that tokenizers join with what stands beside them.
_PROBES = [
    "what is a shard?",
    "検索結果の順位。",
    " white  space \n",
    "\n\n!",
    "'s 2nd 😀",
    "\u0301שלום",
    "a" * 60,
    "1",
    "",
]
_LONG = "A shard is a run of whole lists; 検索 and 😀. " * 20


@dataclass(frozen=True, kw_only=True)
class PromptTexts(TokenizedTexts):
    """Token ids of wrapped texts. heads: int32 [texts], how many of each stand before a query.

    strings: the texts. Where pairs are tokenized whole, there are no ids yet.
    """

    strings: tuple[str, ...]
    heads: Int32


class PromptTokenizer:
    """A model's tokenizer with its prompt and a truncation rule. Stands in for `PairTokenizer`.

    fixed_tokens: those of the prompt with the configured or usual instruction.

    Lengths count the whole prompt. Only texts are cut, and at their ends: the document, or with
    `longest_first` the longer text; the prompt and the instruction never. A query that leaves the
    document no room is cut to three quarters of what prompt and instruction leave.

    Raises `ModelError` when max_length leaves no room beside the prompt, and `ConfigError` when
    max_query_tokens leaves none to the document.
    """

    travels = False

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt: Prompt,
        rules: PairRules,
        instruction: str | None = None,
    ) -> None:
        if not tokenizer.is_fast:
            raise ModelError(
                f"{type(tokenizer).__name__} has no fast (tokenizer.json) implementation, which "
                "would say where a prompt's texts lie.",
                "This tokenizer is not supported in this version.",
            )
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._parts = prompt.parts()
        self._instruction = instruction
        self.rules = rules
        parts = self._parts
        self._tail = np.array(self._ids([parts.tail]), np.int32)
        self.template = self._template(parts.before, parts.between, parts.after)
        self._whole = not self._grows_apart()
        if self._whole:
            self._tail = self._tail[:0]
            self.template = self._template((), (), ())
        nothing = self.query_text(""), self.document_text("")
        self.fixed_tokens = len(self._own_ids(*nothing))
        self._refuse_lack_of_room()

    @classmethod
    def load(
        cls, folder: str | Path, prompt: Prompt, rules: PairRules, instruction: str | None = None
    ) -> PromptTokenizer:
        """Load from a local folder. Raises `ModelError` when there is no usable tokenizer."""
        return cls(tokenizer_files.load(folder), prompt, rules, instruction)

    def query_text(self, query: str, instruction: str | None = None) -> PromptQuery:
        """A query as the model reads it. instruction: in place of the configured or usual one."""
        return self._prompt.query_text(query, instruction or self._instruction)

    def document_text(self, document: str) -> str:
        """A document as the model reads it."""
        return self._prompt.document_text(document)

    def leaves_room(self, instruction: str) -> bool:
        """Whether an instruction leaves query and document any of the length."""
        nothing = self.query_text("", instruction), self.document_text("")
        return len(self._own_ids(*nothing)) < self.rules.max_length

    @cached_property
    def largest_id(self) -> int:
        """The largest id in the vocabulary, added tokens included: a text may hold any of them."""
        return max(self._tokenizer.get_vocab().values())

    def tokenize(self, texts: Sequence[str], query: Int32, document: Int32) -> TokenizedPairs:
        """Tokenize and cut pairs, given as int32 [pairs] indices into distinct texts.

        Raises `InputError` when an instruction fills the length.
        """
        return self.pairs(self.encode(texts), query, document)

    def encode(self, texts: Sequence[str]) -> PromptTexts:
        """Tokenize texts of `query_text` and `document_text`, without cutting."""
        strings = tuple(texts)
        if self._whole:
            return PromptTexts(
                np.empty(0, np.int32),
                np.zeros(len(strings) + 1, np.int64),
                strings=strings,
                heads=np.zeros(len(strings), np.int32),
            )
        encoded = encode_texts(self._tokenizer, strings)
        known: dict[str, list[int]] = {}
        heads = np.zeros(len(strings), np.int32)
        for number, text in enumerate(strings):
            if isinstance(text, PromptQuery):
                head = str(text)[: text.start].rstrip()
                if head not in known:
                    known[head] = self._ids([head])
                ids = encoded.ids[encoded.starts[number] : encoded.starts[number + 1]]
                heads[number] = same_start(known[head], ids.tolist())
        return PromptTexts(encoded.ids, encoded.starts, strings=strings, heads=heads)

    def pairs(self, texts: TokenizedTexts, query: Int32, document: Int32) -> TokenizedPairs:
        """Cut pairs, given as int32 [pairs] indices into `texts` (from `encode`), to length.

        The result's texts are others than those given where pairs are tokenized whole, or where
        a query is cut and the prompt's words after it must follow what is kept.

        Raises `InputError` when an instruction fills the length.
        """
        if not isinstance(texts, PromptTexts):
            raise TypeError(f"pairs of a prompt need its own texts, not {type(texts).__name__}")
        if self._whole:
            return self._pairs_tokenized_whole(texts, query, document)
        heads = texts.heads[query]
        own, other = texts.lengths[query] - heads, texts.lengths[document]
        kept, kept_document = self._kept(own, other, heads)
        shortened = np.flatnonzero(kept < own)
        shown, new = query.copy(), list[Int32]()
        numbers: dict[tuple[int, int], int] = {}
        for pair in shortened.tolist():
            key = int(query[pair]), int(kept[pair])
            if key not in numbers:
                numbers[key] = len(texts.strings) + len(new)
                new.append(self._with_tail(texts, *key))
            shown[pair] = numbers[key]
        return TokenizedPairs(
            extended(texts, new),
            shown,
            document,
            (heads + kept).astype(np.int32),
            kept_document,
            self.template.special,
        )

    def verify(self) -> None:
        """Compare pairs with the prompt tokenized as the model's own code does it.

        Raises `ModelError` when they differ, whole or with a document cut at its end, under either
        truncation rule.
        """
        queries = [*map(self.query_text, _PROBES), self.query_text("q", "answer it")]
        if self._whole:
            log.warning(
                "Tokenizing is slow with this model: %s joins texts with the prompt around them, "
                "so every pair is tokenized whole.",
                type(self._tokenizer).__name__,
            )
        longest = max(len(self._own_ids(query, self.document_text(""))) for query in queries)
        texts = ["x", _LONG * (longest // 200 + 1)]
        for truncation in get_args(Truncation):
            rules = PairRules(2 * longest + 8, truncation)
            probe = PromptTokenizer(self._tokenizer, self._prompt, rules, self._instruction)
            for query, document in product(queries, map(self.document_text, texts)):
                probe._compare(query, document)

    def _compare(self, query: PromptQuery, document: str) -> None:
        own, limit = self._own_ids(query, document), self.rules.max_length
        short = self._own_ids(query, self.document_text("0"))
        after = same_start(own[::-1], short[::-1]) if len(own) > limit else 0
        expected = [*own[: min(limit, len(own)) - after], *own[len(own) - after :]]
        pairs = self.pairs(self.encode([query, document]), *np.array([[0], [1]], np.int32))
        inputs = cut(pairs, self.rules)
        if assemble(inputs, self.template, np.array([0])).input_ids[0].tolist() != expected:
            raise ModelError(
                f"{type(self._tokenizer).__name__} does not build the prompt {self._prompt.name} "
                f"from its texts ({len(own)} tokens, limit {limit}).",
                "This tokenizer is not supported in this version.",
            )

    def _own_ids(self, query: PromptQuery, document: str) -> list[int]:
        """The ids that the model's own code makes of two wrapped texts."""
        return self._ids(self._parts.strings(query, document))

    def _ids(self, strings: Iterable[str]) -> list[int]:
        """The ids of strings that are tokenized each by itself."""
        found: list[int] = encode_texts(self._tokenizer, list(strings)).ids.tolist()
        return found

    def _template(
        self, before: tuple[str, ...], between: tuple[str, ...], after: tuple[str, ...]
    ) -> Template:
        pad = self._tokenizer.pad_token_id
        return Template(
            before=tuple(self._ids(before)),
            between=tuple(self._ids(between)),
            after=tuple(self._ids(after)),
            segments=(0, 0, 0, 0, 0),
            has_segments=False,
            pad_id=pad if pad is not None else 0,
            keep_end=False,
        )

    def _grows_apart(self) -> bool:
        """Whether texts tokenized by themselves give the ids of whole strings, as far as probed.

        It takes more than equal ids: at each border, the tokenizer must begin another word, as it
        calls what it never joins. Which words a vocabulary would join depends on the texts.
        """
        queries = [self.query_text(probe) for probe in _PROBES]
        documents = [self.document_text(probe) for probe in _PROBES]
        one = {text: self._ids([text]) for text in (*queries, *documents)}
        t = self.template
        for query, document in product(queries, documents):
            assembled = [*t.before, *one[query], *t.between, *one[document], *t.after]
            if assembled != self._own_ids(query, document):
                return False
            strings = self._parts.strings(query, document)
            for number, *borders in self._parts.places(query, document):
                if not breaks(self._tokenizer, strings[number], borders):
                    return False
        return True

    def _refuse_lack_of_room(self) -> None:
        rules, fixed = self.rules, self.fixed_tokens
        room = rules.max_length - fixed
        if room <= 0:
            raise ModelError(
                f"max_length {rules.max_length} leaves no room beside the {fixed} tokens of the "
                f"prompt {self._prompt.name} and its instruction.",
                "Raise model.max_length, or shorten model.instruction.",
            )
        if rules.max_query_tokens is not None and rules.max_query_tokens >= room:
            raise ConfigError(
                f"model.max_query_tokens is {rules.max_query_tokens}, but beside its prompt the "
                f"model sees only {room} tokens of both texts.",
                "Lower it, so that the document has room.",
            )
        if self._whole and rules.overflow == "windows":
            raise ConfigError(
                f"{type(self._tokenizer).__name__} joins texts with the prompt around them, so a "
                "document cannot be windowed.",
                "Set model.overflow to truncate.",
            )
        refuse_stride(rules, room)

    def _kept(self, query: Int32, document: Int32, fixed: Int32) -> tuple[Int32, Int32]:
        """How many tokens of each text stay beside `fixed` others. All arrays int32 [pairs].

        The query's tokens hold the prompt's words that follow it. The fixed ones are taken off the
        length first, so that shares of it are shares of what is left to both texts.
        """
        tail, cap = len(self._tail), self.rules.max_query_tokens
        kept = np.zeros((2, len(query)), np.int32)
        for size in np.unique(fixed).tolist():
            room = self.rules.max_length - self.template.special - size
            if room <= tail:
                raise InputError(
                    f"An instruction leaves no room for its query and document: the prompt takes "
                    f"{self.template.special + size} of {self.rules.max_length} tokens with it.",
                    "Shorten the instruction, or raise model.max_length.",
                )
            rules = replace(
                self.rules, max_length=room, max_query_tokens=cap if cap is None else cap + tail
            )
            same = fixed == size
            kept[:, same] = kept_tokens(query[same], document[same], rules, 0)
        return kept[0], kept[1]

    def _with_tail(self, texts: PromptTexts, number: int, kept: int) -> Int32:
        """A query whose first tokens are what stays of it and then the prompt's words after it.

        What is cut comes last, so that it is counted as dropped.
        """
        ids, head = texts.ids[texts.starts[number] : texts.starts[number + 1]], texts.heads[number]
        tail = self._tail[len(self._tail) - min(kept, len(self._tail)) :]
        there = same_start(self._tail[::-1].tolist(), ids[::-1].tolist())
        stays = head + kept - len(tail)
        return np.concatenate([ids[:stays], tail, ids[stays : len(ids) - there]])

    def _pairs_tokenized_whole(
        self, texts: PromptTexts, query: Int32, document: Int32
    ) -> TokenizedPairs:
        """Each pair as one text, with what is cut at its end, beside an empty document."""
        whole = [
            self._tokenized_whole(texts.strings[q], texts.strings[d])
            for q, d in zip(query.tolist(), document.tolist())
        ]
        spans = np.array([span for _, span in whole], np.int32).reshape(-1, 4)
        own, other = spans[:, 1] - spans[:, 0], spans[:, 3] - spans[:, 2]
        lengths = np.array([len(ids) for ids, _ in whole], np.int32)
        kept, kept_document = self._kept(own, other, lengths - own - other)
        found = []
        for (ids, (a, b, c, d)), k, m in zip(whole, kept.tolist(), kept_document.tolist()):
            stays = [*ids[: a + k], *ids[b : c + m], *ids[d:]]
            found.append(np.array([*stays, *ids[a + k : b], *ids[c + m : d]], np.int32))
        nothing = np.zeros(len(found), np.int32)
        return TokenizedPairs(
            extended(TokenizedTexts(nothing[:0], np.zeros(1, np.int64)), [*found, nothing[:0]]),
            np.arange(len(found), dtype=np.int32),
            nothing + np.int32(len(found)),
            (lengths - own - other + kept + kept_document).astype(np.int32),
            nothing,
            self.template.special,
        )

    def _tokenized_whole(self, query: str, document: str) -> tuple[list[int], list[int]]:
        """The ids of a pair, and between which of them its query and its document lie."""
        assert isinstance(query, PromptQuery), "the first text of a pair comes from query_text"
        parts = self._parts
        own = [
            (query.start, len(query) - len(parts.tail)),
            (len(parts.lead), len(document)),
        ]
        places = parts.places(query, document)
        ids: list[int] = []
        span: list[int] = []
        for number, string in enumerate(parts.strings(query, document)):
            encoded = self._tokenizer(string, add_special_tokens=False, return_offsets_mapping=True)
            for (holder, first, _), (start, stop) in zip(places, own):
                if number == holder:
                    inside = within(encoded["offset_mapping"], first + start, first + stop)
                    span += [len(ids) + at for at in inside]
            ids += encoded["input_ids"]
        return ids, span
