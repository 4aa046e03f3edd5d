"""Schemas: which types are text and ids, which files go together, and what is written."""

import pyarrow as pa
import pytest

from rankmill import schema
from rankmill.errors import ConfigError, InputError

TEXT = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int32(), pa.string()),
    pa.dictionary(pa.int8(), pa.large_string()),
]


def unify(*types):
    fields = [(f"{i}.parquet", pa.schema([("x", t)])) for i, t in enumerate(types)]
    return schema.unify(fields).field("x").type


@pytest.mark.parametrize("data_type", TEXT, ids=str)
def test_text_is_text_and_can_be_an_id(data_type):
    assert schema.is_text(data_type)
    assert schema.is_id(data_type)


@pytest.mark.parametrize(
    "data_type", [pa.int8(), pa.uint64(), pa.dictionary(pa.int8(), pa.int64())]
)
def test_integers_can_be_ids_but_are_no_text(data_type):
    assert schema.is_id(data_type)
    assert not schema.is_text(data_type)


@pytest.mark.parametrize(
    "data_type", [pa.float64(), pa.binary(), pa.list_(pa.string()), pa.bool_()]
)
def test_other_types_are_neither(data_type):
    assert not schema.is_text(data_type)
    assert not schema.is_id(data_type)


# Unifying


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (pa.int32(), pa.int32(), pa.int32()),
        (pa.int8(), pa.int64(), pa.int64()),
        (pa.uint8(), pa.uint32(), pa.uint32()),
        (pa.int8(), pa.uint8(), pa.int64()),
        (pa.uint32(), pa.int32(), pa.int64()),
        (pa.string(), pa.large_string(), pa.large_string()),
        (pa.string(), pa.string_view(), pa.large_string()),
        (pa.string_view(), pa.string_view(), pa.large_string()),
        (pa.dictionary(pa.int32(), pa.string()), pa.string(), pa.large_string()),
        (pa.null(), pa.string(), pa.string()),
        (pa.null(), pa.null(), pa.null()),
        (pa.list_(pa.int8()), pa.list_(pa.int8()), pa.list_(pa.int8())),
    ],
    ids=str,
)
def test_types_that_go_together(one, other, expected):
    assert unify(one, other) == unify(other, one) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.string(), pa.int64()),
        (pa.uint64(), pa.int64()),
        (pa.float32(), pa.float64()),
        (pa.int64(), pa.float64()),
        (pa.list_(pa.string()), pa.string()),
        (pa.list_(pa.int8()), pa.list_(pa.int16())),
        (pa.timestamp("us"), pa.timestamp("ns")),
    ],
    ids=str,
)
def test_types_that_do_not_go_together_are_named_with_both_files(one, other):
    with pytest.raises(InputError) as caught:
        unify(one, other)
    assert caught.value.message == (f"The column x is {one} in 0.parquet but {other} in 1.parquet.")


@pytest.mark.parametrize(
    ("view", "plain"),
    [
        (pa.binary_view(), pa.large_binary()),
        (pa.list_(pa.string_view()), pa.list_(pa.large_string())),
        (pa.large_list(pa.string_view()), pa.large_list(pa.large_string())),
        (pa.list_(pa.string_view(), 2), pa.list_(pa.large_string(), 2)),
        (pa.map_(pa.string(), pa.string_view()), pa.map_(pa.string(), pa.large_string())),
        (
            pa.list_(pa.struct([("a", pa.int8()), ("b", pa.string_view())])),
            pa.list_(pa.struct([("a", pa.int8()), ("b", pa.large_string())])),
        ),
    ],
    ids=str,
)
def test_views_become_types_that_rows_can_be_taken_from(view, plain):
    assert unify(view) == plain


def test_three_files_promote_step_by_step():
    assert unify(pa.int8(), pa.int16(), pa.int32()) == pa.int32()


def test_the_first_file_gives_the_order_and_later_ones_add_nullable_columns():
    first = pa.schema([pa.field("b", pa.int8(), nullable=False), ("a", pa.string())])
    second = pa.schema([("c", pa.bool_()), ("a", pa.string()), ("b", pa.int8())])
    found = schema.unify([("1", first), ("2", second)])
    assert found.names == ["b", "a", "c"]
    assert all(field.nullable for field in found)


def test_metadata_is_dropped():
    one = pa.schema([pa.field("x", pa.int8(), metadata={"a": "b"})], metadata={"pandas": "{}"})
    found = schema.unify([("1", one)])
    assert found.metadata is None
    assert found.field("x").metadata is None


def test_a_column_named_twice_is_refused():
    with pytest.raises(InputError, match=r"1\.parquet has the column x more than once"):
        schema.unify([("1.parquet", pa.schema([("x", pa.int8()), ("x", pa.int8())]))])


# What is written

PAIRS = pa.schema([("query_id", pa.string()), ("document", pa.string()), ("bm25", pa.float64())])


def test_input_columns_come_first_then_the_results():
    found = schema.output_schema(PAIRS, None, "rerank_")
    assert found.names == [
        *PAIRS.names,
        "rerank_score",
        "rerank_sigmoid",
        "rerank_rank",
        "rerank_tokens_dropped",
    ]
    assert [found.field(i).type for i in range(3, 7)] == [
        pa.float32(),
        pa.float32(),
        pa.int32(),
        pa.int32(),
    ]


def test_wanted_columns_are_written_in_the_order_asked():
    found = schema.output_schema(PAIRS, ["bm25", "query_id"], "x_")
    assert found.names[:3] == ["bm25", "query_id", "x_score"]


def test_a_wanted_column_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(ConfigError, match=r"names nope[\s\S]*query_id, document, bm25"):
        schema.output_schema(PAIRS, ["bm25", "nope"], "rerank_")


@pytest.mark.parametrize("columns", [None, ["bm25"]])
def test_an_input_that_was_ranked_already_is_refused_with_the_way_out(columns):
    ranked = PAIRS.append(pa.field("rerank_rank", pa.int32()))
    with pytest.raises(InputError, match=r"rerank_rank[\s\S]*output\.column_prefix"):
        schema.output_schema(ranked, columns, "rerank_")
    assert "again_rank" in schema.output_schema(ranked, columns, "again_").names


@pytest.mark.parametrize(
    ("shard", "shards", "name"),
    [
        (0, 1, "part-00000.parquet"),
        (7, 100_000, "part-00007.parquet"),
        (7, 100_001, "part-000007.parquet"),
        (100_000, 100_001, "part-100000.parquet"),
    ],
)
def test_part_names_have_five_digits_or_as_many_as_the_plan_needs(shard, shards, name):
    assert schema.part_name(shard, shards) == name
