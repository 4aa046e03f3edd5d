"""Rows of a shard: nested lists made flat, candidate lists found, bad rows given a reason."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankmill import rows
from rankmill.config import ColumnNames

COLUMNS = ColumnNames()
BAD_BYTES = b"ab\xff\xfe"


def table(query_id=None, query=None, document=None, **more):
    count = len(next(v for v in (query_id, query, document) if v is not None))
    values = {
        "query_id": ["q"] * count if query_id is None else query_id,
        "query": ["text"] * count if query is None else query,
        "document": [f"d{i}" for i in range(count)] if document is None else document,
    }
    return pa.table(values | more)


def check(found, columns=COLUMNS, has_query_id=True, limit=1000):
    return rows.check(found, columns, has_query_id, limit)


def raw_text(*values, data_type=None):
    """Strings whose bytes nobody has checked."""
    offsets = np.cumsum([0, *map(len, values)]).astype(np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(values))]
    text = pa.Array.from_buffers(pa.string(), len(values), buffers)
    if data_type is None:
        return text
    if pa.types.is_dictionary(data_type):
        indices = pa.array(range(len(values)), pa.int32())
        return pa.DictionaryArray.from_arrays(indices, text)
    return text.cast(data_type)


# Flattening

STRUCTS = pa.struct([("doc_id", pa.string()), ("document", pa.string())])
LISTS = [
    [{"doc_id": "1", "document": "x"}, {"doc_id": "2", "document": "y"}],
    None,
    [],
    [{"doc_id": "3", "document": None}, None],
]


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list])
@pytest.mark.parametrize("chunks", [1, 2])
def test_a_list_becomes_a_row_a_candidate(kind, chunks):
    nested = pa.table({"query": list("abcd"), "candidates": pa.array(LISTS, kind(STRUCTS))})
    nested = pa.concat_tables([nested.slice(i, 4 // chunks) for i in range(0, 4, 4 // chunks)])
    flat, parents = rows.flatten(nested, "candidates")
    assert flat.to_pydict() == {
        "query": ["a", "a", "d", "d"],
        "doc_id": ["1", "2", "3", None],
        "document": ["x", "y", None, None],
    }
    assert parents.tolist() == [0, 0, 3, 3]
    assert parents.dtype == np.int64


def test_a_list_of_fixed_size_becomes_a_row_a_candidate():
    lists = pa.array([LISTS[0], None, LISTS[3]], pa.list_(STRUCTS, 2))
    flat, parents = rows.flatten(pa.table({"n": [0, 1, 2], "candidates": lists}), "candidates")
    assert flat["doc_id"].to_pylist() == ["1", "2", "3", None]
    assert flat["n"].to_pylist() == parents.tolist() == [0, 0, 2, 2]


def test_what_lies_under_a_null_list_is_no_candidate():
    values = pa.array([{"doc_id": str(i)} for i in range(3)])
    lists = pa.ListArray.from_arrays(
        pa.array([0, 1, 2, 3], pa.int32()), values, mask=pa.array([False, True, False])
    )
    flat, parents = rows.flatten(pa.table({"candidates": lists}), "candidates")
    assert flat["doc_id"].to_pylist() == ["0", "2"]
    assert parents.tolist() == [0, 2]


def test_what_lies_under_a_null_struct_is_null():
    structs = pa.StructArray.from_arrays(
        [pa.array(["1", "hidden"])], names=["doc_id"], mask=pa.array([False, True])
    )
    lists = pa.ListArray.from_arrays(pa.array([0, 2], pa.int32()), structs)
    flat, _ = rows.flatten(pa.table({"candidates": lists}), "candidates")
    assert flat["doc_id"].to_pylist() == ["1", None]


@pytest.mark.parametrize("lists", [[], [None], [[], []]], ids=str)
def test_no_candidates_give_no_rows_but_the_columns(lists):
    nested = pa.table({"query": ["a"] * len(lists), "c": pa.array(lists, pa.list_(STRUCTS))})
    flat, parents = rows.flatten(nested, "c")
    assert (flat.num_rows, flat.column_names) == (0, ["query", "doc_id", "document"])
    assert len(parents) == 0


def test_columns_of_every_kind_are_repeated_unchanged():
    outer = {
        "dictionary": pa.array(["a", None]).dictionary_encode(),
        "list": pa.array([[1, None], None]),
        "struct": pa.array([{"a": [1]}, None]),
    }
    lists = pa.array([LISTS[0], LISTS[3]], pa.list_(STRUCTS))
    flat, _ = rows.flatten(pa.table(outer | {"c": lists}), "c")
    for name, values in outer.items():
        assert flat[name].type == values.type
        assert flat[name].to_pylist() == [values[i].as_py() for i in (0, 0, 1, 1)]


# Reasons


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (table(query_id=pa.array([None], pa.string())), rows.NO_QUERY_ID),
        (table(query_id=pa.array([None], pa.int64())), rows.NO_QUERY_ID),
        (table(query_id=pa.nulls(1)), rows.NO_QUERY_ID),
        (table(query_id=raw_text(BAD_BYTES)), rows.BAD_QUERY_ID),
        (table(query=pa.array([None], pa.string())), rows.NO_QUERY),
        (table(query=pa.nulls(1)), rows.NO_QUERY),
        (table(query=[""]), rows.NO_QUERY),
        (table(document=pa.array([None], pa.string())), rows.NO_DOCUMENT),
        (table(document=pa.nulls(1)), rows.NO_DOCUMENT),
        (table(document=[""]), rows.NO_DOCUMENT),
        (table(query=raw_text(BAD_BYTES)), rows.BAD_QUERY),
        (table(document=raw_text(BAD_BYTES)), rows.BAD_DOCUMENT),
        (table(query=["x" * 11]), rows.LONG_QUERY),
        (table(document=["あ" * 4]), rows.LONG_DOCUMENT),
    ],
)
def test_a_row_that_cannot_be_scored_says_why(found, reason):
    checked = check(found, limit=10)
    assert checked.reason.to_pylist() == [reason]
    assert checked.query_text.to_pylist() == checked.document_text.to_pylist() == [None]


def test_a_text_of_exactly_the_limit_is_scored():
    assert (
        check(table(query=["x" * 10], document=["あ" * 3 + "x"]), limit=10).reason[0].as_py()
        is None
    )


@pytest.mark.parametrize("blank", [" ", "\n\t", "\u3000", "\x00"])
def test_white_space_alone_is_scored(blank):
    checked = check(table(query=[blank], document=[blank]))
    assert checked.reason.null_count == 1
    assert checked.query_text.to_pylist() == checked.document_text.to_pylist() == [blank]


def test_the_first_of_several_reasons_is_given():
    found = table(query_id=pa.array([None], pa.string()), query=[""], document=[""])
    assert check(found).reason.to_pylist() == [rows.NO_QUERY_ID]
    assert check(table(query=[""], document=[""])).reason.to_pylist() == [rows.NO_QUERY]


@pytest.mark.parametrize(
    "data_type",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
    ids=str,
)
def test_invalid_bytes_leave_their_neighbours_alone(data_type):
    checked = check(table(document=raw_text(b"good", BAD_BYTES, "é".encode(), data_type=data_type)))
    assert checked.document_text.to_pylist() == ["good", None, "é"]
    assert checked.reason.to_pylist() == [None, rows.BAD_DOCUMENT, None]
    assert checked.document_text.type == pa.large_string()


def test_columns_may_come_in_chunks():
    found = pa.concat_tables([table(query_id=["a", "b"]), table(query_id=["b"])])
    assert check(found).query.tolist() == [0, 1, 1]


def test_no_rows_are_no_error():
    checked = check(table(query_id=["a"]).slice(0, 0))
    assert len(checked.query) == len(checked.reason) == len(checked.query_text) == 0
    assert checked.several_texts == 0


# Instructions


def test_instructions_come_as_they_are_and_may_be_missing():
    told = raw_text(b"judge", b"", BAD_BYTES, "é".encode())
    found = table(document=["a", "b", "c", ""], told=told)
    checked = check(found, ColumnNames(instruction="told"))
    assert checked.instruction_text.to_pylist() == ["judge", "", None, "é"]
    assert checked.reason.to_pylist() == [None, None, rows.BAD_INSTRUCTION, rows.NO_DOCUMENT]
    nothing = check(table(told=pa.nulls(2), document=["a", "b"]), ColumnNames(instruction="told"))
    assert nothing.instruction_text.to_pylist() == [None, None]
    assert nothing.reason.to_pylist() == [None, None]
    assert check(found).instruction_text is None


# Documents of several columns

TITLED = ColumnNames(document=["title", "document"])


@pytest.mark.parametrize(
    ("title", "text", "joined"),
    [
        ("T", "x", "T x"),
        (None, "x", "x"),
        ("T", None, "T"),
    ],
)
def test_parts_of_a_document_are_joined_with_a_space_and_nulls_left_out(title, text, joined):
    found = table(document=pa.array([text], pa.string()), title=pa.array([title], pa.string()))
    assert check(found, TITLED).document_text.to_pylist() == [joined]


@pytest.mark.parametrize(("title", "text"), [(None, None), ("", None), ("", "")])
def test_a_document_of_empty_parts_is_empty(title, text):
    found = table(document=pa.array([text], pa.string()), title=pa.array([title], pa.string()))
    assert check(found, TITLED).reason.to_pylist() == [rows.NO_DOCUMENT]


def test_a_document_without_any_part_leaves_its_neighbours_alone():
    parts = pa.array(["a", None, "c"])
    checked = check(table(document=parts, title=parts), TITLED)
    assert checked.document_text.to_pylist() == ["a a", None, "c c"]


def test_one_invalid_part_spoils_the_document():
    found = table(document=["x"], title=raw_text(BAD_BYTES))
    assert check(found, TITLED).reason.to_pylist() == [rows.BAD_DOCUMENT]


def test_the_size_limit_holds_for_the_joined_document():
    found = table(document=["x" * 6], title=["y" * 6])
    assert check(found, TITLED, limit=12).reason.to_pylist() == [rows.LONG_DOCUMENT]


# Candidate lists


def test_lists_are_numbered_in_input_order():
    checked = check(table(query_id=["z", "z", "a", "m"]))
    assert checked.query.tolist() == [0, 0, 1, 2]
    assert checked.position.tolist() == [0, 1, 0, 0]


def test_a_row_without_an_id_does_not_break_the_list_around_it():
    checked = check(table(query_id=["a", None, "a", "b"]))
    assert checked.query.tolist() == [0, -1, 0, 1]
    assert checked.position[[0, 2, 3]].tolist() == [0, 1, 0]


def test_a_bad_row_keeps_its_place_in_its_list():
    checked = check(table(document=["x", "", "y"]))
    assert checked.query.tolist() == [0, 0, 0]
    assert checked.position.tolist() == [0, 1, 2]


def test_without_ids_equal_texts_are_one_list():
    found = table(query=pa.array(["one", "", "one", None, "two", "one"]))
    assert check(found, has_query_id=False).query.tolist() == [0, -1, 0, -1, 1, 0]


def test_without_ids_an_invalid_text_belongs_to_no_list():
    checked = check(table(query=raw_text(b"a", BAD_BYTES, b"a")), has_query_id=False)
    assert checked.query.tolist() == [0, -1, 0]
    assert checked.reason.to_pylist() == [None, rows.BAD_QUERY, None]


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([7, 7, 8]),
        pa.array([7, 7, 8]).dictionary_encode(),
        pa.array(["x", "x", "y"], pa.string_view()),
        pa.array(["x", "x", "y"]).dictionary_encode(),
        pa.array(["", "", "y"]),
    ],
)
def test_ids_of_every_kind_make_lists(ids):
    checked = check(table(query_id=ids))
    assert checked.query.tolist() == [0, 0, 1]
    assert checked.query.dtype == np.int32


def test_each_row_has_its_own_query_text_and_lists_with_several_are_counted():
    checked = check(table(query_id=list("aabbc"), query=["x", "y", "x", "x", "z"]))
    assert checked.query_text.to_pylist() == ["x", "y", "x", "x", "z"]
    assert checked.several_texts == 1


def test_a_bad_query_is_not_another_text_of_its_list():
    assert check(table(query=["x", "", "x"])).several_texts == 0


TEXTS = st.one_of(st.none(), st.sampled_from(["", " ", "x", "long enough"]))


@given(st.lists(st.tuples(st.one_of(st.none(), st.sampled_from("abc")), TEXTS, TEXTS), max_size=12))
def test_every_row_is_either_scored_or_has_a_reason(drawn):
    ids, queries, documents = (pa.array([row[i] for row in drawn], pa.string()) for i in range(3))
    checked = check(pa.table({"query_id": ids, "query": queries, "document": documents}), limit=10)
    seen: dict[str, int] = {}
    places: dict[str | None, int] = {}
    for row, (key, query, document) in enumerate(drawn):
        good = bool(key and query and document) and len(query) <= 10 and len(document) <= 10
        assert (checked.reason[row].as_py() is None) == good
        assert checked.query_text[row].as_py() == (query if good else None)
        assert checked.document_text[row].as_py() == (document if good else None)
        assert checked.query[row] == (-1 if key is None else seen.setdefault(key, len(seen)))
        assert checked.position[row] == places.get(key, 0)
        places[key] = places.get(key, 0) + 1
