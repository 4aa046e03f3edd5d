"""Batches under a token budget."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankmill.batches import make_batches, pad_widths

LENGTHS = st.lists(st.integers(0, 512), max_size=60).map(lambda n: np.array(n, np.int32))
BUDGET = st.integers(1, 4096)


def batches(lengths, budget):
    return [batch.tolist() for batch in make_batches(np.array(lengths, np.int32), budget)]


@given(LENGTHS, BUDGET)
def test_every_pair_is_in_one_batch(lengths, budget):
    found = [pair for batch in make_batches(lengths, budget) for pair in batch]
    assert sorted(found) == list(range(len(lengths)))


@given(LENGTHS, BUDGET)
def test_a_padded_batch_is_within_the_budget_or_a_single_pair(lengths, budget):
    for batch in make_batches(lengths, budget):
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= budget


@given(LENGTHS, BUDGET)
def test_the_longest_pairs_come_first_and_equal_ones_in_input_order(lengths, budget):
    order = [pair for batch in make_batches(lengths, budget) for pair in batch]
    assert order == sorted(range(len(lengths)), key=lambda pair: (-lengths[pair], pair))


@given(LENGTHS, BUDGET)
def test_no_batch_could_take_the_next_pair(lengths, budget):
    found = list(make_batches(lengths, budget))
    for batch in found[:-1]:
        assert (len(batch) + 1) * max(lengths[batch[0]], 1) > budget


@given(LENGTHS, BUDGET)
def test_equal_lengths_give_equal_batches(lengths, budget):
    before = lengths.copy()
    assert batches(lengths, budget) == batches(lengths, budget)
    assert np.array_equal(lengths, before)


@pytest.mark.parametrize(
    ("lengths", "budget", "expected"),
    [
        ([], 10, []),
        ([5], 1, [[0]]),
        ([3, 9, 3, 3], 9, [[1], [0, 2, 3]]),
        ([4, 4, 4, 4, 4], 8, [[0, 1], [2, 3], [4]]),
        ([0, 0], 2, [[0, 1]]),
    ],
)
def test_examples(lengths, budget, expected):
    assert batches(lengths, budget) == expected


@given(LENGTHS, st.integers(1, 64), st.integers(512, 520))
def test_widths_are_multiples_that_hold_the_pair_and_that_the_model_has_positions_for(
    lengths, multiple, longest
):
    widths = pad_widths(lengths, multiple, longest)
    assert widths.dtype == np.int32
    assert (widths >= lengths).all()
    assert (widths < lengths + multiple).all()
    assert (widths <= longest).all()
    assert ((widths % multiple == 0) | (widths == longest)).all()


def test_without_a_multiple_widths_are_lengths():
    assert pad_widths(np.array([0, 7, 512], np.int32), 1, 512).tolist() == [0, 7, 512]
