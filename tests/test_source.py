"""The input as it lies in storage: layouts, columns, types, partitions, encodings, broken files."""

import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankmill import listing
from rankmill.config import ColumnNames, InputConfig
from rankmill.errors import InputError
from rankmill.source import open_source

PAIRS = {
    "query_id": ["a", "a", "b"],
    "query": ["one", "one", "two"],
    "doc_id": ["1", "2", "3"],
    "document": ["x", "y", "z"],
}
CANDIDATES = [[{"doc_id": "1", "document": "x"}, {"doc_id": "2", "document": "y"}], None, []]
NESTED = {"query_id": [1, 2, 3], "query": ["one", "two", "three"], "candidates": CANDIDATES}


@pytest.fixture
def write(tmp_path):
    def to_parquet(values, name="in/a.parquet", **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        table = values if isinstance(values, pa.Table) else pa.table(values)
        pq.write_table(table, path, **options)
        return path

    return to_parquet


@pytest.fixture
def open_at(tmp_path):
    def source(name="in", **settings):
        columns = settings.pop("columns", {})
        return open_source(
            InputConfig(path=str(tmp_path / name), columns=ColumnNames(**columns), **settings)
        )

    return source


@pytest.fixture
def refusal(open_at):
    def of(**settings):
        with pytest.raises(InputError) as caught:
            open_at(**settings)
        return str(caught.value)

    return of


def read(source, columns=None, rows=4096):
    groups = [
        table for group in source.row_groups for table in source.batches(group, columns, rows)
    ]
    return pa.concat_tables(groups) if groups else None


# Layouts


def test_a_row_a_pair_is_found_by_itself(write, open_at):
    write(PAIRS)
    source = open_at()
    assert source.layout == "pairs"
    assert source.pair_schema == source.table_schema
    assert [group.pairs for group in source.row_groups] == [3]


def test_a_list_of_structs_named_candidates_is_nested(write, open_at):
    write(NESTED)
    source = open_at()
    assert source.layout == "nested"
    assert source.pair_schema.names == ["query_id", "query", "doc_id", "document"]
    assert source.table_schema.names == ["query_id", "query", "candidates"]


def test_pairs_of_a_nested_group_are_estimated_from_its_leaves(write, open_at):
    many = [[{"doc_id": str(i), "document": "text"} for i in range(50)]] * 3
    write(NESTED | {"candidates": many})
    (group,) = open_at().row_groups
    assert (group.rows, group.pairs) == (3, 150)


def test_the_candidates_column_can_have_another_name(write, open_at):
    write({"query_id": [1], "query": ["q"], "hits": CANDIDATES[:1]})
    assert open_at(columns={"candidates": "hits"}).layout == "nested"


def test_a_flat_table_may_have_a_plain_column_named_candidates(write, open_at):
    write(PAIRS | {"candidates": [3, 3, 1]})
    assert open_at().layout == "pairs"


def test_pairs_can_be_asked_for_where_candidates_are_there_too(write, open_at):
    write(PAIRS | {"candidates": CANDIDATES})
    assert open_at(layout="pairs").layout == "pairs"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (PAIRS, "needs the column candidates"),
        (PAIRS | {"candidates": [["x"], [], []]}, "must be a list of structs, found list<"),
        (NESTED | {"document": ["a", "b", "c"]}, "document stands both beside and inside"),
    ],
)
def test_an_input_that_is_not_nested_as_asked_is_refused(write, refusal, values, words):
    write(values)
    assert words in refusal(layout="nested")


# Columns


def test_columns_can_be_mapped_and_documents_put_together(write, open_at):
    write({"qid": [1], "text": ["q"], "pid": [2], "title": ["t"], "body": ["b"]})
    columns = {"query_id": "qid", "query": "text", "doc_id": "pid", "document": ["title", "body"]}
    source = open_at(columns=columns)
    assert source.query_key == "qid"
    assert source.columns.document_parts == ["title", "body"]


def test_without_a_query_id_the_query_is_the_key(write, open_at):
    write({k: v for k, v in PAIRS.items() if k != "query_id"})
    source = open_at()
    assert (source.has_query_id, source.query_key) == (False, "query")


def test_a_query_id_can_be_ignored(write, open_at):
    write(PAIRS)
    assert open_at(columns={"query_id": None}).query_key == "query"


@pytest.mark.parametrize(
    ("missing", "columns"),
    [
        ("query", {}),
        ("document", {}),
        ("doc_id", {}),
        ("query_id", {"query_id": "query_id"}),
    ],
)
def test_a_missing_column_is_named_with_the_file_and_the_setting(write, refusal, missing, columns):
    path = write({k: v for k, v in PAIRS.items() if k != missing})
    message = refusal(columns=columns)
    assert f"The column {missing} ({missing}) is missing in {path}." in message
    assert f"input.columns.{missing}" in message
    assert (f"input.columns.{missing}=null" in message) == missing.endswith("_id")
    assert ", ".join(k for k in PAIRS if k != missing) in message


def test_a_missing_part_of_the_document_is_named(write, refusal):
    write(PAIRS)
    assert "The column title (document) is missing" in refusal(
        columns={"document": ["title", "document"]}
    )


@pytest.mark.parametrize(
    ("column", "values", "found"),
    [
        ("query", [1, 1, 2], "int64"),
        ("document", [["x"], ["y"], ["z"]], "list<"),
        ("doc_id", [1.0, 2.0, 3.0], "double"),
        ("query_id", [b"a", b"a", b"b"], "binary"),
    ],
)
def test_a_column_of_the_wrong_type_is_named_with_what_was_found(
    write, refusal, column, values, found
):
    path = write(PAIRS | {column: values})
    message = refusal()
    assert f"The column {column} ({column}) must hold text" in message
    assert f"found {found}" in message
    assert str(path) in message


def test_a_column_of_nulls_is_no_wrong_type(write, open_at):
    write(PAIRS | {"document": pa.nulls(3)})
    assert open_at().table_schema.field("document").type == pa.null()


# Several files


def test_files_of_different_widths_and_columns_read_as_one_table(write, open_at):
    write(PAIRS | {"query_id": pa.array([1, 1, 2], pa.int8())}, "in/a.parquet")
    write(
        {"bm25": [0.5, 0.25, 0.125]}
        | PAIRS
        | {
            "query_id": pa.array([3, 3, 4], pa.int64()),
            "query": pa.array("xyz", pa.large_string()),
        },
        "in/b.parquet",
    )
    table = read(open_at())
    assert table.schema.names == [*PAIRS, "bm25"]
    assert table["query_id"].type == pa.int64()
    assert table["query_id"].to_pylist() == [1, 1, 2, 3, 3, 4]
    assert table["query"].to_pylist() == ["one", "one", "two", "x", "y", "z"]
    assert table["bm25"].to_pylist() == [None, None, None, 0.5, 0.25, 0.125]


def test_every_kind_of_text_reads_with_every_other(write, open_at):
    kinds = [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
    ]
    for number, kind in enumerate(kinds):
        write(PAIRS | {"document": pa.array(["é", None, "z"]).cast(kind)}, f"in/{number}.parquet")
    table = read(open_at())
    assert table["document"].type == pa.large_string()
    assert table["document"].to_pylist() == ["é", None, "z"] * len(kinds)


def test_files_that_do_not_go_together_are_both_named(write, refusal):
    one = write(PAIRS, "in/a.parquet")
    other = write(PAIRS | {"query_id": [1, 1, 2]}, "in/b.parquet")
    message = refusal()
    assert f"query_id is string in {one} but int64 in {other}" in message


@pytest.mark.parametrize("column", ["query_id", "query", "doc_id", "document"])
def test_a_needed_column_that_one_file_lacks_is_named_with_the_file(write, open_at, column):
    write(PAIRS, "in/a.parquet")
    write({k: v for k, v in PAIRS.items() if k != column}, "in/b.parquet")
    with pytest.raises(InputError, match=rf"column {column} is missing in .*b\.parquet"):
        open_at()


TOLD = {"instruction": "told"}


def test_a_column_of_instructions_must_be_there_and_hold_text(write, open_at, refusal):
    path = write(PAIRS)
    assert f"The column told (instruction) is missing in {path}." in refusal(columns=TOLD)
    write(PAIRS | {"told": [1, 2, 3]})
    assert "told (instruction) must hold text, found int64" in refusal(columns=TOLD)
    write(PAIRS | {"told": ["a", None, ""]})
    assert open_at(columns=TOLD).columns.instruction == "told"
    write(PAIRS, "in/other.parquet")
    with pytest.raises(InputError, match=r"column told is missing in .*other\.parquet"):
        open_at(columns=TOLD)


@pytest.mark.parametrize("place", ["query", "candidate"])
def test_instructions_of_a_nested_table_stand_beside_the_query_or_the_candidate(
    write, open_at, place
):
    if place == "query":
        write(NESTED | {"told": ["judge"] * len(NESTED["query"])})
    else:
        told = [[c | {"told": "judge"} for c in row or []] for row in NESTED["candidates"]]
        write(NESTED | {"candidates": told})
    assert "told" in open_at(columns=TOLD).pair_schema.names


# Hive partitions


def test_partitions_become_columns(write, open_at):
    write(PAIRS, "in/day=2026-11-21/hour=01/a.parquet")
    write(PAIRS, "in/day=2026-11-22/hour=__HIVE_DEFAULT_PARTITION__/a.parquet")
    table = read(open_at())
    assert table["day"].to_pylist() == ["2026-11-21"] * 3 + ["2026-11-22"] * 3
    assert table["hour"].to_pylist() == [1] * 3 + [None] * 3


def test_only_folders_below_the_given_path_are_partitions(write, tmp_path):
    write(PAIRS, "run=7/in/day=1/a.parquet")
    for path in ("run=7/in", "run=7/in/*/a.parquet"):
        found = open_source(InputConfig(path=str(tmp_path / path)))
        assert [name for name in found.table_schema.names if name not in PAIRS] == ["day"]


def test_a_partition_can_be_the_query_id(write, open_at):
    for value in ("a b", "c"):
        rest = {k: v for k, v in PAIRS.items() if k != "query_id"}
        write(rest, f"in/query_id={value.replace(' ', '%20')}/a.parquet")
    found = read(open_at(), ["query_id"])
    assert found["query_id"].to_pylist() == ["a b"] * 3 + ["c"] * 3


def test_a_stored_column_wins_over_a_partition_of_its_name(write, open_at):
    write(PAIRS, "in/doc_id=77/a.parquet")
    assert read(open_at())["doc_id"].to_pylist() == ["1", "2", "3"]


def test_partition_values_beyond_64_bits_are_text(write, open_at):
    write(PAIRS, f"in/key={2**64}/a.parquet")
    assert read(open_at())["key"].to_pylist() == [str(2**64)] * 3


# Encodings


@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "brotli", "lz4", "zstd"])
@pytest.mark.parametrize("page", ["1.0", "2.0"])
def test_every_codec_and_page_version_is_read(write, open_at, codec, page):
    write(PAIRS, compression=codec, data_page_version=page)
    assert read(open_at()).to_pydict() == PAIRS


@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize("store_schema", [True, False])
def test_dictionary_pages_and_files_of_other_writers_are_read(
    write, open_at, dictionary, store_schema
):
    write(PAIRS, use_dictionary=dictionary, store_schema=store_schema)
    assert read(open_at()).to_pydict() == PAIRS


RICH = pa.table(
    PAIRS
    | {
        "list": pa.array([[1, None], None, []], pa.list_(pa.int16())),
        "large": pa.array([["a"], [], None], pa.large_list(pa.string())),
        "fixed": pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2)),
        "struct": pa.array([{"a": 1, "b": {"c": "x"}}, None, {"a": None, "b": None}]),
        "map": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int8())),
        "time": pa.array([0, None, 1], pa.timestamp("us", "UTC")),
        "decimal": pa.array([1, 2, None]).cast(pa.decimal128(30, 2)),
        "category": pa.array(["a", None, "a"]).dictionary_encode(),
        "bytes": pa.array([b"\xff", None, b""], pa.binary()),
        "half": pa.array([1, None, 2], pa.float16()),
    }
)


@pytest.mark.parametrize("rows", [1, 2, 4096])
def test_batches_hold_what_read_table_reads(write, open_at, rows):
    many = pa.concat_tables([RICH] * 4)
    path = write(many, row_group_size=5)
    source = open_at()
    assert len(source.row_groups) == 3
    found = read(source, rows=rows)
    assert found.equals(pq.read_table(path).replace_schema_metadata(None))
    assert found.schema.types == RICH.schema.types


def test_rows_can_be_taken_from_columns_of_views(write, open_at):
    view = pa.array(["a", None, "b" * 40], pa.string_view())
    inner = pa.array([{"s": "x"}, None, {"s": "y" * 40}], pa.struct([("s", pa.string_view())]))
    write(PAIRS | {"document": view, "inner": inner})
    taken = read(open_at()).take([2, 0])
    assert taken["document"].to_pylist() == ["b" * 40, "a"]
    assert taken["inner"].to_pylist() == [{"s": "y" * 40}, {"s": "x"}]


def test_batches_are_no_longer_than_asked(write, open_at):
    write(pa.concat_tables([RICH] * 4), row_group_size=5)
    source = open_at()
    assert [t.num_rows for t in source.batches(source.row_groups[0], rows=2)] == [2, 2, 1]


def test_a_footer_is_read_once_for_all_row_groups_and_again_for_another_file(
    write, open_at, monkeypatch
):
    read_of = []

    def counted(file, access):
        read_of.append(file.version)
        return listing.read_footer(file, access)

    monkeypatch.setattr("rankmill.source.read_footer", counted)
    for documents in (["x", "y", "z"], ["x", "y", "longer"]):
        write(PAIRS | {"document": documents}, row_group_size=1)
        assert read(open_at())["document"].to_pylist() == documents
    assert len(read_of) == len(set(read_of)) == 2


def test_only_the_columns_asked_for_are_read_in_that_order(write, open_at):
    write(RICH)
    assert read(open_at(), ["struct", "query"]).column_names == ["struct", "query"]


def test_a_column_with_a_dot_in_its_name_is_read(write, open_at):
    write(PAIRS | {"query.lang": ["ja", "en", None]})
    assert read(open_at())["query.lang"].to_pylist() == ["ja", "en", None]


def test_a_source_travels_between_processes(write, open_at):
    write(RICH)
    source = pickle.loads(pickle.dumps(open_at()))
    assert source == open_at()
    assert read(source).equals(read(open_at()))


# Files that cannot be used


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"PAR1",
        lambda content: content[:-4] + b"ABCD",
        lambda content: content[: len(content) // 2],
        lambda content: b"query_id,query,doc_id,document\n" * 20,
    ],
    ids=["empty", "tiny", "wrong magic", "truncated", "csv"],
)
def test_a_file_that_is_not_parquet_is_named_before_anything_starts(write, refusal, damage):
    write(PAIRS, "in/a.parquet")
    path = write(PAIRS, "in/b.parquet")
    path.write_bytes(damage(path.read_bytes()))
    assert f"{path} is not a readable Parquet file" in refusal()


def test_a_corrupt_page_names_the_file_and_its_row_group(write, open_at):
    texts = [f"document {i} " * 20 for i in range(200)]
    values = {"query_id": ["q"] * 200, "query": ["q"] * 200, "doc_id": texts, "document": texts}
    path = write(values, row_group_size=100, compression="zstd")
    column = pq.read_metadata(path).row_group(1).column(3)
    start = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(path.read_bytes())
    end = start + column.total_compressed_size
    content[start + 40 : end] = b"\x00" * (end - start - 40)
    path.write_bytes(content)
    source = open_at()
    assert sum(table.num_rows for table in source.batches(source.row_groups[0])) == 100
    with pytest.raises(InputError, match=r"a\.parquet, row group 1, cannot be decoded"):
        list(source.batches(source.row_groups[1]))


def test_a_file_without_rows_has_a_schema_and_nothing_to_read(write, open_at):
    write(pa.table(PAIRS).slice(0, 0))
    source = open_at()
    assert source.pair_schema.names == list(PAIRS)
    assert sum(group.rows for group in source.row_groups) == 0
