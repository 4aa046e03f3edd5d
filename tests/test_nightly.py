"""A night's run: its date, its input, the output it takes over from, and what its summary says."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from ranked_runs import candidates, commit_run, ranked_part
from rankmill.config import RunConfig, load_config
from rankmill.errors import ConfigError, InputError
from rankmill.nightly import (
    Night,
    Summary,
    marked_folder,
    newest_complete,
    read_date,
    run_night,
    wait_for_input,
    with_reuse,
)


def config(folder: Path, **changed: object) -> RunConfig:
    paths = {"input.path": f"{folder}/in", "output.path": f"{folder}/out/new"}
    return load_config(overrides=paths | {"model.name": "demo"} | changed)


def test_a_date_is_of_iso_8601_or_counted_from_today_in_utc():
    new_year = date(2027, 1, 1)
    assert read_date("yesterday", new_year) == "2026-12-31"
    assert read_date("today", new_year) == "2027-01-01"
    assert read_date("2026-11-21") == "2026-11-21"
    with pytest.raises(ConfigError, match="--date expects a date, found 'tomorrow'"):
        read_date("tomorrow")


def test_the_date_is_filled_in_wherever_a_setting_holds_it(tmp_path):
    (tmp_path / "nightly.yaml").write_text(
        "input:\n  path:\n  - /in/{date}/a\n  - /in/{date}/b\n"
        "model: {name: demo, instruction: 'as of {date}, {other}'}\n"
    )
    found = load_config(tmp_path / "nightly.yaml", {"output.path": "/out/{date}"}, "2026-11-21")
    assert found.input.paths == ["/in/2026-11-21/a", "/in/2026-11-21/b"]
    assert found.output.path == "/out/2026-11-21"
    assert found.model.instruction == "as of 2026-11-21, {other}"


def test_a_path_that_still_waits_for_its_date_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"output\.path holds \{date\}; give the --date"):
        config(tmp_path, **{"output.path": "/out/{date}"})


# Waiting


@pytest.mark.parametrize(
    ("path", "folder"),
    [
        ("s3://b/in/2026-11-21/", "s3://b/in/2026-11-21"),
        ("/in/2026-11-21", "/in/2026-11-21"),
        ("/in/2026-11-21/*.parquet", "/in/2026-11-21"),
        ("s3://b/in/date=2026-*/x", "s3://b/in"),
        ("/in/all.parquet", "/in"),
    ],
)
def test_an_inputs_success_lies_in_its_folder(path, folder):
    assert marked_folder(path) == folder


def test_an_input_that_comes_meanwhile_is_waited_for(tmp_path, caplog, monkeypatch):
    there = tmp_path / "in"
    there.mkdir()

    class Writer(logging.Handler):
        """Finishes the input when the first look was in vain."""

        def emit(self, record: logging.LogRecord) -> None:
            (there / "_SUCCESS").touch()

    log = logging.getLogger("rankmill")
    monkeypatch.setattr(log, "handlers", [Writer()])
    caplog.set_level(logging.INFO, "rankmill")
    night = Night(config(tmp_path), "2026-11-21", wait=60, pause=0.01)
    assert 0 < wait_for_input(night) < 60


def test_tables_of_texts_with_the_nights_date_are_waited_for_and_others_not(tmp_path):
    day = "2026-11-21"
    for name in ("in", f"documents/{day}", "queries"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "in/_SUCCESS").touch()
    # A date in a file's own name: the `_SUCCESS` beside it may be another night's.
    queries = f"{tmp_path}/queries/{day}.parquet"
    given = {"input.layout": "ids", "input.queries": queries}
    given |= {"input.documents": f"{tmp_path}/documents/{day}"}
    night = Night(config(tmp_path, **given), day, wait=0.02, pause=0.01)
    with pytest.raises(InputError, match=rf"^\S+documents/{day}/_SUCCESS did not come"):
        wait_for_input(night)
    (tmp_path / "documents" / day / "_SUCCESS").touch()
    assert wait_for_input(replace(night, wait=60)) < 60


def test_an_input_that_does_not_come_in_time_starts_nothing_and_the_summary_says_so(tmp_path):
    (tmp_path / "in").mkdir()
    summary = tmp_path / "nights/2026-11-21.json"
    night = Night(config(tmp_path), "2026-11-21", 0.02, 0.01, summary=str(summary))
    with pytest.raises(InputError, match=r"in/_SUCCESS did not come within 0 s"):
        run_night(night)
    found = json.loads(summary.read_text())
    assert (found["state"], found["exit_code"]) == ("not started", 2)
    assert "_SUCCESS did not come" in found["reason"]
    assert "--wait" in found["remedy"]
    assert [path.name for path in summary.parent.iterdir()] == [summary.name]
    assert not (tmp_path / "out").exists()


def test_a_summary_that_cannot_be_written_starts_nothing(tmp_path):
    (tmp_path / "file").touch()
    night = Night(config(tmp_path), "2026-11-21", 0, 1, summary=f"{tmp_path}/file/summary.json")
    told: list[Summary] = []
    with pytest.raises(ConfigError, match=r"summary\.json cannot be written"):
        run_night(night, ended=told.append)
    assert [one.state for one in told] == ["not started"]


def test_a_summary_that_only_a_clusters_node_would_find_is_refused(tmp_path):
    (tmp_path / "nightly.yaml").write_text(
        "input: {path: /in}\noutput: {path: /out}\nmodel: {name: demo}\n"
        "compute: {address: '192.0.2.1:6379'}\n"
    )
    arguments = ["--date", "today", "--config", "nightly.yaml", "--summary", "here.json"]
    done = subprocess.run(
        [sys.executable, "-c", "from rankmill import cli; cli.main()", "nightly", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert json.loads(done.stdout)["state"] == "not started"
    assert not (tmp_path / "here.json").exists()
    assert "The path here.json is relative" in done.stderr


# Reuse


def test_the_newest_complete_output_of_other_nights_is_chosen(tmp_path):
    part = ranked_part(candidates([[1.0, 2.0]]))
    for day in ("2026-11-18", "2026-11-19", "2026-11-21"):
        commit_run(tmp_path / day, [part])
    commit_run(tmp_path / "2026-11-20", [part], missing=[0])
    (tmp_path / "2026-11-22").mkdir()
    own = str(tmp_path / "2026-11-21")
    assert newest_complete(str(tmp_path), own) == str(tmp_path / "2026-11-19")


def test_a_night_reuses_the_newest_output_before_those_that_its_settings_name(tmp_path):
    commit_run(tmp_path / "nights/2026-11-20", [ranked_part(candidates([[1.0, 2.0]]))])
    named = config(tmp_path).model_copy(update={"reuse": ["/archive"]})
    found = with_reuse(named, str(tmp_path / "nights")).reuse
    assert found == [str(tmp_path / "nights/2026-11-20"), "/archive"]


def test_what_is_reused_asks_for_no_setting_that_nobody_set(tmp_path):
    commit_run(tmp_path / "nights/2026-11-20", [ranked_part(candidates([[1.0, 2.0]]))])
    named = config(tmp_path, **{"input.columns.document": "text"})
    found = with_reuse(named, str(tmp_path / "nights"))
    assert found.input.columns.model_fields_set == {"document"}
    assert found.model.model_fields_set == {"name"}


def test_where_no_night_was_before_a_night_reuses_nothing(tmp_path):
    named = config(tmp_path)
    assert with_reuse(named, str(tmp_path / "nothing")) == named
