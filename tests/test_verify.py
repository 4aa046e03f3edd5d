"""`rankmill models verify`: a model's scores beside those that were published with it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rankmill import Scorer, cli
from rankmill.models import presets
from rankmill.models.locate import EMBEDDED
from rankmill.models.published import Published, published
from rankmill.verify import compare

PAIRS = [("what is a shard", "A shard is a run of whole lists."), ("x", "heat transfer")]
MINILM = "cross-encoder/ms-marco-MiniLM-L6-v2"


@pytest.fixture
def rankmill(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command in this process: exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rankmill", *arguments])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as ended:
            cli.main()
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, " ".join(shown.err.split())

    return run


def test_the_embedded_model_gives_its_published_scores(rankmill):
    code, out, _ = rankmill("models", "verify", "demo")
    assert code == 0
    assert "demo gives its published scores" in out


def test_every_number_is_in_the_document(rankmill):
    code, out, _ = rankmill("models", "verify", "demo", "--json")
    shown = json.loads(out)
    assert (code, shown["model"], shown["matches"]) == (0, "demo", True)
    for example in shown["examples"]:
        assert example["found"] - example["expected"] == example["difference"]
        assert abs(example["difference"]) <= example["tolerance"] == 1e-4
    assert len({example["expected"] for example in shown["examples"]}) >= 3


def test_other_weights_under_a_known_name_do_not_match(rankmill, hub, tiny_model):
    hub(MINILM, tiny_model("bert"))
    code, out, _ = rankmill("models", "verify", MINILM)
    assert code == 1
    assert f"{MINILM} does not give its published scores" in out
    assert "8.6071" in out


def test_a_copy_of_the_weights_is_verified_where_it_lies(rankmill, tmp_path):
    copy = shutil.copytree(EMBEDDED, tmp_path / "copy")
    code, out, _ = rankmill("models", "verify", "demo", "--model", str(copy))
    assert code == 0
    assert f"{copy} gives the published scores of demo" in " ".join(out.split())
    code, out, _ = rankmill("models", "verify", "demo", "--model", str(copy), "--json")
    shown = json.loads(out)
    assert (shown["model"], shown["weights"], shown["matches"]) == ("demo", str(copy), True)


def test_a_folder_with_other_weights_does_not_match(rankmill, tiny_model):
    folder = tiny_model("bert")
    code, out, _ = rankmill("models", "verify", MINILM, "--model", folder)
    assert code == 1
    assert f"{folder} does not give the published scores of {MINILM}" in " ".join(out.split())


def test_a_folder_that_is_not_there_is_named(rankmill, tmp_path):
    code, out, err = rankmill("models", "verify", "demo", "--model", str(tmp_path / "nowhere"))
    assert (code, out) == (2, "")
    assert f"There is no model {tmp_path}/nowhere" in err


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("cross-encoder/ms-marco-MiniLM-L6-v3", f"Did you mean {MINILM}?"),
        ("jina-reranker-v1-tiny", "Did you mean jinaai/jina-reranker-v1-tiny-en?"),
        ("nothing/like-these", "They are of demo,"),
    ],
)
def test_a_misspelt_name_is_told_which_was_meant(rankmill, typed, said):
    code, out, err = rankmill("models", "verify", typed)
    assert (code, out) == (2, "")
    assert said in err


def test_a_folder_in_place_of_a_name_is_told_where_it_belongs(rankmill, tiny_model):
    folder = tiny_model("bert")
    code, _, err = rankmill("models", "verify", folder)
    assert code == 2
    assert f"rankmill models verify NAME --model {folder}" in err


def test_weights_that_cannot_be_reached_are_named(rankmill, hub):
    code, out, err = rankmill("models", "verify", MINILM)
    assert (code, out) == (2, "")
    assert f"The model {MINILM} is not a local folder and could not be fetched from the hub" in err


def test_a_model_without_published_scores_is_refused_with_those_that_have_some(rankmill):
    code, out, err = rankmill("models", "verify", "cl-nagoya/ruri-v3-reranker-310m")
    assert (code, out) == (2, "")
    assert "No published scores of cl-nagoya/ruri-v3-reranker-310m are known" in err
    assert "demo" in err


def example(folder: str, tolerance: float, off: float, **variants: dict[str, str]) -> Published:
    """Published scores that a folder gives, `off` by so much."""
    scores = Scorer(folder, device="cpu", precision="fp32").score(PAIRS).tolist()
    examples = [{"query": q, "document": d, "score": s + off} for (q, d), s in zip(PAIRS, scores)]
    source = {"source": "a test", "computed": "here", "tolerance": tolerance}
    return Published.model_validate(
        {"name": "tiny", "sources": [source | {"examples": examples}], "variants": variants}
    )


def test_scores_within_the_tolerance_of_the_source_match(tiny_model):
    folder = tiny_model("bert")
    assert compare(example(folder, 0.02, off=0.01), Path(folder)).matches
    assert not compare(example(folder, 0.005, off=0.01), Path(folder)).matches


def test_the_reading_of_an_ambiguous_checkpoint_that_matches_is_named(tiny_model):
    folder = tiny_model("modernbert-mean")
    readings = {"first": {"classifier_pooling": "cls"}, "mean": {"classifier_pooling": "mean"}}
    found = compare(example(folder, 1e-4, 0.0, **readings), Path(folder))
    assert found.matching == ("mean",)
    assert found.matches
    assert [one.variant for one in found.comparisons] == ["first", "mean"]
    assert found.to_json()["matching_variants"] == ["mean"]


def test_no_reading_that_matches_is_no_match(tiny_model):
    folder = tiny_model("modernbert")
    other = {"mean": {"classifier_pooling": "mean"}}
    found = compare(example(folder, 1e-4, 0.0, **other), Path(folder))
    assert found.matching == ()
    assert not found.matches


def test_published_scores_are_of_presets_and_name_their_sources():
    names = [one.name for one in published()]
    assert len(set(names)) == len(names)
    for one in published():
        assert presets.find(one.name) is not None
        for source in one.sources:
            assert source.source
            assert source.computed
            assert source.tolerance <= 0.02
            assert len({example.score for example in source.examples}) >= 2


def test_both_slopes_of_the_jina_rerankers_are_tried():
    jina = [one for one in published() if one.name.startswith("jinaai/")]
    assert len(jina) == 2
    for one in jina:
        assert set(one.variants) == {"halved", "standard"}
