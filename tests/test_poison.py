"""Rows that crash, hang or fail the model: they alone are left out, whatever else happens.

The faults are real: processes die and hang, in Ray's actors and in processes of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from transformers import AutoTokenizer

from own_scorers import SECRET, SeveralAtOnce
from ranked_runs import PROFILE
from rankmill import Scorer, job, markers, pipeline, plan, stages
from rankmill.attempts import ATTEMPTS, MOST_ATTEMPTS, Attempts
from rankmill.config import ColumnNames, load_config
from rankmill.envelope import Envelope
from rankmill.errors import ModelError, RunFailed
from rankmill.flight import ScoredBatch
from rankmill.isolation import FEW_INPUTS, Isolation, probe
from rankmill.rows import BAD_SCORE
from rankmill.stages import StageSettings
from rankmill.store import Store
from rankmill.tokens import Template, TokenBatch
from rankmill.watchdog import Allowance
from rankmill.worker import Bounds, ScoringWorker

SHARD_PAIRS = 10
SECONDS = 3
# Words that are one token each. Documents of `LONG` words stand in batches of two.
WORDS = ["shear", "plate", "transfer", "boundary", "flow"]
LONG = 600
QUERY = "what is a shard"

Folder = Callable[..., Path]


@pytest.fixture(scope="module")
def words(tiny_model: Callable[[str], str]) -> dict[str, int]:
    """The token of each word."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("bert"))
    found = {word: tokenizer.encode(word, add_special_tokens=False) for word in WORDS}
    assert all(len(ids) == 1 for ids in found.values())
    return {word: ids[0] for word, ids in found.items()}


@pytest.fixture
def folder(tiny_model: Callable[[str], str], words: dict[str, int], tmp_path: Path) -> Folder:
    """A model's folder in which words have faults: `folder(plate="crash")`."""

    def make(**faults: object) -> Path:
        there = tmp_path / "model"
        AutoTokenizer.from_pretrained(tiny_model("bert")).save_pretrained(there)
        poison = {str(words.get(word, word)): fault for word, fault in faults.items()}
        (there / "poison.json").write_text(json.dumps(poison))
        return there

    return make


def table(documents: list[str], queries: list[str]) -> pa.Table:
    """Ten candidates a query."""
    assert len(documents) == 10 * len(queries)
    return pa.table(
        {
            "query_id": [number // 10 for number in range(len(documents))],
            "query": [queries[number // 10] for number in range(len(documents))],
            "doc_id": range(len(documents)),
            "document": documents,
        }
    )


def plain(count: int) -> list[str]:
    return [f"list {number} of " + "shard " * (number % 7) for number in range(count)]


# Runs


def config(path: str, model: Path, output: Path) -> Any:
    values = {
        "input.path": path,
        "output.path": str(output),
        "model.name": str(model),
        "model.scorer": "own_scorers:Poisoned",
        "compute.workers": 1,
        "compute.batch_timeout": SECONDS,
    }
    return load_config(overrides=values)


def worker_log_lines() -> list[dict[str, Any]]:
    """What workers of the session's cluster have said, as far as it is of rankmill."""
    logs = Path(ray._private.worker._global_node.get_session_dir_path(), "logs")
    lines = [line for file in logs.glob("worker-*.err") for line in file.open(errors="replace")]
    return [json.loads(line) for line in lines if line.startswith('{"time"')]


def test_poison_rows_are_left_out_and_all_others_are_scored(
    folder, ray_cluster, write_pairs, tmp_path, monkeypatch
):
    monkeypatch.setattr(plan, "SHARD_PAIRS", SHARD_PAIRS)
    documents = plain(30)
    documents[3] = "shear " * LONG
    documents[6] = "plate " * LONG
    documents[12] = "transfer " * LONG
    documents[15] = "boundary " * LONG
    documents[18] = "flow past"
    model = folder(shear="exit", plate="error", transfer="hang", boundary="memory", flow="nan")
    path = write_pairs(table(documents, [QUERY, "which list", "what heads a list"]))
    result = job.rerank(config(path, model, tmp_path / "out"))

    apart = [line for line in worker_log_lines() if "is scored apart" in line["message"]]
    assert (result.manifest["fingerprint"], 0) in {(line["run"], line["shard"]) for line in apart}

    private = Path(result.output) / "_rankmill"
    lost = {}
    for file in sorted((private / "quarantine").iterdir()):
        bad = pa.ipc.open_file(file).read_all()
        lost |= dict(zip(bad["doc_id"].to_pylist(), bad["reason"].to_pylist()))
    place = lost[6].rpartition(":")[0]
    assert place == "the model failed on it: ValueError in own_scorers.py"
    assert lost == {
        3: "the model's process died of it (exit code 3)",
        6: lost[6],
        12: f"the model did not finish it in {SECONDS} s",
        15: "it does not fit in memory alone",
        18: BAD_SCORE,
    }
    ranked = pq.read_table(result.output)
    others = [number for number in range(30) if number not in lost]
    assert sorted(ranked["doc_id"].to_pylist()) == others
    pairs = list(zip(ranked["query"].to_pylist(), ranked["document"].to_pylist()))
    undisturbed = Scorer(str(model), scorer="own_scorers:Poisoned", device="cpu").score(pairs)
    np.testing.assert_allclose(ranked["rerank_score"].to_numpy(), undisturbed, rtol=0, atol=1e-4)

    manifest = json.loads((private / "manifest.json").read_bytes())
    assert (manifest["rows_in"], manifest["rows_out"]) == (30, 25)
    assert manifest["rows_quarantined"] == 5
    assert sum(manifest["quarantine"].values()) == 5
    assert manifest["degraded"] == [0, 1]
    assert not (Path(result.output) / ATTEMPTS).exists()
    written = b"".join(path.read_bytes() for path in private.rglob("*") if path.is_file())
    assert SECRET.encode() not in written


def test_a_shard_whose_every_pair_fails_is_recorded_and_done_at_the_next_start(
    folder, ray_cluster, write_pairs, tmp_path, monkeypatch
):
    monkeypatch.setattr(plan, "SHARD_PAIRS", SHARD_PAIRS)
    switch = tmp_path / "switch"
    switch.touch()
    model = folder(plate="error", switch=str(switch))
    path = write_pairs(table(plain(30), [QUERY, "a plate", "what heads a list"]))
    wanted = config(path, model, tmp_path / "out")
    said = r"1 of 3 shards failed:\n  shard 1: The model fails on too many of the shard's 10 inputs"
    with pytest.raises(RunFailed, match=said) as failed:
        job.rerank(wanted)
    assert failed.value.exit_code == 1
    output = tmp_path / "out"
    assert not (output / "_SUCCESS").exists()
    done = {number: (output / f"part-0000{number}.parquet").read_bytes() for number in (0, 2)}
    assert set(markers.read_failures(Store(str(output)))) == {1}
    assert not list((output / ATTEMPTS).iterdir())

    switch.unlink()
    result = job.rerank(wanted)
    assert result.manifest["shards_resumed"] == 2
    assert result.manifest["degraded"] == []
    assert result.counters.rows_in == result.counters.rows_out == 30
    assert not (output / ATTEMPTS).exists()
    for number, content in done.items():
        assert (output / f"part-0000{number}.parquet").read_bytes() == content


# A worker, without Ray


def make_settings(model: Path) -> StageSettings:
    scorer = Scorer(str(model), scorer="own_scorers:Poisoned", device="cpu", threads=1)
    return StageSettings(
        scorer.description,
        replace(scorer.profile, token_budget=64),
        scorer.tokenizer.rules,
        scorer.tokenizer.template,
        ColumnNames(),
        has_query_id=True,
        max_text_bytes=1 << 20,
        depth=None,
    )


def tokenized(documents: list[str], settings: StageSettings, query: str = QUERY) -> Envelope:
    rows = table(documents, [query] * (len(documents) // 10))
    return stages.tokenize(
        Envelope(0, rows=rows), settings, settings.description.tokenizer(settings.rules)
    )


def cost(scored: Envelope) -> dict[str, Any]:
    return json.loads(scored.scores.schema.metadata[b"cost"])


def test_a_fault_that_does_not_come_again_changes_no_bit(folder, tmp_path):
    switch = tmp_path / "switch"
    documents = plain(30)
    documents[4] = "a plate"
    settings = make_settings(folder(plate="error", switch=str(switch), once=True))
    bounds = Bounds(Store(str(tmp_path / "out")), 60)
    undisturbed = ScoringWorker(settings, bounds).score(tokenized(documents, settings))
    switch.touch()
    scored = ScoringWorker(settings, bounds).score(tokenized(documents, settings))
    assert not switch.exists()
    assert scored.scores.equals(undisturbed.scores)
    assert not cost(scored)["degraded"]


@pytest.mark.parametrize("fault", ["error", "sys.exit"])
def test_only_the_batch_that_holds_poison_is_scored_otherwise(folder, tmp_path, fault):
    switch = tmp_path / "switch"
    documents = plain(30)
    documents[4] = "a plate"
    settings = make_settings(folder(plate=fault, switch=str(switch)))
    worker = ScoringWorker(settings, Bounds(Store(str(tmp_path / "out")), 60))
    undisturbed = worker.score(tokenized(documents, settings)).scores
    switch.touch()
    scored = worker.score(tokenized(documents, settings))
    reasons = scored.scores["reason"].to_pylist()
    (lost,) = [number for number, reason in enumerate(reasons) if reason is not None]
    before = undisturbed["score"].to_numpy()
    after = scored.scores["score"].to_numpy()
    assert np.isnan(after).nonzero()[0].tolist() == [lost]
    assert cost(scored)["degraded"]
    others = np.arange(30) != lost
    np.testing.assert_allclose(after[others], before[others], rtol=0, atol=1e-4)
    # Four pairs or so stand in a batch.
    assert 1 <= np.sum(after[others] != before[others]) <= 4
    assert not list((tmp_path / "out" / ATTEMPTS).iterdir())


@pytest.mark.parametrize("fault", ["error", "exit"])
def test_a_model_that_fails_on_anything_fails_the_shard(folder, tmp_path, words, fault):
    settings = make_settings(folder())
    first = settings.template.before[0]
    poison = settings.description.place.path() / "poison.json"
    poison.write_text(json.dumps({str(first): fault}))
    settings = make_settings(poison.parent)
    store = Store(str(tmp_path / "out"))
    store.write(f"{ATTEMPTS}/00000.scoring", b"1")
    worker = ScoringWorker(settings, Bounds(store, 60))
    with pytest.raises(ModelError, match=r"fails even on an input without texts: the model"):
        worker.score(tokenized(plain(10), settings))


def test_a_model_that_cannot_be_loaded_is_unusable(folder, tmp_path):
    settings = make_settings(folder())
    shard = tokenized(plain(10), settings)
    (settings.description.place.path() / "poison.json").unlink()
    worker = ScoringWorker(settings, Bounds(Store(str(tmp_path / "out")), 60))
    with pytest.raises(ModelError) as here:
        worker.score(shard)
    assert worker.unusable is here.value


def test_more_than_a_few_poison_pairs_fail_the_shard(folder, tmp_path):
    settings = make_settings(folder(plate="memory"))
    worker = ScoringWorker(settings, Bounds(Store(str(tmp_path / "out")), 60))
    few = plain(30)
    few[:FEW_INPUTS] = [f"a plate {number}" for number in range(FEW_INPUTS)]
    scored = worker.score(tokenized(few, settings))
    assert scored.scores["reason"].null_count == 30 - FEW_INPUTS
    few[FEW_INPUTS] = "a plate more"
    with pytest.raises(ModelError, match=f"on {FEW_INPUTS + 1} so far, last because it does not"):
        worker.score(tokenized(few, settings))


def test_a_score_that_is_not_finite_is_searched_for_like_a_crash(folder, tmp_path):
    switch = tmp_path / "switch"
    documents = plain(30)
    documents[4] = "a plate"
    settings = make_settings(folder(plate="nan", switch=str(switch)))
    worker = ScoringWorker(settings, Bounds(Store(str(tmp_path / "out")), 60))
    undisturbed = worker.score(tokenized(documents, settings))
    assert not cost(undisturbed)["degraded"]
    switch.touch()
    scored = worker.score(tokenized(documents, settings))
    assert cost(scored)["degraded"]
    assert scored.scores["reason"].drop_null().to_pylist() == [BAD_SCORE]
    before, after = (one.scores["score"].to_numpy() for one in (undisturbed, scored))
    assert np.isnan(after).sum() == 1
    others = ~np.isnan(after)
    np.testing.assert_allclose(after[others], before[others], rtol=0, atol=1e-4)
    # Four pairs or so stand in a batch; all others have their bits.
    assert 1 <= np.sum(after[others] != before[others]) <= 4


def test_a_process_that_begins_to_give_nan_costs_no_row(folder, tmp_path):
    """As one whose GPU was spoiled does; a fresh process is sound."""
    switch = tmp_path / "switch"
    settings = make_settings(folder(plate="nan", switch=str(switch), once=True))
    documents = [f"a plate {number}" for number in range(30)]
    worker = ScoringWorker(settings, Bounds(Store(str(tmp_path / "out")), 60))
    undisturbed = worker.score(tokenized(documents, settings))
    switch.touch()
    scored = worker.score(tokenized(documents, settings))
    assert not switch.exists()
    assert scored.scores.equals(undisturbed.scores)
    assert not cost(scored)["degraded"]


def test_a_model_that_gives_nan_for_everything_fails_the_shard(folder, tmp_path):
    settings = make_settings(folder(plate="nan"))
    worker = ScoringWorker(settings, Bounds(Store(str(tmp_path / "out")), 60))
    said = r"fails on too many of the shard's \d+ inputs .* last because " + BAD_SCORE
    for count in (10, 40):
        with pytest.raises(ModelError, match=said):
            worker.score(tokenized(plain(count), settings, query="which plate"))


def test_poison_that_is_all_that_is_left_to_score_is_not_the_models_fault(folder):
    template = Template((), (), (), (0,) * 5, has_segments=False, pad_id=0, keep_end=False)
    description = SeveralAtOnce(folder(**{"6": "memory", "7": "memory"}))
    poison = [np.array([6, 7])]
    with Isolation(description, PROFILE, template, 60, reused=30) as apart:
        assert len([one.reason for one in apart.run_batches(poison, batch_of)]) == 2
    too_many = "fails on too many of the shard's 2 inputs"
    with (
        pytest.raises(ModelError, match=too_many),
        Isolation(description, PROFILE, template, 60) as apart,
    ):
        list(apart.run_batches(poison, batch_of))


# Batches


def batch_of(tokens: Any) -> TokenBatch:
    return TokenBatch(np.asarray(tokens)[:, None], None, None)


def run_apart(description: Any, batches: list[list[int]]) -> list[ScoredBatch]:
    """Score tokens, one an input, apart."""
    template = Template((), (), (), (0,) * 5, has_segments=False, pad_id=0, keep_end=False)
    with Isolation(description, PROFILE, template, 60) as apart:
        return list(apart.run_batches(map(np.array, batches), batch_of))


def test_a_crash_with_batches_in_flight_costs_none_but_its_own(folder):
    """Tokens are their own numbers here: 20 and 41 are poison."""
    description = SeveralAtOnce(folder(**{"20": "crash", "41": "memory"}))
    batches = [list(range(start, start + 4)) for start in range(1, 61, 4)]
    done = run_apart(description, batches)
    assert sorted(token for one in done for token in one.chosen) == list(range(1, 61))
    reasons = {int(one.chosen[0]): one.reason for one in done if one.reason is not None}
    assert reasons == {
        20: "the model's process died of it (SIGSEGV)",
        41: "it does not fit in memory alone",
    }
    whole = [one.chosen.tolist() for one in done if not one.halved]
    assert sorted(whole) == [one for one in batches if not {20, 41} & set(one)]


def test_a_kill_from_outside_that_does_not_come_again_changes_no_batch(folder, tmp_path):
    switch = tmp_path / "switch"
    switch.touch()
    description = SeveralAtOnce(folder(**{"6": "kill", "switch": str(switch), "once": True}))
    done = run_apart(description, [list(range(1, 9))])
    assert not switch.exists()
    assert [one.chosen.tolist() for one in done] == [list(range(1, 9))]
    assert not done[0].halved


def test_what_is_harmless_has_a_pairs_shape():
    bert = Template(
        (101,), (102,), (102,), (0, 0, 0, 1, 1), has_segments=True, pad_id=0, keep_end=False
    )
    batch = probe(bert)
    assert batch.input_ids.tolist() == [[101, 102, 102]]
    assert batch.segment_ids is not None
    assert batch.segment_ids.tolist() == [[0, 0, 1]]
    bare = probe(replace(bert, before=(), between=(), after=()))
    assert bare.input_ids.tolist() == [[0]]
    assert bare.segment_ids is not None
    assert bare.segment_ids.shape == (1, 1)


def test_an_input_beyond_the_token_budget_may_take_as_much_longer():
    allowance = Allowance(600, 1024)
    assert allowance.of(TokenBatch(np.zeros((1, 8), np.int64), None, None)) == 600
    assert allowance.of(TokenBatch(np.zeros((1, 4096), np.int64), None, None)) == 2400


HANG = """
import re, sys
from rankmill.watchdog import within
with within(float(sys.argv[1])):
    re.match(r"(a+)+$", "a" * int(sys.argv[2]) + "b")  # holds the interpreter's lock
print("in time")
"""


@pytest.mark.parametrize(("letters", "code", "said"), [(60, 1, ""), (1, 0, "in time\n")])
def test_a_process_that_hangs_in_c_is_ended(letters, code, said):
    arguments = [sys.executable, "-c", HANG, "2", str(letters)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, said)


# Attempts


def test_an_attempt_that_ends_leaves_no_note(tmp_path):
    attempts = Attempts(Store(str(tmp_path)), "scoring")
    with attempts.attempt(3) as number:
        assert [file.name for file in (tmp_path / ATTEMPTS).iterdir()] == ["00003.scoring"]
        assert number == 1
    with pytest.raises(ZeroDivisionError), attempts.attempt(3):
        raise ZeroDivisionError
    assert not list((tmp_path / ATTEMPTS).iterdir())


DIE = """
import os, sys
from rankmill.attempts import Attempts
from rankmill.store import Store
with Attempts(Store(sys.argv[1]), "tokenizing").attempt(3) as number:
    os._exit(number)
"""


def test_attempts_that_ended_their_process_are_counted_and_bounded(tmp_path):
    codes = [
        subprocess.run([sys.executable, "-c", DIE, str(tmp_path)], check=False).returncode
        for _ in range(MOST_ATTEMPTS)
    ]
    assert codes == list(range(1, MOST_ATTEMPTS + 1))
    attempts = Attempts(Store(str(tmp_path)), "tokenizing")
    with (
        pytest.raises(
            RunFailed, match=f"{MOST_ATTEMPTS} processes died while they were tokenizing it"
        ),
        attempts.attempt(3),
    ):
        os._exit(99)
    with attempts.attempt(3) as number:
        assert number == 1, "the next start tries again"


def test_a_store_that_is_out_of_reach_stops_no_attempt(tmp_path, caplog):
    (tmp_path / "file").touch()
    with Attempts(Store(str(tmp_path / "file" / "out")), "scoring").attempt(0) as number:
        assert number == 1
    assert "cannot be noted" in caplog.text


class Panic(BaseException):
    """What a library written in Rust raises."""


def test_a_tokenizer_that_panics_fails_its_shard_alone(words):
    def tokenize(envelope: Envelope) -> Envelope:
        if envelope.shard == 1:
            raise Panic(SECRET)
        return envelope

    block = pa.concat_tables([Envelope(number).to_block() for number in range(3)])
    errors = [one.error for one in Envelope.from_block(pipeline._each(block, tokenize))]
    assert errors[0] is errors[2] is None
    assert errors[1].startswith("Panic in test_poison.py:")
