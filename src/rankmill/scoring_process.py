"""A process of its own that holds the model and scores batches, and may die of one.

Its parent sends token ids and receives scores; texts never reach it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Literal

from rankmill.errors import ModelError, RankmillError, is_interrupt, kind_and_place
from rankmill.flight import start
from rankmill.models import AsyncModel, Description, Pending
from rankmill.profile import Profile
from rankmill.tokens import Float32, TokenBatch
from rankmill.watchdog import LOAD_SECONDS, Allowance, watched, within

_SERVE = "from rankmill.scoring_process import serve; serve()"
_STDERR = 2
_LOOK_SECONDS = 1.0
_END_SECONDS = 5.0

NO_MEMORY = "it does not fit in memory alone"


@dataclass(frozen=True)
class Answer:
    """What became of a batch. scores: float32 [batch], or None, and `why` says why not.

    kind: `memory` did not fit; `failed` raised an error; `unfit` raised one of rankmill's own,
    which is no batch's fault; `died` took the process along; `killed` as well, but by SIGKILL;
    `not finite` has such a score among its own.
    """

    kind: Literal["scored", "memory", "failed", "unfit", "died", "killed", "not finite"]
    scores: Float32 | None = None
    why: str = ""
    remedy: str | None = None

    @classmethod
    def to(cls, error: BaseException) -> Answer:
        """The answer that an error makes."""
        if isinstance(error, MemoryError):
            return cls("memory", why=NO_MEMORY)
        if isinstance(error, RankmillError):
            return cls("unfit", why=error.message, remedy=error.remedy)
        return cls("failed", why=f"the model failed on it: {kind_and_place(error)}")


class ScoringProcess:
    """The parent's side. in_flight: how many batches may be sent ahead of their answers.

    Raises `ModelError` when the process cannot load the model.
    """

    def __init__(self, description: Description, profile: Profile, allowance: Allowance) -> None:
        self._channel, theirs = Pipe()
        # Modules of the user's own are found where this process finds them.
        path = os.pathsep.join(filter(None, sys.path))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _SERVE, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=_STDERR,
        )
        theirs.close()
        self._send((description, profile, allowance))
        loaded = self._receive(LOAD_SECONDS)
        if isinstance(loaded, Answer):
            self.close()
            if loaded.kind == "unfit":
                raise ModelError(loaded.why, loaded.remedy)
            raise ModelError(f"The model cannot be loaded into a process of its own: {loaded.why}.")
        self.in_flight: int = loaded

    def send(self, batch: TokenBatch) -> None:
        """Give it a batch to score."""
        self._send(batch)

    def receive(self, seconds: float) -> Answer:
        """The answer to the oldest batch without one, which may take so long from now."""
        answer: Answer = self._receive(seconds)
        return answer

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._channel.close()
        self._process.kill()
        self._process.wait()

    def _send(self, message: object) -> None:
        try:
            self._channel.send(message)
        except OSError:  # it died; the answer will say of what
            return

    def _receive(self, seconds: float) -> Any:  # noqa: ANN401 - an Answer, or what loading gave
        until = time.monotonic() + seconds
        try:
            while not self._channel.poll(min(_LOOK_SECONDS, max(until - time.monotonic(), 0))):
                if self._process.poll() is not None and not self._channel.poll():
                    break
                if time.monotonic() >= until:
                    self._process.kill()
                    self._process.wait()
                    return Answer("died", why=f"the model did not finish it in {seconds:g} s")
            else:
                return self._channel.recv()
        except (EOFError, OSError):
            pass
        return self._ended()

    def _ended(self) -> Answer:
        """How the process ended, which it is about to if it has not."""
        try:
            code = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return Answer("died", why="the model's process went silent on it")
        names = {one.value: one.name for one in signal.Signals}
        how = f"exit code {code}" if code >= 0 else names.get(-code, f"signal {-code}")
        kind: Literal["died", "killed"] = "killed" if code == -signal.SIGKILL else "died"
        return Answer(kind, why=f"the model's process died of it ({how})")


def serve() -> None:
    """The child's side: load the model that comes first, then answer batches in their order."""
    channel = Connection(int(sys.argv[1]))
    try:
        description, profile, allowance = channel.recv()
        # The parent watches; this is for a child whose parent is gone.
        alone = Allowance(2 * allowance.seconds, allowance.token_budget)
        try:
            with within(2 * LOAD_SECONDS):
                model = watched(description.load(profile), alone)
        except Exception as error:  # noqa: BLE001 - the parent is told
            channel.send(Answer.to(error))
            return
        room = model.in_flight if isinstance(model, AsyncModel) else 1
        channel.send(room)
        flying: deque[Pending | Answer] = deque()
        while True:
            while len(flying) < room and (not flying or channel.poll()):
                flying.append(_begun(model, channel.recv()))
            channel.send(_answer(flying.popleft()))
    except (EOFError, OSError):  # the parent wants no more
        return


def _begun(model: Any, batch: TokenBatch) -> Pending | Answer:  # noqa: ANN401 - a ScorerModel
    try:
        return start(model, batch)
    except BaseException as error:  # panics of libraries are no Exception
        if is_interrupt(error):
            raise
        return Answer.to(error)


def _answer(begun: Pending | Answer) -> Answer:
    if isinstance(begun, Answer):
        return begun
    try:
        return Answer("scored", begun.result())
    except BaseException as error:
        if is_interrupt(error):
            raise
        return Answer.to(error)
