"""Judged queries and their ranked rows, in folds: what is fitted on some is measured on others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rankmill.errors import ConfigError
from rankmill.evaluate.judged import JudgedRun, read_judged
from rankmill.qrels import Judgements, TableSource, column_names, read_judgements
from rankmill.rank import Float32, Int32
from rankmill.storage_settings import ENVIRONMENT, StorageConfig

FOLDS, SEED = 5, 0


@dataclass(frozen=True, eq=False)
class JudgedScores:
    """The ranked rows of judged queries, in the order of their table.

    query: int32 [rows], numbers of judged queries; score: float32 [rows], NaN where there is none;
    missed: int32 [rows], how many of a cascade's last stages did not see the row.
    """

    judged: Judgements
    run: JudgedRun
    query: Int32
    score: Float32
    missed: Int32

    @property
    def final(self) -> Float32:
        """float32 [rows], the scores of the model that ranks first, NaN elsewhere."""
        return np.where(self.missed == 0, self.score, np.float32(np.nan))


def read_scores(
    ranked: TableSource,
    qrels: TableSource,
    *,
    prefix: str,
    ids: tuple[str, str],
    columns: tuple[str, ...] = (),
    access: StorageConfig = ENVIRONMENT,
) -> JudgedScores:
    """Read scores beside judgements. columns: others that order the rows, into `run.keys`.

    Raises `InputError` as `evaluate` does.
    """
    judged = read_judgements(qrels, access)
    score, stage = f"{prefix}score", f"{prefix}stage"
    stages = [stage] if stage in column_names(ranked, access) else []
    orders = [score, *columns, *stages]
    run = read_judged(ranked, judged, prefix=prefix, ids=ids, orders=orders, access=access)
    missed = np.zeros(len(run.pair), np.int32)
    if stages:
        # Keys rise from the best, so a later stage's is lower.
        key = run.keys[stage]
        missed = np.where(np.isnan(key), 0, key - np.nanmin(key)).astype(np.int32)
    scores = (-run.keys[score]).astype(np.float32)
    query = run.query[run.pair].astype(np.int32)
    return JudgedScores(judged, run, query, scores, missed)


def fold_queries(queries: int, folds: int, seed: int) -> npt.NDArray[np.int64]:
    """int64 [queries], the fold of each, drawn at random; their sizes differ by one at most.

    Raises `ConfigError` for a number of folds that leaves one empty.
    """
    if not 2 <= folds <= queries:
        raise ConfigError(
            f"{queries:,} judged queries cannot be parted into {folds} folds.",
            "Give --folds a number from 2 to that of judged queries.",
        )
    return np.random.default_rng(seed).permutation(queries) % folds
