"""Windows: what the model is given of each pair, put together from token ids, and one score of it.

A window is the pair's query with a stretch of its document. A pair that fits is one window; so is
every pair that was cut to length. Pure functions over numpy arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from rankmill.errors import ConfigError
from rankmill.tokens import (
    Float32,
    Int32,
    PairRules,
    Pooling,
    Template,
    TokenBatch,
    TokenizedPairs,
    TokenizedTexts,
)


@dataclass(frozen=True)
class Windows:
    """The model's inputs for some pairs, in the pairs' order; each pair has at least one.

    pair: int32 [windows], indices into `pairs`. first, count: int32 [windows], the document's
    tokens in a window, counted from the side that the tokenizer keeps when it cuts.
    """

    pairs: TokenizedPairs
    pair: Int32
    first: Int32
    count: Int32

    def __len__(self) -> int:
        return len(self.pair)

    @cached_property
    def lengths(self) -> Int32:
        """int32 [windows]: tokens of an input, special tokens included."""
        return self.pairs.query_kept[self.pair] + self.count + np.int32(self.pairs.special)


def cut(pairs: TokenizedPairs, rules: PairRules) -> Windows:
    """Cover what counts of each document with windows of as many tokens as its query leaves room.

    A window begins with the last `rules.stride` tokens of the one before, but never with more
    than half a window, so that a long query cannot multiply the work without bound. The last
    window is what remains, as short as it may be: the rule of the tokenizers library
    (`Encoding::truncate`), also for tokenizers that cut on the left, whose first window is the
    document's end.
    """
    room = rules.max_length - pairs.special - pairs.query_kept
    new = np.maximum(room - np.minimum(rules.stride, room // 2), 1)
    further = -(-np.maximum(pairs.document_kept - room, 0) // new)
    starts = np.cumsum(1 + further, dtype=np.int64) - 1 - further
    pair = np.repeat(np.arange(len(pairs), dtype=np.int32), 1 + further)
    first = (np.arange(len(pair)) - starts[pair]).astype(np.int32) * new[pair]
    count = np.minimum(room[pair], pairs.document_kept[pair] - first)
    return Windows(pairs, pair, first.astype(np.int32), count.astype(np.int32))


def refuse_stride(rules: PairRules, room: int) -> None:
    """Raise `ConfigError` when windows would hold nothing new. room: tokens left to both texts."""
    window = room - (rules.max_query_tokens or 0)
    if rules.overflow == "windows" and rules.stride >= window:
        raise ConfigError(
            f"model.window.stride is {rules.stride}, but of {rules.max_length} tokens a window "
            f"has only {window} for the document.",
            "Lower it, so that every window holds something new, or raise model.max_length.",
        )


def pool(windows: Windows, scores: Float32, how: Pooling) -> Float32:
    """One score a pair, float32 [pairs], of its windows' raw scores, float32 [windows].

    NaN where any of them is NaN or infinite. A mean is summed in the windows' order in float64
    and rounded once.
    """
    scores = np.where(np.isfinite(scores), scores, np.float32(np.nan))
    starts = np.flatnonzero(np.diff(windows.pair, prepend=-1))
    if how == "max":
        return np.maximum.reduceat(scores, starts)
    sums = np.add.reduceat(scores.astype(np.float64), starts)
    return (sums / np.diff(starts, append=len(scores))).astype(np.float32)


def assemble(
    windows: Windows, template: Template, chosen: npt.NDArray[np.integer[Any]], width: int = 0
) -> TokenBatch:
    """The model's input for some windows, padded on the right to the longest of them.

    width: tokens that they are padded to at least.
    """
    pairs, texts, keep_end = windows.pairs, windows.pairs.texts, template.keep_end
    lengths = windows.lengths[chosen]
    longest = int(lengths.max(initial=max(template.special, width)))
    ids = np.full((len(chosen), longest), template.pad_id, np.int64)
    segments = np.zeros_like(ids) if template.has_segments else None
    before, between, after = (
        np.array(part, np.int64) for part in (template.before, template.between, template.after)
    )
    for row, window in enumerate(chosen):
        pair, first, count = (
            int(column[window]) for column in (windows.pair, windows.first, windows.count)
        )
        parts: list[npt.NDArray[Any]] = [
            before,
            _stretch(texts, int(pairs.query[pair]), 0, int(pairs.query_kept[pair]), keep_end),
            between,
            _stretch(texts, int(pairs.document[pair]), first, count, keep_end),
            after,
        ]
        ids[row, : lengths[row]] = np.concatenate(parts)
        if segments is not None and texts.segments is not None:
            start = int(texts.starts[pairs.query[pair]])
            segments[row, : lengths[row]] = texts.segments[start : start + int(lengths[row])]
        elif segments is not None:
            sizes = [len(part) for part in parts]
            segments[row, : lengths[row]] = np.repeat(template.segments, sizes)
    mask = None
    if int(lengths.min(initial=longest)) < longest:
        mask = (np.arange(longest) < lengths[:, None]).astype(np.int64)
    return TokenBatch(ids, segments, mask)


def _stretch(texts: TokenizedTexts, text: int, first: int, count: int, from_end: bool) -> Int32:
    start, stop = int(texts.starts[text]), int(texts.starts[text + 1])
    if from_end:
        return texts.ids[stop - first - count : stop - first]
    return texts.ids[start + first : start + first + count]
