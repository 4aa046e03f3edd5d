"""How alike two scorings are: by scipy's tau, and by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from rankmill.agreement import kendall_tau, measure


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=30))
def test_tau_is_scipys_ties_included(pairs):
    first, second = np.array(pairs, float).T
    expected = kendalltau(first, second).statistic
    if np.isnan(expected):  # one of them is all ties
        expected = 1.0 if np.ptp(first) == np.ptp(second) == 0 else -1.0
    assert kendall_tau(first, second) == pytest.approx(expected)


def scores(*values):
    return np.array(values, np.float32)


def test_means_are_over_lists_and_differences_over_pairs():
    exact = scores(3, 2, 1, 1, 2, 7)
    found = scores(3, 2, 1, 2, 1, 7)
    got = measure(exact, found, np.array([0, 0, 0, 1, 1, 2], np.int32))
    assert (got.pairs, got.lists) == (6, 2)  # the last list is one pair, which has no order
    assert (got.kendall_tau, got.kendall_tau_lowest) == (0.0, -1.0)
    assert got.overlap_at_10 is None
    assert got.score_rms_difference == pytest.approx(np.sqrt(2 / 6))
    assert got.score_largest_difference == 1
    assert got.score_spread == pytest.approx(np.std(exact))


def test_without_lists_all_pairs_are_one():
    got = measure(scores(1, 2, 3), scores(1, 3, 2), np.arange(3, dtype=np.int32))
    assert got.lists == 0
    assert got.kendall_tau == pytest.approx(1 / 3)


def test_the_best_ten_are_compared_as_sets():
    exact = np.arange(20, 0, -1).astype(np.float32)
    found = exact.copy()
    found[:5] = 0  # half of the ten best fall behind
    assert measure(exact, found, np.zeros(20, np.int32)).overlap_at_10 == 0.5


def test_a_score_that_is_not_finite_is_no_agreement():
    got = measure(scores(1, 2, 3), scores(1, 2, np.nan), np.zeros(3, np.int32))
    assert got.kendall_tau == -1
    assert got.score_rms_difference == np.inf
