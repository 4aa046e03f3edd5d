"""A run's counters as Ray metrics, on the Prometheus endpoint of the driver's node.

The driver records them from the markers of committed shards. So every row counts once, however
often its shard was tried, and a scrape adds up to the manifest. Ray puts `ray_` before the names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from ray.util.metrics import Counter, Gauge, Histogram

from rankmill.markers import Marker
from rankmill.progress import Progress

_COUNTED = {
    "rows_in": "Rows of committed shards",
    "pairs_scored": "Pairs that the model scored",
    "pairs_reused": "Pairs whose score was taken over from another run",
    "pairs_truncated": "Rows of which the model did not see all tokens",
    "tokens": "Tokens that the model was given, padding left out",
    "padded_tokens": "Tokens that only pad",
}
# A shard is made to take about a minute on a worker of the slow kind.
_SECONDS = [1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0]


class RunMetrics:
    """The metrics of one run, told apart from other runs' by the tag `run`."""

    def __init__(self, fingerprint: str) -> None:
        self._tags = {"run": fingerprint[:12]}
        keys = ("run",)
        self._counters = {
            name: Counter(f"rankmill_{name}_total", description=what, tag_keys=keys)
            for name, what in _COUNTED.items()
        }
        self._shards = Counter(
            "rankmill_shards_total", description="Shards that were committed", tag_keys=keys
        )
        self._quarantined = Counter(
            "rankmill_rows_quarantined_total",
            description="Rows that could not be scored, by reason",
            tag_keys=(*keys, "reason"),
        )
        self._scoring = Counter(
            "rankmill_scoring_seconds_total",
            description="Seconds of scoring, of all workers together",
            tag_keys=keys,
        )
        self._seconds = Histogram(
            "rankmill_shard_seconds",
            description="Seconds of scoring a shard",
            boundaries=_SECONDS,
            tag_keys=keys,
        )
        self._rate = Gauge(
            "rankmill_pairs_per_second",
            description="Rows committed a second since this start's first commit",
            tag_keys=keys,
        )
        self._left = Gauge(
            "rankmill_shards_left", description="Shards still to be committed", tag_keys=keys
        )

    def record(self, new: Sequence[Marker], now: Progress) -> None:
        """Add shards that were committed since the last call."""
        for marker in new:
            counted = asdict(marker.counters)
            for name, counter in self._counters.items():
                _add(counter, counted[name], self._tags)
            for reason, rows in marker.counters.quarantine.items():
                _add(self._quarantined, rows, self._tags | {"reason": reason})
            self._shards.inc(1, self._tags)
            _add(self._scoring, marker.seconds, self._tags)
            self._seconds.observe(marker.seconds, self._tags)
        self._rate.set(now.pairs_per_second, self._tags)
        self._left.set(now.shards - now.shards_done, self._tags)


def _add(counter: Counter, value: float, tags: dict[str, str]) -> None:
    if value > 0:  # Ray refuses to add nothing
        counter.inc(value, tags)
