"""Every notebook runs from its first cell to its last, with the public functions only."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import rankmill

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def source(path: Path) -> str:
    return "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "code")


def test_there_are_notebooks():
    assert "rerank_a_corpus.ipynb" in {path.name for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path):
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert [cell.outputs for cell in cells] == [[]] * len(cells)
    assert [cell.execution_count for cell in cells] == [None] * len(cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_uses_public_names_only(path):
    used = set(re.findall(r"rankmill\.(\w+)", source(path)))
    assert used
    assert used <= set(rankmill.__all__)
    assert not re.search(r"(from|import) rankmill\.", source(path))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("RANKMILL_MODEL", tiny_model("bert"))
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    notebook = read(path)
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    shown = [str(output.get("data", {})) for cell in code for output in cell.outputs]
    assert any(re.search(r"\b(\d+)/\1 shards", text) for text in shown), "no progress was shown"
