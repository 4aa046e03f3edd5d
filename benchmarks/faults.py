"""The faults of `chaos.py`: each begins a run, does it harm, and leaves no driver running.

Processes are killed from outside, at random times and at places that the output folder shows. The
product has no hooks for any of it.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from chaos_site import Case, send
from fault_proxy import FAULTS
from fragile import read_journal

Fault = Callable[[Case, random.Random], None]
# What `ray job stop` leaves between SIGTERM and SIGKILL (RAY_JOB_STOP_WAIT_TIME_S).
_JOB_STOP_SECONDS = 3.0
# Of an undisturbed run from its run.json to its end.
_ABOUT_SECONDS = 2.5


def _begun(case: Case) -> bool:
    return "run.json" in case.names("_rankmill")


def driver_killed(case: Case, chance: random.Random) -> None:
    """SIGKILL of the driver at a random time."""
    case.start()
    case.wait(lambda: _begun(case))
    _sleep(case, chance.uniform(0, _ABOUT_SECONDS))
    case.faults += 1
    case.kill()


PLACES: dict[str, Callable[[Case], bool]] = {
    "run.json written": _begun,
    "first marker": lambda case: case.committed() > 0,
    "part without its marker": lambda case: bool(case.unmarked()),
    "last marker": lambda case: case.committed() == case.shards,
    "manifest without _SUCCESS": lambda case: "manifest.json" in case.names("_rankmill"),
}


def all_killed_at_a_place(case: Case, chance: random.Random) -> None:
    """SIGKILL of the driver and every worker in one instant, at a named place."""
    place = list(PLACES)[case.number % len(PLACES)]
    is_there = PLACES[place]
    case.start()
    while case.wait(lambda: is_there(case), 0) and case.is_running:
        assert case.driver is not None, "just started"
        everyone = [case.driver.pid, *case.site.workers()]
        send(everyone, signal.SIGSTOP)
        # Between the look and the signal the place may have been left.
        if is_there(case) and "_SUCCESS" not in case.names():
            case.places.append(place)
            case.faults += 1
            send(everyone, signal.SIGKILL)
            break
        send(everyone, signal.SIGCONT)
    case.end()


def driver_terminated(case: Case, chance: random.Random) -> None:
    """SIGTERM to the driver, three seconds, SIGKILL: what `ray job stop` does."""
    case.start()
    case.wait(lambda: _begun(case))
    _sleep(case, chance.uniform(0, _ABOUT_SECONDS))
    if not case.is_running:
        case.end()
        return
    assert case.driver is not None, "just started"
    case.faults += 1
    send([case.driver.pid], signal.SIGTERM)
    deadline = time.monotonic() + _JOB_STOP_SECONDS
    while case.is_running and time.monotonic() < deadline:
        time.sleep(0.01)
    if case.is_running:
        case.places.append("had to be killed")
        case.kill()
    else:
        case.places.append("ended by itself")
        case.end()


def job_stopped(case: Case, chance: random.Random) -> None:
    """`ray job stop` of a job that `ray job submit` started; the next start submits it again."""
    case.is_job = True
    # Slower than elsewhere: the command to stop takes seconds to start.
    case.start("--seconds", "0.5")
    wanted = chance.randint(0, case.shards // 4)
    case.wait(lambda: _begun(case) and case.committed() >= wanted)
    if case.is_running:
        case.stop_job()
    if case.end() != 0:
        case.faults += 1


def scorer_killed(case: Case, chance: random.Random) -> None:
    """SIGKILL of a scoring actor in a batch, twice."""
    case.start()
    for _ in range(2):
        _wait_for_commits(case, chance.randint(1, case.shards // 2))
        pid = _next_to_score(case)
        if pid is not None:
            case.faults += 1
            send([pid], signal.SIGKILL)
            case.watch_recovery()
    case.end()


def _wait_for_commits(case: Case, more: int) -> None:
    wanted = case.committed() + more
    case.wait(lambda: case.committed() >= wanted)


def _next_to_score(case: Case) -> int | None:
    """The process that begins the next batch."""
    before = len(read_journal(case.folder)[0])
    case.wait(lambda: len(read_journal(case.folder)[0]) > before, 0)
    pids = read_journal(case.folder)[0]
    return pids[-1] if case.is_running and len(pids) > before else None


def reader_killed(case: Case, chance: random.Random) -> None:
    """SIGKILL of a worker that reads."""
    _kill_worker(case, b"Read", chance)


def writer_killed(case: Case, chance: random.Random) -> None:
    """SIGKILL of a worker that commits, most often between a part and its marker."""
    _kill_worker(case, b"Write", chance)


def _kill_worker(case: Case, title: bytes, chance: random.Random) -> None:
    case.start()
    after = chance.randint(0, case.shards // 2)
    case.wait(lambda: _begun(case) and case.committed() >= after)
    while case.is_running:
        found = [pid for pid in case.site.workers() if _is_doing(pid, title)]
        if found:
            case.faults += 1
            send(found[:1], signal.SIGKILL)
            case.watch_recovery()
            break
    case.end()


def _is_doing(pid: int, title: bytes) -> bool:
    with suppress(OSError):
        return title in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def node_killed(case: Case, chance: random.Random) -> None:
    """SIGKILL of a node's processes while it scores."""
    node = case.site.add_node()
    try:
        case.start("--workers", "4")
        wanted = chance.randint(1, case.shards // 3)
        case.wait(lambda: case.committed() >= wanted)
        if case.is_running:
            case.faults += 1
            started = time.monotonic()
            before = case.committed()
            case.site.cluster.remove_node(node, allow_graceful=False)
            node = None
            case.wait(lambda: case.committed() > before, 0.01)
            case.recovery.append(time.monotonic() - started)
        case.end()
    finally:
        if node is not None:
            case.site.cluster.remove_node(node)


def memory_error(case: Case, chance: random.Random) -> None:
    """An allocation that fails in a batch."""
    _trouble(case, "memory", chance)


def memory_killed(case: Case, chance: random.Random) -> None:
    """SIGKILL of an actor inside a batch, as the kernel's out-of-memory killer sends it."""
    _trouble(case, "killed", chance)


def _trouble(case: Case, trouble: str, chance: random.Random) -> None:
    case.start()
    wanted = chance.randint(0, case.shards // 2)
    case.wait(lambda: _begun(case) and case.committed() >= wanted)
    if case.is_running:
        case.faults += 1
        (case.folder / trouble).touch()
        case.watch_recovery()
    case.end()
    (case.folder / trouble).unlink(missing_ok=True)


def disk_full(case: Case, chance: random.Random) -> None:
    """No space left where the output is; every second time for good, else for some seconds."""
    assert case.site.disk is not None, "left out otherwise"
    ballast = case.site.disk / "ballast"
    case.start()
    wanted = chance.randint(0, case.shards // 2)
    case.wait(lambda: _begun(case) and case.committed() >= wanted)
    case.faults += 1
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    if case.number % 2:
        case.end()
        ballast.unlink()
    else:
        _sleep(case, 2)
        ballast.unlink()
        case.watch_recovery()
        case.end()


def ray_restarted(case: Case, chance: random.Random) -> None:
    """The whole cluster gone in the middle, driver and all; another one for the next start."""
    case.start()
    wanted = chance.randint(1, case.shards // 2)
    case.wait(lambda: case.committed() >= wanted)
    case.faults += 1
    case.kill()
    case.site.start_cluster()


def store_fails(fault: str) -> Fault:
    """The object store fails in one way: a share of all requests, then all for four seconds."""
    # Each request without an answer holds its writer up for half a minute.
    share = 0.015 if fault == "silent" else 0.15

    def fails(case: Case, chance: random.Random) -> None:
        proxy = case.site.proxy
        assert proxy is not None, "left out otherwise"
        before = proxy.injected
        proxy.inject(fault, share, 600)
        case.start()
        wanted = chance.randint(1, case.shards // 2)
        case.wait(lambda: case.committed() >= wanted, 0.3)
        if case.number % 2:
            proxy.inject(fault, 1.0, 4)
        case.end()
        proxy.heal()
        case.faults += proxy.injected - before

    fails.__doc__ = f"The object store: {fault}, for a share of all requests."
    return fails


def _sleep(case: Case, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    case.wait(lambda: time.monotonic() > deadline, 0.005)


KINDS: dict[str, Fault] = {
    "driver killed": driver_killed,
    "all killed at a place": all_killed_at_a_place,
    "driver terminated": driver_terminated,
    "job stopped": job_stopped,
    "scorer killed": scorer_killed,
    "reader killed": reader_killed,
    "writer killed": writer_killed,
    "node killed": node_killed,
    "memory error": memory_error,
    "memory killed": memory_killed,
    "disk full": disk_full,
    "ray restarted": ray_restarted,
    **{f"store {fault}": store_fails(fault) for fault in FAULTS},
}
