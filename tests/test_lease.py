"""The lease: one live run an output; the dead are replaced, the living never."""

from __future__ import annotations

import json
import os
import shutil
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
from rankmill.store import Store

HEARTBEAT = 0.05
SILENCE = 0.6

ELSEWHERE = Owner(token="theirs", host="node-7", boot="another kernel", pid=4242, process_start="1")

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
def another_process_holds(store: Store) -> Iterator[subprocess.Popen[str]]:
    """A live process of this machine with the lease; killed at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, store.url], stdout=subprocess.PIPE, text=True
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


def test_of_runs_that_start_together_one_wins(store):
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
