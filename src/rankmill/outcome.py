"""What became of the rows of a scored shard, whichever models scored it. Pure functions.

A row has the score of the last stage of a cascade that saw it, or of the model that ranks among
several side by side. It goes to quarantine when any model that saw it gave no finite score.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rankmill import rows, schema
from rankmill.envelope import Envelope, Scored
from rankmill.markers import ModelCost
from rankmill.results import Results
from rankmill.stages import by_row
from rankmill.tokens import Float32, Int32


@dataclass(frozen=True)
class Outcome:
    """The rows of a shard, scored; all arrays [rows].

    query: int32, the list of each row, -1 for none. pair: int32, the distinct pair of each row that
    is scored, else -1. reason: object, None unless the row goes to quarantine. score: float32, NaN
    where there is none. dropped: int32, tokens that the model which gave the score did not see.
    stage: int32, the number of that model in a cascade, 0 for none. beside: float32, the scores of
    each of several models side by side.
    """

    query: Int32
    pair: Int32
    reason: npt.NDArray[Any]
    score: Float32
    dropped: Int32
    stage: Int32
    beside: tuple[Float32, ...]


def of_rows(done: Sequence[Scored], results: Results) -> Outcome:
    """Put together what the models have left, in their order."""
    pairs, scores, droppeds = zip(*(_of_model(one) for one in done))
    reason = _reasons(done, pairs, scores, results.labels)
    seen = np.array([pair >= 0 for pair in pairs])
    stage = np.where(seen, np.arange(1, len(done) + 1, dtype=np.int32)[:, None], 0).max(axis=0)
    # Whose score a row has; of one that no model saw, all of them hold none.
    last = np.maximum(stage, 1) if results.stages else np.full(len(reason), results.deciding)
    whose = last - 1
    row = np.arange(len(reason))
    return Outcome(
        query=done[0].facts.column("query").to_numpy(),
        pair=pairs[0],
        reason=reason,
        score=np.stack(scores)[whose, row],
        dropped=np.stack(droppeds)[whose, row],
        stage=stage.astype(np.int32),
        beside=tuple(scores) if results.names else (),
    )


def _of_model(one: Scored) -> tuple[Int32, Float32, Int32]:
    pair = one.facts.column("pair").to_numpy()
    score = one.scores.column("score").to_numpy()
    return pair, *by_row(pair, score, one.pairs.column("dropped").to_numpy())


def _reasons(
    done: Sequence[Scored],
    pairs: Sequence[Int32],
    scores: Sequence[Float32],
    labels: Sequence[str],
) -> npt.NDArray[Any]:
    """Why rows go to quarantine: what is wrong with them first, then what the first model said."""
    reason = pc.coalesce(*(one.facts.column("reason").combine_chunks() for one in done))
    found = np.array(reason.to_pylist(), dtype=object)
    is_good = reason.is_null().to_numpy(zero_copy_only=False)
    for one, pair, score, label in zip(done, pairs, scores, labels, strict=True):
        unscored = (pair >= 0) & ~np.isfinite(score) & is_good
        why = pc.fill_null(one.scores.column("reason"), rows.BAD_SCORE).to_pylist()
        told = [f"{label}: {each}" if label else each for each in why]
        found[unscored] = np.array(told, dtype=object)[pair[unscored]]
        is_good = is_good & ~unscored
    return found


def score_table(done: Sequence[Scored]) -> pa.Table:
    """Every finite score of every model, as `schema.SCORES`; `stage` is the model's number."""
    tables = []
    for number, (_, pairs, scores) in enumerate(done, 1):
        score = scores.column("score").combine_chunks()
        finite = pa.array(np.isfinite(score.to_numpy()))
        digest = pairs.column("digest").combine_chunks().filter(finite)
        stage = pa.array(np.full(len(digest), number, np.int8))
        tables.append(pa.table([digest, score.filter(finite), stage], schema=schema.SCORES))
    return tables[0] if len(tables) == 1 else pa.concat_tables(tables).combine_chunks()


def costs(done: Sequence[Scored]) -> tuple[tuple[ModelCost, ...], bool]:
    """What each model cost, and whether any had to score otherwise than in the run's batches."""
    stored = [json.loads(one.scores.schema.metadata[b"cost"]) for one in done]
    found = tuple(
        ModelCost(
            pairs=one.scores.num_rows,
            windows=cost["windows"],
            tokens=cost["tokens"],
            padded_tokens=cost["padded_tokens"],
            seconds=cost["seconds"],
        )
        for one, cost in zip(done, stored)
    )
    return found, any(cost["degraded"] for cost in stored)


def seconds_before_scoring(envelope: Envelope) -> dict[str, float]:
    """Seconds of reading, and of tokenizing for all models."""
    assert envelope.rows is not None, "only shards with rows are scored"
    tokenized = [one.facts for one in envelope.scored]
    spent = [float(table.schema.metadata[b"seconds"]) for table in (envelope.rows, *tokenized)]
    return {"read": spent[0], "tokenize": sum(spent[1:])}
