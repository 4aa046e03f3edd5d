"""Batches in flight: a model with threads of its own is given the next batches ahead of time.

Scores do not depend on how many are in flight: batches stay what they are, and each comes back
with its own scores.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rankmill.models import AsyncModel, Pending, ScorerModel
from rankmill.tokens import Float32, TokenBatch

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ScoredBatch:
    """Scores of a batch, float32 [batch]. halved: it is part of one that could not be scored whole.

    reason: why its one input has no score.
    """

    chosen: Indices
    scores: Float32
    halved: bool
    reason: str | None = None


@dataclass(frozen=True)
class _Flight:
    chosen: Indices
    halved: bool
    alone: bool
    pending: Pending


@dataclass(frozen=True)
class _WhenAsked:
    """What a model that knows no flights gives: computed when the result is taken."""

    model: ScorerModel
    batch: TokenBatch

    def result(self) -> Float32:
        return self.model.score(self.batch)


def run_batches(
    model: ScorerModel, batches: Iterable[Indices], assemble: Callable[[Indices], TokenBatch]
) -> Iterator[ScoredBatch]:
    """Score every batch, with as many in flight as the model has room for.

    A batch that does not fit in memory beside others is tried again alone, as are all that follow
    it; only one that does not fit alone is halved.

    Raises `MemoryError` for a single input that does not fit alone.
    """
    room = model.in_flight if isinstance(model, AsyncModel) else 1
    waiting = deque((chosen, False) for chosen in batches)
    flying: deque[_Flight] = deque()
    while waiting or flying:
        while waiting and len(flying) < room:
            chosen, halved = waiting.popleft()
            pending = start(model, assemble(chosen))
            flying.append(_Flight(chosen, halved, room == 1, pending))
        flight = flying.popleft()
        try:
            scores = flight.pending.result()
        except MemoryError:
            if flight.alone and len(flight.chosen) == 1:
                raise
            waiting.extendleft(_instead(flight))
            room = 1
            continue
        yield ScoredBatch(flight.chosen, scores, flight.halved)


def start(model: ScorerModel, batch: TokenBatch) -> Pending:
    """Begin with a batch; a model that knows no flights begins when the result is asked for."""
    return model.start(batch) if isinstance(model, AsyncModel) else _WhenAsked(model, batch)


def is_finite(scores: Float32) -> bool:
    """Whether all scores of a batch are."""
    return bool(np.isfinite(scores).all())


def _instead(flight: _Flight) -> list[tuple[Indices, bool]]:
    """What to try in place of a batch that did not fit, last first."""
    if not flight.alone:
        return [(flight.chosen, flight.halved)]
    half = len(flight.chosen) // 2
    return [(flight.chosen[half:], True), (flight.chosen[:half], True)]
