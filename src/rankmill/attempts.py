"""Attempts at a shard: a note stands in the output while a process works on one.

A process that dies leaves its note behind, whatever killed it, and the next attempt, on any node,
finds it. Notes hold a number and nothing of the data.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from rankmill.errors import RunFailed
from rankmill.markers import PRIVATE
from rankmill.store import Store

log = logging.getLogger("rankmill")

ATTEMPTS = f"{PRIVATE}/attempts"
# Ray itself tries again without end.
MOST_ATTEMPTS = 4


@dataclass(frozen=True)
class Attempts:
    """The attempts of one start of a run at one step of its shards. model: its number."""

    store: Store
    step: Literal["reading", "tokenizing", "scoring", "committing"]
    model: int = 1

    @contextmanager
    def attempt(self, shard: int) -> Iterator[int]:
        """Work on a shard. Gives the number of the attempt, from 1: one more than died of it.

        Raises `RunFailed` when that are too many; the shard is then for the next start to try.
        """
        number = self._begin(shard)
        try:
            if number > MOST_ATTEMPTS:
                raise RunFailed(
                    f"{MOST_ATTEMPTS} processes died while they were {self.step} it.",
                    "See whether the nodes are short of memory.",
                )
            yield number
        finally:  # whatever went wrong, the process is alive to tell
            self._end(shard)

    def _begin(self, shard: int) -> int:
        name = self._name(shard)
        try:
            before = self.store.read(name)
            number = int(before or 0) + 1
            self.store.write(name, b"%d" % number)
        except OSError as error:
            log.warning("The attempt at shard %d cannot be noted: %s", shard, error)
            return 1
        return number

    def _end(self, shard: int) -> None:
        try:
            self.store.delete([self._name(shard)])
        except OSError as error:
            log.warning("The note of an attempt at shard %d stays: %s", shard, error)

    def _name(self, shard: int) -> str:
        number = "" if self.model == 1 else f"-{self.model}"
        return f"{ATTEMPTS}/{shard:05d}.{self.step}{number}"
