"""Windows over long documents, against the tokenizer's own and transformers on each of them."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

import rankmill
import tiny_models
from rankmill import Scorer, job, markers, plan
from rankmill.config import RunConfig, load_config
from rankmill.errors import ConfigError, OutputError
from rankmill.models import ScorerModel
from rankmill.prepared import prepare
from rankmill.scorer import score_pairs
from rankmill.tokenizer import PairTokenizer
from rankmill.tokens import PairRules, TokenBatch, TokenizedPairs, TokenizedTexts, kept_tokens
from rankmill.windows import Windows, assemble, cut, pool
from reference import WindowReference

KINDS = {
    "wordpiece": tiny_models.wordpiece,
    "unigram": tiny_models.unigram,
    "byte bpe": tiny_models.byte_bpe,
}
QUERY = "what is a shard"
DOCUMENTS = [
    "A shard is a run of whole lists.",
    "slip flow past a flat plate " * 40,
    "検索結果の順位を付け直すモデルは、質問と文書の組を読みます。" * 6,
    "",
    "reranking 😀 orders search results " * 25,
]
PAIRS = [(QUERY, document) for document in DOCUMENTS] + [("x", DOCUMENTS[1])]
LENGTH, STRIDE = 40, 9


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    return KINDS[request.param]()


def windowed(max_length: int, stride: int, **others: object) -> PairRules:
    return PairRules(max_length, "document", overflow="windows", stride=stride, **others)


# The tokenizer's own windows


def check_equal(tokenizer, query: str, document: str, max_length: int, stride: int) -> None:
    """Ids and segments of all windows are those that the tokenizer itself returns."""
    # A tokenizer refuses a stride that leaves no query room; here queries are as long as they like.
    ours = PairTokenizer(tokenizer, windowed(max_length, 0))
    texts = ours.encode([query, document])
    room = max_length - ours.template.special - int(texts.lengths[0])
    if room < 1:
        return  # tokenizers raise; what we do then is ours
    zero = np.zeros(1, np.int32)
    windows = cut(ours.pairs(texts, zero, zero + 1), windowed(max_length, stride))
    batch = assemble(windows, ours.template, np.arange(len(windows)))
    own = tokenizer(
        [query],
        [document],
        truncation="only_second",
        max_length=max_length,
        stride=min(stride, room // 2),
        return_overflowing_tokens=True,
        verbose=False,
    )
    ids = [row[:n].tolist() for row, n in zip(batch.input_ids, windows.lengths)]
    assert ids == own["input_ids"]
    if batch.segment_ids is not None:
        segments = [row[:n].tolist() for row, n in zip(batch.segment_ids, windows.lengths)]
        assert segments == own["token_type_ids"]


WORDS = st.lists(
    st.sampled_from(
        ["shard", "日本の首都", "slip flow", "x", "👩‍👩‍👧", "[SEP]", "pneumono" * 4, ""]
    ),
    max_size=30,
).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(st.one_of(WORDS, st.text(max_size=12)), WORDS, st.integers(5, 60), st.integers(0, 40))
def test_windows_are_those_of_the_tokenizer_itself(tokenizer, query, document, length, stride):
    check_equal(tokenizer, query, document, length, stride)


@pytest.mark.parametrize("stride", [0, 1, 5, 6, 100])
@pytest.mark.parametrize("words", [0, 1, 11, 12, 13, 23, 24, 25, 200])
def test_a_document_that_just_fits_or_just_does_not_is_cut_as_the_tokenizer_does(words, stride):
    wordpiece = tiny_models.wordpiece()
    check_equal(wordpiece, "a b c d e", "x " * words, 5 + 3 + 12, stride)


@pytest.mark.parametrize("stride", [0, 3, 8])
def test_a_tokenizer_that_cuts_on_the_left_begins_with_the_end(stride):
    left = tiny_models.wordpiece()
    left.truncation_side = "left"
    check_equal(left, "one two three", "a b c d e f g h i j k " * 7, 40, stride)


# Coverage


def numbered(query: list[int], document: list[int], rules: PairRules) -> TokenizedPairs:
    """Pairs of texts of so many tokens, whose ids count from 0 within each text."""
    lengths = [*query, *document]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = np.concatenate([np.empty(0, np.int32), *(np.arange(n, dtype=np.int32) for n in lengths)])
    number = np.arange(len(query), dtype=np.int32)
    kept = kept_tokens(np.array(query, np.int32), np.array(document, np.int32), rules, 3)
    texts = TokenizedTexts(ids, starts)
    return TokenizedPairs(texts, number, number + np.int32(len(query)), *kept, 3)


def stretches(windows: Windows, pair: int) -> list[range]:
    """The document's tokens in each window of a pair."""
    mine = windows.pair == pair
    return [
        range(first, first + count)
        for first, count in zip(windows.first[mine].tolist(), windows.count[mine].tolist())
    ]


LENGTHS = st.lists(st.tuples(st.integers(0, 80), st.integers(0, 400)), min_size=1, max_size=8)
CAP = st.one_of(st.none(), st.integers(1, 60))


@given(LENGTHS, st.integers(4, 60), st.integers(0, 70), CAP, CAP)
def test_every_token_that_counts_is_in_a_window_and_no_window_is_too_long(
    lengths, max_length, stride, query_cap, document_cap
):
    rules = windowed(
        max_length, stride, max_query_tokens=query_cap, max_document_tokens=document_cap
    )
    pairs = numbered([q for q, _ in lengths], [d for _, d in lengths], rules)
    windows = cut(pairs, rules)
    assert windows.lengths.max() <= max_length
    for pair, (query, document) in enumerate(lengths):
        room = max_length - 3 - int(pairs.query_kept[pair])
        wanted = min(document, document_cap or document) if room else 0
        found = stretches(windows, pair)
        assert sorted({token for one in found for token in one}) == list(range(wanted))
        assert pairs.dropped[pair] == query - pairs.query_kept[pair] + document - wanted
        if wanted <= room:
            assert found == [range(wanted)]
            continue
        shared = min(stride, room // 2)
        assert all(len(one) == room for one in found[:-1])
        assert all(
            before[room - shared :] == after[:shared] for before, after in itertools.pairwise(found)
        )
        assert found[-1].stop == wanted
        assert found[-2].stop < wanted, "the last window holds something new"
        assert len(found) <= math.ceil(2 * wanted / room), "a stride cannot multiply the work"


@given(LENGTHS, st.integers(4, 60), st.sampled_from(["document", "longest_first"]), CAP, CAP)
def test_a_pair_that_is_cut_is_one_window(lengths, max_length, truncation, query_cap, document_cap):
    rules = PairRules(max_length, truncation, query_cap, document_cap)
    pairs = numbered([q for q, _ in lengths], [d for _, d in lengths], rules)
    windows = cut(pairs, rules)
    assert windows.pair.tolist() == list(range(len(lengths)))
    assert windows.first.tolist() == [0] * len(lengths)
    assert windows.count.tolist() == pairs.document_kept.tolist()


@given(LENGTHS, st.integers(4, 60), CAP)
def test_the_query_is_kept_as_truncation_keeps_it(lengths, max_length, query_cap):
    cutting = PairRules(max_length, "document", query_cap)
    covering = replace(cutting, overflow="windows")
    arguments = [q for q, _ in lengths], [d for _, d in lengths]
    found, expected = (numbered(*arguments, rules) for rules in (covering, cutting))
    assert found.query_kept.tolist() == expected.query_kept.tolist()


def test_windows_of_a_huge_document_share_its_tokens_and_weigh_less():
    rules = windowed(512, 128)
    pairs = numbered([20], [2_000_000], rules)
    windows = cut(pairs, rules)
    assert windows.pairs is pairs
    assert len(windows) == 1 + math.ceil((2_000_000 - 489) / (489 - 128))
    assert sum(a.nbytes for a in (windows.pair, windows.first, windows.count)) < (
        pairs.texts.ids.nbytes / 50
    )


# One score of several


def windows_of(counts: list[int]) -> Windows:
    rules = windowed(3 + 2, 0)
    return cut(numbered([0] * len(counts), [2 * n for n in counts], rules), rules)


def test_a_pairs_score_is_the_highest_or_the_mean_of_its_windows():
    windows = windows_of([1, 3, 2])
    scores = np.array([5, -1, -3, -2, 0.5, 0.25], np.float32)
    for how, expected in (("max", [5, -1, 0.5]), ("mean", [5, -2, 0.375])):
        pooled = pool(windows, scores, how)
        assert pooled.dtype == np.float32
        assert pooled.tolist() == expected


def test_a_mean_is_rounded_once():
    pooled = pool(windows_of([3]), np.array([1e8, 1, -1e8], np.float32), "mean")
    assert pooled.tolist() == [np.float32(1 / 3)]


@pytest.mark.parametrize("how", ["max", "mean"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_window_without_a_finite_score_spoils_its_pair_and_no_other(how, bad, place):
    scores = np.array([1, 2, 3, 4], np.float32)
    scores[place] = bad
    assert np.isnan(pool(windows_of([3, 1]), scores, how)).tolist() == [True, False]


@pytest.mark.parametrize("how", ["max", "mean"])
def test_no_pairs_have_no_scores(how):
    assert pool(windows_of([]), np.empty(0, np.float32), how).tolist() == []


# Scores


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.std(expected) > 0.01
    assert np.all(np.abs(found - expected) <= 1e-5 * np.maximum(1, np.abs(expected)))


def exact(folder: str, **options: object) -> Scorer:
    cut = {"max_length": LENGTH, "overflow": "windows", "window_stride": STRIDE}
    return Scorer(folder, device="cpu", precision="fp32", threads=1, **(cut | options))


@pytest.fixture(scope="module")
def scorer(tiny_model) -> Scorer:
    return exact(tiny_model("bert"))


@pytest.mark.parametrize("how", ["max", "mean"])
@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "modernbert-mean", "deberta-v2"])
def test_scores_are_those_of_transformers_on_each_window_alone(tiny_model, kind, how):
    reference = WindowReference(tiny_model(kind), LENGTH, STRIDE)
    assert max(len(reference.windows(*pair)) for pair in PAIRS) > 8
    found = exact(tiny_model(kind), window_pool=how).score(PAIRS)
    assert_close(found, reference.score(PAIRS, how))


def test_documents_that_fit_score_as_without_windows(tiny_model):
    pairs = [(QUERY, document) for document in DOCUMENTS if len(document) < 80]
    truncating = exact(tiny_model("bert"), overflow="truncate", max_length=128)
    np.testing.assert_array_equal(
        exact(tiny_model("bert"), max_length=128).score(pairs), truncating.score(pairs)
    )


def test_what_lies_beyond_the_length_counts(tiny_model):
    pairs = [(QUERY, "x " * 80 + end) for end in ("shear flow", "日本の首都")]
    one, other = exact(tiny_model("bert"), overflow="truncate").score(pairs)
    assert one == pytest.approx(other, abs=1e-5)
    one, other = exact(tiny_model("bert"), window_pool="mean").score(pairs)
    assert one != pytest.approx(other, abs=1e-5)


def test_what_lies_beyond_the_documents_cap_does_not_count(tiny_model):
    capped = exact(tiny_model("bert"), window_pool="mean", max_document_tokens=80)
    one, other, third = capped.score(
        [(QUERY, "x " * 80 + "shear flow"), (QUERY, "x " * 80), (QUERY, "x " * 79 + "shear")]
    )
    assert one == pytest.approx(other, abs=1e-5)
    assert one != pytest.approx(third, abs=1e-5)


class Recording:
    """A model that notes the shapes it is given."""

    def __init__(self, model: ScorerModel) -> None:
        self.model = model
        self.shapes: list[tuple[int, ...]] = []

    def score(self, batch: TokenBatch) -> np.ndarray:
        self.shapes.append(batch.input_ids.shape)
        return self.model.score(batch)


def test_windows_are_batched_under_the_budget_and_counted(scorer):
    texts = scorer.tokenizer.encode([QUERY, "shear flow " * 2_000, "a plate"])
    pairs = scorer.tokenizer.pairs(texts, np.zeros(2, np.int32), np.array([1, 2], np.int32))
    windows = cut(pairs, scorer.tokenizer.rules)
    model = Recording(scorer.model)
    profile = replace(scorer.profile, token_budget=256)
    scored = score_pairs(model, pairs, scorer.tokenizer.rules, scorer.tokenizer.template, profile)
    assert max(rows * length for rows, length in model.shapes) <= 256
    assert sum(rows for rows, _ in model.shapes) == scored.windows == len(windows) > 100
    assert scored.tokens == windows.lengths.sum()
    assert scored.scores.shape == (2,)


@pytest.mark.slow
def test_a_model_of_8192_tokens_scores_pairs_of_that_length(tmp_path):
    folder = str(tiny_models.modernbert(tmp_path / "long", max_position_embeddings=8192))
    pair = (QUERY, "shear flow past a flat plate " * 930)
    reference = WindowReference(folder, 8192, 128)
    first, second = reference.windows(*pair)
    assert abs(first - second) > 0.1
    windows = exact(folder, max_length=8192, window_stride=128, window_pool="mean")
    assert windows.score([pair])[0] == pytest.approx((first + second) / 2, abs=1e-5)
    cutting = exact(folder, max_length=8192, overflow="truncate")
    assert cutting.score([pair])[0] == pytest.approx(first, abs=1e-5)


# Settings


def test_a_stride_that_leaves_a_window_nothing_new_is_refused_with_the_numbers(tiny_model):
    with pytest.raises(ConfigError, match=r"stride is 128, but of 128 tokens .* only 125 for"):
        Scorer(tiny_model("bert"), overflow="windows")
    with pytest.raises(ConfigError, match=r"stride is 20, but of 40 tokens .* only 17 for"):
        exact(tiny_model("bert"), max_query_tokens=20, window_stride=20)
    assert np.isfinite(exact(tiny_model("bert"), max_query_tokens=20).score(PAIRS)).all()


def test_a_stride_does_not_matter_where_documents_are_cut(tiny_model):
    assert Scorer(tiny_model("bert"), device="cpu", window_stride=5_000).score(PAIRS).shape == (6,)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"overflow": "window"}, "overflow: .*found 'window'"),
        ({"window_pool": "min"}, "window.pool: .*found 'min'"),
        ({"window_stride": -1}, "window.stride: .*found -1"),
        ({"truncation": "longest_first"}, "windows needs truncation: document"),
        ({"max_document_tokens": 0}, "max_document_tokens: .*found 0"),
    ],
    ids=repr,
)
def test_a_wrong_setting_is_a_config_error_that_names_it(tiny_model, setting, said):
    with pytest.raises(ConfigError, match=said):
        exact(tiny_model("bert"), **setting)


# Datasets and jobs


@pytest.fixture(scope="module")
def candidates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six lists of four documents, from a few tokens to several windows; one query is too long."""
    folder = tmp_path_factory.mktemp("windows") / "input"
    folder.mkdir()
    queries = [f"what is shard {number}" for number in range(5)] + ["heat transfer " * 40]
    rows = [
        {
            "query_id": f"q{number}",
            "query": query,
            "doc_id": f"d{number}-{size}",
            "document": f"shard {size} of list {number} " + "reads whole lists " * size,
        }
        for number, query in enumerate(queries)
        for size in (1, 7, 20, 45)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    return folder


def settings_of(candidates: Path, output: Path, model: str, **changed: object) -> RunConfig:
    values = {
        "input.path": str(candidates),
        "output.path": str(output),
        "model.name": model,
        "model.precision": "fp32",
        "model.max_length": LENGTH,
        "model.overflow": "windows",
        "model.window.stride": STRIDE,
        "model.window.pool": "mean",
        "compute.workers": 1,
    }
    return load_config(overrides=values | changed)


@dataclass(frozen=True)
class Done:
    config: RunConfig
    output: Path
    manifest: dict[str, object]


@pytest.fixture(scope="module")
def done(
    candidates: Path,
    tiny_model: Callable[[str], str],
    ray_cluster: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Done:
    """A run of three shards."""
    output = tmp_path_factory.mktemp("done") / "output"
    config = settings_of(candidates, output, tiny_model("bert"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "SHARD_PAIRS", 8)
        result = job.rerank(config)
    assert result.manifest["shards"] == 3
    return Done(config, output, result.manifest)


def short(table: pa.Table) -> list[dict[str, object]]:
    """The rows whose query leaves windows room, as the reference needs it."""
    return [row for row in table.to_pylist() if row["query_id"] != "q5"]


def test_a_job_scores_every_window_and_drops_nothing(done, candidates, tiny_model):
    table = pq.read_table(str(done.output))
    rows = short(table)
    reference = WindowReference(tiny_model("bert"), LENGTH, STRIDE)
    expected = reference.score([(row["query"], row["document"]) for row in rows], "mean")
    assert len(rows) == 20
    assert_close(np.array([row["rerank_score"] for row in rows]), expected)
    assert {row["rerank_tokens_dropped"] for row in rows} == {0}


def test_a_job_counts_windows_their_tokens_and_what_queries_lost(done):
    rows = pq.read_table(str(done.output)).to_pylist()
    tokenizer = AutoTokenizer.from_pretrained(done.config.model.name)
    lost = {row["rerank_tokens_dropped"] for row in rows if row["query_id"] == "q5"}
    words = tokenizer(["heat transfer " * 40], add_special_tokens=False)["input_ids"][0]
    assert lost == {len(words) - LENGTH * 3 // 4}, "the query's own; the document is seen whole"
    scorer = exact(done.config.model.name)
    texts = scorer.tokenizer.encode([text for r in rows for text in (r["query"], r["document"])])
    numbers = np.arange(len(rows), dtype=np.int32) * 2
    windows = cut(scorer.tokenizer.pairs(texts, numbers, numbers + 1), scorer.tokenizer.rules)
    assert done.manifest["pairs_scored"] == done.manifest["rows_out"] == 24
    assert done.manifest["pairs_truncated"] == 4
    assert done.manifest["windows"] == len(windows)
    assert done.manifest["tokens"] == windows.lengths.sum()


def test_a_resumed_job_gives_the_same_bytes(done, candidates, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "SHARD_PAIRS", 8)
    output = tmp_path / "output"
    shutil.copytree(done.output, output)
    for name in (
        "_SUCCESS",
        "_rankmill/manifest.json",
        markers.marker_name(1),
        "part-00001.parquet",
    ):
        (output / name).unlink()
    result = job.rerank(settings_of(candidates, output, tiny_model("bert")))
    assert result.manifest["shards_resumed"] == 2
    for part in done.output.glob("*.parquet"):
        assert (output / part.name).read_bytes() == part.read_bytes()


@pytest.mark.parametrize(
    ("changed", "shown"),
    [
        ({"model.window.stride": 5}, "settings.model.window.stride: 9 -> 5"),
        ({"model.window.pool": "max"}, 'settings.model.window.pool: "mean" -> "max"'),
        ({"model.overflow": "truncate"}, 'settings.model.overflow: "windows" -> "truncate"'),
        ({"model.max_document_tokens": 60}, "settings.model.max_document_tokens: nothing -> 60"),
    ],
    ids=repr,
)
def test_other_windows_are_another_run(done, candidates, tiny_model, changed, shown):
    config = settings_of(candidates, done.output, tiny_model("bert"), **changed)
    with pytest.raises(OutputError, match=shown):
        prepare(config)


def test_a_job_refuses_a_stride_without_progress_before_it_starts(candidates, tiny_model, tmp_path):
    changed = {"model.window.stride": 37}
    config = settings_of(candidates, tmp_path / "output", tiny_model("bert"), **changed)
    with pytest.raises(ConfigError, match=r"stride is 37, .* only 37 for the document"):
        prepare(config)
    assert not (tmp_path / "output").exists()


def test_a_dataset_is_scored_by_windows(candidates, tiny_model, ray_cluster):
    ranked = rankmill.rerank_dataset(
        ray.data.read_parquet(str(candidates)),
        tiny_model("bert"),
        device="cpu",
        precision="fp32",
        max_length=LENGTH,
        max_document_tokens=100,
        overflow="windows",
        window_stride=STRIDE,
        window_pool="max",
        workers=1,
    )
    rows = ranked.take_all()
    capped = exact(tiny_model("bert"), max_document_tokens=100)
    expected = capped.score([(row["query"], row["document"]) for row in rows])
    assert len(rows) == 24
    assert_close(np.array([row["rerank_score"] for row in rows]), expected)
    fits = [row for row in rows if row["query_id"] != "q5" and row["rerank_tokens_dropped"] == 0]
    reference = WindowReference(tiny_model("bert"), LENGTH, STRIDE)
    pairs = [(row["query"], row["document"]) for row in fits]
    assert_close(np.array([row["rerank_score"] for row in fits]), reference.score(pairs, "max"))
    assert max(len(reference.windows(*pair)) for pair in pairs) > 2
