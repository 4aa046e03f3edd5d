"""What a shard looked like, in numbers that add up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankmill.rank import rank_rows
from rankmill.summary import CORRELATION_BINS, MOVES, Histogram, Move, Summary, strongest, summarize

FLOATS = st.floats(-1e4, 1e4, width=32)


def summary_of(lists, shard=0, top_k=None, dropped=None):
    """The summary of lists of scores, in input order."""
    query = np.repeat(np.arange(len(lists), dtype=np.int32), [len(scores) for scores in lists])
    score = np.array([score for scores in lists for score in scores], np.float32)
    lengths = np.arange(1, len(score) + 1, dtype=np.int32)
    cut = np.zeros_like(lengths) if dropped is None else np.array(dropped, np.int32)
    written = rank_rows(query, score, top_k).rows
    return summarize(shard, query, score, written, lengths, cut)


# Histograms


@given(st.lists(FLOATS, min_size=1, max_size=200))
def test_a_histogram_counts_every_value_in_its_bin(values):
    found = Histogram.of(np.array(values, np.float32))
    expected, _ = np.histogram(values, found.edges)
    # numpy's last bin holds its right end as well; no value lies there.
    assert list(found.counts) == expected.tolist()
    assert found.total == len(values)
    assert len(found.counts) <= 48


@given(st.lists(st.lists(FLOATS, max_size=20), min_size=3, max_size=3))
def test_histograms_add_up_in_any_order(parts):
    a, b, c = (Histogram.of(np.array(part, np.float32)) for part in parts)
    assert (a + b) + c == a + (b + c) == (c + a) + b
    assert (a + b + c).total == sum(map(len, parts))


def test_an_outlier_widens_the_bins_and_loses_nothing():
    found = Histogram.of(np.array([0.1, 0.2, 60_000.0], np.float32))
    assert (found.total, found.counts[0]) == (3, 2)


# Shards


def test_moves_are_counted_by_place_in_the_input_and_by_rank():
    found = summary_of([[0.1, 0.9, 0.5]])  # first becomes third, second first, third second
    assert found.moves == ((0, 2, 1), (1, 0, 1), (2, 1, 1))
    assert (found.compared, found.first_kept) == (1, 0)


def test_queries_that_keep_their_first_document_are_counted():
    found = summary_of([[3, 2, 1], [1, 2], [5]])
    assert (found.compared, found.first_kept) == (2, 1), "a list of one has no order"


def test_the_first_ten_are_compared_in_longer_lists_alone():
    reverse = [float(place) for place in range(12)]
    found = summary_of([reverse, reverse[:10]])
    assert (found.top_places, found.top_kept) == (10, 8)


@pytest.mark.parametrize(("scores", "rho"), [([3, 2, 1], 1), ([1, 2, 3], -1), ([2, 3, 1], 0.5)])
def test_agreement_is_spearmans_correlation(scores, rho):
    found = summary_of([scores])
    expected, _ = np.histogram([rho], CORRELATION_BINS, (-1, 1))
    assert found.correlation == tuple(expected)


def test_scores_are_kept_apart_by_rank():
    found = summary_of([[float(place) for place in range(15)]])
    assert [scores.total for scores in found.scores] == [1, 9, 5]


def test_rows_without_a_score_have_no_part_in_it():
    found = summary_of([[1.0, 2.0, np.nan, np.nan]])
    assert sum(count for *_, count in found.moves) == 2
    assert found.losses[0][3:] == (1, 2)


def test_pairs_that_were_cut_are_counted_by_their_whole_length():
    found = summary_of([[1, 2, 3]], dropped=[0, 0, 2])
    assert (found.fitting.total, found.cut.total) == (2, 1)
    assert found.cut.edges[0] <= 3 <= found.cut.edges[-1]


def test_of_rows_below_the_cut_there_is_no_move_to_show():
    found = summary_of([[1, 2, 3, 4]], top_k=2)
    assert [move[3:] for move in found.gains] == [(4, 1), (3, 2)]
    assert found.losses == ()
    assert [move.row for move in found.gains] == [0, 1]


def test_every_query_has_its_turn_before_one_has_its_second():
    far, near = [1, 2, 3, 4, 5, 9], [1, 2]
    found = summary_of([far, near, near])
    assert [move.query for move in found.gains][:3] == [0, 1, 2]
    assert found.gains[0][3:] == (6, 1)


def test_the_ratio_of_places_makes_a_move_strong():
    moves = [Move(0, 0, 0, 100, 50), Move(0, 1, 1, 20, 1), Move(0, 2, 2, 40, 2)]
    assert [move.query for move in strongest(moves)] == [2, 1, 0], "equal ratios: the longer way"
    assert len(strongest(Move(0, query, 0, 2, 1) for query in range(50))) == MOVES


SCORES = st.lists(st.lists(FLOATS, min_size=1, max_size=14), min_size=1, max_size=6)


@given(SCORES, SCORES)
def test_the_summary_of_two_shards_is_their_sum(one, other):
    together, apart = summary_of(one + other), summary_of(one) + summary_of(other, shard=1)
    for name in ("moves", "correlation", "compared", "first_kept", "top_places", "top_kept"):
        assert getattr(together, name) == getattr(apart, name)
    assert [scores.total for scores in together.scores] == [scores.total for scores in apart.scores]
    assert sorted(move[3:] for move in together.gains) == sorted(move[3:] for move in apart.gains)


def test_no_rows_are_summed_up_too():
    assert summary_of([]) == Summary()
    assert Summary() + summary_of([[1, 2]]) == summary_of([[1, 2]])


# As text


@given(SCORES)
def test_a_summary_comes_back_from_its_text(lists):
    found = summary_of(lists)
    assert Summary.from_text(found.to_text()) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"scores": []}',
        '{"scores": "<script>"}',
        '{"moves": [[99, 0, 1]]}',
        '{"gains": [[0, 0, 0, 0, 1]]}',
        '{"correlation": [1]}',
    ],
)
def test_what_is_no_summary_tells_nothing(text):
    assert Summary.from_text(text) is None
