"""What happens to a shard between reading and commit. No Ray here: envelopes in, envelopes out.

Where several models score, one after the other, `tokenize` and `score` come once for each. What
they do depends on the shard's rows, on the model's settings, and in a cascade on which pairs the
model before found best; on nothing else that another model did.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rankmill import rank, rows, tokens
from rankmill.config import ColumnNames
from rankmill.envelope import Envelope
from rankmill.flight import run_batches
from rankmill.models import Description, ScorerModel, Tokenizer
from rankmill.profile import Profile
from rankmill.scorer import BatchRunner, score_pairs_by
from rankmill.tokens import PairRules, Template, TokenizedPairs, TokenizedTexts


@dataclass(frozen=True)
class StageSettings:
    """What the workers of a model must know. Small and picklable; models are built from it.

    template: the tokenizer's, so that scoring actors need not load it. number: of the model among
    the run's, from 1. best: in a cascade, how many distinct pairs of each list, those that the
    model before found best, this one sees; None: all.
    """

    description: Description
    profile: Profile
    rules: PairRules
    template: Template
    columns: ColumnNames
    has_query_id: bool
    max_text_bytes: int
    depth: int | None
    number: int = 1
    best: int | None = None


def tokenize(envelope: Envelope, settings: StageSettings, tokenizer: Tokenizer) -> Envelope:
    """Check the rows of a shard and tokenize its distinct texts and pairs.

    Puts what models before have left into `earlier`. Adds `facts`, a row a pair row: query int32
    (its candidate list, -1 for none), pair int32 (its distinct pair, -1 when it is not scored),
    reason string (null unless quarantined); `pairs`, a row a distinct pair; and `texts`, token ids
    of the distinct texts.
    """
    started = time.perf_counter()
    envelope = envelope.for_next_model()
    table = envelope.rows
    assert table is not None, "a shard without an error has rows"
    checked = rows.check(table, settings.columns, settings.has_query_id, settings.max_text_bytes)
    if checked.instruction_text is not None and not settings.description.takes_instruction:
        checked = replace(checked, instruction_text=None)  # they are for another of the models
    checked = _without_long_instructions(checked, tokenizer)
    wanted = pc.is_null(checked.reason).to_numpy(zero_copy_only=False)
    if settings.depth is not None:
        wanted = wanted & (checked.position < settings.depth)
    if settings.best is not None:
        wanted = wanted & _best_of_before(envelope, settings.best)
    queries, query = _distinct_queries(checked, wanted, tokenizer)
    documents, document = _distinct(checked.document_text, wanted)
    documents = [tokenizer.document_text(text) for text in documents]

    distinct, inverse = np.unique(
        query.astype(np.int64) * max(len(documents), 1) + document, return_inverse=True
    )
    query = (distinct // max(len(documents), 1)).astype(np.int32)
    document = (distinct % max(len(documents), 1)).astype(np.int32)
    cut = tokenizer.tokenize([*queries, *documents], query, document + np.int32(len(queries)))
    pair = np.full(len(wanted), -1, np.int32)
    pair[wanted] = inverse
    digests = tokens.pair_digests(queries, documents, query, document)
    seconds = str(time.perf_counter() - started)
    facts = pa.table(
        {"query": checked.query, "pair": pair, "reason": checked.reason}
    ).replace_schema_metadata({"several_texts": str(checked.several_texts), "seconds": seconds})
    return replace(
        envelope, facts=facts, pairs=_pairs_table(cut, digests), texts=_texts_table(cut.texts)
    )


def _best_of_before(envelope: Envelope, keep: int) -> npt.NDArray[np.bool_]:
    """bool [rows]: whether a row's pair is among the best of its list, by the model before."""
    facts, pairs, scores = envelope.scored[-1]
    query, pair = (facts.column(name).to_numpy() for name in ("query", "pair"))
    score, _ = by_row(pair, scores.column("score").to_numpy(), pairs.column("dropped").to_numpy())
    return rank.among_best(query, pair, score, keep)


def score(
    envelope: Envelope, rules: PairRules, template: Template, profile: Profile, model: ScorerModel
) -> Envelope:
    """Score the distinct pairs of a shard with a loaded model (see `score_by`)."""
    return score_by(partial(run_batches, model), envelope, rules, template, profile)


def score_by(
    run: BatchRunner, envelope: Envelope, rules: PairRules, template: Template, profile: Profile
) -> Envelope:
    """Score the distinct pairs of a shard; leaves the token ids behind.

    Adds `scores`, a row a distinct pair, with what they cost in its metadata: score float32 and
    reason string (null unless the pair could not be scored).
    """
    started = time.perf_counter()
    pairs = _tokenized(envelope, template.special)
    scored = score_pairs_by(run, pairs, rules, template, profile)
    cost = {
        "windows": scored.windows,
        "tokens": scored.tokens,
        "padded_tokens": scored.padded_tokens,
        "degraded": scored.degraded,
        "seconds": time.perf_counter() - started,
    }
    reason = pa.array([scored.reasons.get(pair) for pair in range(len(pairs))], pa.string())
    scores = pa.table({"score": scored.scores, "reason": reason})
    scores = scores.replace_schema_metadata({"cost": json.dumps(cost)})
    return replace(envelope, scores=scores, texts=None)


def by_row(
    pair: npt.NDArray[np.int32], score: npt.NDArray[np.float32], dropped: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Each row's score (NaN when it was not scored) and dropped tokens (0 likewise)."""
    has = pair >= 0
    by_row = np.full(len(pair), np.nan, np.float32)
    tokens = np.zeros(len(pair), np.int32)
    by_row[has], tokens[has] = score[pair[has]], dropped[pair[has]]
    return by_row, tokens


def _distinct(
    text: pa.Array, wanted: npt.NDArray[np.bool_]
) -> tuple[list[str], npt.NDArray[np.int32]]:
    encoded = pc.dictionary_encode(text.filter(pa.array(wanted)))
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False)


def _without_long_instructions(checked: rows.CheckedRows, tokenizer: Tokenizer) -> rows.CheckedRows:
    """Rows whose instruction fills the model's length get a reason; the others are scored."""
    if checked.instruction_text is None:
        return checked
    given = pc.unique(checked.instruction_text.drop_null()).to_pylist()
    long = [text for text in given if not tokenizer.leaves_room(text)]
    too_long = pc.is_in(checked.instruction_text, pa.array(long, pa.large_string()))
    found = pc.and_(pc.is_null(checked.reason), too_long)
    return replace(checked, reason=pc.if_else(found, rows.LONG_INSTRUCTION, checked.reason))


def _distinct_queries(
    checked: rows.CheckedRows, wanted: npt.NDArray[np.bool_], tokenizer: Tokenizer
) -> tuple[list[str], npt.NDArray[np.int32]]:
    """Each query as the model reads it, once with every instruction that a row gives beside it."""
    texts, query = _distinct(checked.query_text, wanted)
    if checked.instruction_text is None:
        return [tokenizer.query_text(text) for text in texts], query
    given = pc.fill_null(checked.instruction_text, "")
    instructions, instruction = _distinct(given, wanted)
    several = np.int64(max(len(instructions), 1))
    both, inverse = np.unique(query.astype(np.int64) * several + instruction, return_inverse=True)
    read = [
        tokenizer.query_text(texts[one // several], instructions[one % several] or None)
        for one in both
    ]
    return read, inverse.astype(np.int32)


def _pairs_table(pairs: TokenizedPairs, digests: list[bytes]) -> pa.Table:
    return pa.table(
        {
            "digest": pa.array(digests, pa.binary(16)),
            "query": pairs.query,
            "document": pairs.document,
            "query_kept": pairs.query_kept,
            "document_kept": pairs.document_kept,
            "dropped": pairs.dropped,
        }
    )


def _texts_table(texts: TokenizedTexts) -> pa.Table:
    columns = {"ids": texts.ids, "segments": texts.segments}
    starts = pa.array(texts.starts)
    return pa.table(
        {
            name: pa.LargeListArray.from_arrays(starts, pa.array(values))
            for name, values in columns.items()
            if values is not None
        }
    )


def _tokenized(envelope: Envelope, special: int) -> TokenizedPairs:
    assert envelope.pairs is not None, "only tokenized shards are scored"
    assert envelope.texts is not None, "only tokenized shards are scored"
    lists = {
        name: envelope.texts.column(name).combine_chunks() for name in envelope.texts.schema.names
    }
    values = {name: list_.values.to_numpy() for name, list_ in lists.items()}
    texts = TokenizedTexts(starts=lists["ids"].offsets.to_numpy(), **values)
    query, document, query_kept, document_kept = (
        envelope.pairs.column(name).to_numpy()
        for name in ("query", "document", "query_kept", "document_kept")
    )
    return TokenizedPairs(texts, query, document, query_kept, document_kept, special)
