"""The plan: shards of whole candidate lists, the same however the input is cut."""

import itertools
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rankmill import plan
from rankmill.config import ColumnNames, InputConfig
from rankmill.load import Load
from rankmill.source import open_source
from rankmill.tokens import PairRules

# Each example writes files below a folder of its own, so one test's folder serves all of them.
writes_files = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NUMBERS = itertools.count()
RULES = PairRules(512, "document")


@pytest.fixture
def write(tmp_path):
    """Write rows with these keys, cut into files and row groups; open them as one source."""

    def source(keys, files=1, group_rows=1000, has_query_id=True):
        folder = tmp_path / f"in{next(NUMBERS)}"
        folder.mkdir()
        count = len(keys)
        table = pa.table(
            {
                "query_id" if has_query_id else "ignored": pa.array(keys, pa.string()),
                "query": pa.array(keys, pa.string()) if not has_query_id else ["query"] * count,
                "doc_id": pa.array(range(count), pa.int64()),
                "document": pa.array(["a document of some words"] * count, pa.string()),
            }
        )
        cuts = np.linspace(0, count, files + 1).astype(int)
        for number, (start, stop) in enumerate(itertools.pairwise(cuts)):
            part = table.slice(start, stop - start)
            # Plain pages, whose size is that of the texts: work is estimated from it.
            path = folder / f"{number:03d}.parquet"
            pq.write_table(part, path, row_group_size=group_rows, use_dictionary=False)
        return open_source(InputConfig(path=str(folder), columns=ColumnNames()))

    return source


def make(source, pairs_a_shard=None, limit=None):
    """Plan; with max_length 1 every pair is one token, so that work can be counted in pairs."""
    operations = plan.SHARD_OPERATIONS / pairs_a_shard if pairs_a_shard else 1.0
    runs = [plan.find_runs(source, group) for group in source.row_groups]
    return plan.make_plan(source, runs, [Load(operations, PairRules(1, "document"))], limit)


def most_pairs(pairs_a_shard, total):
    """How many pairs fit into a shard: fewer in a small input, which is cut into more shards."""
    least = pairs_a_shard * plan.SHARD_OPERATIONS_LEAST / plan.SHARD_OPERATIONS
    return min(pairs_a_shard, max(total / plan.SMALL_PLAN, least))


def lists_of(keys):
    """The borders of candidate lists, by plain Python: null keys go with the list before them."""
    borders, last = [0], None
    for row, key in enumerate(keys):
        if key is not None and last is not None and key != last:
            borders.append(row)
        last = key if key is not None else last
    return [*borders, len(keys)] if keys else [0]


@st.composite
def grouped_keys(draw):
    """Keys of consecutive lists, some rows without one."""
    sizes = draw(st.lists(st.integers(1, 6), max_size=12))
    keys = [f"q{number}" for number, size in enumerate(sizes) for _ in range(size)]
    holes = draw(st.sets(st.integers(0, max(len(keys) - 1, 0)), max_size=len(keys) // 2))
    return [None if row in holes else key for row, key in enumerate(keys)]


CUTS = st.tuples(st.integers(1, 4), st.integers(1, 9))


# Properties


@writes_files
@given(keys=grouped_keys(), cut=CUTS, pairs=st.integers(1, 10))
def test_shards_cover_all_rows_once_in_order_and_cut_no_list(write, keys, cut, pairs):
    made = make(write(keys, *cut), pairs)
    borders = lists_of(keys)
    bounds = made.bounds.tolist()
    assert (bounds[0], bounds[-1]) == (0, len(keys))
    assert bounds == sorted(set(bounds)) or not keys
    assert set(bounds) <= set(borders)
    places = [borders.index(bound) for bound in bounds]
    assert made.queries.tolist() == np.diff(places).tolist()


@writes_files
@given(keys=grouped_keys(), cut=CUTS)
def test_lists_are_the_same_however_the_input_is_cut(write, keys, cut):
    made = make(write(keys, *cut), pairs_a_shard=1)
    if keys:
        assert made.bounds.tolist() == lists_of(keys)


@writes_files
@given(keys=grouped_keys(), cut=CUTS, pairs=st.integers(1, 10))
def test_no_shard_holds_more_than_its_share_unless_it_is_one_list(write, keys, cut, pairs):
    made = make(write(keys, *cut), pairs)
    most = most_pairs(pairs, len(keys))
    for size, queries in zip(np.diff(made.bounds), made.queries):
        assert size <= most + 1e-9 or queries == 1


@writes_files
@given(keys=grouped_keys(), cut=CUTS, pairs=st.integers(1, 10))
def test_a_shard_takes_as_many_lists_as_fit(write, keys, cut, pairs):
    made = make(write(keys, *cut), pairs)
    sizes = np.diff(lists_of(keys))
    most = most_pairs(pairs, len(keys))
    first = 0
    for size, queries in list(zip(np.diff(made.bounds), made.queries))[:-1]:
        assert size + sizes[first + queries] > most - 1e-9
        first += queries


def cut_one_by_one(work, borders):
    """The greedy rule as it is said, a shard at a time, on all lists at once."""
    shares = [
        np.interp(borders, work._rows, measure) / cap
        for measure, cap in (
            (work._operations, plan.SHARD_OPERATIONS_LEAST),
            (work._pairs, plan.SHARD_PAIRS),
            (work._bytes, plan.SHARD_BYTES),
        )
    ]
    taken = [0]
    while taken[-1] < len(borders) - 1:
        first = taken[-1]
        stop = min(int(np.searchsorted(s, s[first] + 1.0, side="right")) - 1 for s in shares)
        taken.append(max(stop, first + 1))
    return borders[taken].tolist()


@settings(max_examples=200, deadline=None)
@given(
    lists=st.lists(st.integers(1, 9), min_size=1, max_size=40),
    groups=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3)), min_size=1, max_size=5),
    window=st.integers(1, 12),
)
def test_shards_are_those_of_the_greedy_rule_however_many_lists_are_looked_at(
    lists, groups, window
):
    borders = np.cumsum([0, *lists])
    rows = np.diff(np.linspace(0, borders[-1], len(groups) + 1).astype(int))
    texts, others = np.array(groups, float).T * plan.SHARD_BYTES / 8
    weights = plan.Weights(rows, rows.astype(float), texts, others)
    work = plan.Work(weights, [Load(1.0, RULES)], len(lists), 1.0)
    with mock.patch.object(plan, "_LISTS_AT_ONCE", window):
        bounds, queries = work.cut(borders)
    assert bounds.tolist() == cut_one_by_one(work, borders)
    assert np.searchsorted(borders, bounds).tolist() == np.cumsum([0, *queries]).tolist()


def test_a_part_of_an_input_has_the_rows_of_its_row_groups(write):
    source = write([f"q{n // 5}" for n in range(30)], files=3, group_rows=4)
    chosen = [1, 5, 4]  # of the first file and the second
    part = source.part(chosen)
    for number, group in zip(chosen, part.row_groups, strict=True):
        whole = pa.concat_tables(source.batches(source.row_groups[number]))
        assert pa.concat_tables(part.batches(group)) == whole
    assert part.files == source.files[:2]


@writes_files
@given(keys=grouped_keys(), cut=CUTS, pairs=st.integers(1, 10))
def test_pieces_lead_to_exactly_the_rows_of_the_shard(write, keys, cut, pairs):
    source = write(keys, *cut)
    made = make(source, pairs)
    for number in range(len(made)):
        shard = made.shard(number)
        found = []
        for piece in made.pieces(shard):
            group = pa.concat_tables(source.batches(source.row_groups[piece.group], ["doc_id"]))
            found += group["doc_id"].to_pylist()[piece.first : piece.stop]
        assert found == list(range(shard.start, shard.stop))


def test_a_limit_leaves_the_rest_of_the_input_unread(write):
    source = write([f"q{n // 5}" for n in range(100)], files=2, group_rows=10)
    read = []

    def runs():
        for group in source.row_groups:
            read.append(group.index)
            yield plan.find_runs(source, group)

    made = plan.make_plan(source, runs(), [Load(1.0, PairRules(1, "document"))], limit=3)
    assert made.bounds[-1] == 15
    assert len(read) < len(source.row_groups) / 2


@writes_files
@given(keys=grouped_keys(), cut=CUTS, limit=st.integers(1, 15))
def test_a_limit_takes_the_first_lists(write, keys, cut, limit):
    made = make(write(keys, *cut), 3, limit)
    borders = lists_of(keys)
    assert made.bounds[-1] == borders[min(limit, len(borders) - 1)]
    assert made.queries.sum() == min(limit, len(borders) - 1)
    assert made.pairs == made.bounds[-1]


@writes_files
@given(keys=grouped_keys(), cut=CUTS, pairs=st.integers(1, 10))
def test_equal_input_gives_an_equal_plan(write, keys, cut, pairs):
    one, other = (make(write(keys, *cut), pairs) for _ in range(2))
    assert one.digest == other.digest
    assert one.bounds.tolist() == other.bounds.tolist()


# Cases


def test_zero_rows_are_one_empty_shard(write):
    source = write([])
    made = make(source)
    assert len(made) == 1
    assert made.shard(0) == plan.Shard(0, 0, 0, 0)
    assert made.pieces(made.shard(0)) == []
    assert (made.pairs, made.tokens) == (0, 0)


@pytest.mark.parametrize("group_rows", [1, 2, 5])
def test_rows_without_any_key_are_one_list(write, group_rows):
    assert make(write([None] * 5, group_rows=group_rows), 1).bounds.tolist() == [0, 5]


@pytest.mark.parametrize("group_rows", [1, 2, 3, 100])
def test_rows_without_a_key_go_with_the_list_before_them_or_the_first(write, group_rows):
    keys = [None, None, "a", None, "a", None, "b", "b", None]
    assert make(write(keys, group_rows=group_rows), 1).bounds.tolist() == [0, 6, 9]


@pytest.mark.parametrize(("files", "group_rows"), [(1, 100), (1, 2), (3, 1)])
def test_rows_of_a_query_that_lie_apart_are_named(write, files, group_rows):
    keys = ["a", "b", "b", "c", "a", "b", "a"]
    with pytest.raises(plan.ListsApart) as caught:
        make(write(keys, files, group_rows))
    assert "the query_id of row 0 comes again at row 4" in caught.value.message
    assert "Sort the input by query_id" in caught.value.remedy


def test_a_key_that_comes_again_after_nulls_does_not_lie_apart(write):
    assert make(write(["a", None, None, "a"], files=2), 1).bounds.tolist() == [0, 4]


def test_without_ids_the_query_text_is_the_key(write):
    source = write(["one", "one", "", "one", None, "two"], has_query_id=False)
    assert make(source, 1).bounds.tolist() == [0, 5, 6]
    with pytest.raises(plan.ListsApart, match="the query of row 0 comes again at row 2"):
        make(write(["one", "two", "one"], has_query_id=False))


def test_runs_are_found_across_the_batches_of_a_large_row_group(write):
    keys = [f"q{row // 50_000}" for row in range(150_000)]
    assert make(write(keys, group_rows=200_000), 1).bounds.tolist() == [0, 50_000, 100_000, 150_000]


def test_pairs_cap_a_shard_however_cheap_the_model(write):
    keys = [f"q{row // 1000}" for row in range(40_000)]
    made = make(write(keys, group_rows=10_000))
    assert np.diff(made.bounds).tolist() == [16_000, 16_000, 8_000]


def test_text_bytes_cap_a_shard_however_cheap_the_model(tmp_path):
    size = plan.SHARD_BYTES // 4
    table = pa.table(
        {
            "query_id": [str(row) for row in range(5)],
            "query": ["q"] * 5,
            "doc_id": range(5),
            "document": ["x" * size] * 5,
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False)
    made = make(open_source(InputConfig(path=str(tmp_path))))
    assert np.diff(made.bounds).tolist() == [3, 2]


def test_a_list_larger_than_every_cap_is_one_shard(write):
    keys = ["a", *["b"] * 30_000, "c"]
    assert make(write(keys, group_rows=7_000)).bounds.tolist() == [0, 1, 30_001, 30_002]


def test_a_small_input_is_cut_so_that_a_few_cores_have_work(write):
    made = make(write([str(row) for row in range(64)]), pairs_a_shard=16)
    assert np.diff(made.bounds).tolist() == [64 // plan.SMALL_PLAN] * plan.SMALL_PLAN


def test_a_shard_for_gpus_holds_a_hundred_times_as_much(write):
    source = write([f"q{n}" for n in range(800)])
    runs = [plan.find_runs(source, group) for group in source.row_groups]
    costly = plan.SHARD_OPERATIONS / 2
    rules = PairRules(1, "document")
    assert plan.make_plan(source, runs, [Load(costly, rules)]).queries.max() == 2
    made = plan.make_plan(source, runs, [Load(costly, rules)], times=plan.GPU_TIMES)
    assert made.queries.max() == 800 // plan.SMALL_PLAN > 2


def test_a_larger_model_makes_smaller_shards(write):
    source = write([str(row) for row in range(100)])
    runs = [plan.find_runs(source, group) for group in source.row_groups]
    light, heavy = (len(plan.make_plan(source, runs, [Load(ops, RULES)])) for ops in (1e8, 1e11))
    assert light < heavy


def windowed(max_length, stride, cap=None):
    return PairRules(max_length, "document", None, cap, overflow="windows", stride=stride)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (PairRules(4, "document"), lambda tokens: 4),
        (windowed(4, 0), lambda tokens: tokens),
        # From the second on, a window of four brings three new tokens, or two at least.
        (windowed(4, 1), lambda tokens: 4 + 4 * (tokens - 4) / 3),
        (windowed(4, 2), lambda tokens: 4 + 4 * (tokens - 4) / 2),
        (windowed(4, 3), lambda tokens: 4 + 4 * (tokens - 4) / 2),
        (windowed(4, 0, cap=5), lambda tokens: 5),
        (windowed(4, 0, cap=2), lambda tokens: 4),
        (windowed(64, 16), lambda tokens: tokens),
    ],
)
def test_work_counts_the_tokens_of_all_windows(write, rules, expected):
    source = write([str(row) for row in range(100)])
    runs = [plan.find_runs(source, group) for group in source.row_groups]
    tokens = plan.make_plan(source, runs, [Load(1.0, RULES)]).tokens / 100
    assert tokens > 6
    made = plan.make_plan(source, runs, [Load(1.0, rules)])
    assert made.tokens / 100 == pytest.approx(expected(tokens), abs=0.02)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (PairRules(512, "document"), lambda tokens: tokens + 60),
        (PairRules(63, "document"), lambda tokens: 63),
        # Every window begins with them: four of its 64 tokens are the texts', two of those shared.
        (windowed(64, 2), lambda tokens: 64 + 64 * (tokens - 4) / 2),
    ],
)
def test_work_counts_the_tokens_that_every_input_has(write, rules, expected):
    source = write([str(row) for row in range(100)])
    runs = [plan.find_runs(source, group) for group in source.row_groups]
    texts = plan.make_plan(source, runs, [Load(1.0, PairRules(512, "document"))]).tokens / 100
    assert texts > 6
    made = plan.make_plan(source, runs, [Load(1.0, rules, fixed_tokens=60)])
    assert made.tokens / 100 == pytest.approx(expected(texts), abs=0.5)


def test_the_digest_changes_when_a_border_does(write):
    keys = [f"q{row // 2}" for row in range(64)]
    plans = [
        make(write(keys), 1),
        make(write(keys), 4),
        make(write(keys), 1, limit=3),
        make(write(["q0", *keys[2:3] * 3, *keys[4:]]), 1),
    ]
    assert len({made.digest for made in plans}) == len(plans)


def test_a_nested_row_is_a_list_and_its_candidates_are_counted(tmp_path):
    candidates = [[{"doc_id": str(i), "document": "text " * 5} for i in range(20)]] * 96
    ids = [str(row) for row in range(96)]
    table = pa.table({"query_id": ids, "query": ["q"] * 96, "candidates": candidates})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3, use_dictionary=False)
    made = make(open_source(InputConfig(path=str(tmp_path))), pairs_a_shard=40)
    assert made.bounds.tolist() == list(range(0, 97, 2))
    assert made.pairs == 96 * 20
