"""A model's own tokenizer, and pairs cut and put together exactly as it would itself."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rankmill import tokenizer_files
from rankmill.encoding import FastTexts, encode_all, texts_of
from rankmill.errors import ConfigError, ModelError
from rankmill.own_pairs import OwnPairs
from rankmill.template import PROBE_DOCUMENTS, PROBE_QUERIES, NoTemplate, probe_template
from rankmill.tokens import (
    Int32,
    PairRules,
    TokenizedPairs,
    TokenizedTexts,
    kept_tokens,
)
from rankmill.windows import refuse_stride

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("rankmill")


class PairTokenizer:
    """A model's tokenizer under a truncation rule.

    template: the special tokens around the two texts of a pair; fixed_tokens: how many.
    own_pairs: None, or for a tokenizer without such a template, what makes its pairs whole, one
    by one; `template` then adds nothing. prefix: what stands before every query. travels: see
    `models.Tokenizer`. Raises `ModelError` or `ConfigError` when the rules leave a document no
    room.
    """

    own_pairs: OwnPairs | None = None
    travels = False
    _reason = ""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, rules: PairRules, prefix: str = ""
    ) -> None:
        self._kind = type(tokenizer).__name__
        self._texts = texts_of(tokenizer)
        self._prefix = prefix
        self.rules = rules
        try:
            self.template = probe_template(tokenizer)
            self.fixed_tokens = self.template.special
            self.travels = isinstance(self._texts, FastTexts) and self._texts.pickles
        except NoTemplate as reason:
            self.own_pairs = OwnPairs(tokenizer, rules)
            self.template = self.own_pairs.template
            self.fixed_tokens = self.own_pairs.special
            self._reason = str(reason)
        self._refuse_no_room()

    @classmethod
    def load(cls, folder: str | Path, rules: PairRules, prefix: str = "") -> PairTokenizer:
        """Load from a local folder. Raises `ModelError` when there is no usable tokenizer."""
        return cls(tokenizer_files.load(folder), rules, prefix)

    def _refuse_no_room(self) -> None:
        rules = self.rules
        room = rules.max_length - self.fixed_tokens
        if rules.max_query_tokens is not None and rules.max_query_tokens >= room > 0:
            raise ConfigError(
                f"model.max_query_tokens is {rules.max_query_tokens}, but the model sees only "
                f"{room} tokens of both texts.",
                "Lower it, so that the document has room.",
            )
        if room <= 0:
            raise ModelError(
                f"max_length {rules.max_length} leaves no room beside the "
                f"{self.fixed_tokens} special tokens of a pair.",
                "Raise model.max_length.",
            )
        if self.own_pairs is not None and (
            rules.max_document_tokens or rules.overflow == "windows"
        ):
            raise ConfigError(
                f"{self._kind} makes pairs that are not their two texts "
                "between special tokens, so its documents cannot be capped or windowed.",
                "Leave out model.max_document_tokens, and set model.overflow to truncate.",
            )
        refuse_stride(rules, room)

    @cached_property
    def largest_id(self) -> int:
        """The largest id in the vocabulary, added tokens included: a text may hold any of them."""
        return self._texts.largest_id

    def tokenize(self, texts: Sequence[str], query: Int32, document: Int32) -> TokenizedPairs:
        """Tokenize and cut pairs, given as int32 [pairs] indices into distinct texts.

        The `texts` of the result are the given ones, or with `own_pairs` the pairs themselves.
        """
        if self.own_pairs is None:
            return self.pairs(self.encode(texts), query, document)
        queries, documents = ([texts[n] for n in numbers.tolist()] for numbers in (query, document))
        return self.own_pairs.tokenize(queries, documents)

    def query_text(self, query: str, instruction: str | None = None) -> str:
        """A query as the model reads it, after its prefix. Cross-encoders take no instruction."""
        return self._prefix + query

    def document_text(self, document: str) -> str:
        """A document as the model reads it: as it is."""
        return document

    def leaves_room(self, instruction: str) -> bool:
        """Always: cross-encoders take no instruction."""
        return True

    def encode(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenize texts without special tokens and without cutting."""
        return encode_all(self._texts, texts)

    def pairs(self, texts: TokenizedTexts, query: Int32, document: Int32) -> TokenizedPairs:
        """What counts of pairs, given as int32 [pairs] indices into `texts`, to length."""
        lengths, template = texts.lengths, self.template
        kept = kept_tokens(
            lengths[query], lengths[document], self.rules, template.special, template.odd_to_query
        )
        return TokenizedPairs(texts, query, document, *kept, template.special)

    def verify(self) -> None:
        """Warn when pairs go the slow way.

        Raises `ModelError` when the tokenizer then does not hold to the length.
        """
        if self.own_pairs is None:
            return
        log.warning(
            "Tokenizing is slow with this model: %s makes pairs that are not their two texts "
            "between special tokens (%s), so every pair is tokenized whole.",
            self._kind,
            self._reason,
        )
        self.own_pairs.tokenize(PROBE_QUERIES, PROBE_DOCUMENTS)
