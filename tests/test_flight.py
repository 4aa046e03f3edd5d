"""Batches in flight: none lost, none changed, and memory that is short."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankmill.flight import ScoredBatch, run_batches
from rankmill.tokens import TokenBatch


class Machine:
    """Scores a row by its number, several batches at once, in so much memory (rows)."""

    def __init__(self, in_flight: int, memory: int) -> None:
        self.in_flight, self.memory = in_flight, memory
        self.held: list[int] = []
        self.most = 0

    def start(self, batch: TokenBatch) -> Started:
        self.held.append(len(batch.input_ids))
        self.most = max(self.most, len(self.held))
        return Started(self, batch, fits=sum(self.held) <= self.memory)

    def score(self, batch: TokenBatch) -> np.ndarray:
        return self.start(batch).result()


class Started:
    def __init__(self, machine: Machine, batch: TokenBatch, fits: bool) -> None:
        self.machine, self.batch, self.fits = machine, batch, fits

    def result(self) -> np.ndarray:
        self.machine.held.remove(len(self.batch.input_ids))
        if not self.fits:
            raise MemoryError
        return self.batch.input_ids[:, 0].astype(np.float32)


def run(machine: Machine, sizes: list[int]) -> list[ScoredBatch]:
    stops = np.cumsum(sizes)
    batches = [np.arange(stop - size, stop) for size, stop in zip(sizes, stops)]
    return list(run_batches(machine, batches, lambda rows: TokenBatch(rows[:, None], None, None)))


@given(
    sizes=st.lists(st.integers(1, 9), max_size=12),
    in_flight=st.integers(1, 5),
    memory=st.integers(1, 40),
)
def test_every_input_comes_back_once_with_its_own_score(sizes, in_flight, memory):
    machine = Machine(in_flight, memory)
    done = run(machine, sizes)
    rows = np.concatenate([one.chosen for one in done]) if done else np.empty(0, np.int64)
    scores = np.concatenate([one.scores for one in done]) if done else np.empty(0, np.float32)
    assert sorted(rows) == list(range(sum(sizes)))
    np.testing.assert_array_equal(scores, rows)
    assert machine.most <= in_flight
    assert machine.held == []


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12), in_flight=st.integers(1, 5))
def test_batches_that_fit_alone_stay_whole(sizes, in_flight):
    done = run(Machine(in_flight, memory=max(sizes)), sizes)
    assert sorted(len(one.chosen) for one in done) == sorted(sizes)
    assert not any(one.halved for one in done)


def test_there_are_as_many_in_flight_as_the_model_takes():
    machine = Machine(in_flight=3, memory=100)
    run(machine, [5] * 6)
    assert machine.most == 3


def test_once_memory_was_short_batches_go_alone():
    machine = Machine(in_flight=3, memory=9)
    done = run(machine, [5] * 6)
    machine.most = 0
    assert [one.halved for one in done] == [False] * 6


def test_a_batch_that_does_not_fit_alone_is_halved_and_says_so():
    done = run(Machine(in_flight=2, memory=3), [2, 8, 2])
    by_size = [(len(one.chosen), one.halved) for one in done]
    assert sorted(by_size) == [(2, False), (2, False), (2, True), (2, True), (2, True), (2, True)]


def test_a_single_input_that_does_not_fit_is_a_memory_error():
    with pytest.raises(MemoryError):
        run(Machine(in_flight=2, memory=0), [3])
