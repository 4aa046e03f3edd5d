"""The lease: one run at a time writes to an output.

The owner rewrites a small file every few seconds. A second run watches that file: it is refused
as soon as the file changes under its eyes, and takes over once it has stood still for the time
that a live owner never lets pass. No clocks of two machines are compared. On the owner's own
machine a dead process is recognised at once.

What is guaranteed
- On local disk (and network mounts with locks: NFS 4) and on S3 with conditional writes: the lease
  changes only from what its writer has seen, so of runs that start together, or take over from a
  dead one in the same moment, one goes on. A paused owner that wakes up can neither renew the lease
  nor give it back in the new owner's place.
- A run writes behind a fence (`store.Fence`): every file, of the driver and of every worker, is put
  in its place, and a shard's old quarantine removed, only while run.json is the one that the run
  began with. On disk that is checked under a lock which a new run takes to change run.json; on S3
  the request names the version of the file that was there before the check. So a writer that slept
  cannot touch another run's files.
- On S3 two things remain, as no condition spans two objects. A driver that slept just between its
  last look at the lease and its own clearing up may delete what a new owner has written: that one's
  shards are then missing and its end says so. And one that slept between its last check and writing
  `_SUCCESS` writes it, though `--overwrite` has begun another run meanwhile.
- On stores that ignore conditions, runs that start or take over within one moment may both run for
  one heartbeat, until the earlier one finds the other's lease and stops, and a writer that slept
  between its check and its write may write over a newer file: `rankmill status --verify` finds it.
- Two owners of one run harm nobody anywhere: their files have the same names and the same bytes.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from rankmill.errors import OutputBusy
from rankmill.markers import PRIVATE
from rankmill.store import Store

log = logging.getLogger("rankmill")
LEASE = f"{PRIVATE}/lease.json"
# A heartbeat costs one small write; a dead owner elsewhere is noticed after the silence.
HEARTBEAT_SECONDS = 5.0
SILENCE_SECONDS = 20.0


@dataclass(frozen=True)
class Owner:
    """Who holds a lease, and how often it has been renewed."""

    token: str
    host: str
    boot: str
    pid: int
    process_start: str
    beat: int = 0

    @classmethod
    def this_process(cls) -> Owner:
        """An owner for a new lease of this process."""
        pid = os.getpid()
        return cls(uuid.uuid4().hex, socket.gethostname(), _boot_id(), pid, _start_of(pid))

    @property
    def is_dead(self) -> bool:
        """Whether the owner certainly does not run any more (only known on its own machine)."""
        here = self.host == socket.gethostname() and self.boot == _boot_id() != ""
        return here and _start_of(self.pid) != self.process_start

    @property
    def is_alive(self) -> bool:
        """Whether the owner certainly runs (only known on its own machine)."""
        return self.boot == _boot_id() != "" and _start_of(self.pid) == self.process_start != ""


def holder(store: Store) -> Owner | None:
    """Who holds an output's lease, unless that is certainly a dead process of this machine."""
    content = store.read(LEASE)
    owner = None if content is None else _owner(content)
    return None if owner is None or owner.is_dead else owner


class Lease:
    """Holds an output while in its `with` block.

    Raises `OutputBusy` on entering when another run is alive. `lost` becomes true when another
    run has taken over; the holder must then stop.
    """

    def __init__(
        self,
        store: Store,
        heartbeat: float = HEARTBEAT_SECONDS,
        silence: float = SILENCE_SECONDS,
    ) -> None:
        self._store = store
        self._heartbeat, self._silence = heartbeat, silence
        self._owner = Owner.this_process()
        self._content = json.dumps(asdict(self._owner)).encode()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="rankmill-lease", daemon=True)
        self.lost = False

    def __enter__(self) -> Lease:
        while True:
            held = self._store.read(LEASE)
            if held is not None:
                held = self._wait_for_death(held)
            if self._change(held, self._content):
                break
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
        with suppress(OSError, OutputBusy):  # what cannot be given back expires
            there = self._store.read(LEASE)
            if self._is_ours(there):
                self._store.exchange(LEASE, there, None)

    def refuse_lost(self) -> None:
        """Raise `OutputBusy` when another run has taken over."""
        self.lost = self.lost or not self._is_held()
        if self.lost:
            raise OutputBusy(
                f"Another run took over {self._store.url}; this one stopped.",
                "What is committed stays.",
            )

    def _change(self, expected: bytes | None, content: bytes) -> bool:
        """Put this owner's lease in the place of another content; whether it holds then."""
        # Looked at afterwards: the answer may have been lost, and not every store takes conditions.
        self._store.exchange(LEASE, expected, content)
        return self._is_held()

    def _wait_for_death(self, first: bytes) -> bytes | None:
        """What of a lease may be replaced: it has stood still, is nobody's any more, or gone.

        Raises `OutputBusy` when its owner is alive.
        """
        deadline = time.monotonic() + self._silence
        now: bytes | None = first
        while time.monotonic() < deadline:
            now = self._store.read(LEASE)
            owner = None if now is None else _owner(now)
            if now is None or (owner is not None and owner.is_dead):
                return now
            if owner is not None and (now != first or owner.is_alive):
                self._refuse(owner)
            time.sleep(min(1.0, self._heartbeat))
        return now

    def _refuse(self, owner: Owner) -> None:
        raise OutputBusy(
            f"Another run (process {owner.pid} on {owner.host}) is writing to {self._store.url}.",
            "Wait for it, stop it, or choose another output. "
            f"A dead run's hold ends by itself after {self._silence:.0f} s.",
        )

    def _is_held(self) -> bool:
        return self._is_ours(self._store.read(LEASE))

    def _is_ours(self, content: bytes | None) -> bool:
        held = None if content is None else _owner(content)
        return held is not None and held.token == self._owner.token

    def _beat(self) -> None:
        beat, content = 0, self._content
        while not self._stop.wait(self._heartbeat):
            beat += 1
            renewed = json.dumps(asdict(self._owner) | {"beat": beat}).encode()
            try:
                if not self._store.exchange(LEASE, content, renewed):
                    # The answer to this beat or the one before may have been lost on its way.
                    there = self._store.read(LEASE)
                    if there is None or not self._is_ours(there):
                        self.lost = True
                        return
                    renewed = there
                content = renewed
            except (OSError, OutputBusy) as error:
                # The next beat may succeed; a run that took over meanwhile is seen then.
                log.warning("The lease of %s could not be renewed: %s", self._store.url, error)


def _owner(content: bytes) -> Owner | None:
    try:
        return Owner(**json.loads(content))
    except (ValueError, TypeError):
        return None  # half-written by a store without atomic writes, or damaged


def _boot_id() -> str:
    """Which start of which kernel, and which of its process namespaces; empty where unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start_of(pid: int) -> str:
    """When a process started, in the kernel's ticks; empty when there is none (or no /proc)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = stat.rsplit(")", 1)[1].split()
    # A zombie has ended; only its parent has not noticed.
    return "" if fields[0] in ("Z", "X") else fields[19]
