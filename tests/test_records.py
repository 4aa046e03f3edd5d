"""A damaged run.json or manifest is named, and never ends a later command in a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankmill import runs
from rankmill.errors import OutputError
from rankmill.report import draw_report
from rankmill.store import Store
from reported_runs import commit_report_run, pairs

Values = dict[str, Any]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A complete output of one shard."""
    return commit_report_run(str(tmp_path), [pairs([2])])


def damaged(store: Store, name: str, change: Callable[[Values], object]) -> None:
    values = json.loads(store.read(name) or b"")
    change(values)
    store.write(name, json.dumps(values).encode())


NO_RECORD = {
    "empty": b"",
    "cut short": b'{"fingerprint": "f',
    "of other bytes": b"\xff\xfe\x00",
    "a list": b"[]",
    "nothing": b"null",
    "without end": b"[" * 200_000,
}


@pytest.mark.parametrize("content", NO_RECORD.values(), ids=NO_RECORD)
def test_what_is_no_record_is_named(store: Store, content: bytes) -> None:
    store.write(runs.MANIFEST, content)
    with pytest.raises(OutputError, match=r"_rankmill/manifest\.json is damaged") as refused:
        runs.stored_manifest(store)
    assert refused.value.remedy is not None
    assert "Remove _SUCCESS" in refused.value.remedy
    store.write(runs.RUN, content)
    with pytest.raises(OutputError, match=r"_rankmill/run\.json is damaged"):
        runs.stored_run(store)


RUN_DAMAGE: dict[str, Callable[[Values], object]] = {
    **{
        f"without {name}": lambda values, name=name: values.pop(name)
        for name in ("fingerprint", "identity", "config", "plan", "versions", "model", "profile")
    },
    "without a digest of the plan": lambda values: values["plan"].pop("digest"),
    "without a digest of the model": lambda values: values["model"].pop("digest"),
    "without the columns": lambda values: values["config"].pop("input"),
    "of a model that is none": lambda values: values.update(model="tiny"),
    "of shards that are none": lambda values: values["plan"].update(shards=-1),
    "of a report that is none": lambda values: values["config"].update(report=1),
    "of threads that are none": lambda values: values["profile"].update(threads="many"),
    "of reuse that is none": lambda values: values["identity"].update(reuse=[1]),
    "of a cascade without its models": lambda values: values["config"].update(stages=[{}, {}]),
}


@pytest.mark.parametrize("change", RUN_DAMAGE.values(), ids=RUN_DAMAGE)
def test_a_run_json_that_lacks_what_is_read_later_is_named(
    store: Store, change: Callable[[Values], object]
) -> None:
    damaged(store, runs.RUN, change)
    with pytest.raises(OutputError, match=r"_rankmill/run\.json is damaged") as refused:
        runs.stored_run(store)
    assert refused.value.exit_code == 2


MANIFEST_DAMAGE: dict[str, Callable[[Values], object]] = {
    **{
        f"without {name}": lambda values, name=name: values.pop(name)
        for name in ("files", "model", "profile", "workers", "queries", "seconds", "quarantine")
    },
    "of files that are none": lambda values: values.update(files=[1]),
    "of workers that are none": lambda values: values.update(workers={"workers": "two"}),
    "of gates that are none": lambda values: values.update(gates=[{"name": "min_ndcg"}]),
    "of endless seconds": lambda values: values.update(seconds=float("inf")),
}


@pytest.mark.parametrize("change", MANIFEST_DAMAGE.values(), ids=MANIFEST_DAMAGE)
def test_a_manifest_that_lacks_what_is_read_later_is_named(
    store: Store, change: Callable[[Values], object]
) -> None:
    damaged(store, runs.MANIFEST, change)
    with pytest.raises(OutputError, match=r"_rankmill/manifest\.json is damaged") as refused:
        draw_report(store.url)
    assert refused.value.exit_code == 2
    assert runs.stored_gates(store, "f" * 64) == []


def test_no_report_is_written_through_a_link(store: Store, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (tmp_path / "_rankmill/tmp").rmdir()
    (tmp_path / "_rankmill/tmp").symlink_to(victim)
    with pytest.raises(OutputError, match="tmp is a symbolic link"):
        draw_report(store.url)
    assert store.read(runs.REPORT) is None
