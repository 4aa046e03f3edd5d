"""A model's own tokenizer: each distinct text once, and the template of a pair.

The template is probed from the tokenizer itself, and assembled pairs are compared with the
tokenizer's own pair call before they are trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from rankmill.errors import ConfigError, ModelError
from rankmill.tokens import (
    Int32,
    PairRules,
    Template,
    TokenizedPairs,
    TokenizedTexts,
    Truncation,
    assemble,
    kept_tokens,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ENCODE_TEXTS = 1024
_PROBE_QUERIES = ["what is a shard", "シャードとは何ですか", "A " * 40, "x"]
_PROBE_DOCUMENTS = ["A shard is a run of whole lists.", "検索  結果😀の順位", "long text " * 90, ""]


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
        return cls(load_tokenizer(folder), rules)

    def query_text(self, query: str, instruction: str | None = None) -> str:
        """A query as the model reads it: as it is. Cross-encoders take no instruction."""
        return query

    def document_text(self, document: str) -> str:
        """A document as the model reads it: as it is."""
        return document

    def encode(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenize texts without special tokens and without cutting."""
        return encode_texts(self._tokenizer, texts)

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


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a local folder. Raises `ModelError` when there is no usable one."""
    from transformers import AutoTokenizer

    remedy = "The folder needs tokenizer.json, or the vocabulary files of its tokenizer."
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ModelError(f"The tokenizer in {folder} cannot be loaded: {error}.", remedy) from error
    # Without its files transformers makes one that knows special tokens only.
    files = tokenizer.vocab_files_names.values()
    if not any(Path(folder, name).is_file() for name in files):
        raise ModelError(f"{folder} has no tokenizer ({' or '.join(files)}).", remedy)
    return tokenizer


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> TokenizedTexts:
    """Tokenize texts without special tokens and without cutting."""
    ids: list[Int32] = []
    for start in range(0, len(texts), _ENCODE_TEXTS):
        chunk = list(texts[start : start + _ENCODE_TEXTS])
        encoded = tokenizer(
            chunk,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        ids += [np.array(one, np.int32) for one in encoded["input_ids"]]
    starts = np.concatenate([[0], np.cumsum([len(one) for one in ids])]).astype(np.int64)
    return TokenizedTexts(np.concatenate([np.empty(0, np.int32), *ids]), starts)


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
