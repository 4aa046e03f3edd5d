"""The command line: one document on stdout, the errors' own exit codes, messages that help."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from conftest import make_pairs
from ranked_runs import candidates as given
from ranked_runs import commit_run, ranked_part
from rankmill import cli, markers, plan
from rankmill.evaluate_command import name_runs
from rankmill.status import read_status

COMMANDS = sorted(get_command(cli.app).commands)


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def rankmill(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Outcome]]:
    """Run the command in this process, with its real stdout and stderr."""
    handlers, level = logging.getLogger("rankmill").handlers, logging.getLogger("rankmill").level
    propagate = logging.getLogger("rankmill").propagate

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["rankmill", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        out, err = capfd.readouterr()
        return Outcome(code, out, plain(err))

    yield run
    log = logging.getLogger("rankmill")
    log.handlers, log.propagate = handlers, propagate
    log.setLevel(level)


@pytest.fixture(scope="module")
def candidates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("input") / "candidates.parquet"
    pq.write_table(make_pairs(12, 5), path, row_group_size=20)
    return path


@pytest.fixture(scope="module")
def finished(
    candidates: Path, tiny_model: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run of the installed command with `--json`, of three shards: its output and what it
    printed."""
    output = tmp_path_factory.mktemp("finished") / "output"
    # The plan is made in the driver and nowhere else.
    program = "from rankmill import cli, plan; plan.SHARD_PAIRS = 20; cli.main()"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [
            *(sys.executable, "-c", program, "rerank", "--input", candidates),
            *("--output", output, "--model", tiny_model("bert")),
            *("--set", "compute.workers=1", "--json"),
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    return output, done


@pytest.fixture
def half_finished(finished: tuple[Path, object], tmp_path: Path) -> Path:
    output = tmp_path / "half"
    shutil.copytree(finished[0], output)
    for name in ("_SUCCESS", "part-00001.parquet", markers.marker_name(1)):
        (output / name).unlink()
    return output


def plain(text: str) -> str:
    return " ".join(text.split())


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example(command):
    shown = CliRunner().invoke(cli.app, [command, "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert "Example" in shown.stdout
    assert f"rankmill {command}" in shown.stdout.partition("Example")[2]


def test_the_commands_of_the_contract_are_there():
    assert {
        "compare",
        "demo",
        "evaluate",
        "export",
        "models",
        "plan",
        "report",
        "rerank",
        "status",
    } <= set(COMMANDS)


def test_ctrl_c_says_that_the_same_command_resumes(
    rankmill, candidates, tiny_model, ray_cluster, tmp_path
):
    log, output = logging.getLogger("rankmill"), tmp_path / "a[/b]"

    def interrupt(record: logging.LogRecord) -> bool:
        if "worker(s)" in record.getMessage():  # the run has begun
            signal.raise_signal(signal.SIGINT)
        return True

    log.addFilter(interrupt)
    # A shell that started the tests in the background has turned it off.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        done = rankmill(
            *("rerank", "--input", candidates, "--output", output),
            *("--model", tiny_model("bert"), "--set", "compute.workers=1"),
        )
    finally:
        signal.signal(signal.SIGINT, before)
        log.removeFilter(interrupt)
    assert (done.code, done.out) == (130, "")
    said = f"Stopped. What is committed in {output} stays; the same command resumes."
    assert said in done.err
    assert read_status(str(output)).shards > 0


# What a finished run prints


def test_json_is_the_manifest_and_the_whole_of_stdout(finished):
    output, done = finished
    assert done.returncode == 0, done.stderr[-3000:]
    manifest = json.loads(done.stdout)
    assert manifest == json.loads((output / "_rankmill/manifest.json").read_bytes())
    assert manifest["rows_in"] == manifest["rows_out"] == 60
    assert manifest["shards"] == 3


def test_progress_and_what_auto_resolved_to_go_to_stderr(finished):
    _, done = finished
    assert "1 worker(s) of" in done.stderr
    assert "shards 3/3, 60/60 pairs" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_complete_output_is_said_so_and_exits_0(
    rankmill, finished, candidates, tiny_model, monkeypatch
):
    monkeypatch.setattr(plan, "SHARD_PAIRS", 20)
    done = rankmill(
        "rerank", "--input", candidates, "--output", finished[0], "--model", tiny_model("bert")
    )
    assert done.code == 0
    assert "Already complete" in done.err
    assert "rows in 60" in plain(done.out)


# Mistakes


@pytest.fixture(scope="module")
def broken(candidates: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with inputs and settings that cannot be used."""
    folder = tmp_path_factory.mktemp("broken")

    def table(name: str, **columns: object) -> None:
        (folder / name).mkdir()
        pq.write_table(pa.table(columns), folder / name / "a.parquet")

    shutil.copy(candidates, folder / "good.parquet")
    (folder / "cut.parquet").write_bytes(candidates.read_bytes()[:-40])
    table("no_document", query=["q"], doc_id=["d"], body=["text"])
    table("numbers", query=[1], doc_id=["d"], document=["text"])
    table("ranked", query=["q"], doc_id=["d"], document=["text"], rerank_score=[1.0])
    (folder / "misspelt.yaml").write_text("outptu: {path: x}")
    (folder / "broken.yaml").write_text("input: [")
    (folder / "foreign").mkdir()
    (folder / "foreign/notes.txt").write_text("mine")
    return folder


GOOD = "--input {folder}/good.parquet --output {out} --model {model}"
OUT = "--output {out} --model {model}"

# Arguments of `rerank`, and what its message names: the thing at fault and a remedy.
MISTAKES = [
    ("", ["Nothing to do", "--help"]),
    ("--input {folder}/good.parquet --model {model}", ["output is missing", "--set"]),
    ("{folder}/misspelt.yaml " + GOOD, ["Unknown setting outptu", "Did you mean output?"]),
    (GOOD + " --set output.topk=3", ["output.topk", "Did you mean top_k?"]),
    (GOOD + " --set output.top_k=many", ["output.top_k", "'many'"]),
    (GOOD + " --set compute.gpus_per_worker=0", ["compute.gpus_per_worker", "greater than 0"]),
    (GOOD + " --set output.columns=[nope]", ["output.columns", "nope", "query_id"]),
    (GOOD + " --set top_k", ["a.b=value", "top_k", "--set output.top_k=20"]),
    ("{folder}/no.yaml " + OUT, ["no configuration file {folder}/no.yaml", "Give the path"]),
    ("{folder}/broken.yaml " + OUT, ["{folder}/broken.yaml is not valid YAML"]),
    ("--input {folder}/nope " + OUT, ["{folder}/nope", "Check the path"]),
    ("--input {folder}/foreign " + OUT, ["notes.txt is not a readable Parquet file", "Remove it"]),
    ("--input {folder}/cut.parquet " + OUT, ["cut.parquet is not a readable Parquet file"]),
    (
        "--input {folder}/no_document " + OUT,
        ["no_document/a.parquet", "column document", "body", "input.columns.document"],
    ),
    ("--input {folder}/numbers " + OUT, ["numbers/a.parquet", "column query", "int64"]),
    ("--input {folder}/ranked " + OUT, ["rerank_score", "output.column_prefix"]),
    (
        "--input {folder}/good.parquet --output {out} --model nobody/nothing",
        ["nobody/nothing", "local folder"],
    ),
    (
        "--input {folder} --output {folder}/below --model {model}",
        ["{folder}/below", "inside each other", "folder of its own"],
    ),
    (
        "--input {folder}/good.parquet --output {folder}/foreign --model {model}",
        ["{folder}/foreign", "notes.txt", "empty folder"],
    ),
]


@pytest.mark.parametrize(("arguments", "named"), MISTAKES)
def test_a_mistake_exits_2_within_seconds_and_says_how_to_mend_it(
    rankmill, broken, tiny_model, tmp_path, arguments, named
):
    fill = {"folder": broken, "out": tmp_path / "output", "model": tiny_model("bert")}
    started = time.monotonic()
    done = rankmill("rerank", *arguments.format(**fill).split(), "--json")
    assert time.monotonic() - started < 10
    assert done.code == 2, done.err
    assert done.out == ""
    for thing in named:
        assert thing.format(**fill) in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "output").exists()


def test_plan_finds_the_same_mistakes(rankmill, broken, tiny_model, tmp_path):
    done = rankmill(
        *("plan", "--input", broken / "ranked", "--output", tmp_path / "output"),
        *("--model", tiny_model("bert")),
    )
    assert (done.code, done.out) == (2, "")
    assert "output.column_prefix" in done.err


def test_status_of_a_folder_without_a_run_exits_2(rankmill, tmp_path):
    done = rankmill("status", tmp_path)
    assert done.code == 2
    assert f"There is no run at {tmp_path}" in done.err


def test_a_report_of_a_folder_without_a_run_exits_2(rankmill, tmp_path):
    done = rankmill("report", tmp_path)
    assert done.code == 2
    assert f"There is no run at {tmp_path}" in done.err


def test_an_unknown_option_exits_2(rankmill):
    done = rankmill("rerank", "--ouput", "x")
    assert done.code == 2
    assert "--ouput" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("place", ["first", "last"])
def test_debug_shows_the_traceback(broken, tmp_path, place):
    arguments = ["rerank", "--input", broken / "nope", "--output", tmp_path, "--model", "demo"]
    arguments = ["--debug", *arguments] if place == "first" else [*arguments, "--debug"]
    done = subprocess.run(
        [sys.executable, "-c", "from rankmill import cli; cli.main()", *arguments],
        capture_output=True,
        text=True,
    )
    assert "Traceback" in done.stderr
    assert "rankmill.errors.InputError: There is nothing at" in done.stderr


# Plan


def test_plan_shows_the_resolved_configuration_and_starts_nothing(
    rankmill, candidates, tiny_model, tmp_path, monkeypatch
):
    import ray

    monkeypatch.setattr(plan, "SHARD_PAIRS", 20)
    connected = ray.is_initialized()
    done = rankmill(
        *("plan", "--input", candidates, "--output", tmp_path / "output", "--limit", 8),
        *("--model", tiny_model("bert"), "--top-k", 3, "--rate", 10, "--json"),
    )
    facts = json.loads(done.out)
    assert {name: facts[name] for name in ("files", "layout", "queries", "pairs")} == {
        "files": 1,
        "layout": "pairs",
        "queries": 8,
        "pairs": 40,
    }
    assert (facts["shards"], facts["shards_committed"], facts["shards_pending"]) == (2, 0, 2)
    assert facts["seconds_estimated"] == pytest.approx(4.0)
    assert facts["config"]["output"]["top_k"] == 3
    assert facts["config"]["model"]["max_length"] == 512
    assert not (tmp_path / "output").exists()
    assert ray.is_initialized() == connected


@pytest.fixture
def preset(hub, tiny_model) -> str:
    """A preset whose authors use a length that is not the default."""
    hub("Qwen/Qwen3-Reranker-0.6B", tiny_model("qwen3"))
    return "Qwen/Qwen3-Reranker-0.6B"


def test_the_length_of_a_presets_authors_is_shown_where_none_was_chosen(
    rankmill, candidates, preset, tiny_model, tmp_path
):
    def shown(model: str, *more: str) -> str:
        paths = ("--input", candidates, "--output", tmp_path / "output")
        return plain(rankmill("plan", *paths, "--model", model, *more).out)

    assert "tokens an input, at most 512 (the authors use 8,192)" in shown(preset)
    assert "the authors use" not in shown(preset, "--set", "model.max_length=512")
    assert "tokens an input, at most 512 " in shown(preset, "--set", "model.max_length=512")
    assert "the authors use" not in shown(tiny_model("bert"))


def test_plan_counts_the_tokens_of_a_prompt(rankmill, candidates, preset, tmp_path):
    def tokens(instruction: str) -> int:
        paths = ("--input", candidates, "--output", tmp_path / "output", "--json")
        told = ("--set", f"model.instruction={instruction}")
        return json.loads(rankmill("plan", *paths, "--model", preset, *told).out)[
            "tokens_estimated"
        ]

    pairs = pq.read_metadata(candidates).num_rows
    # A tiny tokenizer's prompt has more tokens than the true one's 60 or so.
    assert tokens("x") > 60 * pairs
    words = tokens("x x x x x x x x x x x") - tokens("x")
    assert words >= 10 * pairs
    assert words % pairs == 0


def test_plan_counts_what_is_committed(
    rankmill, candidates, half_finished, tiny_model, monkeypatch
):
    monkeypatch.setattr(plan, "SHARD_PAIRS", 20)
    before = sorted(half_finished.rglob("*"))
    done = rankmill(
        *("plan", "--input", candidates, "--output", half_finished),
        *("--model", tiny_model("bert"), "--set", "compute.workers=1"),
    )
    assert "committed 2" in plain(done.out)
    assert "pending 1" in plain(done.out)
    assert sorted(half_finished.rglob("*")) == before


def test_a_night_that_has_begun_is_planned_with_what_it_began_with(
    rankmill, candidates, finished, half_finished, tiny_model, monkeypatch
):
    monkeypatch.setattr(plan, "SHARD_PAIRS", 20)
    other = half_finished.with_name("earlier")
    shutil.copytree(finished[0], other)
    asked = ("--input", candidates, "--model", tiny_model("bert"), "--set", "compute.workers=1")
    begun = ("plan", *asked, "--output", half_finished)
    nights = ("--reuse-under", half_finished.parent)
    told = json.loads(rankmill(*begun, *nights, "--json").out)
    assert (told["config"]["reuse"], told["shards_committed"]) == ([], 2)
    first = ("plan", *asked, "--output", half_finished.with_name("new"))
    told = json.loads(rankmill(*first, *nights, "--json").out)
    assert told["config"]["reuse"] == [str(other)]
    refused = rankmill(*begun, "--set", f"reuse=[{other}]")
    assert refused.code == 2
    assert "began with: no output" in refused.err
    assert "rankmill nightly" in refused.err
    assert "--overwrite" not in refused.err


def test_plan_tells_hours_by_the_rate_of_another_run(
    rankmill, candidates, finished, tiny_model, tmp_path
):
    paths = ("plan", "--input", candidates, "--output", tmp_path / "output")
    model = ("--model", tiny_model("bert"), "--rates-from", finished[0])
    [told] = json.loads(rankmill(*paths, *model, "--json").out)["capacity"]
    manifest = json.loads((finished[0] / "_rankmill/manifest.json").read_bytes())
    # The same pairs again: one worker takes as long as it took.
    assert told["pairs"] == told["measured"]["pairs"] == manifest["pairs_scored"]
    assert 3600 * told["hours"]["1"] == pytest.approx(manifest["scoring_seconds"], abs=2e-3)
    assert told["worker"]["precision"] == manifest["profile"]["precision"]
    shown = plain(rankmill(*paths, *model).out)
    assert "core-hours of scoring" in shown
    assert "time, estimated see below" in " ".join(shown.split())


def test_plan_makes_up_no_rate(rankmill, candidates, finished, tiny_model, tmp_path):
    paths = ("plan", "--input", candidates, "--output", tmp_path / "output")
    bert, other = (("--model", tiny_model(name)) for name in ("bert", "modernbert"))
    assert json.loads(rankmill(*paths, *bert, "--json").out)["capacity"] == []
    unknown = rankmill(*paths, *other, "--rates-from", finished[0])
    assert (unknown.code, "tells no rate of" in plain(unknown.err)) == (2, True)
    nothing = rankmill(*paths, *bert, "--rates-from", tmp_path)
    assert (nothing.code, "holds no run" in plain(nothing.err)) == (2, True)
    record = json.loads((finished[0] / "_rankmill/run.json").read_bytes())
    del record["plan"]["tokens_a_pair"]
    (tmp_path / "older/_rankmill").mkdir(parents=True)
    (tmp_path / "older/_rankmill/run.json").write_text(json.dumps(record))
    older = rankmill(*paths, *bert, "--rates-from", tmp_path / "older")
    assert (older.code, "earlier version" in " ".join(plain(older.err).split())) == (2, True)


def test_plan_shows_no_secret(rankmill, candidates, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "never-to-be-seen")
    done = rankmill(
        *("plan", "--input", candidates, "--output", tmp_path / "output"),
        *("--model", tiny_model("bert"), "--json"),
    )
    assert json.loads(done.out)["config"]["storage"]["profile"] is None
    assert "never-to-be-seen" not in done.out + done.err


# Status


def test_status_of_a_complete_run(rankmill, finished):
    done = rankmill("status", finished[0], "--verify")
    assert done.code == 0
    assert "state complete shards committed 3 of 3 rows done 60 of about 60" in plain(done.out)
    assert "damaged" not in done.out


def test_a_report_is_there_and_is_drawn_again(rankmill, finished):
    report = finished[0] / "_rankmill/report.html"
    assert "what is shard 0" not in report.read_text()
    done = rankmill("report", finished[0], "--texts")
    assert (done.code, done.out) == (0, f"{report}\n")
    assert "what is shard 0" in report.read_text()


def rerun(rankmill: Callable[..., Outcome], source: Path, output: Path, model: str) -> Outcome:
    return rankmill("rerank", "--input", source, "--output", output, "--model", model)


def test_a_complete_output_with_a_damaged_record_ends_no_command_in_a_traceback(
    rankmill, candidates, finished, tiny_model, tmp_path, monkeypatch
):
    monkeypatch.setattr(plan, "SHARD_PAIRS", 20)
    output = tmp_path / "damaged"
    shutil.copytree(finished[0], output)
    for name in ("manifest.json", "run.json"):
        (output / "_rankmill" / name).write_bytes(b"\xff{")
        done = rerun(rankmill, candidates, output, tiny_model("bert"))
        assert (done.code, done.out) == (2, "")
        assert f"_rankmill/{name} is damaged" in done.err
        assert "To mend it:" in done.err


def test_a_complete_output_is_named_complete_with_what_is_not_its_own(
    rankmill, candidates, finished, tiny_model, tmp_path, monkeypatch
):
    monkeypatch.setattr(plan, "SHARD_PAIRS", 20)
    output = tmp_path / "stranger"
    shutil.copytree(finished[0], output)
    shutil.copy(output / "part-00000.parquet", output / "other.parquet")
    done = rerun(rankmill, candidates, output, tiny_model("bert"))
    assert done.code == 0
    assert "holds other.parquet, which is not of its run" in done.err
    (output / "_SUCCESS").unlink()
    done = rerun(rankmill, candidates, output, tiny_model("bert"))
    assert (done.code, (output / "_SUCCESS").exists()) == (2, False)
    assert "holds other.parquet, which is not of its run" in done.err


def test_status_of_a_damaged_run_says_how_to_mend_it(rankmill, finished, tmp_path):
    output = tmp_path / "damaged"
    shutil.copytree(finished[0], output)
    content = bytearray((output / "part-00001.parquet").read_bytes())
    content[20] ^= 1
    (output / "part-00001.parquet").write_bytes(bytes(content))
    done = rankmill("status", output, "--verify")
    assert done.code == 1
    shown = plain(done.out)
    assert "damaged part-00001.parquet is not what was committed (checksum)" in shown
    assert shown.endswith("to mend it remove the named files and run the same command again")


def test_an_output_that_cannot_be_made_is_said_to_be_so(rankmill, candidates, tiny_model):
    done = rerun(rankmill, candidates, Path("/proc/x"), tiny_model("bert"))
    assert done.code == 2
    assert "/proc/x cannot be written: No such file or directory." in done.err


def test_status_of_a_half_finished_run(rankmill, half_finished):
    done = rankmill("status", half_finished)
    assert done.code == 0
    assert "state stopped shards committed 2 of 3 rows done 40 of about 60" in plain(done.out)


def test_status_shows_why_a_shard_failed(rankmill, half_finished):
    note = {"shard": 1, "error": "a.parquet, row group 1, cannot be decoded"}
    (half_finished / "_rankmill/failed").mkdir(exist_ok=True)
    (half_finished / markers.failure_name(1)).write_text(json.dumps(note))
    shown = plain(rankmill("status", half_finished).out)
    assert "failed shard 1 a.parquet, row group 1, cannot be decoded" in shown


def test_status_verify_finds_a_byte_that_changed(rankmill, half_finished):
    part = half_finished / "part-00002.parquet"
    content = part.read_bytes()
    part.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    assert rankmill("status", half_finished).code == 0
    done = rankmill("status", half_finished, "--verify")
    assert done.code == 1
    assert "part-00002.parquet is not what was committed" in plain(done.out)


def test_status_verify_finds_a_part_that_nobody_committed(rankmill, half_finished):
    shutil.copy(half_finished / "part-00002.parquet", half_finished / "part-00007.parquet")
    done = rankmill("status", half_finished, "--verify")
    assert done.code == 1
    assert "part-00007.parquet has no marker" in plain(done.out)


# Models, evaluate


def test_models_lists_presets_as_one_document(rankmill):
    done = rankmill("models", "--json")
    names = [preset["name"] for preset in json.loads(done.out)]
    assert len(names) == len(set(names)) > 3


@pytest.mark.parametrize("columns", [80, 120])
def test_models_fits_the_width_and_shows_every_fact(rankmill, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    out = rankmill("models").out
    assert max(map(len, out.splitlines())) <= columns
    heading = plain(out.partition("demo")[0])
    assert heading == "name architecture shape params tokens authors' languages licence"
    ruri = "cl-nagoya/ruri-v3-reranker-310m modernbert 25x768 315M 8,192 512 ja Apache-2.0"
    assert ruri in plain(out)
    assert "Qwen/Qwen3-Reranker-4B causal-lm 36x2560 4022M 40,960 8,192 multilingual" in plain(out)


def test_models_says_once_what_some_of_them_need(rankmill):
    out = plain(rankmill("models").out)
    assert "cross-encoder-large-v1: needs MeCab to split words" in out
    assert out.count("pip install 'rankmill[japanese]'") == 1


def test_evaluate_prints_each_metric_by_its_name(rankmill, finished, tmp_path):
    ranked = pq.read_table(finished[0])
    best = ranked.filter(pa.compute.equal(ranked["rerank_rank"], 1))
    qrels = best.select(["query_id", "doc_id"]).append_column(
        "relevance", pa.array([1] * best.num_rows)
    )
    pq.write_table(qrels, tmp_path / "qrels.parquet")
    done = rankmill(
        *("evaluate", finished[0], "--qrels", tmp_path / "qrels.parquet", "--json"),
        *("--metrics", "ndcg@10,hit@1", "--per-query", tmp_path / "per_query.csv"),
    )
    assert json.loads(done.out)["metrics"] == {"ndcg@10": 1.0, "hit@1": 1.0}
    assert (tmp_path / "per_query.csv").read_text().startswith("query_id,ndcg@10,hit@1\n")
    shown = plain(
        rankmill(
            *("evaluate", finished[0], "--qrels", tmp_path / "qrels.parquet"),
            *("--baseline", "bm25_rank"),
        ).out
    )
    assert "metric baseline ranked difference" in shown


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_per_query_files_are_written_by_their_ending(rankmill, judged_table, tmp_path, ending):
    ranked, qrels = judged_table
    path = tmp_path / f"queries.{ending}"
    done = rankmill(
        *(
            "evaluate",
            ranked,
            "--qrels",
            qrels,
            "--metrics",
            "mrr,hit@1",
            "--baseline",
            "bm25_rank",
        ),
        *("--per-query", path),
    )
    assert done.code == 0
    frame = pd.read_parquet(path) if ending == "parquet" else pd.read_csv(path)
    assert list(frame) == ["query_id", "mrr", "hit@1", "mrr:bm25_rank", "hit@1:bm25_rank"]
    assert list(frame["mrr"]) == [1.0, 0.5]
    assert list(tmp_path.glob("*")) == [path]


def test_a_per_query_file_of_no_known_ending_is_refused_at_once(rankmill, tmp_path):
    done = rankmill(
        "evaluate", "no-table", "--qrels", "none", "--per-query", tmp_path / "queries.xls"
    )
    assert done.code == 2
    assert ".parquet or .csv" in done.err


@pytest.fixture
def judged_table(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two queries, of which one is answered first, and judgements."""
    folder = tmp_path_factory.mktemp("judged")
    rows = {
        "query_id": ["q0", "q0", "q1", "q1"],
        "doc_id": ["a", "b", "a", "b"],
        "rerank_rank": [1, 2, 1, 2],
        "bm25_rank": [2, 1, 2, 1],
        "language": ["en", "en", "[ja]", "[ja]"],
    }
    pq.write_table(pa.table(rows), folder / "ranked.parquet")
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq0\ta\t1\nq1\tb\t1\n")
    return folder / "ranked.parquet", folder / "qrels.tsv"


@pytest.mark.parametrize("columns", [80, 160])
def test_everything_that_evaluate_shows_fits_the_width(
    rankmill, judged_table, tmp_path, monkeypatch, columns
):
    monkeypatch.setenv("COLUMNS", str(columns))
    ranked, qrels = judged_table
    other = tmp_path / "other.parquet"
    shutil.copy(ranked, other)
    done = rankmill(
        *(
            "evaluate",
            ranked,
            other,
            "--qrels",
            qrels,
            "--baseline",
            "bm25_rank",
            "--by",
            "language",
        ),
        *("--depths", "1,2"),
    )
    assert max(map(len, done.out.splitlines())) <= columns
    out = plain(done.out)
    assert "recall@100 bm25_rank 1.0000 ranked 1.0000 +0.0000" in out
    assert "[ja] 1 ndcg@10 ranked 0.6309 -0.3691" in out
    assert "all 4 0.8155" in out
    assert "10,000 draws each" in out
    assert "other: 0 judged queries missing, 0 queries without judgements" in out
    assert "2 of 4 documents unjudged" in out


def test_parts_that_a_shell_lists_are_one_run_and_others_are_named_apart():
    parts = ["x/ranked/part-00000.parquet", "x/ranked/part-00001.parquet"]
    assert name_runs(parts) == {"ranked": parts}
    assert name_runs(["a/ranked/", "b/ranked"]) == {"a/ranked": "a/ranked/", "b/ranked": "b/ranked"}
    assert list(name_runs(["a.parquet", "b.parquet"])) == ["a", "b"]
    assert name_runs(["old", *parts]) == {"old": "old", "ranked": parts}


# Compare


def test_compare_shows_what_changed_and_prints_one_document(rankmill, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    old, new = (
        commit_run(tmp_path / name, [ranked_part(given([[3.0, 2.0, 1.0], [1.0, 2.0]][:n]))])
        for name, n in (("old", 2), ("new", 1))
    )
    done = rankmill("compare", old, new, "--top", "1,2", "--json")
    found = json.loads(done.out)
    assert (found["counts"]["queries_gone"], found["overlap"]["1"]["mean"]) == (1, 1.0)
    shown = rankmill("compare", old, new)
    assert "queries 2 1 1 1 0 0" in plain(shown.out)
    assert "Gone queries, some of them query q1" in plain(shown.out)
    assert rankmill("compare", old, new, "--top", "ten").code == 2


def test_compare_draws_a_page_into_a_folder_that_is_there(rankmill, tmp_path):
    run = commit_run(tmp_path / "run", [ranked_part(given([[3.0, 2.0]]))])
    page = tmp_path / "page.html"
    done = rankmill("compare", run, run, "--html", page, "--json")
    assert json.loads(done.out)["counts"]["queries_unchanged"] == 1
    assert page.read_text().startswith("<!DOCTYPE html>")
    done = rankmill("compare", run, run, "--html", tmp_path / "nowhere" / "page.html")
    assert (done.code, "There is no folder" in done.err) == (2, True)


# Export


def test_export_prints_its_report_as_the_whole_of_stdout(rankmill, finished, ray_cluster, tmp_path):
    arguments = ["export", finished[0], tmp_path / "out", "--format", "n-tuple", "--scores"]
    arguments += ["--positive-max-rank", 1, "--negatives", 2, "--sampling", "random", "--seed", 7]
    arguments += ["--negative-min-rank", 2, "--negative-max-rank", 4, "--negative-max-score", 1e6]
    arguments += ["--margin", 0, "--agree-run", finished[0]]
    done = rankmill(*arguments, "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report == json.loads((tmp_path / "out/_rankmill/report.json").read_bytes())
    assert report["columns"] == ["query", "positive", "negative_1", "negative_2", "scores"]
    assert report["settings"]["negative_max_score"] == 1e6
    assert report["counts"]["examples"] == 12
    assert sum(report["counts"]["dropped"].values()) == 60 - 36
    assert "shards 3/3" in done.err

    again = rankmill(*arguments)
    assert "Already complete" in again.err
    shown = plain(again.out)
    assert "examples 12 columns query, positive, negative_1" in shown
    assert "outside the ranks for negatives 12" in shown


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("{run} {out} --format tuples", ["format", "'tuples'", "'n-tuple'"]),
        ("{run} {out} --format triplet", ["triplet needs positives", "qrels"]),
        ("{folder}/foreign {out} --format trec", ["There is no run at {folder}/foreign"]),
        ("{run} {run} --format trec", ["lie inside each other", "folder of its own"]),
        ("{run} {out} --format labeled-pair --model x", ["no column rerank_score_x"]),
    ],
)
def test_a_mistake_in_an_export_exits_2(rankmill, finished, broken, tmp_path, arguments, named):
    fill = {"run": finished[0], "folder": broken, "out": tmp_path / "out"}
    done = rankmill("export", *arguments.format(**fill).split(), "--json")
    assert (done.code, done.out) == (2, "")
    for thing in named:
        assert thing.format(**fill) in done.err
    assert not (tmp_path / "out").exists()


# A run that fails part-way


def test_a_run_that_fails_part_way_exits_1_and_names_its_shards(
    rankmill, candidates, tiny_model, ray_cluster, tmp_path, monkeypatch
):
    monkeypatch.setattr(plan, "SHARD_PAIRS", 20)
    damaged = tmp_path / "damaged.parquet"
    content = bytearray(candidates.read_bytes())
    column = pq.read_metadata(candidates).row_group(1).column(3)
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + 64] = bytes(64)
    damaged.write_bytes(content)
    done = rankmill(
        *("rerank", "--input", damaged, "--output", tmp_path / "output", "--json"),
        *("--model", tiny_model("bert"), "--set", "compute.workers=1"),
    )
    assert (done.code, done.out) == (1, "")
    assert "1 of 3 shards failed: shard 1: " in done.err
    assert f"{damaged}, row group 1, cannot be decoded" in done.err
    assert "Run the same command again" in done.err
    assert "Traceback" not in done.err
    status = plain(rankmill("status", tmp_path / "output").out)
    assert "shards committed 2 of 3" in status
    assert "failed shard 1" in status
