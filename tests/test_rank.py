"""Order within each query, against a naive sort; the sigmoid, against float64."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankmill.rank import rank_rows, sigmoid

SCORE = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, math.nan, math.inf, -math.inf]), st.floats(width=32)
)
LISTS = st.lists(st.tuples(st.integers(0, 4), SCORE), max_size=30)
TOP_K = st.one_of(st.none(), st.integers(1, 5))
MIN_SCORE = st.one_of(st.none(), st.sampled_from([-1.0, 0.0, 1.0]))


def rank(rows, top_k=None, min_score=None):
    query = np.array([q for q, _ in rows], np.int32)
    score = np.array([s for _, s in rows], np.float32)
    return rank_rows(query, score, top_k, min_score)


def naive(rows, top_k=None, min_score=None):
    """The rows that stay and their ranks, as one would do it by hand."""
    kept = []
    for query in sorted({q for q, _ in rows}):
        members = [row for row, (q, _) in enumerate(rows) if q == query]
        scored = [row for row in members if not math.isnan(rows[row][1])]
        unscored = [row for row in members if math.isnan(rows[row][1])]
        scored.sort(key=lambda row: -rows[row][1])  # Python's sort keeps the order of ties
        for place, row in enumerate(scored + unscored, 1):
            low = min_score is not None and not rows[row][1] >= min_score
            if not low and (top_k is None or place <= top_k):
                kept.append((row, place))
    return kept


@given(LISTS, TOP_K, MIN_SCORE)
def test_rows_are_ranked_as_by_hand(rows, top_k, min_score):
    found = rank(rows, top_k, min_score)
    expected = naive(rows, top_k, min_score)
    assert list(zip(found.rows.tolist(), found.rank.tolist())) == expected
    assert found.below_cut == len(rows) - len(expected)


def test_ranks_are_32_bit_from_1():
    found = rank([(0, 1.0), (0, 2.0), (3, 0.0)])
    assert found.rank.dtype == np.int32
    assert found.rows.tolist() == [1, 0, 2]
    assert found.rank.tolist() == [1, 2, 1]


def test_ties_keep_their_input_order():
    assert rank([(0, 1.0), (0, 2.0), (0, 1.0), (0, -0.0), (0, 0.0)]).rows.tolist() == [
        1,
        0,
        2,
        3,
        4,
    ]


def test_rows_without_a_score_come_last_in_input_order():
    found = rank([(0, math.nan), (0, -math.inf), (0, math.nan), (0, -5.0)])
    assert found.rows.tolist() == [3, 1, 0, 2]


def test_rows_of_a_query_may_lie_apart():
    assert rank([(0, 1.0), (1, 5.0), (0, 2.0)]).rows.tolist() == [2, 0, 1]


def test_a_minimum_is_compared_in_the_precision_of_the_scores():
    assert rank([(0, 0.1)], min_score=0.1).rows.tolist() == [0]


def test_a_minimum_keeps_the_ranks_that_were_given_before_it():
    found = rank([(0, 3.0), (0, math.nan), (0, 1.0)], top_k=2, min_score=2.0)
    assert (found.rows.tolist(), found.rank.tolist(), found.below_cut) == ([0], [1], 2)


def test_no_rows_are_no_error():
    found = rank([])
    assert (len(found.rows), len(found.rank), found.below_cut) == (0, 0, 0)


# Sigmoid


def reference(score):
    return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))


@given(st.lists(st.floats(-200, 200, width=32), max_size=20))
def test_the_sigmoid_is_rounded_once_from_float64(scores):
    found = sigmoid(np.array(scores, np.float32))
    expected = np.array([reference(score) for score in scores], np.float64)
    assert found.dtype == np.float32
    np.testing.assert_array_max_ulp(found, expected.astype(np.float32), maxulp=1)


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (0.0, 0.5),
        (-0.0, 0.5),
        (math.inf, 1.0),
        (-math.inf, 0.0),
        (3e38, 1.0),
        (-3e38, 0.0),
        (-100.0, np.float32(3.7835059e-44)),
    ],
)
@pytest.mark.filterwarnings("error")
def test_the_sigmoid_of_extremes(score, expected):
    assert sigmoid(np.array([score], np.float32))[0] == expected


def test_the_sigmoid_of_nothing_is_nothing():
    assert np.isnan(sigmoid(np.array([math.nan], np.float32))[0])


@given(st.lists(st.floats(-90, 90, width=32), min_size=2, max_size=20))
def test_the_sigmoid_keeps_the_order_of_scores(scores):
    ordered = sigmoid(np.array(sorted(scores), np.float32))
    assert (np.diff(ordered) >= 0).all()
    assert ((ordered >= 0) & (ordered <= 1)).all()
