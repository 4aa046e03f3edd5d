"""How fast pairs were scored over a run's time, from the times that its markers tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rankmill.markers import Marker

Floats = npt.NDArray[np.float64]
# Time in which nothing was scored is cut out when it is longer than this, and than a share of the
# rest: between two starts of a run may lie a night.
_PAUSE_SECONDS, _PAUSE_SHARE = 60.0, 0.05
_BINS = 90


@dataclass(frozen=True)
class Timeline:
    """Pairs a second over the time in which the run was scoring, pauses cut out.

    began, ended: seconds since 1970. edges: float64 [bins + 1], seconds from the beginning; rate:
    float64 [bins]. pauses: where one was cut out and how long it was, in seconds.
    """

    began: float
    ended: float
    edges: Floats
    rate: Floats
    pauses: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, found: Sequence[Marker]) -> Timeline | None:
        """Spread each shard's pairs evenly over the time in which it was scored."""
        rows = [
            (marker.stages["ended"] - marker.seconds, marker.stages["ended"], pairs)
            for marker in found
            if (pairs := marker.counters.pairs_scored) and "ended" in marker.stages
        ]
        if not rows:
            return None
        start, stop, pairs = np.array(rows, np.float64).T
        stop = np.maximum(stop, start + 1e-3)
        pauses = _pauses(start, stop)
        began = float(start.min())
        start, stop = (_without(times, pauses) - began for times in (start, stop))
        length = float(stop.max())
        edges = np.linspace(0.0, length, _BINS + 1)
        done = np.array([pairs @ np.clip((at - start) / (stop - start), 0, 1) for at in edges])
        return cls(
            began=began,
            ended=float(max(end for _, end, _ in rows)),
            edges=edges,
            rate=np.diff(done) / np.diff(edges),
            pauses=tuple(
                (float(_without(np.array([at]), pauses)[0]) - began, seconds)
                for at, seconds in pauses
            ),
        )


def _pauses(start: Floats, stop: Floats) -> list[tuple[float, float]]:
    """When long gaps between the intervals began, and how long they were."""
    order = np.argsort(start, kind="stable")
    busy_until = np.maximum.accumulate(stop[order])[:-1]
    gaps = np.maximum(start[order][1:] - busy_until, 0.0)
    active = float(stop.max() - start.min() - gaps.sum())
    least = max(_PAUSE_SECONDS, _PAUSE_SHARE * active)
    return [(float(busy_until[at]), float(gaps[at])) for at in np.flatnonzero(gaps > least)]


def _without(times: Floats, pauses: Sequence[tuple[float, float]]) -> Floats:
    """The times, with the pauses before them taken out."""
    taken = np.zeros_like(times)
    for at, seconds in pauses:
        taken += np.where(times > at, seconds, 0.0)
    return times - taken
