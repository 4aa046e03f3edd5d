"""Samples: seeded, whole lists on one side only, the same however the input is cut."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import make_pairs
from rankmill import sample
from rankmill.config import ColumnNames, InputConfig
from rankmill.errors import InputError
from rankmill.source import open_source


def drawn(path, seed=0, **settings):
    asked = InputConfig(path=str(path), **settings)
    return sample.draw(open_source(asked), asked, seed)


def pairs_of(found):
    sides = (found.calibration, found.held_out)
    return [list(zip(side.queries, side.documents, side.list.tolist())) for side in sides]


def test_no_list_is_on_both_sides_and_none_gives_too_much(write_pairs):
    found = drawn(write_pairs(make_pairs(120, 60)))
    sides = [{query for query, _, _ in side} for side in pairs_of(found)]
    assert not sides[0] & sides[1]
    assert [len(side) for side in sides] == [30, 40]
    for side, a_list, wanted in ((found.calibration, 10, 300), (found.held_out, 25, 1000)):
        assert np.bincount(side.list).tolist() == [a_list] * (wanted // a_list)


def test_held_out_pairs_are_the_heads_of_their_lists(write_pairs):
    found = drawn(write_pairs(make_pairs(120, 60))).held_out
    first = found.documents[:25]
    assert [text.split(" of ")[0] for text in first] == [f"shard {n}" for n in range(25)]


def test_the_same_seed_draws_the_same_however_the_table_is_cut(write_pairs, tmp_path):
    table = make_pairs(30, 12)
    whole = drawn(write_pairs(table))
    cut = drawn(write_pairs(table, "cut/a.parquet", row_group_size=7))
    assert pairs_of(cut) == pairs_of(whole)
    for number, start in enumerate(range(0, 360, 45)):
        write_pairs(table.slice(start, 45), f"files/{number}.parquet")
    assert pairs_of(drawn(tmp_path / "files")) == pairs_of(whole)
    assert pairs_of(drawn(tmp_path / "files", seed=1)) != pairs_of(whole)


def test_a_nested_table_is_a_sample_like_the_same_pairs(write_pairs, tmp_path):
    table = make_pairs(30, 12)
    rows = table.to_pylist()
    lists: dict[str, dict] = {}
    for row in rows:
        query = {name: row[name] for name in ("query_id", "query")}
        entry = lists.setdefault(row["query_id"], query | {"candidates": []})
        entry["candidates"].append({name: row[name] for name in ("doc_id", "document")})
    nested = write_pairs(pa.Table.from_pylist(list(lists.values())), "nested/a.parquet")
    assert pairs_of(drawn(nested)) == pairs_of(drawn(write_pairs(table)))


def test_lists_of_one_pair_do_as_well(write_pairs):
    found = drawn(write_pairs(make_pairs(150, 1)))
    assert (len(found.calibration), len(found.held_out)) == (100, 50)


def test_depth_limit_and_columns_are_those_of_a_run(write_pairs):
    table = make_pairs(60, 12)
    renamed = table.rename_columns(["query_id", "text", "doc_id", "body", "bm25_rank"])
    columns = ColumnNames(query="text", document=["body"])
    path = write_pairs(renamed)
    found = drawn(path, columns=columns, depth=4, limit=40)
    assert np.bincount(found.held_out.list).tolist() == [4] * 13
    asked = {f"what is shard {number}" for number in range(40)}
    assert set(found.calibration.queries) | set(found.held_out.queries) <= asked


def test_rows_for_quarantine_are_left_out(write_pairs):
    table = make_pairs(40, 12)
    place = table.schema.get_field_index("document")
    documents = [None if n % 3 else text for n, text in enumerate(table["document"].to_pylist())]
    found = drawn(write_pairs(table.set_column(place, "document", pa.array(documents))))
    assert None not in found.calibration.documents + found.held_out.documents
    assert np.bincount(found.held_out.list).tolist() == [4] * 13


@pytest.mark.parametrize(("queries", "candidates"), [(2, 100), (10, 2), (0, 0)])
def test_too_small_a_sample_says_what_is_needed(write_pairs, queries, candidates):
    path = write_pairs(make_pairs(queries, candidates) if queries else make_pairs(1, 1).slice(1))
    with pytest.raises(InputError, match=r"The sample has (too few pairs|no candidate lists)"):
        drawn(path)


def test_a_list_that_crosses_row_groups_is_whole(tmp_path: Path):
    table = make_pairs(40, 12)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=5)
    found = drawn(tmp_path / "a.parquet").held_out
    assert np.bincount(found.list).tolist() == [12] * 13
