"""The lease: one live run an output; the dead are replaced, the living never."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from rankmill.errors import OutputBusy
from rankmill.lease import LEASE, Lease, Owner
from rankmill.store import Fence, Store

HEARTBEAT = 0.05
SILENCE = 0.6

ELSEWHERE = Owner(token="theirs", host="node-7", boot="another kernel", pid=4242, process_start="1")

# It counts as one of another machine: nothing is known of its process but what it writes.
HOLD_ELSEWHERE = """
import sys, time
from rankmill import lease
from rankmill.store import Store
lease._boot_id = lambda: "another kernel"
with lease.Lease(Store(sys.argv[1]), 0.05, 0.6) as held:
    print("held", flush=True)
    while not held.lost:
        time.sleep(0.01)
"""

HOLD = """
import sys, time
from rankmill.lease import Lease
from rankmill.store import Store
with Lease(Store(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "output"))


def lease(store: Store) -> Lease:
    return Lease(store, HEARTBEAT, SILENCE)


def put(store: Store, owner: Owner) -> None:
    store.write(LEASE, json.dumps(asdict(owner)).encode())


def holder(store: Store) -> Owner:
    return Owner(**json.loads(store.read(LEASE) or b"{}"))


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


@contextmanager
def another_process_holds(store: Store, code: str = HOLD) -> Iterator[subprocess.Popen[str]]:
    """A live process of this machine with the lease; killed at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, store.url], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_lease_names_its_process_and_is_gone_afterwards(store):
    with lease(store):
        assert holder(store).pid == os.getpid()
        assert not holder(store).is_dead
    assert store.read(LEASE) is None


def test_a_lease_is_renewed_while_it_is_held(store):
    with lease(store):
        first = holder(store).beat
        assert wait_until(lambda: holder(store).beat >= first + 3)


def test_a_second_run_of_the_same_machine_is_refused_at_once(store):
    with another_process_holds(store) as process:
        started = time.monotonic()
        with pytest.raises(OutputBusy, match=f"process {process.pid} on ") as refused:
            lease(store).__enter__()
        assert time.monotonic() - started < SILENCE
        assert refused.value.exit_code == 4
        assert store.url in str(refused.value)
        assert holder(store).pid == process.pid


def test_a_killed_process_of_the_same_machine_is_replaced_at_once(store):
    with another_process_holds(store) as process:
        process.kill()
        process.wait()
        with Lease(store, HEARTBEAT, silence=600):
            assert holder(store).pid == os.getpid()


def test_a_killed_process_counts_as_dead_before_its_parent_has_noticed(store):
    with another_process_holds(store) as process:
        process.kill()
        assert wait_until(lambda: holder(store).is_dead)
        assert process.returncode is None
        with Lease(store, HEARTBEAT, silence=600):
            assert holder(store).pid == os.getpid()


def test_a_process_number_that_was_given_out_again_is_not_the_owner(store):
    ours = Owner.this_process()
    put(store, replace(ours, token="theirs", process_start=str(int(ours.process_start) - 1)))
    with Lease(store, HEARTBEAT, silence=600):
        assert holder(store).token != "theirs"


def test_a_process_of_another_container_is_not_taken_for_dead(store):
    ours = Owner.this_process()
    boot = ours.boot.rpartition(" ")[0] + " pid:[1]"
    assert not replace(ours, boot=boot, pid=4242).is_dead


def test_a_silent_lease_of_another_machine_is_taken_over_after_the_silence(store):
    put(store, ELSEWHERE)
    started = time.monotonic()
    with lease(store):
        assert time.monotonic() - started >= SILENCE
        assert holder(store).pid == os.getpid()


def test_a_beating_lease_of_another_machine_is_refused(store):
    put(store, ELSEWHERE)
    done = threading.Event()

    def beat() -> None:
        count = 0
        while not done.wait(HEARTBEAT):
            count += 1
            put(store, replace(ELSEWHERE, beat=count))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(OutputBusy, match="process 4242 on node-7"):
            lease(store).__enter__()
    finally:
        done.set()
        thread.join()
    assert holder(store).token == "theirs"


def test_a_lease_that_another_run_took_over_is_seen_as_lost(store):
    with lease(store) as held:
        put(store, ELSEWHERE)
        assert wait_until(lambda: held.lost)
    assert holder(store).token == "theirs"


def test_a_lease_that_was_removed_is_seen_as_lost(store):
    with lease(store) as held:
        store.delete([LEASE])
        assert wait_until(lambda: held.lost)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"token": "half"}', b"\xff\xfe"])
def test_a_damaged_lease_is_waited_for_and_then_replaced(store, content):
    store.write(LEASE, content)
    started = time.monotonic()
    with lease(store):
        assert time.monotonic() - started >= SILENCE
        assert holder(store).pid == os.getpid()


def test_heartbeats_go_on_after_a_write_that_failed(store, caplog):
    scraps = Path(store.url, "_rankmill", "tmp")
    with lease(store) as held:
        assert wait_until(lambda: holder(store).beat >= 1)
        # Every write goes through this folder, and a file cannot be a folder.
        shutil.rmtree(scraps)
        scraps.touch()
        assert wait_until(lambda: "could not be renewed" in caplog.text)
        before = holder(store).beat
        scraps.unlink()
        assert wait_until(lambda: holder(store).beat > before)
        assert not held.lost


def test_a_lease_that_cannot_be_given_back_does_not_hide_how_the_run_ended(store):
    def run() -> None:
        with lease(store):
            Path(store.url, LEASE).unlink()
            Path(store.url, LEASE).mkdir()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()


def test_a_paused_owner_that_wakes_up_finds_its_lease_lost_and_leaves_the_new_one_alone(store):
    with another_process_holds(store, HOLD_ELSEWHERE) as process:
        process.send_signal(signal.SIGSTOP)
        with lease(store) as held:
            process.send_signal(signal.SIGCONT)
            assert wait_until(lambda: process.poll() == 0)
            assert holder(store).pid == os.getpid()
            held.refuse_lost()


def test_whoever_lost_the_lease_is_refused_before_its_next_beat(store):
    with Lease(store, heartbeat=600) as held:
        held.refuse_lost()
        put(store, ELSEWHERE)
        with pytest.raises(OutputBusy, match="Another run took over") as refused:
            held.refuse_lost()
        assert refused.value.exit_code == 4
        assert held.lost


@pytest.mark.parametrize("dead", [None, ELSEWHERE])
def test_of_runs_that_start_together_one_wins(store, dead):
    if dead is not None:
        put(store, dead)
    results: list[str] = []
    together, leave = threading.Barrier(8), threading.Event()

    def start() -> None:
        together.wait()
        try:
            with Lease(store, HEARTBEAT, SILENCE):
                results.append("held")
                leave.wait()
        except OutputBusy:
            results.append("refused")

    threads = [threading.Thread(target=start) for _ in range(7)]
    for thread in threads:
        thread.start()
    together.wait()
    assert wait_until(lambda: len(results) == 7)
    leave.set()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["held"] + ["refused"] * 6


# What the lease and the writers stand on


def test_a_file_is_exchanged_only_for_what_was_expected(store):
    assert not store.exchange("a", b"one", b"two")
    assert store.exchange("a", None, b"one")
    assert not store.exchange("a", None, b"two")
    assert not store.exchange("a", b"two", None)
    assert store.exchange("a", b"one", b"two")
    assert store.read("a") == b"two"
    assert store.exchange("a", b"two", None)
    assert store.read("a") is None
    assert store.sizes("_rankmill/tmp") == {}


def test_nothing_is_written_once_the_fence_has_fallen(store):
    store.write("run", b"ours")
    fenced = replace(store, fence=Fence("run", hashlib.sha256(b"ours").hexdigest()))
    fenced.write("part", b"1")
    for theirs in (b"theirs", None):
        store.delete(["run"]) if theirs is None else store.write("run", theirs)
        with pytest.raises(OutputBusy, match="Another run has taken over"):
            fenced.write("part", b"2")
        with pytest.raises(OutputBusy, match="Another run has taken over"):
            fenced.withdraw("part")
    assert store.read("part") == b"1"
    assert store.sizes("_rankmill/tmp") == {}


def test_what_is_withdrawn_is_gone_and_need_not_be_there(store):
    store.write("run", b"ours")
    for one in (store, replace(store, fence=Fence("run", hashlib.sha256(b"ours").hexdigest()))):
        store.write("part", b"1")
        one.withdraw("part")
        assert store.read("part") is None
        one.withdraw("part")


def test_a_writer_waits_for_whoever_takes_the_folder_over(store):
    store.write("run", b"ours")
    fenced = replace(store, fence=Fence("run", hashlib.sha256(b"ours").hexdigest()))
    refused: list[str] = []

    def write() -> None:
        try:
            fenced.write("part", b"1")
        except OutputBusy as busy:
            refused.append(busy.message)

    thread = threading.Thread(target=write)
    with store.locked():
        thread.start()
        # It has its file ready and stands before the lock.
        assert wait_until(lambda: store.sizes("_rankmill/tmp") != {})
        store.write("run", b"theirs")
    thread.join()
    assert refused
    assert store.read("part") is None


def test_a_stopped_process_that_holds_the_lock_is_named_as_the_obstacle(store, monkeypatch):
    monkeypatch.setattr("rankmill.store._LOCK_SECONDS", 0.1)
    with (
        store.locked(shared=True),
        store.locked(shared=True),
        pytest.raises(OutputBusy, match=r"holds the lock of .*lease\.lock"),
    ):
        lease(store).__enter__()
