"""Where the texts of a prompt lie among its tokens. Small functions over ids and offsets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rankmill.tokens import Int32, TokenizedTexts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def breaks(tokenizer: PreTrainedTokenizerBase, string: str, borders: list[int]) -> bool:
    """Whether one of the tokenizer's words ends, and another begins, at every border inside."""
    encoded = tokenizer(string, add_special_tokens=False, return_offsets_mapping=True)
    words = encoded.word_ids(0)
    for border in borders:
        left = {w for w, (start, _) in zip(words, encoded["offset_mapping"]) if start < border}
        right = {w for w, (_, stop) in zip(words, encoded["offset_mapping"]) if stop > border}
        if left & right:
            return False
    return True


def same_start(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first items are the same."""
    pairs = enumerate(zip(one, other))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def within(offsets: list[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """Between which tokens those lie that hold any of the characters from start to end."""
    inside = [at for at, (first, stop) in enumerate(offsets) if stop > start and first < end]
    if inside:
        return inside[0], inside[-1] + 1
    empty = sum(stop <= start for _, stop in offsets)
    return empty, empty


def extended(texts: TokenizedTexts, more: list[Int32]) -> TokenizedTexts:
    """The texts with further ones behind them."""
    sizes = np.array([len(one) for one in more], np.int64)
    starts = np.concatenate([texts.starts, texts.starts[-1] + np.cumsum(sizes)])
    return TokenizedTexts(np.concatenate([texts.ids, *more]), starts.astype(np.int64))
