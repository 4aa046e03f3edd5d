"""Ends the process that takes too long: whatever it hangs in, its own code cannot be relied on.

The interpreter's own watchdog (`faulthandler`) needs neither the main thread nor the GIL. It
leaves the places of all threads on stderr, and no values.
"""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rankmill.models import AsyncModel, Pending, ScorerModel
from rankmill.tokens import Float32, TokenBatch

_STDERR = 2
# Reading a large model over a slow network; more is a hang.
LOAD_SECONDS = 1800.0


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """End the process, with exit code 1, unless the block is left in time. Costs 0.04 ms."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=_STDERR)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@dataclass(frozen=True)
class Allowance:
    """Seconds that a batch may take. One input beyond the token budget gets as much more."""

    seconds: float
    token_budget: int

    def of(self, batch: TokenBatch) -> float:
        """Seconds for one batch."""
        return self.seconds * max(batch.input_ids.size / self.token_budget, 1)


def watched(model: ScorerModel, allowance: Allowance) -> ScorerModel:
    """The same model; a batch that takes longer than it may ends the process."""
    if isinstance(model, AsyncModel):
        return _WatchedAsync(model, allowance)
    return _Watched(model, allowance)


@dataclass(frozen=True)
class _Watched:
    model: ScorerModel
    allowance: Allowance

    def score(self, batch: TokenBatch) -> Float32:
        with within(self.allowance.of(batch)):
            return self.model.score(batch)


class _WatchedAsync:
    def __init__(self, model: AsyncModel, allowance: Allowance) -> None:
        self._model, self._allowance = model, allowance
        self.in_flight = model.in_flight

    def score(self, batch: TokenBatch) -> Float32:
        return self.start(batch).result()

    def start(self, batch: TokenBatch) -> Pending:
        seconds = self._allowance.of(batch)
        with within(seconds):
            return _WatchedPending(self._model.start(batch), seconds)


@dataclass(frozen=True)
class _WatchedPending:
    pending: Pending
    seconds: float

    def result(self) -> Float32:
        with within(self.seconds):
            return self.pending.result()
