"""The model's share in a fused order, found on judgements and measured by cross-validation.

What is fused is what an output holds: nothing is scored again. Each fold of the queries is ranked
with the weight that is best on the others, so the cross-validated mean is one of queries that the
weight had not seen. The weight that is told in the end is the best on all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from rankmill.evaluate.measures import Floats, Lists, measure, parse
from rankmill.evaluate.origin import find_origin, prefix_of
from rankmill.evaluate.significance import TESTS, compare
from rankmill.folds import FOLDS, SEED, JudgedScores, fold_queries, read_scores
from rankmill.fusion import fuse
from rankmill.qrels import Ints, TableSource
from rankmill.rank import rank_rows
from rankmill.rank_settings import FuseConfig, Method

METRIC = "ndcg@10"
WEIGHTS = tuple(round(0.05 * step, 2) for step in range(21))
_EQUAL = 1e-12
_CUT = "what is missing counts in a run's scales, and not in these. Tune on a run without that."


@dataclass(frozen=True, eq=False)
class Tuning:
    """What `tune` found. rule: with the chosen weight.

    weights: a row a weight, `weight, value`, the mean over judged queries. folds: a row a fold:
    `queries`, the `weight` chosen on the others, and their mean with it, `value`. against: a row a
    part, `part` (model, first stage), its mean `value`, and the columns of
    `evaluate.significance.compare`: the cross-validated values less those of the part alone.
    """

    rule: FuseConfig
    metric: str
    seed: int
    queries: int
    weights: pd.DataFrame
    folds: pd.DataFrame
    cross_validated: float
    against: pd.DataFrame

    def to_json(self) -> dict[str, object]:
        """Numbers, text, lists, dicts and None only."""
        differences = self.against.astype(object).where(self.against.notna(), None)
        return {
            "fuse": self.rule.model_dump(mode="json"),
            "metric": self.metric,
            "queries_judged": self.queries,
            "weights": self.weights.to_dict("records"),
            "folds": self.folds.to_dict("records"),
            "seed": self.seed,
            "cross_validated": self.cross_validated,
            "against": {row.pop("part"): row for row in differences.to_dict("records")},
            "tests": dict(TESTS),
        }


def tune(
    ranked: TableSource,
    qrels: TableSource,
    column: str,
    *,
    method: Method = "minmax",
    k: int = 60,
    metric: str = METRIC,
    folds: int = FOLDS,
    seed: int = SEED,
    prefix: str | None = None,
    ids: tuple[str, str] = ("query_id", "doc_id"),
) -> Tuning:
    """Try weights from 0 to 1 on the scores and the column of a ranked table.

    ranked, qrels, prefix, ids: as `evaluate` takes them; the table must hold `{prefix}score` and
    whole candidate lists, for what was cut (`output.top_k`) would have counted in every scale: of
    an output folder that was, a warning says so. metric: the measure to be raised. Of weights that
    are equally good the one nearest to half is taken.

    Raises `ConfigError` and `InputError` as `evaluate` does, and for folds without queries.
    """
    one = parse([metric])
    origin = find_origin(ranked)
    if origin is not None:
        origin.warn_of_missing()
        origin.warn_of_cuts(_CUT)
    rule = FuseConfig(column=column, method=method, k=k)
    scores = read_scores(
        ranked, qrels, prefix=prefix_of(origin, prefix), ids=ids, columns=(column,)
    )
    by_weight: Floats = np.column_stack(
        [
            measure(fused_lists(scores, replace_weight(rule, weight)), scores.judged, one)[:, 0]
            for weight in WEIGHTS
        ]
    )
    queries = len(by_weight)
    fold = fold_queries(queries, folds, seed)
    held_out = np.empty(queries)
    told = []
    for number in range(folds):
        inside = fold == number
        chosen = _best(by_weight[~inside].mean(axis=0))
        held_out[inside] = by_weight[inside, chosen]
        told.append(
            {
                "queries": int(inside.sum()),
                "weight": WEIGHTS[chosen],
                "value": float(held_out[inside].mean()),
            }
        )
    means = by_weight.mean(axis=0)
    parts = {"model": by_weight[:, -1], "first stage": by_weight[:, 0]}
    against = compare(np.column_stack([held_out] * 2), np.column_stack(list(parts.values())))
    against.insert(0, "part", list(parts))
    against.insert(1, "value", [float(values.mean()) for values in parts.values()])
    return Tuning(
        rule=replace_weight(rule, WEIGHTS[_best(means)]),
        metric=one[0].name,
        seed=seed,
        queries=queries,
        weights=pd.DataFrame({"weight": WEIGHTS, "value": means}),
        folds=pd.DataFrame(told),
        cross_validated=float(held_out.mean()),
        against=against,
    )


def replace_weight(rule: FuseConfig, weight: float) -> FuseConfig:
    """The rule with another weight."""
    return rule.model_copy(update={"weight": weight})


def fused_lists(scores: JudgedScores, rule: FuseConfig) -> Lists:
    """The lists that a run with this rule would make of the same scores."""
    first = -scores.run.keys[rule.column]
    fused = fuse(scores.query, scores.final, first, rule)
    ranking = rank_rows(scores.query, scores.score, missed=scores.missed, fused=fused)
    return scores.run.lists(_each_once(scores.run.pair[ranking.rows]))


def _each_once(pairs: Ints) -> Ints:
    """Pairs in their order, a repeated one where it first stands."""
    _, first = np.unique(pairs, return_index=True)
    return pairs[np.sort(first)]


def _best(means: Floats) -> int:
    tied = np.flatnonzero(means >= means.max() - _EQUAL)
    return int(min(tied, key=lambda place: abs(WEIGHTS[place] - 0.5)))
