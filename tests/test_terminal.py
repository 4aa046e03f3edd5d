"""What a terminal shows: data, paths and model names stay text there. They are no markup, and no
escape of theirs reaches the terminal."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console, RenderableType
from typer.testing import CliRunner

from ranked_runs import candidates, commit_run, ranked_part
from rankmill import console
from rankmill.cells import facts_table
from rankmill.cli import app
from rankmill.export import ExportResult
from rankmill.export.counts import Counts
from rankmill.markers import Counters
from rankmill.status import Status
from rankmill.status_tables import status_table

# Clears the screen, in both forms; and markup that would colour, or close what is not open.
HOSTILE = "\x1b[2J\x9b2J[red]x[/b]"
SHOWN = r"\x1b[2J\x9b2J[red]x[/b]"


def told(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def shown(renderable: RenderableType, color: bool = False) -> str:
    file = io.StringIO()
    system = "standard" if color else None
    Console(file=file, width=300, force_terminal=color, color_system=system).print(renderable)
    return file.getvalue()


def assert_written_out(text: str) -> None:
    assert not {"\x1b", "\x9b"} & set(text)
    assert SHOWN in text


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A run whose ids, texts and a further column are hostile."""
    return commit(tmp_path / "a", [[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])


def commit(folder: Path, scores: list[list[float]]) -> str:
    table = candidates(scores)
    for name in ("query_id", "query", "doc_id", "document"):
        values = [HOSTILE + value for value in table[name].to_pylist()]
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    table = table.append_column("language", pa.array([HOSTILE] * len(table)))
    table = table.append_column(f"first{HOSTILE}", table["given"])
    return commit_run(folder, [ranked_part(table)])


@pytest.fixture
def qrels(run: str, tmp_path: Path) -> Path:
    ranked = pq.read_table(run).to_pandas()
    best = ranked[ranked["rerank_rank"] == 1]
    path = tmp_path / "qrels.parquet"
    best[["query_id", "doc_id"]].assign(relevance=1).to_parquet(path)
    return path


@pytest.mark.parametrize("texts", [(), ("--texts",)], ids=["ids", "texts"])
def test_a_comparison_writes_out_what_the_tables_hold(run, tmp_path, monkeypatch, capfd, texts):
    monkeypatch.setenv("COLUMNS", "300")
    other = commit(tmp_path / "b", [[1.0, 2.0, 3.0], [3.0, 1.0, 2.0]])
    told("compare", run, other, *texts)
    assert_written_out(capfd.readouterr().out)


@pytest.mark.parametrize("baseline", [(), ("--baseline", f"first{HOSTILE}")], ids=["", "baseline"])
def test_an_evaluation_writes_out_its_slices_and_columns(run, qrels, monkeypatch, baseline):
    monkeypatch.setenv("COLUMNS", "300")
    assert_written_out(told("evaluate", run, "--qrels", qrels, "--by", "language", *baseline))


def test_a_tuned_rule_writes_out_its_column(run, qrels, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    column = f"first{HOSTILE}"
    assert_written_out(told("tune", run, "--qrels", qrels, "--column", column, "--folds", 2))


# Paths, names of models and reasons


def test_facts_are_shown_as_they_are():
    assert_written_out(shown(facts_table([("output", HOSTILE), (HOSTILE, "")])))
    assert shown(facts_table([("output", "/data/a[/b]/c")])).split() == ["output", "/data/a[/b]/c"]


def test_a_status_shows_its_output_and_notes_as_they_are():
    gate = {"name": "ndcg@10", "limit": 0.5, "found": 0.4, "passed": False}
    status = Status(
        **{"url": HOSTILE, "complete": False, "running": False, "shards": 2, "committed": 1},
        **{"pairs": 4, "counters": Counters(), "scoring_seconds": 1.0, "degraded": ()},
        **{"failed": {1: "[b]why"}, "damaged": ("part[/x]",), "gates": (gate,)},
    )
    text = shown(status_table(status))
    assert_written_out(text)
    assert "[b]why" in text
    assert "part[/x]" in text
    assert "0.4, failed" in text
    assert "\x1b[1;31mfailed shard 1" in shown(status_table(status), color=True)


def test_an_export_shows_its_output_as_it_is():
    counts = Counts(dropped={"[red]why": 1})
    found = ExportResult(HOSTILE, {"columns": ["[b]"]}, counts, ())
    text = shown(console.export_table(found))
    assert_written_out(text)
    assert "[red]why" in text


def manifest() -> dict[str, Any]:
    counters = ("queries", "rows_in", "rows_out", "rows_below_cut", "rows_quarantined")
    counters += ("pairs_scored", "pairs_reused", "pairs_truncated", "seconds", "pairs_per_second")
    return {
        "model": {"name": HOSTILE, "digest": "0" * 64},
        "profile": {"backend": "torch", "precision": "fp32", "device": "cpu", "threads": 1},
        "workers": {"workers": 1},
        "models": {"[b]": {"pairs": 1, "reused": 0, "model": {"name": "[i]name"}}},
        "quarantine": {"the model failed on it: Error in [red].py": 1},
        **dict.fromkeys(counters, 1),
    }


def test_a_finished_run_is_told_wherever_it_lies():
    text = shown(console.manifest_table(manifest(), "/data/a[/b]/c"))
    assert_written_out(text)
    assert "/data/a[/b]/c/_rankmill/report.html" in text
    assert "Error in [red].py" in text
    assert "1 by [i]name" in text


def test_an_error_keeps_its_brackets(capsys, monkeypatch):
    from rankmill.errors import InputError

    monkeypatch.setattr(console, "errors", Console(stderr=True, width=300))
    console.show_error(InputError("/data/a[/b]/c is not there.", "Give [red]."))
    assert capsys.readouterr().err == (
        "Error: /data/a[/b]/c is not there.\nTo mend it: Give [red].\n"
    )
