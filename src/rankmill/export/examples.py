"""Training examples: the formats, their columns and labels.

Columns stand in the order in which sentence-transformers' trainers take them (they go by order,
and by the names `score` and `scores` for the label), and there are no others:

    labeled-pair  query, document, score                      BinaryCrossEntropy, MSE
    labeled-list  query, documents, scores                    ListNet, Lambda, RankNet, ListMLE
    triplet       query, positive, negative                   MultipleNegativesRanking, Triplet
    n-tuple       query, positive, negative_1 … negative_n    MultipleNegativesRanking
                  and with `scores`: scores, positive first   MarginMSE
    trec          a run file: query Q0 document rank score tag
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rankmill.errors import InputError
from rankmill.export.mining import Mined, RankedRows
from rankmill.export.recipe import ExportConfig
from rankmill.qrels import Ints
from rankmill.rank import Float32, sigmoid

# Documents of a row group: a few megabytes of text, so that readers can stream.
_GROUP_DOCUMENTS = 8192


@dataclass(frozen=True)
class Examples:
    """Rows that make up examples. rows: int64, the first is example 0's first document; starts:
    int64 [examples + 1], where each example's documents begin."""

    rows: Ints
    starts: Ints

    def __len__(self) -> int:
        return len(self.starts) - 1


def arrange(rows: RankedRows, mined: Mined, label: Float32, config: ExportConfig) -> Examples:
    """Put the mined rows together as the format wants them, in the order of lists and ranks.

    In labeled lists documents stand by label, highest first, which ListMLE takes for their order.
    """
    used = np.flatnonzero(mined.positive | mined.negative)
    if config.format == "labeled-pair":
        return Examples(used, np.arange(len(used) + 1))
    if config.format == "labeled-list":
        ordered = used[np.lexsort((-label[used], rows.lists[used]))]
        _, sizes = np.unique(rows.lists[ordered], return_counts=True)
        return Examples(ordered, np.concatenate([[0], np.cumsum(sizes)]))
    chosen: list[Ints] = []
    _, begins = np.unique(rows.lists[used], return_index=True)
    for of_list in np.split(used, begins[1:]):
        positive = of_list[mined.positive[of_list]]
        negative = of_list[~mined.positive[of_list]]
        if config.format == "n-tuple":
            tuples = np.tile(negative, (len(positive), 1))
            chosen.append(np.column_stack([positive, tuples]))
        else:
            left, right = np.repeat(positive, len(negative)), np.tile(negative, len(positive))
            chosen.append(np.column_stack([left, right]))
    width = 1 + config.negatives_a_tuple if config.format == "n-tuple" else 2
    flat = np.concatenate([each.ravel() for each in chosen]) if len(used) else used
    return Examples(flat, np.arange(0, len(flat) + 1, width))


def labels(
    score: Float32, positive: npt.NDArray[np.bool_], grade: Ints | None, config: ExportConfig
) -> Float32:
    """float32 [rows]: what `score` and `scores` hold. score: float32 [rows], raw logits."""
    if config.chosen_label == "binary":
        return positive.astype(np.float32)
    if config.chosen_label == "relevance":
        assert grade is not None, "settings with this label have judgements"
        return grade.astype(np.float32)
    return sigmoid(score) if config.chosen_label == "sigmoid" else score


def columns(config: ExportConfig) -> pa.Schema:
    """The columns of a format, in order."""
    text = pa.large_string()
    scores = ("scores", pa.list_(pa.float32()))
    if config.format == "labeled-pair":
        return pa.schema([("query", text), ("document", text), ("score", pa.float32())])
    if config.format == "labeled-list":
        return pa.schema([("query", text), ("documents", pa.list_(text)), scores])
    if config.format == "triplet":
        return pa.schema([("query", text), ("positive", text), ("negative", text)])
    names = [f"negative_{number}" for number in range(1, 1 + config.negatives_a_tuple)]
    tuples = [(name, text) for name in ("query", "positive", *names)]
    return pa.schema([*tuples, scores] if config.scores else tuples)


def tables(
    examples: Examples, query: pa.Array, document: pa.Array, label: Float32, config: ExportConfig
) -> Iterator[pa.Table]:
    """The examples as tables of `columns`, each small enough to hold the texts of.

    query, document: large_string [rows]; label: float32 [rows].
    """
    widest = int(np.diff(examples.starts).max(initial=1))
    step = max(_GROUP_DOCUMENTS // widest, 1)
    for begin in range(0, len(examples), step):
        starts = examples.starts[begin : begin + step + 1]
        rows = examples.rows[starts[0] : starts[-1]]
        found = [query.take(pa.array(examples.rows[starts[:-1]]))]
        texts = document.take(pa.array(rows))
        offsets = pa.array(starts - starts[0], pa.int32())
        if config.format == "labeled-list":
            found.append(pa.ListArray.from_arrays(offsets, texts))
        else:
            width = int(starts[1] - starts[0])
            found += [texts.take(pa.array(np.arange(n, len(rows), width))) for n in range(width)]
        if config.format == "labeled-pair":
            found.append(pa.array(label[rows]))
        elif config.is_labeled:
            found.append(pa.ListArray.from_arrays(offsets, pa.array(label[rows])))
        yield pa.table(found, schema=columns(config))


def trec_lines(
    lists: Ints, query_id: pa.Array, doc_id: pa.Array, score: Float32, tag: str, where: str
) -> str:
    """A TREC run: a line a row, `query Q0 document rank score tag`.

    trec_eval sorts by score alone and breaks ties by document id, in float32. So equal scores,
    and missing ones (NaN), stand one float32 step below the row before: any reader finds the order
    of the ranking. lists: int64 [rows], ascending; rows are in rank order. where: for the error.

    Raises `InputError` for ids that are null or hold white space, which the format cannot express.
    """
    for name, ids in (("query", query_id), ("document", doc_id)):
        bad = pc.fill_null(pc.match_substring_regex(ids, r"^$|\s"), True)
        if wrong := pc.sum(bad).as_py():
            raise InputError(
                f"{wrong} {name} ids in {where} are empty or hold white space, which a TREC run "
                "cannot express.",
                "Give such rows other ids, or choose another format.",
            )
    first = np.searchsorted(lists, lists)
    rank = np.arange(len(lists)) - first + 1
    falling = _strictly_falling(score, first)
    found = zip(query_id.to_pylist(), doc_id.to_pylist(), rank.tolist(), falling, strict=True)
    return "".join(f"{q} Q0 {d} {place} {value:.9g} {tag}\n" for q, d, place, value in found)


def _strictly_falling(score: Float32, first: Ints) -> Float32:
    """Scores lowered as little as makes each lower than the one before in its list."""
    found = score.copy()
    for row in range(len(found)):
        if first[row] == row:
            found[row] = 0 if np.isnan(found[row]) else found[row]
        elif not found[row] < found[row - 1]:
            found[row] = np.nextafter(found[row - 1], np.float32(-np.inf))
    return found
