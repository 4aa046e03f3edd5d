"""The report: what a run's files tell, on one page, and nothing that could run."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import make_pairs
from rankmill import markers, output, runs
from rankmill.config import load_config
from rankmill.errors import InputError
from rankmill.job import rerank
from rankmill.markers import Counters, Marker, WrittenFile
from rankmill.report import draw_or_warn, draw_report
from rankmill.report.facts import gather
from rankmill.report.flow import nodes_and_streams, percent
from rankmill.report.page import render
from rankmill.report.timeline import Timeline
from rankmill.store import Store
from reported_runs import FINGERPRINT, commit_report_run, pairs


class Page(HTMLParser):
    """A page's elements with their attributes, and its text without markup and style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._text: list[str] = []
        self._in_style = False
        self.feed(html)
        self.text = re.sub(r"\s+", " ", " ".join(self._text))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._in_style = tag == "style"

    def handle_data(self, data):
        if not self._in_style:
            self._text.append(data)


def drawn(store: Store, **options) -> Page:
    draw_report(store.url, **options)
    return Page((store.read(runs.REPORT) or b"").decode())


def committed(store: Store) -> dict[int, Marker]:
    return output.committed(store, FINGERPRINT, (runs.stored_run(store) or {})["plan"]["shards"])[0]


# What is on it


def test_a_finished_run_is_told_in_numbers_and_pictures(tmp_path: Path) -> None:
    store = commit_report_run(str(tmp_path), [pairs([12, 12]), pairs([12])])
    page = drawn(store)
    assert "36 pairs of 3 queries were scored in 12 s." in page.text
    assert "complete" in page.text
    assert "abababababababab" in page.text, "the model's digest"
    charts = [attributes["aria-label"] for tag, attributes in page.elements if tag == "svg"]
    assert len(charts) >= 8
    assert any("36 rows in, 36 scored, 36 written" in str(label) for label in charts)


def test_charts_of_a_page_share_no_id(tmp_path: Path) -> None:
    page = drawn(commit_report_run(str(tmp_path), [pairs([30, 12])]))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_charts_take_every_colour_from_the_page(tmp_path: Path) -> None:
    page = drawn(commit_report_run(str(tmp_path), [pairs([30, 12])]))
    drawn_with = {
        attributes.get("fill", "black")
        for tag, attributes in page.elements
        if tag in ("text", "use") or (tag == "path" and "id" not in attributes)
    }
    drawn_with |= {a["stroke"] for _, a in page.elements if "stroke" in a}
    assert {str(colour) for colour in drawn_with if not str(colour).startswith("var(--")} == {
        "none"
    }


def test_a_run_draws_its_report_when_it_ends(
    tmp_path: Path, ray_cluster: None, tiny_model, write_pairs
) -> None:
    table = make_pairs(6, 8)
    table = table.set_column(3, "document", pa.array([None, *table["document"].to_pylist()[1:]]))
    config = load_config(
        overrides={
            "input.path": write_pairs(table),
            "output.path": str(tmp_path / "out"),
            "model.name": tiny_model("bert"),
            "model.precision": "fp32",
            "compute.workers": 1,
            "report.texts": True,
        }
    )
    rerank(config)
    store = Store(str(tmp_path / "out"))
    page = Page((store.read(runs.REPORT) or b"").decode())
    assert "47 pairs of 6 queries were scored" in page.text
    assert "document is null or empty" in page.text
    assert "of list 0" in page.text
    stages = markers.read_markers(store)[0].stages
    assert stages.keys() == {"read", "tokenize", "rank", "write", "ended"}
    assert all(seconds >= 0 for seconds in stages.values())


def test_texts_are_on_the_page_only_when_asked_for(tmp_path: Path) -> None:
    store = commit_report_run(str(tmp_path), [pairs([12, 12])])
    assert "question 1" not in drawn(store).text
    shown = drawn(store, texts=True).text
    assert "question 1" in shown
    assert "answer 6 to 0" in shown
    assert "7 → 1" in shown
    assert "question 1" not in drawn(store).text, "drawn again without"


def test_the_runs_own_setting_says_whether_texts_are_shown(tmp_path: Path) -> None:
    store = commit_report_run(str(tmp_path), [pairs([12])], settings={"report.texts": True})
    assert "question 0" in drawn(store).text
    assert "question 0" not in drawn(store, texts=False).text


def test_columns_that_were_not_written_are_missed_in_words(tmp_path: Path) -> None:
    store = commit_report_run(str(tmp_path), [pairs([12])], commit={"columns": ("doc_id",)})
    shown = drawn(store, texts=True).text
    assert "the document is not among the columns written" in shown
    assert "d0-6" in shown


def test_documents_of_several_columns_are_shown_joined(tmp_path: Path) -> None:
    table = pairs([12]).append_column("title", pa.array([f"title {n}" for n in range(12)]))
    store = commit_report_run(
        str(tmp_path), [table], settings={"input.columns.document": ["title", "document"]}
    )
    assert "title 6 answer 6 to 0" in drawn(store, texts=True).text


# Odd runs


def test_no_rows_make_a_page_that_says_so(tmp_path: Path) -> None:
    page = drawn(commit_report_run(str(tmp_path), [pairs([])]), texts=True)
    assert "No row came in" in page.text


def test_a_run_that_is_all_in_quarantine_says_why(tmp_path: Path) -> None:
    page = drawn(commit_report_run(str(tmp_path), [pairs([4], document="")]), texts=True)
    assert "No pair was scored: 4 of 4 rows are in quarantine." in page.text
    assert "document is null or empty" in page.text


def test_one_list_of_one_document_has_no_order_to_speak_of(tmp_path: Path) -> None:
    page = drawn(commit_report_run(str(tmp_path), [pairs([1])]), texts=True)
    assert "1 pair of 1 query was scored" in page.text


def test_a_run_that_stopped_says_what_is_missing_and_why(tmp_path: Path) -> None:
    store = commit_report_run(str(tmp_path), [pairs([5]), pairs([5])], missing=[1])
    note = {"shard": 1, "error": "part-3.parquet, row group 2: the page cannot be decoded"}
    store.write(markers.failure_name(1), json.dumps(note).encode())
    page = drawn(store)
    assert "1 of 2 shards are committed" in page.text
    assert "shard 1: part-3.parquet, row group 2" in page.text


def test_where_there_is_no_run_there_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no run"):
        draw_report(str(tmp_path))


def test_a_report_is_drawn_on_an_object_store(tmp_path: Path) -> None:
    store = commit_report_run(f"memory://{tmp_path.name}/out", [pairs([12])])
    url = draw_report(store.url, texts=True)
    assert url == f"{store.url}/_rankmill/report.html"
    assert b"question 0" in (store.read(runs.REPORT) or b"")


def test_of_very_many_shards_a_sample_is_added_up_and_said_to_be_one(tmp_path: Path) -> None:
    store = commit_report_run(str(tmp_path), [pairs([3])] * 5)
    stored = runs.stored_run(store) or {}
    facts = gather(store, stored, committed(store), running=False, summaries=2)
    assert facts.summary.compared == 2
    assert "those of 2 of the 5 shards" in Page(render(facts).decode()).text
    assert facts.counters.rows_in == 15, "counters are never sampled"


def test_shards_of_an_earlier_version_count_without_a_summary(tmp_path: Path) -> None:
    store = commit_report_run(str(tmp_path), [pairs([3])] * 2)
    old = replace(committed(store)[0], summary="", stages={})
    store.write(markers.marker_name(0), old.to_bytes())
    page = drawn(store)
    assert "those of 1 of the 2 shards" in page.text
    assert "6 pairs" in page.text


# A report is not worth a run


def test_a_report_that_cannot_be_drawn_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("rankmill"), "propagate", True)
    store = commit_report_run(str(tmp_path), [pairs([12])])
    done = committed(store)
    store.delete([done[0].part.name])
    draw_or_warn(store, done, texts=True)
    assert "No report was drawn" in caplog.text
    assert f"rankmill report {tmp_path}" in caplog.text


def test_an_old_report_goes_with_its_run(tmp_path: Path) -> None:
    store = commit_report_run(str(tmp_path), [pairs([3])])
    draw_report(store.url)
    output.remove_old(store)
    assert store.read(runs.REPORT) is None


# Nothing on it runs, asks, or tells what it should not


def test_the_page_allows_itself_its_own_style_and_nothing_else(tmp_path: Path) -> None:
    page = drawn(commit_report_run(str(tmp_path), [pairs([12])]), texts=True)
    policy = next(
        str(attributes["content"])
        for tag, attributes in page.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "a", "img", "iframe", "object", "form", "link", "foreignobject"}
    names = {name for _, attributes in page.elements for name in attributes}
    assert not {name for name in names if name.startswith("on")} | names & {"style", "src"}


def test_credentials_are_masked(tmp_path: Path) -> None:
    store = commit_report_run(str(tmp_path), [pairs([2]), pairs([2])], missing=[1])
    note = {"shard": 1, "error": "GET https://host/x?X-Amz-Signature=kept-secret-1234 failed"}
    store.write(markers.failure_name(1), json.dumps(note).encode())
    page = drawn(store)
    assert "kept-secret-1234" not in page.text
    assert "X-Amz-Signature=***" in page.text


@pytest.mark.parametrize("name", ["$\\frac{x}{$", "a\x00b\x1b[31m", "<svg onload=x>", "\u202etxt"])
def test_odd_characters_in_a_reason_do_not_spoil_a_chart(tmp_path: Path, name: str) -> None:
    store = commit_report_run(str(tmp_path), [pairs([3], document="")])
    marker = committed(store)[0]
    counters = replace(marker.counters, quarantine={name: 3})
    store.write(markers.marker_name(0), replace(marker, counters=counters).to_bytes())
    page = drawn(store)
    expected = re.sub(r"[\x00-\x1f]", "\N{REPLACEMENT CHARACTER}", name)
    assert expected in page.text


# Parts


def test_streams_into_a_node_are_its_rows() -> None:
    counters = Counters(
        rows_in=100,
        rows_out=60,
        rows_below_cut=30,
        rows_quarantined=10,
        pairs_scored=70,
        pairs_duplicate=5,
        pairs_beyond_depth=15,
    )
    nodes, streams = nodes_and_streams(counters)
    for place, node in enumerate(nodes[1:], 1):
        assert sum(stream.rows for stream in streams if stream.target == place) == node.rows
    assert sum(stream.rows for stream in streams if stream.source == 0) == 100


@pytest.mark.parametrize(
    ("part", "shown"),
    [
        (0, "0 %"),
        (1, "under 0.1 %"),
        (54_600, "5.5 %"),
        (945_400, "94.5 %"),
        (120_000, "12 %"),
        (999_999, "over 99.9 %"),
    ],
)
def test_a_share_is_never_rounded_to_nothing_or_to_all(part: int, shown: str) -> None:
    assert percent(part, 1_000_000) == shown


def timed(shard: int, ended: float, seconds: float, pairs_scored: int) -> Marker:
    file = WrittenFile("part-00000.parquet", 1, 1, "")
    counters = Counters(pairs_scored=pairs_scored)
    return Marker(shard, "", (file,), counters, False, seconds, {"ended": ended})


def test_shards_that_were_scored_at_once_add_up_to_the_rate() -> None:
    found = Timeline.of([timed(0, 110, 10, 50), timed(1, 110, 10, 30)])
    assert found is not None
    assert (found.began, found.ended) == (100, 110)
    assert found.rate.round(6).tolist() == [8.0] * len(found.rate)


def test_a_night_between_two_starts_is_cut_out() -> None:
    found = Timeline.of([timed(0, 110, 10, 50), timed(1, 30_120, 10, 50)])
    assert found is not None
    assert found.edges[-1] == 20
    assert found.pauses == ((10.0, 30_000.0),)


def test_without_a_scored_pair_there_is_no_timeline() -> None:
    assert Timeline.of([timed(0, 110, 0, 0)]) is None


def test_a_summary_changes_no_byte_of_a_part(tmp_path: Path) -> None:
    one, two = (
        commit_report_run(str(tmp_path / name), [pairs([12, 3])]) for name in ("one", "two")
    )
    first, second = committed(one)[0], committed(two)[0]
    assert first.files == second.files
    assert first.summary == second.summary
    assert b"summary" not in pq.read_metadata(tmp_path / "one" / first.part.name).metadata
