"""The rate and the time left of a run that is watched."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from ranked_runs import candidates, commit_run, ranked_part
from rankmill import markers, progress, status_tables
from rankmill.lease import Lease
from rankmill.progress import Pace, Progress, Watch
from rankmill.status import read_status
from rankmill.store import Store

PARTS = [ranked_part(candidates([[1.0, 2.0]]))] * 6
PAIRS = 12


def test_a_pace_counts_from_the_first_commit_and_is_told_by_the_second():
    pace = Pace(shards=0)
    assert pace.look(0, 0, 0.0, now=60.0) is None
    assert pace.look(1, 100, 10.0, now=100.0) is None
    assert pace.look(1, 100, 10.0, now=115.0) is None
    assert pace.look(2, 200, 10.0, now=120.0) == pytest.approx(5.0)


def test_workers_that_commit_together_are_not_taken_for_a_fast_one():
    pace = Pace(shards=0)
    assert pace.look(1, 100, 60.0, now=100.0) is None
    assert pace.look(8, 800, 60.0, now=101.0) is None
    assert pace.look(9, 900, 60.0, now=161.0) is not None


def test_a_resumed_run_does_not_count_what_was_there():
    pace = Pace(shards=5)
    assert pace.look(5, 500, 1.0, now=0.0) is None
    assert pace.look(6, 600, 1.0, now=50.0) is None
    assert pace.look(7, 700, 1.0, now=60.0) == pytest.approx(10.0)


def test_a_slow_start_does_not_lengthen_the_time_left(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    whole = Store(commit_run(tmp_path / "whole", PARTS))
    store = Store(commit_run(tmp_path / "run", PARTS, missing=range(6)))
    told: list[Progress] = []
    watch = Watch(
        store, 6, PAIRS, {}, "f" * 64, Lease(store), told.append, observer=lambda _new, _now: None
    )
    for shard, at in enumerate((30.0, 32.0, 34.0)):
        name = markers.marker_name(shard)
        store.write(name, whole.read(name) or b"")
        clock.now = at
        watch.look()
    assert [now.seconds_left for now in told] == [None, 8.0, 6.0]


def test_the_watch_of_another_process_leaves_the_start_out(tmp_path, monkeypatch, capsys):
    clock = SimpleNamespace(now=0.0)

    def sleep(seconds: float) -> None:
        clock.now += seconds

    here = SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep)
    monkeypatch.setattr(status_tables, "time", here)
    missing = {done: range(done, 6) for done in (0, 1, 2, 6)}
    looks = {
        done: read_status(commit_run(tmp_path / str(done), PARTS, missing=none))
        for done, none in missing.items()
    }
    begun = [replace(looks[done], running=True) for done in [0] * 20 + [1, 2]]
    following = iter([*begun, looks[6]])
    status_tables.watch_status(begun[0], lambda: next(following))
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("time left") == 1
    assert "rows/s while watched 1 time left 8 s" in shown
