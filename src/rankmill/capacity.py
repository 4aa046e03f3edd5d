"""How long so many pairs take so many workers: from rates that runs have measured, and no others.

A plan estimates tokens from bytes of text. So a rate counts what was scored in the same estimate,
not in the tokens that it came to: what a tokenizer makes of a language cancels out, and longer
documents take longer. Only scoring is counted; starting, reading and committing go on beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rankmill.errors import ConfigError
from rankmill.load import Estimate
from rankmill.markers import Marker, ModelCost, add_costs
from rankmill.profile import Profile
from rankmill.runs import stored_profiles

# Columns of the table: more workers than that are a multiplication.
_MOST_WORKERS = 256


@dataclass(frozen=True)
class Worker:
    """One scoring actor. threads: its CPU threads; gpus: of one GPU or several, 0 on CPUs."""

    device: str
    instructions: str
    backend: str
    precision: str
    threads: int
    gpus: float

    @property
    def name(self) -> str:
        """In a few words."""
        holds = f"{self.gpus:g} GPU(s)" if self.gpus else f"{self.threads} core(s)"
        return f"{self.backend} {self.precision}, {holds} ({self.instructions})"


@dataclass(frozen=True)
class Rate:
    """What a worker did of a model, by its digest.

    pairs: scored; tokens: that the model was given; tokens_estimated: of the same pairs, as the
    run's plan had them; seconds: of scoring, of all such workers together.
    """

    digest: str
    worker: Worker
    pairs: int
    tokens: int
    tokens_estimated: float
    seconds: float

    def __add__(self, other: Rate) -> Rate:
        return Rate(
            self.digest,
            self.worker,
            self.pairs + other.pairs,
            self.tokens + other.tokens,
            self.tokens_estimated + other.tokens_estimated,
            self.seconds + other.seconds,
        )


@dataclass(frozen=True)
class Wanted:
    """One of a plan's models and what is left for it to do. backend, precision: as configured."""

    label: str
    name: str
    digest: str
    backend: str
    precision: str
    left: Estimate


@dataclass(frozen=True)
class Need:
    """What a model needs of workers of one kind. rate: what it is computed from."""

    model: Wanted
    rate: Rate

    @property
    def worker_seconds(self) -> float:
        """Seconds that one worker would take."""
        return self.model.left.tokens * self.rate.seconds / self.rate.tokens_estimated

    def hours(self, workers: int) -> float:
        """Hours that so many workers take."""
        return self.worker_seconds / 3600 / workers

    def to_json(self, counts: Sequence[int]) -> dict[str, Any]:
        """Plain values; hours by the number of workers."""
        worker, hours = self.rate.worker, self.hours(1)
        return {
            "label": self.model.label,
            "model": self.model.name,
            "digest": self.model.digest,
            "pairs": self.model.left.pairs,
            "tokens_estimated": self.model.left.tokens,
            "worker": asdict(worker),
            "measured": {
                "pairs": self.rate.pairs,
                "tokens": self.rate.tokens,
                "seconds": self.rate.seconds,
                "tokens_per_second": self.rate.tokens / self.rate.seconds,
                "pairs_per_second": self.rate.pairs / self.rate.seconds,
            },
            "core_hours": None if worker.gpus else hours * worker.threads,
            "gpu_hours": hours * worker.gpus if worker.gpus else None,
            "hours": {str(count): self.hours(count) for count in counts},
        }


def rates(record: Mapping[str, Any], found: Iterable[Marker]) -> list[Rate]:
    """What a run's committed shards tell: a rate a model. record: its run.json.

    Shards of which a part was done otherwise (see `Marker.degraded`) are left out.
    """
    sound = [marker for marker in found if not marker.degraded]
    digests = _digests(record)
    costs = add_costs(sound) if len(digests) > 1 else [_only_cost(sound)]
    gpus = float(record["config"]["compute"]["gpus_per_worker"])
    made = []
    for digest, profile, cost, estimated in zip(
        digests, stored_profiles(dict(record)), costs, record["plan"].get("tokens_a_pair", ())
    ):
        pairs = cost.pairs - cost.reused
        if pairs > 0 and cost.seconds > 0 and estimated > 0:
            worker = _worker(profile, gpus)
            rate = Rate(digest, worker, pairs, cost.tokens, pairs * estimated, cost.seconds)
            made.append(rate)
    return made


def _digests(record: Mapping[str, Any]) -> list[str]:
    several = record.get("models")
    models = [record["model"]] if several is None else list(several.values())
    return [str(model["digest"]) for model in models]


def _only_cost(found: Sequence[Marker]) -> ModelCost:
    """What the model of a run with one did; it is asked for no pair that has an earlier score."""
    counted = [marker.counters for marker in found]
    return ModelCost(
        pairs=sum(one.pairs_scored for one in counted),
        tokens=sum(one.tokens for one in counted),
        seconds=sum(marker.seconds for marker in found),
    )


def _worker(profile: Profile, gpus: float) -> Worker:
    return Worker(
        profile.device,
        profile.instructions,
        profile.backend,
        profile.precision,
        profile.threads,
        gpus if profile.device == "cuda" else 0.0,
    )


def needs(models: Sequence[Wanted], measured: Iterable[Rate]) -> list[Need]:
    """What each model needs, of each kind of worker that was measured with it."""
    added: dict[tuple[str, Worker], Rate] = {}
    for rate in measured:
        key = rate.digest, rate.worker
        added[key] = added[key] + rate if key in added else rate
    return [
        Need(model, rate)
        for model in models
        for rate in added.values()
        if rate.digest == model.digest
        and model.backend in ("auto", rate.worker.backend)
        and model.precision in ("auto", rate.worker.precision)
    ]


def refuse_unmeasured(models: Sequence[Wanted], found: Sequence[Need]) -> None:
    """Raise `ConfigError` for a model of which no rate was found: none is ever made up."""
    known = {need.model.digest for need in found}
    lacking = [model.name for model in models if model.digest not in known]
    if lacking:
        raise ConfigError(
            f"--rates-from tells no rate of {', '.join(lacking)}: no committed shard there was "
            "scored by it with the backend and precision that are configured.",
            "Name the output of a run with the same model; one over a few hundred queries "
            "(rankmill rerank --limit 200) is enough.",
        )


def worker_counts(shards: int) -> list[int]:
    """1, 2, 4, … workers of a model; not more than there are shards for."""
    counts = [1]
    while 2 * counts[-1] <= min(shards, _MOST_WORKERS):
        counts.append(2 * counts[-1])
    return counts
