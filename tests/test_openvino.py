"""OpenVINO: torch's scores, the same bits however it computes, and what happens where it cannot."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import tiny_models
from conftest import make_pairs
from odd_models import Misconverted, Unconvertible, odd
from rankmill import Scorer, backend, storage
from rankmill.config import ComputeConfig, ModelConfig, load_config
from rankmill.errors import BackendUnfit, ConfigError
from rankmill.job import rerank
from rankmill.models import AsyncModel, openvino_model
from rankmill.models.describe import describe
from rankmill.models.folder import FolderModel
from rankmill.pool import Capacity, cores_a_worker
from rankmill.profile import Profile, make_profile, probe
from rankmill.scorer import score_pairs
from rankmill.tokens import PairRules, TokenBatch
from reference import Reference

pytest.importorskip("rankmill.models.openvino_runtime")

KINDS = [
    "bert",
    "electra",
    "roberta",
    "camembert",
    "xlm-roberta",
    "modernbert",
    "modernbert-mean",
    "deberta-v2",
    "gte",
]
DOCUMENTS = [
    "A shard is a run of whole lists.",
    "検索結果の順位を付け直すモデルは、質問と文書の組を読みます。",
    "slip flow past a flat plate " * 150,
    "",
    "😀",
    "heat " * 30,
]
PAIRS = [(query, document) for query in ("what is a shard", "x") for document in DOCUMENTS]
PRECISIONS = [
    "fp32",
    pytest.param(
        "bf16", marks=pytest.mark.skipif(not probe("cpu").bf16, reason="no bf16 on this processor")
    ),
]


def profile(precision: str = "fp32", threads: int = 1, streams: int = 1, **others: int) -> Profile:
    asked = ModelConfig(name="x", precision=precision)
    found = make_profile(
        asked,
        ComputeConfig(),
        "cpu",
        probe("cpu"),
        operations_per_token=1e6,
        backend="openvino",
    )
    return replace(found, threads=threads, streams=streams, **others)


def described(folder: str | Path) -> FolderModel:
    return describe(ModelConfig(name=str(folder)))


def rows(lengths: list[int], vocabulary: int) -> TokenBatch:
    ids = np.random.default_rng(sum(lengths)).integers(5, vocabulary, (len(lengths), max(lengths)))
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    return TokenBatch(ids, None, mask if min(lengths) < max(lengths) else None)


# Scores


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_transformers_on_each_pair_alone(tiny_model, kind):
    folder = tiny_model(kind)
    scorer = Scorer(folder, backend="openvino", device="cpu", precision="fp32", threads=1)
    assert scorer.profile.backend == "openvino"
    reference = Reference(folder, scorer.description.max_length(512))
    expected = [reference.score(query, document, "document") for query, document in PAIRS]
    assert np.std(expected) > 0.1  # 1,000 times the tolerance
    np.testing.assert_allclose(scorer.score(PAIRS), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", [*KINDS, "jina-bert"])
def test_scores_are_those_of_torch_for_batches_of_every_shape(tiny_model, kind):
    model = described(tiny_model(kind))
    found, expected = model.load(profile()), model.load_on_torch(profile())
    vocabulary, longest = model.settings["vocab_size"], model.max_length(400)
    for lengths in ([1], [longest], [longest, 1], [9, 2, 5], [longest, 30, 3, 1], [17, 17], [2]):
        batch = rows(lengths, vocabulary)
        exact = expected.score(batch)
        difference = np.abs(found.score(batch) - exact)
        assert np.all(difference <= 1e-4 * np.maximum(1, np.abs(exact))), lengths


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_padding_far_beyond_the_local_window_gives_no_nan(tmp_path, pooling, precision):
    """With sdpa in the graph, states of padding that sees nothing would be NaN, and then all."""
    build = partial(tiny_models.modernbert, pooling=pooling, num_hidden_layers=5)
    model = described(build(tmp_path / "model"))
    assert model.settings["local_attention"] == 16
    scores = model.load(profile(precision)).score(rows([500, 3, 1, 250], 200))
    assert np.all(np.isfinite(scores))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_head_is_in_float32_whatever_the_body_is(tiny_model, precision):
    model = described(tiny_model("bert")).load(profile(precision))
    assert model._head.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
    body = model._body.get_property("INFERENCE_PRECISION_HINT").to_string()
    assert body == {"fp32": "f32", "bf16": "bf16"}[precision]


# The same bits

WIDE = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FolderModel]:
    """Models wide enough that products are shared between threads where there are several."""
    root = tmp_path_factory.mktemp("wide")
    ja = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}
    bert = tiny_models.bert(root / "bert", **WIDE, max_position_embeddings=512)
    modernbert = tiny_models.modernbert(root / "modernbert", **ja, num_hidden_layers=3)
    return {"bert": described(bert), "modernbert": described(modernbert)}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_equal_batches_give_equal_bits_however_they_are_computed(wide, kind, precision):
    model = wide[kind]
    generator = np.random.default_rng(5)
    batches = [
        rows(generator.integers(3, 300, int(count)).tolist(), 300)
        for count in generator.integers(1, 9, 12)
    ]
    first = model.load(profile(precision))
    expected = [first.score(batch) for batch in batches]
    again = [first.score(batch) for batch in batches[::-1]][::-1]
    np.testing.assert_array_equal(np.concatenate(again), np.concatenate(expected))
    for threads, streams in ((1, 1), (2, 1), (2, 2), (4, 2), (4, 4)):
        other = model.load(profile(precision, threads, streams))
        assert isinstance(other, AsyncModel)
        started = [other.start(batch) for batch in batches[: other.in_flight]]
        found = [one.result() for one in started]
        found += [other.score(batch) for batch in batches[other.in_flight :]]
        np.testing.assert_array_equal(np.concatenate(found), np.concatenate(expected))


def test_streams_do_not_change_what_score_pairs_gives(wide):
    model = wide["bert"]
    tokenizer = model.tokenizer(PairRules(128, "document"))
    texts = ["what is a shard", *(f"list {n} of " + "shard " * (7 * n % 50) for n in range(60))]
    number = np.arange(1, 61, dtype=np.int32)
    pairs = tokenizer.tokenize(texts, np.zeros_like(number), number)

    def scored(**how: int) -> Any:
        way = profile(token_budget=512, **how)
        return score_pairs(model.load(way), pairs, tokenizer.rules, tokenizer.template, way)

    one, two = scored(), scored(threads=2, streams=2)
    np.testing.assert_array_equal(two.scores, one.scores)
    assert (two.tokens, two.padded_tokens) == (one.tokens, one.padded_tokens)
    assert not one.degraded | two.degraded


def test_batches_are_of_few_widths_none_beyond_the_longest_input(wide):
    """OpenVINO prepares itself for every shape anew."""
    model = wide["bert"]
    tokenizer = model.tokenizer(PairRules(60, "document"))
    texts = ["what is a shard", *("shard " * n for n in range(60))]
    number = np.arange(1, 61, dtype=np.int32)
    pairs = tokenizer.tokenize(texts, np.zeros_like(number), number)
    loaded, seen = model.load(profile()), []

    class Watched:
        def score(self, batch: TokenBatch) -> Any:
            seen.append(batch)
            return loaded.score(batch)

    how = (tokenizer.rules, tokenizer.template)
    scored = score_pairs(Watched(), pairs, *how, profile(token_budget=96))
    widths = {batch.input_ids.shape[1] for batch in seen}
    assert widths <= {8, 16, 24, 32, 40, 48, 56, 60}
    assert {56, 60} <= widths
    assert scored.tokens + scored.padded_tokens == sum(batch.input_ids.size for batch in seen)
    alone = score_pairs(loaded, pairs, *how, profile(token_budget=1, pad_to_multiple_of=1))
    assert alone.padded_tokens == 0
    np.testing.assert_allclose(scored.scores, alone.scores, rtol=0, atol=1e-5)


# Memory

SHORT_OF_MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from rankmill.models.openvino_encoder import OpenVinoEncoder
from rankmill.profile import Profile
from rankmill.tokens import TokenBatch

model = OpenVinoEncoder(Path(sys.argv[1]), Profile("openvino", "fp32", "cpu", "any", 1, 2048))
small = TokenBatch(np.full((2, 20), 5), None, None)
before = model.score(small)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20),) * 2)
try:
    model.score(TokenBatch(np.full((4000, 128), 5), None, None))
except MemoryError as error:
    print(error, np.array_equal(model.score(small), before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_a_batch_that_does_not_fit_is_a_memory_error_and_the_same_as_before_fits_again(wide):
    entry = openvino_model.ready(wide["bert"], profile(), storage.user_cache() / "openvino")
    command = [sys.executable, "-c", SHORT_OF_MEMORY, str(entry)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("a batch of (4000, 128) does not fit True\n", "")


MANY_SHAPES = """
import os, sys
from pathlib import Path
import numpy as np
from rankmill.models.openvino_encoder import OpenVinoEncoder
from rankmill.profile import Profile
from rankmill.tokens import TokenBatch

def own():
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("RssAnon:") + 1]) / 1024

before = dict(os.environ)
model = OpenVinoEncoder(Path(sys.argv[1]), Profile("openvino", sys.argv[2], "cpu", "any", 1, 2048))
assert os.environ == before, "others of this process may use oneDNN, too"
seen = []
for length in range(20, 320):
    model.score(TokenBatch(np.full((2048 // length, length), 5), None, None))
    seen.append(own())
print(seen[-1] - seen[160])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_memory_does_not_grow_with_the_shapes_of_batches(wide, precision):
    found = profile(precision)
    entry = openvino_model.ready(wide["bert"], found, storage.user_cache() / "openvino")
    command = [sys.executable, "-c", MANY_SHAPES, str(entry), precision]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == ""
    grown = float(done.stdout)
    print(f"{grown:.0f} MiB")  # fp32: 31 (61 with 5,000 parts); bf16: 21 (51, primitives)
    assert grown < 42


# Telemetry


# A notebook that has imported OpenVINO itself; what would be sent is gathered instead.
IMPORTED_BEFORE = """
import json, sys
import openvino
from openvino_telemetry.utils.sender import TelemetrySender
sent = []
TelemetrySender.send = lambda sender, backend, message: sent.append(message)
from rankmill.config import ModelConfig
from rankmill.models.describe import describe
from rankmill.profile import Profile

folder, profile = sys.argv[1:]
describe(ModelConfig(name=folder)).load(Profile.from_json(json.loads(profile)))
TelemetrySender().send(None, "somebody else's")
print(sent)
"""


def test_a_conversion_sends_nothing_even_where_openvino_was_imported_before(tiny_model, tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    given = [tiny_model("bert"), json.dumps(profile().to_json())]
    command = [sys.executable, "-c", IMPORTED_BEFORE, *given]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ('["somebody else\'s"]\n', "")
    assert list((tmp_path / "rankmill/openvino").iterdir()), "it was converted here"


# The cache


IN_ANOTHER_PROCESS = """
import json, sys
import numpy as np
from rankmill.config import ModelConfig
from rankmill.models.describe import describe
from rankmill.profile import Profile
from rankmill.tokens import TokenBatch

given = json.loads(sys.argv[1])
model = describe(ModelConfig(name=given["folder"])).load(Profile.from_json(given["profile"]))
scores = model.score(TokenBatch(np.array(given["ids"]), None, np.array(given["mask"])))
print(scores.tolist())
print({"torch", "transformers", "openvino_telemetry"} & set(sys.modules))
"""


def test_a_converted_model_is_used_again_without_torch(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    batch = rows([9, 4], 100)
    expected = described(tiny_model("bert")).load(profile()).score(batch)
    given = {
        "folder": tiny_model("bert"),
        "profile": profile().to_json(),
        "ids": batch.input_ids.tolist(),
        "mask": batch.mask.tolist(),
    }
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, json.dumps(given)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == ""
    scores, loaded = done.stdout.splitlines()
    np.testing.assert_array_equal(np.array(json.loads(scores), np.float32), expected)
    assert loaded == "set()"


def entries(cache: Path) -> list[Path]:
    return [path for path in (cache / "rankmill/openvino").iterdir() if path.is_dir()]


def test_a_damaged_entry_is_converted_again(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = described(tiny_model("bert"))
    expected = model.load(profile()).score(rows([9, 4], 100))
    (entry,) = entries(tmp_path)
    weights = bytearray((entry / "body.bin").read_bytes())
    weights[-8:] = bytes(8)
    (entry / "body.bin").write_bytes(weights)
    np.testing.assert_array_equal(model.load(profile()).score(rows([9, 4], 100)), expected)
    assert entries(tmp_path) == [entry]


def test_a_cache_that_cannot_be_written_is_named(tiny_model, tmp_path, monkeypatch):
    (tmp_path / "rankmill").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(BackendUnfit, match=r"cannot be kept in .*rankmill/openvino"):
        described(tiny_model("bert")).prepare(profile())


# Which backend


def resolved(description: Any, device: str = "cpu", **model: Any) -> backend.Resolved:
    asked = ModelConfig(name="x", **{"precision": "fp32"} | model)
    return backend.resolve(description, asked, ComputeConfig(), device)


def test_auto_takes_openvino_where_it_agrees_with_torch(tiny_model):
    found = resolved(described(tiny_model("bert")))
    assert (found.profile.backend, found.hint, found.warning) == ("openvino", None, None)
    assert found.profile.threads == probe("cpu").cores


def test_torch_is_taken_where_it_is_asked_for(tiny_model):
    found = resolved(described(tiny_model("bert")), backend="torch")
    assert (found.profile.backend, found.hint, found.warning) == ("torch", None, None)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Unconvertible, "Scoring runs on torch, which is slower: OpenVINO cannot convert"),
        (Misconverted, r"torch, which is slower: OpenVINO's scores .* differ from torch's by \d"),
    ],
)
def test_a_model_that_openvino_cannot_score_runs_on_torch_with_a_warning(tiny_model, kind, said):
    model = odd(kind, tiny_model("xlm-roberta"))
    found = resolved(model)
    assert found.profile.backend == "torch"
    assert re.search(said, str(found.warning))
    assert np.all(np.isfinite(model.load(found.profile).score(rows([9, 4], 100))))
    with pytest.raises(BackendUnfit, match="OpenVINO"):
        resolved(model, backend="openvino")


def test_a_kind_of_model_that_is_not_run_on_openvino_yet_is_named(tiny_model):
    model = describe(ModelConfig(name=tiny_model("qwen3"), prompt="qwen3-reranker"))
    assert "qwen3 is not run on OpenVINO" in str(resolved(model).warning)


def test_without_openvino_it_is_torch_and_a_hint(tiny_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)  # what Python takes for not installed
    model = described(tiny_model("bert"))
    found = resolved(model)
    assert (found.profile.backend, found.warning) == ("torch", None)
    assert "pip install 'rankmill[cpu]'" in str(found.hint)
    with pytest.raises(BackendUnfit, match="not installed"):
        resolved(model, backend="openvino")


def test_openvino_on_a_gpu_is_refused(tiny_model):
    with pytest.raises(ConfigError, match="scores on CPUs here; the device is cuda"):
        resolved(described(tiny_model("bert")), device="cuda", backend="openvino")


def test_a_scorer_says_why_it_is_slow(tiny_model, caplog):
    Scorer(tiny_model("qwen3"), prompt="qwen3-reranker", device="cpu", precision="fp32")
    assert "Scoring runs on torch, which is slower: qwen3 is not run on OpenVINO" in caplog.text


# Jobs


class Job:
    """Runs jobs below a test's folder, on OpenVINO where nothing else is said."""

    def __init__(self, folder: Path, model: str, table: str) -> None:
        self.folder, self.model, self.table = folder, model, table

    def config(self, output: str, **settings: Any) -> Any:
        given = {
            "input.path": self.table,
            "output.path": str(self.folder / output),
            "model.name": self.model,
            "model.precision": "fp32",
        }
        return load_config(overrides=given | settings)

    def parts(self, output: str) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in (self.folder / output).glob("*.parquet")}


@pytest.fixture
def job(
    ray_cluster: None,
    tmp_path: Path,
    tiny_model: Callable[[str], str],
    write_pairs: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> Job:
    """Seven shards."""
    monkeypatch.setattr("rankmill.plan.SHARD_PAIRS", 40)
    return Job(tmp_path, tiny_model("xlm-roberta"), write_pairs(make_pairs(28, 10)))


def test_a_job_runs_on_openvino_and_gives_the_same_bytes_again(job):
    first = rerank(job.config("one"))
    assert first.counters.rows_out == 280
    assert first.manifest["profile"]["backend"] == "openvino"
    assert first.manifest["versions"]["openvino"]
    assert first.manifest["workers"]["workers"] == 1
    assert len(job.parts("one")) == 7
    rerank(job.config("two", **{"compute.workers": 2}))
    assert job.parts("two") == job.parts("one")

    ranked = pq.read_table(job.folder / "one")
    pairs = list(zip(ranked["query"].to_pylist(), ranked["document"].to_pylist()))
    on_torch = Scorer(job.model, backend="torch", device="cpu", precision="fp32", threads=1)
    expected = on_torch.score(pairs)
    np.testing.assert_allclose(ranked["rerank_score"].to_numpy(), expected, rtol=0, atol=1e-4)


def test_a_run_goes_on_with_the_backend_that_it_was_begun_with(job):
    rerank(job.config("torch", **{"model.backend": "torch"}))
    # A run that found no OpenVINO when it began, and was killed before its first shard.
    record = json.loads((job.folder / "torch/_rankmill/run.json").read_text())
    record["identity"]["asked"]["backend"] = "auto"
    (job.folder / "out/_rankmill").mkdir(parents=True)
    (job.folder / "out/_rankmill/run.json").write_text(json.dumps(record))
    again = rerank(job.config("out"))
    assert again.manifest["profile"]["backend"] == "torch"
    expected, found = (
        pq.read_table(job.folder / name)["rerank_score"] for name in ("torch", "out")
    )
    assert found.equals(expected)


def test_a_model_that_does_not_convert_is_scored_by_the_job_on_torch(job, caplog):
    result = rerank(job.config("out"), model=odd(Unconvertible, job.model))
    assert result.counters.rows_out == 280
    assert result.manifest["profile"]["backend"] == "torch"
    assert "Scoring runs on torch, which is slower: OpenVINO cannot convert" in caplog.text


def test_what_openvino_cannot_score_is_refused_where_it_is_asked_for(job):
    config = job.config("out", **{"model.backend": "openvino"})
    with pytest.raises(BackendUnfit, match="OpenVINO cannot convert") as refused:
        rerank(config, model=odd(Unconvertible, job.model))
    assert refused.value.exit_code == 2
    assert not (job.folder / "out").exists() or not job.parts("out")


def test_a_node_that_cannot_do_what_the_run_does_ends_it_before_it_starts(job, monkeypatch):
    rerank(job.config("out"))
    folder = job.folder / "out"
    (folder / "_SUCCESS").unlink()
    (folder / "part-00003.parquet").unlink()
    description = odd(Misconverted, job.model)
    record = json.loads((folder / "_rankmill/run.json").read_text())
    record["identity"]["model"] = description.digest
    (folder / "_rankmill/run.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="scores on openvino, and a node cannot: OpenVINO's"):
        rerank(job.config("out"), model=description)


# Actors


def test_one_actor_has_a_node(ray_cluster):
    found = Capacity((4.0, 4.0), (0.0, 0.0), ("a", "b"))
    assert cores_a_worker(ComputeConfig(), found) == 4
    assert cores_a_worker(ComputeConfig(workers=4), found) == 2
    assert cores_a_worker(ComputeConfig(workers=16), found) == 1
