"""JQaRA: Japanese quiz questions, 100 passages of Wikipedia each, some of which give the answer.

Layout, of hotchpotch/JQaRA on the hub (its dataset card; its loader, evaluator/evaluator/
load_data.py of github.com/hotchpotch/JQaRA): `data/{test,dev,unused}-*.parquet` with a row a
passage and the columns `q_id, question, passage_row_id, label (0 or 1), title, text`. The
evaluator beside it scores `title + " " + text` and reports nDCG@10 and MRR@10 of `test`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rankmill import storage
from rankmill.errors import InputError
from rankmill.recipes.files import find, text_of
from rankmill.recipes.table import Candidate, CandidateList, without_order

_COLUMNS = ["q_id", "question", "passage_row_id", "label", "title", "text"]


def read(source: str, split: str) -> Iterator[CandidateList]:
    """The split's lists, in no order. Its rows (240 MB for all splits) are read at once.

    source: the folder that holds `data`, that folder, or a file. Raises `InputError`.
    """
    pattern = f"{split}-*.parquet"
    files = find(source, f"data/{pattern}", pattern)
    table = storage.read_table(files, _COLUMNS)
    if table.column("q_id").null_count:
        raise InputError(f"The column q_id in {files[0]} holds null.")
    ids = pc.dictionary_encode(table.column("q_id")).combine_chunks()
    ids = ids if isinstance(ids, pa.Array) else pa.concat_arrays(ids.chunks)
    numbers = np.asarray(ids.indices)
    # Whatever the order of the file: a query's rows must stand together.
    order = np.argsort(numbers, kind="stable")
    bounds = np.searchsorted(numbers[order], np.arange(len(ids.dictionary) + 1))
    for query_id, start, stop in zip(ids.dictionary.to_pylist(), bounds, bounds[1:]):
        rows = table.take(pa.array(order[start:stop])).to_pylist()
        where = f"{files[0]}, question {query_id},"
        yield CandidateList(
            str(query_id),
            text_of(rows[0], "question", where),
            without_order(
                str(query_id),
                [
                    Candidate(
                        str(row["passage_row_id"]),
                        text_of(row, "title", where) or None,
                        text_of(row, "text", where),
                    )
                    for row in rows
                ],
            ),
            {str(row["passage_row_id"]): int(row["label"]) for row in rows},
        )
