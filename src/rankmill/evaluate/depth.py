"""Quality against depth: how many candidates of the first stage are worth scoring."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from rankmill.errors import ConfigError
from rankmill.evaluate.judged import JudgedRun
from rankmill.qrels import Ints
from rankmill.rank import places


def parse_depths(depths: Sequence[int] | str) -> list[int]:
    """Depths in ascending order, each once; a text is split at commas.

    Raises `ConfigError` for what is not a number from 1.
    """
    given = depths.split(",") if isinstance(depths, str) else list(depths)
    wrong = [each for each in given if not re.fullmatch(r"\s*[0-9]{1,9}\s*", str(each))]
    if wrong or not given or not all(int(each) for each in given):
        raise ConfigError(
            f"The depths {', '.join(map(str, given))} are not numbers of candidates.",
            "Give numbers from 1, joined by commas: 5,10,20,50,100.",
        )
    return sorted({int(each) for each in given})


class Depths:
    """A run's candidates in the order of the first stage, to be reranked to any depth."""

    def __init__(self, run: JudgedRun, first_stage: str) -> None:
        self._run = run
        self._pairs = run.order(first_stage)
        self._first = places(run.query[self._pairs])
        ranked = run.order(run.own)
        # What the run did not rank stands, among what is reranked, last.
        at = np.full(len(run.query), np.iinfo(np.int64).max)
        at[ranked] = places(run.query[ranked])
        self._ranked = at[self._pairs]

    def order(self, depth: int | None) -> Ints:
        """The pairs by query, best first, if the run had scored the first `depth` candidates of
        each query alone: these in its order, above the others in the first stage's. None: all.
        """
        inside = self._first < (np.iinfo(np.int64).max if depth is None else depth)
        place = np.where(inside, self._ranked, self._first)
        query = self._run.query[self._pairs]
        return self._pairs[np.lexsort((self._first, place, ~inside, query))]

    def pairs(self, depth: int | None) -> int:
        """How many pairs would be scored."""
        return len(self._first) if depth is None else int((self._first < depth).sum())
