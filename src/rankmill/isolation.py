"""A shard that ended its process, raised an error or got a score that is not finite: its batches
scored by a process of its own.

Batches are those of an undisturbed run, in the same order. One that fails, or has a score that is
not finite, is halved until the inputs that do it stand alone; these get a reason instead of a
score. So the outcome depends on the batches and on the model, not on which attempt it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from rankmill.errors import ModelError
from rankmill.flight import Indices, ScoredBatch, is_finite
from rankmill.models import Description
from rankmill.profile import Profile
from rankmill.rows import BAD_SCORE
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

    reused: pairs of the shard that the model could score in an earlier run, and is not given now.
    Use as a context; the process ends with it.
    """

    def __init__(
        self,
        description: Description,
        profile: Profile,
        template: Template,
        seconds: float,
        reused: int = 0,
    ) -> None:
        self._description, self._profile, self._template = description, profile, template
        self._allowance = Allowance(seconds, profile.token_budget)
        self._process: ScoringProcess | None = None
        self._waiting: deque[_Flight] = deque()
        self._flying: deque[tuple[_Flight, float]] = deque()
        self._reused = reused
        self._ended = self._inputs = self._scored = self._lost = 0

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
        self._waiting.extend(_Flight(chosen) for chosen in batches)
        self._inputs = sum(len(flight.chosen) for flight in self._waiting)
        broken = self._probe()
        while self._waiting or self._flying:
            self._send_ahead(assemble)
            flight, seconds = self._flying.popleft()
            answer = _judged(self._receive(seconds))
            if answer.scores is not None:
                self._scored += len(flight.chosen)
                yield ScoredBatch(flight.chosen, answer.scores, flight.halved)
            elif answer.kind == "unfit":
                raise ModelError(answer.why, answer.remedy)
            elif again := self._to_try_again(flight, answer):
                self._waiting.extendleft(reversed(again))
            elif broken is not None and not self._scored:
                raise ModelError(f"The model fails even on an input without texts: {broken}.")
            elif len(flight.chosen) > 1:
                half = len(flight.chosen) // 2
                for part in (flight.chosen[half:], flight.chosen[:half]):
                    self._waiting.appendleft(_Flight(part, halved=True, alone=True))
            else:
                self._lose_one(answer.why)
                nothing = np.full(1, np.nan, np.float32)
                yield ScoredBatch(flight.chosen, nothing, True, answer.why)

    def _probe(self) -> str | None:
        """What the model does to an input without texts; None when it scores it."""
        batch = probe(self._template)
        self._running().send(batch)
        answer = self._receive(self._allowance.of(batch))
        return None if answer.scores is not None else answer.why

    def _send_ahead(self, assemble: Callable[[Indices], TokenBatch]) -> None:
        """Send as many of the waiting batches as the model takes."""
        while self._waiting and len(self._flying) < self._running().in_flight:
            if self._flying and (self._waiting[0].alone or self._flying[0][0].alone):
                return
            flight = self._waiting.popleft()
            batch = assemble(flight.chosen)
            self._running().send(batch)
            self._flying.append((flight, self._allowance.of(batch)))

    def _to_try_again(self, flight: _Flight, answer: Answer) -> list[_Flight]:
        """The batches to try alone, as they are, because another may be to blame, or nobody."""
        beside = []
        if answer.kind in ("died", "killed"):
            beside = [other for other, _ in self._flying]
            self._flying.clear()
        elif answer.kind == "memory" and self._running().in_flight > 1 and not flight.alone:
            return [_Flight(flight.chosen, flight.halved, alone=True)]
        # SIGKILL comes from outside, perhaps by chance.
        if beside or (answer.kind == "killed" and not flight.alone):
            return [_Flight(one.chosen, one.halved, alone=True) for one in (flight, *beside)]
        return []

    def _lose_one(self, why: str) -> None:
        self._lost += 1
        # What an earlier run could not score is all that is left of a shard that has not changed.
        all_of_several = self._lost == self._inputs and self._inputs > 1 and not self._reused
        few = max(FEW_INPUTS, FEW_OF_A_SHARD * (self._inputs + self._reused))
        if all_of_several or self._lost > few:
            raise ModelError(
                f"The model fails on too many of the shard's {self._inputs} inputs to leave them "
                f"out: on {self._lost} so far, last because {why}."
            )

    def _running(self) -> ScoringProcess:
        if self._process is None:
            if self._ended >= MOST_PROCESSES:
                raise ModelError(f"The shard ended {self._ended} processes that scored it.")
            self._process = ScoringProcess(self._description, self._profile, self._allowance)
        return self._process

    def _receive(self, seconds: float) -> Answer:
        answer = self._running().receive(seconds)
        # An error on a GPU can spoil all that the process does after it.
        if answer.kind == "failed" and self._profile.device == "cuda":
            answer = Answer("died", why=answer.why)
        if answer.kind in ("died", "killed"):
            self._ended += 1
            self._end_process()
        return answer

    def _end_process(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None


def _judged(answer: Answer) -> Answer:
    """The same, or what a batch with a score that is not finite amounts to."""
    if answer.scores is None or is_finite(answer.scores):
        return answer
    return Answer("not finite", why=BAD_SCORE)


def probe(template: Template) -> TokenBatch:
    """The harmless input [1, length]: a pair of empty texts."""
    parts = (template.before, (), template.between, (), template.after)
    ids = [token for part in parts for token in part] or [template.pad_id]
    segments = None
    if template.has_segments:
        counts = [len(part) for part in parts] if template.special else [1, 0, 0, 0, 0]
        segments = np.repeat(np.array(template.segments, np.int64), counts)[None, :]
    return TokenBatch(np.array([ids], np.int64), segments, None)
