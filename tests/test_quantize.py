"""int8 folders: made of a sample, judged by the rest of it, and then a model like any other."""

from __future__ import annotations

import json
import logging
import math
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from conftest import make_pairs
from rankmill import Scorer, agreement, load_config, profile, rerank, sample
from rankmill.cli import app
from rankmill.config import InputConfig, ModelConfig
from rankmill.errors import BackendUnfit, ConfigError, InputError, ModelError, OutputError
from rankmill.models.describe import describe
from rankmill.models.folder import QuantizedModel
from rankmill.quantize import Quantized, quantize
from rankmill.source import open_source
from rankmill.tokens import TokenBatch

# Looked for, not imported: that would change this process's logging.
pytestmark = pytest.mark.skipif(find_spec("nncf") is None, reason="needs nncf")

KINDS = ["bert", "modernbert"]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Candidates to sample: 45 lists of 12 pairs, of lengths from 12 to 50 words."""
    path = tmp_path_factory.mktemp("sample") / "candidates.parquet"
    pq.write_table(make_pairs(45, 12), path)
    return str(path)


def config(model: str, sample: str, output: Path, **settings: Any) -> Any:
    given = {"model.name": model, "input.path": sample, "output.path": str(output)}
    return load_config(overrides=given | settings)


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], str], table: str
) -> Callable[[str], Quantized]:
    """An int8 folder of each kind, made once."""
    root, done = tmp_path_factory.mktemp("int8"), {}

    def make(kind: str) -> Quantized:
        if kind not in done:
            done[kind] = quantize(config(tiny_model(kind), table, root / kind))
        return done[kind]

    return make


def described(folder: str | Path) -> Any:
    return describe(ModelConfig(name=str(folder)))


def read_kinds(graph: Path) -> Counter[str]:
    """How many operations of each kind a graph has, and how many constants of int8."""
    from rankmill.models.openvino_runtime import openvino

    operations = openvino.Core().read_model(graph).get_ops()
    found = Counter(one.get_type_name() for one in operations)
    constants = [one for one in operations if one.get_type_name() == "Constant"]
    found["int8 weights"] = sum(one.get_element_type().to_string() == "i8" for one in constants)
    return found


# What is made


@pytest.mark.parametrize("kind", KINDS)
def test_the_card_says_what_was_measured_on_pairs_held_out(made, tiny_model, table, kind):
    card = made(kind).card
    assert card.agreement.kendall_tau >= 0.9
    asked = InputConfig(path=table)
    held_out = sample.draw(open_source(asked), asked, seed=0).held_out
    pairs = list(zip(held_out.queries, held_out.documents))
    exact = Scorer(tiny_model(kind), backend="openvino", precision="fp32", device="cpu")
    int8 = Scorer(str(made(kind).folder), device="cpu")
    assert int8.profile.precision == "int8"
    found = agreement.measure(exact.score(pairs), int8.score(pairs), held_out.list)
    assert found.lists == card.agreement.lists == 15
    assert found.kendall_tau == pytest.approx(card.agreement.kendall_tau, abs=1e-3)
    rms = pytest.approx(card.agreement.score_rms_difference, rel=1e-2)
    assert found.score_rms_difference == rms
    assert 0 < found.score_rms_difference < 0.2 * found.score_spread


def test_the_body_is_int8_and_the_head_is_not(made):
    body, head = (read_kinds(made("bert").folder / name) for name in ("body.xml", "head.xml"))
    assert body["FakeQuantize"] >= 8  # of two layers: what goes into every product with weights
    assert body["int8 weights"] >= 12
    assert (head["FakeQuantize"], head["int8 weights"]) == (0, 0)


def test_config_and_tokenizer_are_the_sources_byte_for_byte_and_no_weights(made, tiny_model):
    source, folder = Path(tiny_model("bert")), made("bert").folder
    copied = {file.name for file in source.iterdir()} - {"model.safetensors"}
    graphs = {"body.xml", "body.bin", "head.xml", "head.bin"}
    assert {file.name for file in folder.iterdir()} == copied | graphs | {"quantized.json"}
    for name in copied:
        assert (folder / name).read_bytes() == (source / name).read_bytes()


def test_the_card_names_source_calibration_and_versions(made, tiny_model):
    card = json.loads((made("bert").folder / "quantized.json").read_bytes())
    source = described(tiny_model("bert"))
    assert card["source"]["name"] == tiny_model("bert")
    assert card["source"]["digest"] == source.digest
    assert set(card["versions"]) == {"nncf", "openvino", "torch", "transformers", "rankmill"}
    assert (card["calibration"]["lists"], card["calibration"]["pairs"]) == (30, 300)
    assert card["calibration"]["settings"]["max_length"] == 128


def test_batches_are_as_large_as_a_runs(tiny_model, table, tmp_path, monkeypatch):
    monkeypatch.setattr(profile, "OPENVINO_TOKEN_BUDGET", ((1.0, 512), (math.inf, 256)))
    made = quantize(config(tiny_model("bert"), table, tmp_path / "int8"))
    run = Scorer(tiny_model("bert"), backend="openvino", device="cpu").profile
    assert made.card.calibration.settings["token_budget"] == run.token_budget == 256


def test_the_same_model_and_sample_make_the_same_folder(made, tiny_model, table, tmp_path):
    first = made("bert")
    again = quantize(config(tiny_model("bert"), table, tmp_path / "again"))
    names = sorted(file.name for file in first.folder.iterdir())
    for name in names:
        assert (again.folder / name).read_bytes() == (first.folder / name).read_bytes(), name
    assert again.digest == first.digest
    other = quantize(config(tiny_model("bert"), table, tmp_path / "other"), seed=1)
    assert other.card.calibration.digest != first.card.calibration.digest
    assert other.digest != first.digest


def test_nothing_is_left_of_what_agrees_too_little(tiny_model, table, tmp_path):
    output = tmp_path / "out" / "int8"
    with pytest.raises(ModelError, match=r"Kendall's tau is 0\.\d+ .* below 0\.9999") as refused:
        quantize(config(tiny_model("bert"), table, output), min_agreement=0.9999)
    assert "--min-agreement" in str(refused.value.remedy)
    assert refused.value.exit_code == 2
    assert list(output.parent.iterdir()) == []


def test_logging_is_left_as_it_was(made):
    made("bert")
    assert logging.getLoggerClass() is logging.Logger


# What cannot be


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model.backend": "torch"}, "model.backend is torch"),
        ({"model.precision": "bf16"}, "model.precision is bf16"),
        ({"compute.device": "cuda"}, "compute.device is cuda"),
        ({"model.scorer": "own_scorers:Own"}, "model.scorer is own_scorers:Own"),
    ],
)
def test_settings_that_int8_cannot_keep_are_refused(tiny_model, table, tmp_path, settings, said):
    with pytest.raises(ConfigError, match=said):
        quantize(config(tiny_model("bert"), table, tmp_path / "out", **settings))


def test_a_causal_reranker_is_refused_by_name(tiny_model, table, tmp_path):
    prompt = {"model.prompt": "qwen3-reranker"}
    with pytest.raises(ModelError, match=r"qwen3, prompt qwen3-reranker\); only sequence class"):
        quantize(config(tiny_model("qwen3"), table, tmp_path / "out", **prompt))


def test_an_int8_folder_is_not_quantized_again(made, table, tmp_path):
    with pytest.raises(ModelError, match="int8 folder already, made of"):
        quantize(config(str(made("bert").folder), table, tmp_path / "out"))


def test_a_folder_that_is_there_is_not_touched(tiny_model, table, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="is already there"):
        quantize(config(tiny_model("bert"), table, tmp_path))


def test_a_sample_that_is_no_candidate_table_is_refused(tiny_model, tmp_path, write_pairs):
    path = write_pairs(make_pairs(40, 12).drop_columns(["document"]))
    with pytest.raises(InputError, match=r"The column document .* is missing"):
        quantize(config(tiny_model("bert"), path, tmp_path / "out"))


def test_without_nncf_it_says_what_to_install(tiny_model, table, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ConfigError, match="needs nncf, not installed") as refused:
        quantize(config(tiny_model("bert"), table, tmp_path / "out"))
    assert refused.value.remedy == "pip install 'rankmill[quantize]'"


# As a model


@pytest.fixture
def copy(made, tmp_path: Path) -> Path:
    """A BERT's int8 folder that may be spoiled."""
    return Path(shutil.copytree(made("bert").folder, tmp_path / "copy"))


def change(file: Path) -> None:
    """Another last byte."""
    content = file.read_bytes()
    file.write_bytes(content[:-1] + (b" " if content[-1:] != b" " else b"\n"))


@pytest.mark.parametrize("name", ["body.bin", "head.xml", "quantized.json", "tokenizer.json"])
def test_the_digest_covers_graphs_card_and_tokenizer(copy, name):
    before = described(copy)
    change(copy / name)
    assert before._digest_here() != before.digest
    with pytest.raises(ModelError, match="the run's is"):
        before.load(Scorer("demo", device="cpu", precision="fp32", backend="torch").profile)


def test_graphs_that_are_not_the_cards_are_refused(copy):
    change(copy / "body.bin")
    with pytest.raises(ModelError, match=r"body\.bin in .* is not what its card"):
        Scorer(str(copy), device="cpu")
    (copy / "body.bin").unlink()
    with pytest.raises(ModelError, match=r"has no body\.bin"):
        Scorer(str(copy), device="cpu")


def test_a_card_of_another_version_is_refused(copy):
    card = json.loads((copy / "quantized.json").read_bytes())
    (copy / "quantized.json").write_text(json.dumps(card | {"format": 2}))
    with pytest.raises(ModelError, match="format 2"):
        described(copy)
    (copy / "quantized.json").write_text("{}")
    with pytest.raises(ModelError, match="damaged or was written by another version"):
        described(copy)


def test_a_processor_that_gives_other_scores_is_refused(copy):
    card = json.loads((copy / "quantized.json").read_bytes())
    card["check_scores"][0] += 5
    (copy / "quantized.json").write_text(json.dumps(card))
    for _ in range(2):  # what is remembered of the first time, too
        with pytest.raises(BackendUnfit, match="from those that it had when it was quantized"):
            Scorer(str(copy), device="cpu")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"backend": "torch"}, "OpenVINO scores on CPUs and nothing else; model.backend is torch"),
        ({"precision": "fp32"}, "model.precision is fp32, but .* is an int8 folder"),
        ({"alibi_slopes": "standard"}, "alibi_slopes"),
    ],
)
def test_what_is_settled_in_the_folder_cannot_be_asked_for(made, settings, said):
    with pytest.raises(ConfigError, match=said):
        Scorer(str(made("bert").folder), **{"device": "cpu"} | settings)


def test_a_gpu_is_refused(made):
    from rankmill import backend
    from rankmill.config import ComputeConfig

    model = described(made("bert").folder)
    with pytest.raises(ConfigError, match="nothing else; the device is cuda"):
        backend.resolve(model, ModelConfig(name="x"), ComputeConfig(), "cuda")


def test_without_openvino_it_says_what_to_install(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendUnfit, match="not installed") as refused:
        Scorer(str(made("bert").folder), device="cpu")
    assert refused.value.remedy == "pip install 'rankmill[cpu]'"


def test_a_folder_on_a_store_scores_as_on_disk(made, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = made("bert").folder
    fsspec.filesystem("memory").put(f"{folder}/", "/int8/", recursive=True)
    pairs = [("what is a shard", "A run of whole lists."), ("x", "Slip flow past a flat plate.")]
    there, here = (Scorer(name, device="cpu") for name in ("memory://int8", str(folder)))
    assert there.description.digest == made("bert").digest
    np.testing.assert_array_equal(there.score(pairs), here.score(pairs))


@pytest.mark.parametrize("kind", KINDS)
def test_equal_batches_give_equal_bits_however_they_are_computed(made, kind):
    scorer = Scorer(str(made(kind).folder), device="cpu", threads=1)
    generator = np.random.default_rng(5)
    batches = []
    for count in generator.integers(1, 9, 12):
        lengths = generator.integers(3, 120, int(count))
        ids = generator.integers(5, 200, (len(lengths), lengths.max()))
        mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
        batches.append(TokenBatch(ids, None, mask if len(set(lengths)) > 1 else None))
    model = scorer.description
    assert isinstance(model, QuantizedModel)
    expected = [scorer.model.score(batch) for batch in batches]
    for threads, streams in ((2, 1), (2, 2), (4, 2), (4, 4)):
        other: Any = model.load(replace(scorer.profile, threads=threads, streams=streams))
        started = [other.start(batch) for batch in batches[::-1][: other.in_flight]]
        found = [one.result() for one in started]
        found += [other.score(batch) for batch in batches[::-1][other.in_flight :]]
        np.testing.assert_array_equal(np.concatenate(found[::-1]), np.concatenate(expected))


def test_a_job_scores_with_it_and_names_it(ray_cluster, made, table, tmp_path):
    folder = str(made("bert").folder)
    first = rerank(config(folder, table, tmp_path / "out"))
    assert first.manifest["profile"]["precision"] == "int8"
    assert first.manifest["model"]["digest"] == made("bert").digest
    assert first.manifest["model"]["quantized_digest"] == made("bert").card.source.digest
    ranked = pq.read_table(tmp_path / "out")
    assert ranked.num_rows == first.counters.pairs_scored == 540
    pairs = list(zip(ranked["query"].to_pylist(), ranked["document"].to_pylist()))
    scores = Scorer(folder, device="cpu").score(pairs)
    # Another batch moves a score by no more than int8 itself.
    moved = np.abs(ranked["rerank_score"].to_numpy() - scores)
    assert moved.max() <= made("bert").card.agreement.score_largest_difference


# The command


def test_the_command_prints_the_card_and_nothing_else(tiny_model, table, tmp_path):
    arguments = ["quantize", tiny_model("bert"), "--sample", table, "--json"]
    arguments += ["--output", str(tmp_path / "int8"), "--set", "model.max_length=64"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.exception
    card = json.loads((tmp_path / "int8/quantized.json").read_bytes())
    assert card["calibration"]["settings"]["max_length"] == 64
