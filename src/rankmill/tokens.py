"""Pairs as token ids, exactly as the model's own tokenizer would make them.

Each distinct text is tokenized once; a pair is put together from the ids of its two texts, the
special tokens around them and the tokenizer's truncation rule. The template is probed from the
tokenizer itself, and the result is compared with the tokenizer's own pair call before it is
trusted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from rankmill.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Truncation = Literal["document", "longest_first"]
Int32 = npt.NDArray[np.int32]

# A query that alone fills the length is cut to three quarters of it when no cap is given, as in
# FlagEmbedding's rerankers (`query_max_length = max_length * 3 // 4`); tokenizers only raise.
_QUERY_SHARE = (3, 4)
_ENCODE_TEXTS = 1024
_PROBE_QUERIES = ["what is a shard", "シャードとは何ですか", "A " * 40, "x"]
_PROBE_DOCUMENTS = ["A shard is a run of whole lists.", "検索  結果😀の順位", "long text " * 90, ""]


@dataclass(frozen=True)
class TokenizedTexts:
    """Token ids of distinct texts, without special tokens.

    ids: int32, all texts' ids one after another; starts: int64 [texts + 1].
    """

    ids: Int32
    starts: npt.NDArray[np.int64]

    @property
    def lengths(self) -> Int32:
        """int32 [texts]: tokens a text."""
        return np.diff(self.starts).astype(np.int32)


@dataclass(frozen=True)
class TokenizedPairs:
    """Distinct pairs of distinct texts, cut to length.

    query, document: int32 [pairs], indices into `texts`. query_kept, document_kept: int32
    [pairs], the tokens that the model sees of each (special tokens not counted).
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
    def lengths(self) -> Int32:
        """int32 [pairs]: tokens in the model's input, special tokens included."""
        return self.query_kept + self.document_kept + np.int32(self.special)

    @property
    def dropped(self) -> Int32:
        """int32 [pairs]: tokens of both texts that the model does not see."""
        lengths = self.texts.lengths
        whole = lengths[self.query] + lengths[self.document]
        return (whole - self.query_kept - self.document_kept).astype(np.int32)


@dataclass(frozen=True)
class Template:
    """The special tokens of a pair: before, between and after, and each part's segment id."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    segments: tuple[int, int, int, int, int]
    has_segments: bool
    pad_id: int
    keep_end: bool

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
    """How pairs are cut. max_length counts special tokens; max_query_tokens does not."""

    max_length: int
    truncation: Truncation
    max_query_tokens: int | None = None


def kept_tokens(
    query: Int32, document: Int32, rules: PairRules, special: int
) -> tuple[Int32, Int32]:
    """How many tokens of each text stay. All arrays int32 [pairs].

    `document`: the query is capped first, then the document takes what is left. Without a cap
    this is the tokenizer's `only_second`, as long as the query leaves the document any room.
    `longest_first`: the rule of the tokenizers library: the longer text is cut
    down to what the shorter leaves; when both are too long, each takes half.
    """
    room = rules.max_length - special
    if rules.truncation == "document":
        if rules.max_query_tokens is not None:
            kept_query = np.minimum(query, min(rules.max_query_tokens, room))
        else:
            share, of = _QUERY_SHARE
            fits = (query < room) | (query + document <= room)
            kept_query = np.where(fits, query, min(rules.max_length * share // of, room))
        kept_document = np.minimum(document, room - kept_query)
        return kept_query.astype(np.int32), kept_document.astype(np.int32)
    if rules.max_query_tokens is not None:
        query = np.minimum(query, rules.max_query_tokens)
    short = np.minimum(query, document)
    kept_long = np.where(short > room, short, np.maximum(short, room - short))
    too_long = short + kept_long > room
    kept_short = np.where(too_long, room // 2, short)
    kept_long = np.where(too_long, room // 2 + room % 2, kept_long)
    fits = query + document <= room
    query_is_long = query > document
    kept_query = np.where(fits, query, np.where(query_is_long, kept_long, kept_short))
    kept_document = np.where(fits, document, np.where(query_is_long, kept_short, kept_long))
    return kept_query.astype(np.int32), kept_document.astype(np.int32)


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


class PairTokenizer:
    """A model's tokenizer with its probed template and a truncation rule."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rules: PairRules) -> None:
        self._tokenizer = tokenizer
        self.rules = rules
        self.template = probe_template(tokenizer)
        room = rules.max_length - self.template.special
        if rules.max_query_tokens is not None and rules.max_query_tokens >= room > 0:
            raise ConfigError(
                f"model.max_query_tokens is {rules.max_query_tokens}, but the model sees only "
                f"{room} tokens of both texts.",
                "Lower it, so that the document has room.",
            )
        if room <= 0:
            raise ModelError(
                f"max_length {rules.max_length} leaves no room beside the "
                f"{self.template.special} special tokens of a pair.",
                "Raise model.max_length.",
            )

    @classmethod
    def load(cls, folder: str | Path, rules: PairRules) -> PairTokenizer:
        """Load from a local folder. Raises `ModelError` when there is no usable tokenizer."""
        from transformers import AutoTokenizer

        remedy = "The folder needs tokenizer.json, or the vocabulary files of its tokenizer."
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise ModelError(
                f"The tokenizer in {folder} cannot be loaded: {error}.", remedy
            ) from error
        # Without its files transformers makes one that knows special tokens only.
        files = tokenizer.vocab_files_names.values()
        if not any(Path(folder, name).is_file() for name in files):
            raise ModelError(f"{folder} has no tokenizer ({' or '.join(files)}).", remedy)
        return cls(tokenizer, rules)

    def encode(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenize texts without special tokens and without cutting."""
        ids: list[Int32] = []
        for start in range(0, len(texts), _ENCODE_TEXTS):
            chunk = list(texts[start : start + _ENCODE_TEXTS])
            encoded = self._tokenizer(
                chunk,
                add_special_tokens=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )
            ids += [np.array(one, np.int32) for one in encoded["input_ids"]]
        starts = np.concatenate([[0], np.cumsum([len(one) for one in ids])]).astype(np.int64)
        return TokenizedTexts(np.concatenate([np.empty(0, np.int32), *ids]), starts)

    def pairs(self, texts: TokenizedTexts, query: Int32, document: Int32) -> TokenizedPairs:
        """Cut pairs, given as int32 [pairs] indices into `texts`, to length."""
        lengths = texts.lengths
        special = self.template.special
        kept = kept_tokens(lengths[query], lengths[document], self.rules, special)
        return TokenizedPairs(texts, query, document, *kept, special)

    def verify(self) -> None:
        """Compare assembled pairs with the tokenizer's own pair call.

        Raises `ModelError` when they differ, under either truncation rule and at several lengths:
        rankmill would not score what the model was trained on.
        """
        longest_query = int(self.encode(_PROBE_QUERIES).lengths.max())
        for truncation in get_args(Truncation):
            for room in (longest_query + 5, longest_query + 300):
                limit = self.template.special + room
                self._compare(PairTokenizer(self._tokenizer, PairRules(limit, truncation)))

    def _compare(self, probe: PairTokenizer) -> None:
        queries, documents, limit = _PROBE_QUERIES, _PROBE_DOCUMENTS, probe.rules.max_length
        strategy = "only_second" if probe.rules.truncation == "document" else "longest_first"
        number = np.arange(len(queries), dtype=np.int32)
        pairs = probe.pairs(probe.encode(queries + documents), number, number + len(queries))
        batch = assemble(pairs, self.template, number)
        # Lists, because a single empty text counts as no second text at all.
        own = self._tokenizer(
            queries, documents, truncation=strategy, max_length=limit, verbose=False
        )
        for row, length in enumerate(pairs.lengths.tolist()):
            ids = batch.input_ids[row, :length].tolist()
            same = ids == own["input_ids"][row]
            if batch.segment_ids is not None:
                segments = batch.segment_ids[row, :length].tolist()
                same = same and segments == own["token_type_ids"][row]
            if not same:
                raise ModelError(
                    f"{type(self._tokenizer).__name__} does not build a pair from its two texts "
                    f"(probe {row}, {strategy}, limit {limit}).",
                    "This tokenizer is not supported in this version.",
                )


def probe_template(tokenizer: PreTrainedTokenizerBase) -> Template:
    """Find the special tokens of a pair by tokenizing one.

    Raises `ModelError` when the tokenizer has no fast implementation to look into.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"{type(tokenizer).__name__} has no fast (tokenizer.json) implementation.",
            "This tokenizer is not supported in this version.",
        )
    encoded = tokenizer("query", "document")
    owner = encoded.sequence_ids(0)
    ids = encoded["input_ids"]
    types = encoded.get("token_type_ids") or [0] * len(ids)
    first = [i for i, o in enumerate(owner) if o == 0]
    second = [i for i, o in enumerate(owner) if o == 1]
    if not first or not second or first[-1] > second[0]:
        raise ModelError(
            f"{type(tokenizer).__name__} does not put the first text of a pair before the second.",
            "This tokenizer is not supported in this version.",
        )
    parts = [
        range(0, first[0]),
        range(first[0], first[-1] + 1),
        range(first[-1] + 1, second[0]),
        range(second[0], second[-1] + 1),
        range(second[-1] + 1, len(ids)),
    ]
    before, between, after = (tuple(ids[i] for i in parts[k]) for k in (0, 2, 4))
    segment = [types[part[0]] if len(part) else 0 for part in parts]
    return Template(
        before=before,
        between=between,
        after=after,
        segments=(segment[0], segment[1], segment[2], segment[3], segment[4]),
        has_segments="token_type_ids" in encoded,
        pad_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
        keep_end=tokenizer.truncation_side == "left",
    )


def assemble(
    pairs: TokenizedPairs, template: Template, chosen: npt.NDArray[np.integer[Any]]
) -> TokenBatch:
    """The model's input for some pairs, padded on the right to the longest of them."""
    texts, special = pairs.texts, template.special
    lengths = pairs.lengths[chosen]
    longest = int(lengths.max(initial=special))
    ids = np.full((len(chosen), longest), template.pad_id, np.int64)
    segments = np.zeros_like(ids) if template.has_segments else None
    fixed = [np.array(part, np.int64) for part in (template.before, template.between)]
    tail = np.array(template.after, np.int64)
    for row, pair in enumerate(chosen):
        parts: list[npt.NDArray[Any]] = [
            fixed[0],
            _kept(texts, int(pairs.query[pair]), int(pairs.query_kept[pair]), template.keep_end),
            fixed[1],
            _kept(
                texts, int(pairs.document[pair]), int(pairs.document_kept[pair]), template.keep_end
            ),
            tail,
        ]
        ids[row, : lengths[row]] = np.concatenate(parts)
        if segments is not None:
            sizes = [len(part) for part in parts]
            segments[row, : lengths[row]] = np.repeat(template.segments, sizes)
    mask = None
    if int(lengths.min(initial=longest)) < longest:
        mask = (np.arange(longest) < lengths[:, None]).astype(np.int64)
    return TokenBatch(ids, segments, mask)


def _kept(texts: TokenizedTexts, text: int, count: int, keep_end: bool) -> Int32:
    start, stop = int(texts.starts[text]), int(texts.starts[text + 1])
    return texts.ids[stop - count : stop] if keep_end else texts.ids[start : start + count]
