"""Curves from scores to probabilities, fitted to judgements and judged on queries held out.

A row counts as relevant when its document is judged so for its query (grade 1 or more), and
otherwise as not, as in `evaluate`: where judgements are few, probabilities are those of being
judged relevant. They hold for candidates like those that were fitted to.

Measures of probabilities p of outcomes y (0, 1): log loss, the mean of -log of what the outcome was
given; the Brier score, the mean of (p - y)^2; the expected calibration error, the mean over BINS
bins of as many rows each of |mean p - mean y| (Naeini, Cooper and Hauskrecht, AAAI 2015, with bins
of equal size). Less is better.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from rankmill import rank
from rankmill.calibration import Calibration, Isotonic, Platt, ScoredBy, scoring_settings
from rankmill.errors import InputError
from rankmill.evaluate.measures import Floats
from rankmill.evaluate.origin import Origin, find_origin, prefix_of
from rankmill.folds import FOLDS, SEED, JudgedScores, fold_queries, read_scores
from rankmill.qrels import TableSource
from rankmill.rank import Int32
from rankmill.storage_settings import StorageConfig, of_profile

BINS = 15
CurveMethod = Literal["platt", "isotonic"]
Labels = npt.NDArray[np.bool_]
# The sigmoid of a large score is 0 or 1 in float32; the loss of an outcome is kept finite.
_LEAST = 1e-7
_CUT = (
    "the curve is that of the best candidates, and too high for the others. Calibrate on a run "
    "without that."
)


@dataclass(frozen=True, eq=False)
class Fit:
    """What `calibrate` found.

    held_out: a row a kind of probability, `of` (the curve's, of folds that it was not fitted to;
    the sigmoid's; the share of relevant rows, for all the same), `log_loss, brier, ece`. bins: the
    curve's on held-out rows, in ascending order: `rows`, the mean `probability`, the share of them
    that is `relevant`.
    """

    calibration: Calibration
    held_out: pd.DataFrame
    bins: pd.DataFrame

    def to_json(self) -> dict[str, Any]:
        """As stored, and the bins."""
        return self.calibration.model_dump(mode="json") | {"bins": self.bins.to_dict("records")}


def calibrate(
    ranked: str,
    qrels: TableSource,
    *,
    method: CurveMethod = "platt",
    folds: int = FOLDS,
    seed: int = SEED,
    ids: tuple[str, str] = ("query_id", "doc_id"),
    profile: str | None = None,
) -> Fit:
    """Fit a curve to the scores of a run's output, and judge it by cross-validation over queries.

    ranked: the output folder, whose run.json says how the scores were made. profile: of the AWS
    configuration. Of a cascade the scores of the last stage count. What a run cut
    (`output.top_k`) is missing from the curve: a warning says so, and `fitted` in the calibration.

    Raises `InputError` where there is no run, or too little of either kind of rows, and as
    `evaluate` does.
    """
    access = of_profile(profile)
    origin = _origin(ranked, access)
    origin.warn_of_cuts(_CUT)
    record = origin.record
    scores = read_scores(ranked, qrels, prefix=prefix_of(origin), ids=ids, access=access)
    query, score, relevant, unjudged = _pairs(scores)
    # A query without rows has nothing to fit.
    known, number_of = np.unique(query, return_inverse=True)
    queries = len(known)
    fold = fold_queries(queries, folds, seed)[number_of]
    predicted = np.empty(len(score))
    for number in range(folds):
        inside = fold == number
        curve = fit(method, score[~inside], relevant[~inside])
        predicted[inside] = curve.probabilities(score[inside])
    share = float(relevant.mean())
    kinds: dict[str, Floats] = {
        method: predicted,
        "sigmoid": rank.sigmoid(score.astype(np.float32)).astype(np.float64),
        "share": np.full(len(score), share),
    }
    held_out = pd.DataFrame([{"of": name, **measures(p, relevant)} for name, p in kinds.items()])
    fitted = {
        "model": record["model"]["name"],
        "run": record["fingerprint"],
        "rankmill": record["versions"].get("rankmill", "unknown"),
        "queries": queries,
        "pairs": len(score),
        "relevant": int(relevant.sum()),
        "unjudged": unjudged,
        "cut": dict(origin.cuts),
        "folds": folds,
        "seed": seed,
        "held_out": {row.pop("of"): row for row in held_out.to_dict("records")},
    }
    scored_by = ScoredBy(
        model=record["model"]["digest"],
        precision=record["profile"]["precision"],
        settings=scoring_settings(record["identity"]["settings"]),
    )
    curve = fit(method, score, relevant)
    calibration = Calibration(curve=curve, scored_by=scored_by, fitted=fitted)
    return Fit(calibration, held_out, reliability(predicted, relevant))


def fit(method: CurveMethod, score: Floats, relevant: Labels) -> Platt | Isotonic:
    """Fit a curve. score: float64 [pairs], finite; relevant: bool [pairs].

    Raises `InputError` unless there are relevant and other pairs.
    """
    hits = int(relevant.sum())
    if not 0 < hits < len(relevant):
        raise InputError(
            f"A curve needs pairs of both kinds, and {hits:,} of {len(relevant):,} are relevant.",
            "Give judgements of more queries, or fewer folds.",
        )
    kinds: dict[str, Callable[[Floats, Labels], Platt | Isotonic]] = {
        "platt": _fit_platt,
        "isotonic": _fit_isotonic,
    }
    return kinds[method](score, relevant)


def measures(probability: Floats, relevant: Labels) -> dict[str, float]:
    """log_loss, brier and ece of float64 [pairs] and bool [pairs]."""
    given = np.clip(np.where(relevant, probability, 1 - probability), _LEAST, 1)
    bins = reliability(probability, relevant)
    apart = (bins["probability"] - bins["relevant"]).abs()
    return {
        "log_loss": float(-np.log(given).mean()),
        "brier": float(((probability - relevant) ** 2).mean()),
        "ece": float((apart * bins["rows"]).sum() / len(relevant)),
    }


def reliability(probability: Floats, relevant: Labels) -> pd.DataFrame:
    """A row a bin, in ascending order of probability; equal ones are in one bin."""
    order = np.sort(probability)
    cuts = np.unique(order[np.arange(1, BINS) * len(order) // BINS])
    number = np.searchsorted(cuts, probability, side="right")
    frame = pd.DataFrame({"bin": number, "probability": probability, "relevant": relevant})
    grouped = frame.groupby("bin")
    return grouped.agg(
        rows=("bin", "size"), probability=("probability", "mean"), relevant=("relevant", "mean")
    ).reset_index(drop=True)


def _origin(ranked: str, access: StorageConfig) -> Origin:
    found = find_origin(ranked, access)
    if found is None:
        raise InputError(
            f"{ranked} is no output folder of a run, so nothing says how its scores were made.",
            "Give the folder that holds the part files and _rankmill.",
        )
    return found


def _pairs(scores: JudgedScores) -> tuple[Int32, Floats, Labels, int]:
    """Each scored pair of a judged query once: query, score, relevance; how many are unjudged."""
    rows = np.flatnonzero(~np.isnan(scores.final))
    _, first = np.unique(scores.run.pair[rows], return_index=True)
    rows = rows[first]
    judgement = scores.run.judgement[scores.run.pair[rows]]
    relevant = (judgement >= 0) & (scores.judged.grade[judgement] > 0)
    score = scores.score[rows].astype(np.float64)
    return scores.query[rows], score, relevant, int((judgement < 0).sum())


def _fit_platt(score: Floats, relevant: Labels) -> Platt:
    """The likeliest logistic curve, of targets that Platt moves in from 0 and 1."""
    from scipy import optimize, special  # late: a second that other commands do not need

    hits, others = relevant.sum(), (~relevant).sum()
    target = np.where(relevant, (hits + 1) / (hits + 2), 1 / (others + 2))
    middle, spread = score.mean(), score.std() or 1.0
    inputs = np.column_stack([(score - middle) / spread, np.ones_like(score)])

    def loss(x: Floats) -> tuple[float, Floats]:
        logit = inputs @ x
        slopes = inputs.T @ (special.expit(logit) - target) / len(score)
        return float((np.logaddexp(0, logit) - target * logit).mean()), slopes

    def curvature(x: Floats) -> Floats:
        given = special.expit(inputs @ x)
        return np.asarray((inputs * (given * (1 - given))[:, None]).T @ inputs / len(score))

    start = np.array([0.0, np.log(hits / others)])
    found = optimize.minimize(
        loss, start, jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-9}
    )
    slope = found.x[0] / spread
    return Platt(slope=float(slope), intercept=float(found.x[1] - slope * middle))


def _fit_isotonic(score: Floats, relevant: Labels) -> Isotonic:
    """Pool adjacent violators; nothing is certain, so 0 and 1 move in by the rule of succession."""
    from scipy import optimize

    distinct, number, rows = np.unique(score, return_inverse=True, return_counts=True)
    found = optimize.isotonic_regression(np.bincount(number, relevant) / rows, weights=rows)
    certain = 1 / (len(score) + 2)
    values = np.clip(found.x, certain, 1 - certain)
    # Of each level its first and its last score.
    ends = np.unique(np.concatenate([found.blocks[:-1], found.blocks[1:] - 1]))
    return Isotonic(scores=distinct[ends].tolist(), values=values[ends].tolist())
