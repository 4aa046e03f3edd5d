"""What others see of a run while it goes on: metrics, JSON lines, and `status --watch`."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from rich.console import Console

from conftest import make_pairs
from ranked_runs import candidates, commit_run, ranked_part
from rankmill import cli, logs, plan, status_tables
from rankmill.errors import ConfigError
from rankmill.lease import Owner
from rankmill.masking import mask_record
from rankmill.status import read_status

SHARDS = 3


@pytest.fixture
def own_log() -> Iterator[logging.Logger]:
    """rankmill's logger, which is as it was afterwards."""
    log = logging.getLogger("rankmill")
    handlers, filters, level, propagate = log.handlers, log.filters, log.level, log.propagate
    log.filters = [mask_record]  # no earlier run's name
    yield log
    log.handlers, log.filters, log.propagate = handlers, filters, propagate
    log.setLevel(level)


def json_lines(err: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in err.splitlines() if line.startswith("{")]


def scrape(run: str) -> dict[str, float]:
    """A run's metrics at the node's endpoint, by name and quarantine reason."""
    (node,) = ray.nodes()
    url = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found = {}
    for line in lines:
        match = re.match(r"ray_rankmill_(\w+)\{(.*)\} (\S+)$", line)
        if match and f'run="{run[:12]}"' in match[2] and 'le="' not in match[2]:
            reason = re.search(r'reason="([^"]*)"', match[2])
            found[f"{match[1]} {reason[1]}" if reason else match[1]] = float(match[3])
    return found


def test_a_run_is_counted_at_rays_prometheus_endpoint_and_told_in_json_lines(
    ray_cluster, tiny_model, write_pairs, tmp_path, monkeypatch, capfd, own_log
):
    monkeypatch.setattr(plan, "SHARD_PAIRS", 20)
    table = make_pairs(12, 5)
    documents = table["document"].to_pylist()
    documents[7] = ""
    place = table.column_names.index("document")
    path = write_pairs(table.set_column(place, "document", pa.array(documents)))
    arguments = ["rerank", "--input", path, "--output", f"{tmp_path}/out", "--model"]
    arguments += [tiny_model("bert"), "--set", "compute.workers=1", "--json", "--log-json"]
    monkeypatch.setattr(sys, "argv", ["rankmill", *arguments])
    capfd.readouterr()
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    out, err = capfd.readouterr()
    manifest = json.loads(out)
    run = manifest["fingerprint"]

    lines = json_lines(err)
    committed = [line["shard"] for line in lines if line["message"].endswith("is committed.")]
    assert sorted(committed) == list(range(SHARDS))
    assert {line["run"] for line in lines if line["shard"] is not None} == {run}
    assert lines[-1]["shards_done"] == lines[-1]["shards"] == SHARDS
    assert "candidate lists" not in err

    wanted = {
        f"{name}_total": manifest[name]
        for name in ("rows_in", "pairs_scored", "tokens", "padded_tokens")
    }
    wanted |= {"shards_total": SHARDS, "shard_seconds_count": SHARDS, "shards_left": 0}
    (reason,) = manifest["quarantine"]
    wanted[f"rows_quarantined_total {reason}"] = 1
    deadline = time.monotonic() + 60
    while not wanted.items() <= (found := scrape(run)).items():
        assert time.monotonic() < deadline, found
        time.sleep(0.5)
    assert found["pairs_per_second"] > 0
    assert found["scoring_seconds_total"] == pytest.approx(manifest["scoring_seconds"], abs=0.01)


def test_an_error_is_a_json_line_with_its_remedy_and_exit_code(monkeypatch, capfd, own_log):
    monkeypatch.setattr(sys, "argv", ["rankmill", "status", "--log-json", "s3://a:b@c/d"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    (line,) = json_lines(capfd.readouterr().err)
    assert ended.value.code == line["exit_code"] == ConfigError.exit_code
    assert (line["level"], line["run"], line["shard"]) == ("error", None, None)
    assert "carries credentials" in line["message"]
    assert "AWS profile" in line["remedy"]
    assert line["time"].endswith("+00:00")


def test_messages_name_the_run_that_was_named_last(capfd, own_log):
    logs.write_json()
    for run in ("first", "second"):
        logs.name_run(run)
        own_log.info("hello")
    assert [line["run"] for line in json_lines(capfd.readouterr().err)] == ["first", "second"]


def test_a_watched_run_whose_lease_stands_still_has_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(status_tables, "_WATCH_SECONDS", 0.01)
    monkeypatch.setattr(status_tables, "SILENCE_SECONDS", 0.05)
    part = ranked_part(candidates([[1.0, 2.0]]))
    folder = commit_run(tmp_path / "a", [part, part], missing=[0])
    elsewhere = Owner("token", "another-host", "another boot", 7, "123")
    (Path(folder) / "_rankmill/lease.json").write_text(json.dumps(asdict(elsewhere)))
    begun = read_status(folder)
    assert begun.held_by == elsewhere
    Console().print(status_tables.status_table(begun))
    assert "another-host" in capsys.readouterr().out
    assert not status_tables.watch_status(begun, lambda: read_status(folder)).running
    assert "stopped" in capsys.readouterr().out
    lost = replace(begun, shards=0, running=False)
    Console().print(status_tables.status_table(lost, watched=True))
    assert "stopped: its first shards" in capsys.readouterr().out

    beats = iter(range(1, 100))
    beating = lambda: replace(begun, held_by=replace(elsewhere, beat=next(beats)))  # noqa: E731
    looks = iter([*(beating() for _ in range(20)), replace(begun, running=False, held_by=None)])
    status_tables.watch_status(begun, lambda: next(looks))
    assert next(looks, None) is None, "it was watched to its end"
    assert "lost with its machine" not in capsys.readouterr().out


def test_a_watched_run_is_shown_until_it_ends(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(status_tables, "_WATCH_SECONDS", 0.0)
    part = ranked_part(candidates([[1.0, 2.0]]))
    complete = read_status(commit_run(tmp_path / "b", [part, part]))
    begun = replace(
        read_status(commit_run(tmp_path / "a", [part, part], missing=[0, 1])), running=True
    )
    looks = iter([begun, replace(complete, complete=False, running=True), complete])
    assert status_tables.watch_status(begun, lambda: next(looks)) is complete
    shown = " ".join(capsys.readouterr().out.split())
    assert "state running shards committed 2 of 2" in shown
    assert shown.count("state complete") == 1
