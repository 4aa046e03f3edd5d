"""A worker's attempts at shards: in its own process, and with care where one has failed.

The first attempt at a shard runs in the worker. If that ended the process (a crash, or the
watchdog after a hang), raised an error or gave a score that is not finite, the next one runs in
isolation.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from rankmill import flight, profile, stages
from rankmill.attempts import Attempts
from rankmill.envelope import Envelope
from rankmill.errors import ConfigError, ModelError, RankmillError, is_interrupt, kind_and_place
from rankmill.flight import Indices, ScoredBatch
from rankmill.isolation import Isolation
from rankmill.known_scores import KnownScores
from rankmill.models import ScorerModel, Tokenizer
from rankmill.rows import BAD_SCORE
from rankmill.scorer import BatchRunner
from rankmill.stages import StageSettings
from rankmill.store import Store
from rankmill.tokens import TokenBatch
from rankmill.watchdog import LOAD_SECONDS, Allowance, watched, within

log = logging.getLogger("rankmill")

# A shard has a minute's work for the model, which takes far longer than its tokens.
_TOKENIZE_SECONDS = 1800.0


@dataclass(frozen=True)
class Bounds:
    """What a fault may cost. store: where attempts are noted; batch_seconds: see `Allowance`.

    run: the fingerprint that messages name.
    """

    store: Store
    batch_seconds: float
    run: str = ""


def tokenize(
    envelope: Envelope,
    settings: StageSettings,
    tokenizer: Tokenizer,
    bounds: Bounds,
    known: KnownScores | None = None,
) -> Envelope:
    """`stages.tokenize` in a bounded number of attempts, each of which ends.

    Raises `RunFailed` when that many processes died.
    """
    attempts = Attempts(bounds.store, "tokenizing", settings.number)
    with attempts.attempt(envelope.shard), within(_TOKENIZE_SECONDS):
        return stages.tokenize(envelope, settings, tokenizer, known)


class _NotFinite(Exception):
    """A batch of the first attempt has a score that is not finite."""


class ScoringWorker:
    """Holds the model, from the first shard on.

    unusable: why there is no model, once that was found; no other shard need be tried.

    Raises `ConfigError` on a node that would compute other bits than the run's.
    """

    def __init__(self, settings: StageSettings, bounds: Bounds) -> None:
        found = profile.probe(settings.profile.device).instructions
        if found != settings.profile.instructions:
            raise ConfigError(
                f"This node computes with {found}, the run with {settings.profile.instructions}; "
                "their scores differ in the last bits.",
                "Run on nodes of one kind.",
            )
        self._settings, self._seconds = settings, bounds.batch_seconds
        self._attempts = Attempts(bounds.store, "scoring", settings.number)
        self._model: ScorerModel | None = None
        self.unusable: ModelError | None = None

    def score(self, envelope: Envelope) -> Envelope:
        """Score a shard.

        Raises `ModelError` when there is no model or it fails on more than a few inputs, and
        `RunFailed` when the shard has ended too many processes.
        """
        with self._attempts.attempt(envelope.shard) as number:
            if number == 1:
                scored = self._score_here(envelope)
                if scored is not None:
                    return scored
            else:
                _warn(envelope.shard, "an earlier attempt ended its process")
            self._forget_model()
            settings = self._settings
            with Isolation(
                settings.description,
                settings.profile,
                settings.template,
                self._seconds,
                stages.count_reused(envelope),
            ) as apart:
                return self._score(envelope, apart.run_batches)

    def _score_here(self, envelope: Envelope) -> Envelope | None:
        """Score in this process; None when that raised an error or a score is not finite."""
        try:
            return self._score(envelope, self._run_here)
        except RankmillError:
            raise
        except _NotFinite:
            _warn(envelope.shard, BAD_SCORE)
        except BaseException as error:  # panics of libraries are no Exception
            if is_interrupt(error):
                raise
            _warn(envelope.shard, kind_and_place(error))
            if self._settings.profile.device == "cuda" and not isinstance(error, MemoryError):
                # It can spoil all that this process does on the GPU from now on.
                os._exit(1)
        return None

    def _run_here(
        self, batches: Iterable[Indices], assemble: Callable[[Indices], TokenBatch]
    ) -> Iterator[ScoredBatch]:
        for done in flight.run_batches(self._loaded(), batches, assemble):
            if not flight.is_finite(done.scores):
                raise _NotFinite
            yield done

    def _score(self, envelope: Envelope, run: BatchRunner) -> Envelope:
        settings = self._settings
        return stages.score_by(run, envelope, settings.rules, settings.template, settings.profile)

    def _loaded(self) -> ScorerModel:
        if self._model is None:
            found = self._settings.profile
            try:
                with within(LOAD_SECONDS):
                    model = self._settings.description.load(found)
            except ModelError as error:
                self.unusable = error
                raise
            self._model = watched(model, Allowance(self._seconds, found.token_budget))
        return self._model

    def _forget_model(self) -> None:
        """Make room for another process's."""
        self._model = None
        profile.free_memory(self._settings.profile.device)


def _warn(shard: int, why: str) -> None:
    log.warning("Shard %d is scored apart: %s", shard, why, extra={"shard": shard})
