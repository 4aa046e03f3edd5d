"""A shard that ended its process or raised an error: its batches scored by a process of its own.

Batches are those of an undisturbed run, in the same order. One that fails is halved until the
inputs that do it stand alone; these get a reason instead of a score. So the outcome depends on the
batches and on the model, not on which attempt it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from rankmill.errors import ModelError
from rankmill.flight import Indices, ScoredBatch
from rankmill.models import Description
from rankmill.profile import Profile
from rankmill.scoring_process import Answer, ScoringProcess
from rankmill.tokens import Template, TokenBatch
from rankmill.watchdog import Allowance

# A shard that loses more inputs than both has something wrong with the model, not with a row.
FEW_INPUTS, FEW_OF_A_SHARD = 8, 0.05
# Processes that a shard may end. To find one input among 2,048 takes 12, and every one of them
# loads the model, or waits for `compute.batch_timeout`.
MOST_PROCESSES = 32


@dataclass(frozen=True)
class _Flight:
    chosen: Indices
    halved: bool = False
    alone: bool = False


class Isolation:
    """Scores the batches of one shard apart from this process.

    Use as a context; the process ends with it.
    """

    def __init__(
        self, description: Description, profile: Profile, template: Template, seconds: float
    ) -> None:
        self._description, self._profile, self._template = description, profile, template
        self._allowance = Allowance(seconds, profile.token_budget)
        self._process: ScoringProcess | None = None
        self._ended = 0

    def __enter__(self) -> Isolation:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_process()

    def run_batches(
        self, batches: Iterable[Indices], assemble: Callable[[Indices], TokenBatch]
    ) -> Iterator[ScoredBatch]:
        """Score every batch; as `flight.run_batches`, but of an input that cannot be scored.

        Raises `ModelError` when it is the model that fails: on an input without texts, on all
        inputs of the shard, or on more than a few of them.
        """
        waiting = deque(_Flight(chosen) for chosen in batches)
        inputs = sum(len(flight.chosen) for flight in waiting)
        broken = self._probe()
        flying: deque[tuple[_Flight, float]] = deque()
        scored = lost = 0
        while waiting or flying:
            while waiting and self._has_room(waiting[0], flying):
                flight = waiting.popleft()
                batch = assemble(flight.chosen)
                self._running().send(batch)
                flying.append((flight, self._allowance.of(batch)))
            flight, seconds = flying.popleft()
            answer = self._receive(seconds)
            if answer.scores is not None:
                scored += len(flight.chosen)
                yield ScoredBatch(flight.chosen, answer.scores, flight.halved)
                continue
            if answer.kind == "unfit":
                raise ModelError(answer.why, answer.remedy)
            beside = [other for other, _ in flying] if answer.kind == "died" else []
            if beside:
                flying.clear()
            if beside or (answer.kind == "memory" and not flight.alone and self._room() > 1):
                again = [_Flight(one.chosen, one.halved, True) for one in (flight, *beside)]
                waiting.extendleft(reversed(again))
            elif broken is not None and not scored:
                raise ModelError(f"The model fails even on an input without texts: {broken}.")
            elif len(flight.chosen) > 1:
                half = len(flight.chosen) // 2
                for part in (flight.chosen[half:], flight.chosen[:half]):
                    waiting.appendleft(_Flight(part, halved=True, alone=True))
            else:
                lost += 1
                all_of_several = lost == inputs and inputs > 1
                if all_of_several or lost > max(FEW_INPUTS, FEW_OF_A_SHARD * inputs):
                    raise ModelError(
                        f"The model fails on too many of the shard's {inputs} inputs to leave "
                        f"them out: on {lost} so far, last because {answer.why}."
                    )
                nothing = np.full(1, np.nan, np.float32)
                yield ScoredBatch(flight.chosen, nothing, True, answer.why)

    def _probe(self) -> str | None:
        """What the model does to an input without texts; None when it scores it."""
        batch = probe(self._template)
        self._running().send(batch)
        answer = self._receive(self._allowance.of(batch))
        return None if answer.scores is not None else answer.why

    def _has_room(self, following: _Flight, flying: deque[tuple[_Flight, float]]) -> bool:
        if flying and (following.alone or flying[0][0].alone):
            return False
        return len(flying) < self._room()

    def _room(self) -> int:
        return self._running().in_flight

    def _running(self) -> ScoringProcess:
        if self._process is None:
            if self._ended >= MOST_PROCESSES:
                raise ModelError(f"The shard ended {self._ended} processes that scored it.")
            self._process = ScoringProcess(self._description, self._profile, self._allowance)
        return self._process

    def _receive(self, seconds: float) -> Answer:
        answer = self._running().receive(seconds)
        # An error on a GPU can spoil all that the process does after it.
        if answer.kind == "died" or (answer.kind == "failed" and self._profile.device == "cuda"):
            self._ended += 1
            self._end_process()
            answer = Answer("died", why=answer.why)
        return answer

    def _end_process(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None


def probe(template: Template) -> TokenBatch:
    """The harmless input [1, length]: a pair of empty texts."""
    parts = (template.before, (), template.between, (), template.after)
    ids = [token for part in parts for token in part] or [template.pad_id]
    segments = None
    if template.has_segments:
        counts = [len(part) for part in parts] if template.special else [1, 0, 0, 0, 0]
        segments = np.repeat(np.array(template.segments, np.int64), counts)[None, :]
    return TokenBatch(np.array([ids], np.int64), segments, None)
