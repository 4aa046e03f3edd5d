"""How far a run is, from its markers alone: the same for the runner and for `status`."""

from __future__ import annotations

import _thread
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

from rankmill import markers
from rankmill.lease import Lease
from rankmill.markers import Marker
from rankmill.store import Store

log = logging.getLogger("rankmill")
# Listing a local folder is cheap; a listing of an object store is paid by the request.
_LOCAL_SECONDS, _REMOTE_SECONDS = 1.0, 10.0
# With a hundred thousand markers a look takes seconds itself: between two, this many times as long.
_BETWEEN_LOOKS = 10


@dataclass(frozen=True)
class Progress:
    """A moment of a run. `pairs` counts rows of committed shards; rates are of this start.

    steady: the rate leaves out the start, so that the time left can be told (see `Pace`).
    """

    shards: int
    shards_done: int
    pairs: int
    pairs_done: int
    pairs_per_second: float
    seconds: float
    steady: bool = True

    @property
    def seconds_left(self) -> float | None:
        """At the rate so far; None while there is none to go by."""
        if self.shards_done == self.shards:
            return 0.0
        if not self.steady or self.pairs_per_second <= 0:
            return None
        return max(self.pairs - self.pairs_done, 0) / self.pairs_per_second

    def line(self) -> str:
        """One line for a log."""
        left = self.seconds_left
        return (
            f"{self.shards_done:,}/{self.shards:,} shards, "
            f"{self.pairs_done:,}/{self.pairs:,} pairs, {self.pairs_per_second:,.0f} pairs/s, "
            f"{'?' if left is None else duration(left)} left"
        )


Listener = Callable[[Progress], None]
# Told which shards were committed since the last time.
Observer = Callable[[Sequence[Marker], Progress], None]


def duration(seconds: float) -> str:
    """`42 s`, `3 min 10 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Pace:
    """Pairs/s of a run that is looked at again and again, without what passes before scoring.

    Cluster, actors and model take longer to start than a short run to score, so what is counted is
    the pairs committed after the first commit that was seen, over the seconds since that.
    """

    def __init__(self, shards: int) -> None:
        self._before = shards
        self._first: tuple[float, int, int] | None = None

    def look(self, shards: int, pairs: int, shard_seconds: float, now: float) -> float | None:
        """The pace at a moment; None until a later commit tells it.

        shards, pairs: committed by now. shard_seconds: a shard's mean time of scoring. Workers that
        began together commit together, so nothing is told sooner than that after the first commit.
        now: seconds of any clock that only goes forward.
        """
        if self._first is None:
            if shards > self._before:
                self._first = now, shards, pairs
            return None
        first, shards_then, pairs_then = self._first
        if shards == shards_then or now - first <= shard_seconds:
            return None
        return (pairs - pairs_then) / (now - first)


class Watch:
    """Reads new markers while a run goes on, in a thread, and tells listener and observer.

    Interrupts the main thread when the run's lease is lost to another run.
    """

    def __init__(
        self,
        store: Store,
        shards: int,
        pairs: int,
        committed: Mapping[int, Marker],
        fingerprint: str,
        lease: Lease,
        listener: Listener | None,
        observer: Observer,
    ) -> None:
        self._store, self._shards, self._pairs = store, shards, pairs
        # Numbers only: markers are kilobytes each, and a run may have a million.
        self._known = set(committed)
        self._before = sum(marker.counters.rows_in for marker in committed.values())
        self._done = self._before
        self._pace, self._new, self._scoring = Pace(len(committed)), 0, 0.0
        self._fingerprint, self._lease = fingerprint, lease
        self._listener, self._observer = listener, observer
        self._started = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rankmill-progress", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def finish(self) -> None:
        """Look once more and stop watching."""
        self._stop.set()
        self._thread.join()
        self.look()

    def _run(self) -> None:
        pause = _LOCAL_SECONDS if self._store.local else _REMOTE_SECONDS
        due = 0.0
        while not self._stop.wait(pause):
            if self._lease.lost:
                _thread.interrupt_main()
                return
            started = time.monotonic()
            if started < due:
                continue
            try:
                self.look()
                due = started + _BETWEEN_LOOKS * (time.monotonic() - started)
            except OSError as error:
                log.warning("The run's markers cannot be read at the moment: %s", error)

    def look(self) -> None:
        """Read what was committed since the last look, and tell."""
        found = markers.read_markers(self._store, self._known)
        new = {s: m for s, m in sorted(found.items()) if m.fingerprint == self._fingerprint}
        self._known |= new.keys()
        self._done += sum(marker.counters.rows_in for marker in new.values())
        self._new += len(new)
        self._scoring += sum(marker.seconds for marker in new.values())
        now = self._now()
        self._observer(list(new.values()), now)
        for shard, marker in new.items():
            told = {"pairs": marker.counters.rows_in, "seconds": round(marker.seconds, 3)}
            log.debug("Shard %d is committed.", shard, extra={"shard": shard, **told})
        if self._listener is not None:
            self._listener(now)

    def _now(self) -> Progress:
        now = time.monotonic()
        seconds, shard_seconds = now - self._started, self._scoring / max(self._new, 1)
        pace = self._pace.look(len(self._known), self._done, shard_seconds, now)
        rate = (self._done - self._before) / seconds if pace is None else pace
        return Progress(
            shards=self._shards,
            shards_done=len(self._known),
            pairs=self._pairs,
            pairs_done=self._done,
            pairs_per_second=rate,
            seconds=seconds,
            steady=pace is not None,
        )
