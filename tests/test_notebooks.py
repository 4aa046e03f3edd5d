"""Every notebook runs from its first cell to its last, with the public functions only."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
import ray
from nbclient import NotebookClient

import rankmill

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def source(path: Path) -> str:
    return "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "code")


def test_there_are_notebooks():
    names = {path.name for path in NOTEBOOKS}
    assert {"rerank_a_corpus.ipynb", "train_on_reranked_data.ipynb"} <= names


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
def test_a_notebook_runs(path, tiny_model, ray_cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("RANKMILL_MODEL", tiny_model("bert"))
    monkeypatch.setenv("RANKMILL_STEPS", "20")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # models this small lose time to more
    # Not a cluster of its own for every call.
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    notebook = read(path)
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    shown = [str(output.get("data", {})) for cell in code for output in cell.outputs]
    assert any(re.search(r"\b(\d+)/\1 shards", text) for text in shown), "no progress was shown"
