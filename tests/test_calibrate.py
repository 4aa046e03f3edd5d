"""Probabilities of relevance: curves by hand, judged on held-out queries, and in runs."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from conftest import make_pairs
from rankmill.calibrate import calibrate, fit, measures, reliability
from rankmill.calibration import Isotonic, Platt, read_calibration
from rankmill.cli import app
from rankmill.config import load_config
from rankmill.errors import ConfigError, InputError, OutputError
from rankmill.job import rerank
from rankmill.prepared import prepare

# Curves


def drawn(slope: float, intercept: float, pairs: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    score = rng.normal(1, 3, pairs)
    return score, rng.random(pairs) < 1 / (1 + np.exp(-(slope * score + intercept)))


def test_platt_finds_the_curve_that_labels_were_drawn_from() -> None:
    found = fit("platt", *drawn(0.8, -2.0))
    assert isinstance(found, Platt)
    assert (found.slope, found.intercept) == pytest.approx((0.8, -2.0), abs=0.06)


def test_platt_moves_its_targets_in_so_that_parted_labels_have_a_finite_curve() -> None:
    found = fit("platt", np.array([1.0, 2.0, 3.0, 4.0]), np.array([False, False, True, True]))
    # Targets 1/4 and 3/4, symmetric about 2.5: the slope solves the two equations of the optimum.
    near, far = found.probabilities(np.array([3.0, 4.0]))
    assert found.slope * 2.5 + found.intercept == pytest.approx(0, abs=1e-6)
    assert 0.5 * (near - 0.75) + 1.5 * (far - 0.75) == pytest.approx(0, abs=1e-6)


def test_isotonic_pools_what_falls_and_is_certain_of_nothing() -> None:
    score = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 5.0])
    found = fit("isotonic", score, np.array([False, True, False, True, True, True]))
    assert isinstance(found, Isotonic)
    # 2 and 3 are pooled to a half; 0 and 1 move in by 1 / (6 + 2).
    assert found.probabilities(np.array([-9.0, 1.0, 2.0, 2.5, 3.0, 4.0, 9.0])).tolist() == [
        *(0.125, 0.125, 0.5, 0.5, 0.5, 0.875, 0.875)
    ]
    assert found.probabilities(np.array([1.5, math.nan])).tolist()[0] == 0.3125


PAIRS = st.lists(st.tuples(st.floats(-30, 30, width=32), st.booleans()), min_size=2, max_size=30)


@given(PAIRS, st.sampled_from(["platt", "isotonic"]))
def test_any_curve_is_of_probabilities_and_isotonic_ones_never_fall(pairs, method):
    score, relevant = np.array([s for s, _ in pairs]), np.array([r for _, r in pairs])
    if relevant.all() or not relevant.any():
        with pytest.raises(InputError, match="needs pairs of both kinds"):
            fit(method, score, relevant)
        return
    found = fit(method, score, relevant).probabilities(np.linspace(-40, 40, 50))
    assert ((found >= 0) & (found <= 1)).all()
    assert method == "platt" or (np.diff(found) >= 0).all()


def test_the_measures_by_hand() -> None:
    relevant = np.array([True, False, False, True])
    found = measures(np.array([0.9, 0.2, 0.2, 0.6]), relevant)
    assert found["log_loss"] == pytest.approx(-np.log([0.9, 0.8, 0.8, 0.6]).mean())
    assert found["brier"] == pytest.approx(np.mean([0.01, 0.04, 0.04, 0.16]))
    # Equal probabilities share a bin: |0.2 - 0| * 2, |0.6 - 1|, |0.9 - 1|.
    assert found["ece"] == pytest.approx((0.4 + 0.4 + 0.1) / 4)


def test_bins_hold_as_many_pairs_each() -> None:
    score, relevant = drawn(1.0, 0.0, 3_000)
    found = reliability(1 / (1 + np.exp(-score)), relevant)
    assert found["rows"].tolist() == [200] * 15
    assert (found["probability"] - found["relevant"]).abs().max() < 0.12


# Runs

QUERIES, CANDIDATES = 20, 6


def settings(folder: Path, model: str, path: str, **changed: Any) -> Any:
    values = {
        "input.path": path,
        "input.depth": 5,
        "output.path": str(folder / "out"),
        "model.name": model,
        "model.scorer": "own_scorers:Poisoned",
        "compute.workers": 1,
    }
    return load_config(
        overrides=values | {key.replace("__", "."): value for key, value in changed.items()}
    )


def judge(ranked: str, path: Path) -> str:
    """Judgements of every other of the best, and of some of the others."""
    rows = pq.read_table(ranked).to_pylist()
    chosen = [r for r in rows if r["rerank_rank"] <= 2 or int(r["query_id"][1:]) % 3 == 0][::2]
    columns = {name: [row[name] for row in chosen] for name in ("query_id", "doc_id")}
    pq.write_table(pa.table(columns | {"relevance": [1] * len(chosen)}), path)
    return str(path)


def test_a_calibration_of_one_run_gives_probabilities_in_the_next_and_in_no_other(
    free_model: str, ray_cluster: None, write_pairs: Callable[..., str], tmp_path: Path
) -> None:
    path = write_pairs(make_pairs(QUERIES, CANDIDATES))
    first = rerank(settings(tmp_path, free_model, path))
    qrels, file = judge(first.output, tmp_path / "qrels.parquet"), tmp_path / "calibration.json"
    asked = ["calibrate", first.output, "--qrels", qrels, "--output", str(file)]
    for method in ("platt", "isotonic"):
        told = CliRunner().invoke(app, [*asked, "--method", method, "--json"])
        found = json.loads(told.stdout)
        assert found["fitted"]["pairs"] == QUERIES * 5
        assert found["fitted"]["cut"] == {}
        assert set(found["fitted"]["held_out"]) == {method, "sigmoid", "share"}
        assert sum(row["rows"] for row in found["bins"]) == QUERIES * 5
    before = file.read_bytes()
    CliRunner().invoke(app, [*asked, "--method", "isotonic"])
    assert file.read_bytes() == before

    def again(**changed: Any) -> Any:
        changed = {
            "output__path": str(tmp_path / "again"),
            "rank__calibration": str(file),
        } | changed
        return settings(tmp_path, free_model, path, **changed)

    result = rerank(again())
    ranked = pq.read_table(result.output)
    score = ranked["rerank_score"].to_numpy(zero_copy_only=False)
    expected = read_calibration(str(file)).content.curve.probabilities(score).astype(np.float32)
    found = ranked["rerank_probability"]
    assert found.type == pa.float32()
    np.testing.assert_array_equal(found.to_numpy(zero_copy_only=False), expected)
    assert found.null_count == QUERIES
    rule = {"method": "isotonic", "sha256": read_calibration(str(file)).sha256}
    assert result.manifest["rank"] == {"calibration": rule}
    assert json.loads(ranked.schema.metadata[b"rankmill.rank.calibration"]) == rule

    file.write_bytes(before + b" ")
    with pytest.raises(OutputError, match=r"(?s)holds another run.*calibration: "):
        prepare(again())
    with pytest.raises(ConfigError, match=r"settings\.max_length: 512 -> 64"):
        prepare(again(model__max_length=64, output__path=str(tmp_path / "short")))
    with pytest.raises(ConfigError, match=r"(?s)scores of .*those of demo .*model: \"\w+\" -> \""):
        prepare(again(model__name="demo", model__scorer=None, output__path=str(tmp_path / "demo")))
    stored = json.loads(before)
    stored["scored_by"]["precision"] = "fp64"
    file.write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match=r"precision: \"fp64\" -> \"") as refused:
        rerank(again(output__path=str(tmp_path / "precise")))
    assert refused.value.exit_code == 2
    assert not (tmp_path / "precise").exists() or not list((tmp_path / "precise").glob("part-*"))


def test_a_curve_of_a_run_that_was_cut_says_so(
    free_model: str,
    ray_cluster: None,
    write_pairs: Callable[..., str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("rankmill"), "propagate", True)
    path = write_pairs(make_pairs(QUERIES, CANDIDATES))
    ranked = rerank(settings(tmp_path, free_model, path, output__top_k=3)).output
    found = calibrate(ranked, judge(ranked, tmp_path / "qrels.parquet"))
    assert found.calibration.fitted["cut"] == {"output.top_k": 3}
    assert found.calibration.fitted["pairs"] == QUERIES * 3
    assert f"{ranked} was cut by output.top_k: the curve is" in caplog.text


def test_what_is_no_run_and_no_calibration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text('{"rankmill_calibration": 2}')
    with pytest.raises(ConfigError, match="is not a calibration of this version"):
        read_calibration(str(tmp_path / "file.json"))
    with pytest.raises(InputError, match="There is nothing at"):
        read_calibration(str(tmp_path / "none.json"))
    with pytest.raises(InputError, match="is no output folder of a run"):
        calibrate(str(tmp_path), "qrels.parquet")
