"""What a tokenizer itself gives: ids of texts alone, ids of pairs by its own pair call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from rankmill.tokens import Int32, TokenizedTexts, Truncation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

Strategy = Literal["only_second", "longest_first"]
STRATEGIES: dict[Truncation, Strategy] = {
    "document": "only_second",
    "longest_first": "longest_first",
}
# Texts and characters a call: enough to be fast, few enough that what the tokenizer makes besides
# ids (some 150 bytes a token) does not pile up.
_A_CALL = 1024
_CHARACTERS_A_CALL = 1 << 20


@dataclass(frozen=True)
class EncodedPairs:
    """Pairs as their tokenizer made them. Lists of token and segment ids, one a pair.

    segments is None where the tokenizer has none.
    """

    ids: list[list[int]]
    segments: list[list[int]] | None


class FastTexts:
    """The part of a fast tokenizer that makes ids of texts. Needs no transformers."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._split_special = tokenizer.split_special_tokens

    def __call__(self, texts: list[str]) -> list[Int32]:
        """int32 [tokens], a text."""
        # The library's own batch call: transformers' makes offsets, masks and a dictionary
        # besides, and takes a fifth longer.
        backend = self._backend
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = self._split_special
        encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    @property
    def pickles(self) -> bool:
        """Whether it does: steps that are written in Python (RoFormer's) do not."""
        backend = self._backend
        try:
            for step in (backend.normalizer, backend.pre_tokenizer, backend.decoder):
                step.__getstate__()
        except Exception:  # noqa: BLE001 - the tokenizers library raises plain ones
            return False
        return True

    @property
    def largest_id(self) -> int:
        """The largest id in the vocabulary, added tokens included."""
        return max(self._backend.get_vocab(with_added_tokens=True).values())


class SlowTexts:
    """The same of a tokenizer in Python."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def __call__(self, texts: list[str]) -> list[Int32]:
        """int32 [tokens], a text."""
        encoded = self._tokenizer(
            texts,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [np.array(one, np.int32) for one in encoded["input_ids"]]

    @property
    def largest_id(self) -> int:
        """The largest id in the vocabulary, added tokens included."""
        return max(self._tokenizer.get_vocab().values())


def texts_of(tokenizer: PreTrainedTokenizerBase) -> FastTexts | SlowTexts:
    """What makes ids of texts alone."""
    return FastTexts(tokenizer) if tokenizer.is_fast else SlowTexts(tokenizer)


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> TokenizedTexts:
    """Tokenize texts without special tokens and without cutting."""
    return encode_all(texts_of(tokenizer), texts)


def encode_all(encode: FastTexts | SlowTexts, texts: Sequence[str]) -> TokenizedTexts:
    """The same with what `texts_of` has found."""
    ids: list[Int32] = []
    for call in calls([len(text) for text in texts]):
        ids += encode(list(texts[call]))
    starts = np.concatenate([[0], np.cumsum([len(one) for one in ids])]).astype(np.int64)
    return TokenizedTexts(np.concatenate([np.empty(0, np.int32), *ids]), starts)


def calls(sizes: Sequence[int]) -> Iterator[slice]:
    """Which texts go into a call together, in order. sizes: characters a text.

    A text that is longer than a call's characters goes by itself.
    """
    start = characters = 0
    for number, size in enumerate(sizes):
        characters += size
        full = number - start == _A_CALL or characters > _CHARACTERS_A_CALL
        if full and number > start:
            yield slice(start, number)
            start, characters = number, size
    if start < len(sizes):
        yield slice(start, len(sizes))


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase,
    queries: Sequence[str],
    documents: Sequence[str],
    strategy: Strategy | None = None,
    max_length: int | None = None,
) -> EncodedPairs:
    """Call the tokenizer with pairs, cut by its own rule when a strategy is given."""
    with without_noise():
        # Lists, because a single empty text counts as no second text at all.
        encoded = tokenizer(
            list(queries),
            list(documents),
            truncation=strategy or False,
            max_length=max_length,
            return_attention_mask=False,
            verbose=False,
        )
    return EncodedPairs(encoded["input_ids"], encoded.get("token_type_ids"))


@contextmanager
def without_noise() -> Iterator[None]:
    """transformers draws, reports and warns on stderr; callers keep their own setting of it.

    Its Python tokenizers warn at every pair that is cut, whatever `verbose` says.
    """
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
