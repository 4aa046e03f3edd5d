"""Bad input: one table of kinds, each with what the user gets. An error names the thing and shows
no text of a row, good rows come out, nothing is dropped in silence, and there is no traceback."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import bad_files as bad
from bad_files import PAIRS, PAYLOAD, Make
from rankmill import cli, markers, plan, rows
from rankmill.config import InputConfig, load_config
from rankmill.errors import RunFailed
from rankmill.job import RunResult, rerank
from rankmill.source import open_source
from rankmill.store import Store

not_root = pytest.mark.skipif(os.geteuid() == 0, reason="root reads whatever its mode")


def row(make: Make, *words: str, id: str, marks: Any = ()) -> Any:
    """A row of a table: how the input is made, and words of the message."""
    return pytest.param(make, words, id=id, marks=marks)


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Outcome]]:
    """The command line in this process; an exception that it does not turn into a message is the
    test's failure."""
    log = logging.getLogger("rankmill")
    before = log.handlers, log.propagate, log.level
    hook = sys.excepthook

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["rankmill", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        out, err = capfd.readouterr()
        return Outcome(code, out, " ".join(err.split()))

    yield run
    log.handlers, log.propagate = before[:2]
    log.setLevel(before[2])
    sys.excepthook = hook


# Exit code 2: nothing is started

# How the input is made, and words of the message. `{in}` is the input's folder.
REFUSED = [
    # Files
    row(
        bad.changed(lambda content: b""),
        "{in}/bad.parquet is not a readable Parquet file (0 b",
        id="empty file",
    ),
    row(
        bad.changed(lambda content: b"query,document\n" * 9),
        "bad.parquet is not a readable Parquet",
        id="text file",
    ),
    row(bad.changed(bad.gzipped), "bad.parquet is not a readable Parquet", id="compressed file"),
    row(bad.arrow_file, "bad.parquet is not a readable Parquet", id="Arrow file"),
    row(bad.notes_beside, "{in}/bad.txt is not a readable Parquet", id="notes beside the data"),
    row(
        bad.changed(lambda content: content[:-4] + b"ABCD"),
        "bad.parquet is not a readable",
        id="wrong magic",
    ),
    row(bad.changed(lambda content: b"PAR1"), "bad.parquet is not a readable", id="magic alone"),
    row(
        bad.changed(lambda content: content[: len(content) // 2]),
        "bad.parquet is not a readable",
        id="cut in the middle",
    ),
    row(
        bad.changed(lambda content: content[:-3]),
        "bad.parquet is not a readable",
        id="cut at the end",
    ),
    row(bad.changed(bad.broken_footer), "bad.parquet is not a readable", id="corrupt footer"),
    row(
        bad.changed(bad.footer_too_long),
        "bad.parquet is not a readable",
        id="footer longer than the file",
    ),
    row(bad.encrypted, "bad.parquet is encrypted", id="encrypted footer"),
    row(
        bad.a_broken_id_page,
        "{in}/bad.parquet, row group 0, cannot be decoded: column query_id",
        id="corrupt page of ids",
    ),
    row(bad.an_unreadable_file, "bad.parquet cannot be read", id="unreadable file", marks=not_root),
    row(bad.an_unreadable_folder, "cannot be read", id="unreadable folder", marks=not_root),
    row(bad.a_pipe, "bad.parquet is not a regular file", id="pipe among the files"),
    row(bad.a_pipe_itself, "bad.parquet is not a regular file", id="pipe as the input"),
    row(bad.a_path("/dev/zero"), "/dev/zero is not a regular file", id="device as the input"),
    row(
        bad.a_name_of_other_bytes,
        r"bad\udcff.parquet",
        "not valid UTF-8",
        id="file name that is not UTF-8",
    ),
    row(bad.nothing, "No file was found at {in}", id="empty folder"),
    row(
        bad.only_hidden,
        "No file was found at {in}",
        "start with '_' or '.'",
        id="only hidden names",
    ),
    row(bad.a_path("*.csv"), "No file was found at {in}/*.csv", id="glob without a match"),
    row(bad.a_path("gone"), "nothing at {in}/gone", id="missing path"),
    row(bad.settings_of(input__path="in\0put"), "input.path", "null character", id="NUL in a path"),
    row(bad.settings_of(input__path="x" * 5_000), "cannot be read", id="path that is too long"),
    row(
        bad.settings_of(input__path="s3://bucket/a/../../other"),
        "climbs with '..'",
        id="path that climbs",
    ),
    row(bad.settings_of(input__path="nowhere://bucket/a"), "nowhere://", id="unknown protocol"),
    row(bad.link_in_circles, "cannot be read", "below/bad", id="links in circles"),
    row(bad.link_to_itself, "bad.parquet", id="link to itself"),
    row(bad.link_to_nothing, "{in}/bad.parquet is a link that leads nowhere", id="link to nothing"),
    # Columns
    *(
        row(
            bad.a_table(bad.without(name)),
            f"The column {name} ({name}) is missing in {{in}}/a.parquet",
            id=f"no {name}",
        )
        for name in ("query", "doc_id", "document")
    ),
    row(bad.a_table({}), "The column query (query) is missing", id="no column at all"),
    row(
        bad.a_table(bad.renamed("document", "Document")),
        "query, doc_id, Document",
        "input.columns.document",
        id="renamed column",
    ),
    row(
        bad.a_table(PAIRS, **{"input.columns.document": ["title", "document"]}),
        "title",
        id="missing part of the document",
    ),
    row(
        bad.two_tables(PAIRS, bad.without("document")),
        "document is missing in {in}/b.parquet",
        id="column missing in one file",
    ),
    row(
        bad.a_table(bad.named_twice("document")),
        "a.parquet has the column document more than once",
        id="column twice",
    ),
    row(
        bad.a_table(PAIRS | {"rerank_score": [1.0] * 4}),
        "rerank_score",
        "output.column_prefix",
        id="rerank_ columns",
    ),
    row(
        bad.a_table(PAIRS | {"__rankmill_row": [0] * 4}),
        "__rankmill_row",
        id="rankmill's own column",
    ),
    row(
        bad.a_table(PAIRS, **{"output.columns": ["doc_id", "doc_id"]}),
        "output.columns names doc_id more than once",
        id="output column twice",
    ),
    row(
        bad.a_table(PAIRS, **{"output.columns": ["docid"]}),
        "output.columns names docid",
        id="unknown output column",
    ),
    # Types
    *(
        row(
            bad.a_table(PAIRS | {name: values}),
            f"The column {name} ({name}) must hold",
            f"found {found}",
            id=f"{name} of {found}",
        )
        for name, values, found in (
            ("query_id", [1.0, 1.0, 2.0, 2.0], "double"),
            ("query_id", [b"a", b"a", b"b", b"b"], "binary"),
            ("query_id", [True, True, False, False], "bool"),
            ("doc_id", [0.5, 1.5, 2.5, 3.5], "double"),
            ("doc_id", pa.array([0, 1, 2, 3], pa.timestamp("us")), "timestamp"),
            ("query", [1, 1, 2, 2], "int64"),
            ("document", [b"v", b"w", b"x", b"y"], "binary"),
            ("document", [["v"], ["w"], ["x"], ["y"]], "list<"),
            ("document", [{"text": "v"}] * 4, "struct<"),
        )
    ),
    row(
        bad.two_tables(PAIRS, PAIRS | {"query_id": [1, 1, 2, 2]}),
        "query_id is string in {in}/a.parquet but int64 in {in}/b.parquet",
        id="ids of two types",
    ),
    row(
        bad.two_tables(PAIRS | {"x": [1] * 4}, PAIRS | {"x": ["1"] * 4}),
        "x is int64 in {in}/a.parquet but string in",
        id="carried column of two types",
    ),
    row(
        bad.a_table(PAIRS | {"candidates": ["x"] * 4}, **{"input.layout": "nested"}),
        "candidates must be a list of structs",
        id="candidates that are no structs",
    ),
    row(
        bad.a_table({"query": ["q"], "candidates": [[{"text": "x"}]]}),
        "The column document (document) is missing",
        id="candidates without documents",
    ),
    row(
        bad.a_table(
            {"query": ["q"], "document": ["x"], "candidates": [[{"doc_id": "1", "document": "x"}]]}
        ),
        "document stands both beside and inside",
        id="document twice in nested rows",
    ),
    # Order and places
    row(bad.output_at("out"), "lie inside each other", id="output inside the input"),
    row(bad.output_at(".", "below"), "lie inside each other", id="input inside the output"),
    row(bad.output_at("a.parquet", "a.parquet"), "lie inside each other", id="output is the input"),
    row(
        bad.output_at("below/../out"),
        "lie inside each other",
        id="output that climbs into the input",
    ),
    row(bad.linked_output, "lie inside each other", id="output inside the input by a link"),
    row(bad.foreign_output, "thesis.docx", "Choose an empty folder", id="output of somebody else"),
    row(bad.output_is_a_file, "out", "Not a directory", id="output that is a file"),
    row(
        bad.settings_of(output__path="s3://bucket/out/../../in"),
        "climbs with '..'",
        id="output that climbs",
    ),
]


@pytest.fixture
def plan_of(
    command: Callable[..., Outcome], tiny_model: Callable[[str], str], tmp_path: Path
) -> Callable[..., Outcome]:
    """`rankmill plan` of an input that a function makes."""

    def run(make: Make, *flags: str) -> Outcome:
        folder = tmp_path / "in"
        folder.mkdir()
        settings = {
            "input.path": str(folder),
            "output.path": str(tmp_path / "out"),
            "model.name": tiny_model("bert"),
        } | (make(folder) or {})
        # As JSON, which is YAML: NUL and the like must arrive.
        given = (f"{name}={json.dumps(value)}" for name, value in settings.items())
        return command("plan", *flags, *(part for one in given for part in ("--set", one)))

    return run


@pytest.mark.parametrize(("make", "words"), REFUSED)
def test_an_input_that_cannot_be_used_is_refused_by_name(make, words, plan_of, tmp_path):
    done = plan_of(make)
    assert done.code == 2, done
    assert done.out == ""
    for word in words:
        assert word.replace("{in}", str(tmp_path / "in")) in done.err
    assert PAYLOAD not in done.err
    assert "Traceback" not in done.err
    assert len(done.err) < 5_000


# Exit code 2: settings

LAUGHS = "a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12)
)
GOOD = "input: {path: in.parquet}\noutput: {path: out}\nmodel: {name: demo}\n"

# What the file holds, and words of the message.
CONFIGS = [
    row(LAUGHS, "run.yaml is not valid YAML: more than 10,000 values, line", id="a billion laughs"),
    row(GOOD + LAUGHS, "more than 10,000 values", id="laughs below good settings"),
    row(MERGES, "more than 10,000 values", id="a billion merges"),
    row("a: &a [*a]", "an alias that holds itself, line 1", id="endless alias"),
    row("[" * 500, "nested more than 32 deep, line 1", id="deep lists"),
    row("{a: " * 5_000, "nested more than 32 deep, line 1", id="deep mappings"),
    row("- " * 5_000, "nested more than 32 deep, line 1", id="deep sequences"),
    row("a: 1\n" * 300_000, "longer than 1,048,576 bytes", id="a large file"),
    row(
        "input: !!python/object/apply:os.system ['true']",
        "could not determine a constructor for the tag",
        id="Python tag",
    ),
    row("input: !!python/name:os.system", "could not determine a constructor", id="Python name"),
    row("input: !<tag:elsewhere,2026:x> 3", "could not determine a constructor", id="unknown tag"),
    row(GOOD + "model: {name: other}\n", "the key model stands twice, line 4", id="section twice"),
    row("input: {path: a, path: b}", "the key path stands twice, line 1", id="setting twice"),
    row("input: {path: a\n", "is not valid YAML", "line 2", id="unclosed brace"),
    row("a: b: c", "is not valid YAML", id="two colons"),
    row("\tinput: 3", "is not valid YAML", id="tab for a space"),
    row("a: *b", "found undefined alias", id="alias of nothing"),
    row("--- 1\n--- 2\n", "another document, line 2", id="two documents"),
    row(
        "input: {path: 2026-02-30}", "is not valid YAML: day is out of range", id="impossible date"
    ),
    row("path: \x07", "a character that YAML does not allow", id="control character"),
    row(b"\xff\xfe\x00\x81", "cannot be read", "utf-8", id="other bytes"),
    row(b"PAR1" + bytes(range(256)), "cannot be read", id="binary file"),
    row("", "The setting input is missing", id="empty file"),
    row("- a\n- b\n", "must hold a mapping of settings, found list", id="list for a mapping"),
    row("just text", "must hold a mapping of settings, found str", id="text for a mapping"),
    row(GOOD + "1: 2", "Keys should be strings", id="number for a name"),
    row(GOOD + "? [a, b]\n: c", "run.yaml", id="list for a name"),
    row(GOOD + "null: 3", "run.yaml", id="null for a name"),
    row(
        GOOD.replace("output", "ouput"),
        "Unknown setting ouput",
        "Did you mean output?",
        id="misspelt section",
    ),
    row(
        GOOD + "compute: {worker: 3}",
        "Unknown setting compute.worker",
        "workers",
        id="misspelt setting",
    ),
    row(
        GOOD + "compute: {workers: many}", "compute.workers", "found 'many'", id="word for a number"
    ),
    row(GOOD + "compute: {workers: '3'}", "compute.workers", id="text for a number"),
    row(GOOD + "compute: {workers: 0}", "compute.workers", "greater than 0", id="no workers"),
    row(GOOD + "compute: {workers: 1e99}", "compute.workers", id="more workers than integers"),
    row(GOOD + "compute: {memory: .inf}", "compute.memory", id="infinite memory"),
    row(GOOD + "compute: 3", "compute", "found 3", id="number for a section"),
    row(
        GOOD.replace("{path: out}", "{path: out, min_score: .nan}"),
        "output.min_score",
        "finite",
        id="NaN for a number",
    ),
    row(
        GOOD.replace("{path: out}", "{path: out, top_k: true}"),
        "output.top_k",
        id="true for a number",
    ),
    row(
        GOOD.replace("{path: out}", "{path: [out]}"),
        "output.path",
        "found a list",
        id="list for a path",
    ),
    row(GOOD.replace("in.parquet", "''"), "input.path", id="empty path"),
    row(
        GOOD.replace("{name: demo}", "{name: demo, backend: Torch}"),
        "model.backend",
        "found 'Torch'",
        id="unknown backend",
    ),
    row(
        GOOD.replace("{name: demo}", "{name: demo, max_length: -1}"),
        "model.max_length",
        id="negative length",
    ),
    row(GOOD + "report: {texts: 'yes'}", "report.texts", id="text for a switch"),
    row(
        GOOD + "storage: {key: AKIA0123456789ABCDEF}",
        "Unknown setting storage.key",
        id="key in the settings",
    ),
]


@pytest.mark.parametrize(("content", "words"), CONFIGS)
def test_settings_that_cannot_be_used_are_refused_by_name(content, words, command, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    done = command("plan", path)
    assert done.code == 2, done
    assert str(path) in done.err
    for word in words:
        assert word in done.err
    assert "Traceback" not in done.err
    assert len(done.err) < 6_000


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "Is a directory"),
        ("gone.yaml", "There is no configuration file"),
        ("run.yaml/below", "Not a directory"),
        ("a" * 300, "File name too long"),
    ],
)
def test_a_configuration_that_is_no_file_is_named(name, words, command, tmp_path):
    (tmp_path / "run.yaml").write_text(GOOD)
    done = command("plan", f"{tmp_path}/{name}")
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert str(tmp_path) in done.err


# Exit code 0: good rows come out, bad ones lie in quarantine with their reason


class Kind(NamedTuple):
    """Rows of one file. `fates`: why each is in quarantine, or None. `file`: its name."""

    columns: dict[str, Any]
    fates: list[str | None]
    file: str | None = None
    options: dict[str, Any] | None = None


def raw(*values: bytes | None) -> pa.Array:
    """A string column of bytes as they are."""
    return pa.array(values, pa.binary()).view(pa.string())


def texts(**columns: Any) -> dict[str, Any]:
    """Four rows of two queries, of which some columns are others."""
    count = len(next(iter(columns.values())))
    lists = [f"list {n // 2}" for n in range(count)]
    return {
        "query_id": lists,
        "query": [f"what is {name}" for name in lists],
        "doc_id": [f"d{n}" for n in range(count)],
        "document": [f"text {n}" for n in range(count)],
    } | columns


FINE = [None] * 4
KINDS = {
    # Rows that cannot be scored
    "null query_id": Kind(
        texts(query_id=["a", None, "a", "b"]), [None, rows.NO_QUERY_ID, None, None]
    ),
    "null query": Kind(texts(query=["q", None, "r", None]), [None, rows.NO_QUERY] * 2),
    "null document": Kind(
        texts(document=["x", None, None, "y"]), [None, *[rows.NO_DOCUMENT] * 2, None]
    ),
    "empty query": Kind(texts(query=["", "q", "r", "r"]), [rows.NO_QUERY, None, None, None]),
    "empty document": Kind(
        texts(document=["", "x", "y", ""]), [rows.NO_DOCUMENT, None, None, rows.NO_DOCUMENT]
    ),
    "no good row": Kind(texts(document=pa.nulls(4, pa.string())), [rows.NO_DOCUMENT] * 4),
    "column of nulls": Kind(texts(document=pa.nulls(4)), [rows.NO_DOCUMENT] * 4),
    "ids that are not UTF-8": Kind(
        texts(query_id=raw(b"a", b"\xff", b"a", b"b")), [None, rows.BAD_QUERY_ID, None, None]
    ),
    "document ids that are not UTF-8": Kind(
        texts(doc_id=raw(b"1", b"\xe9", b"3", b"4")), [None, rows.BAD_DOC_ID, None, None]
    ),
    "queries that are not UTF-8": Kind(
        texts(query=raw(b"q", b"q\x80", b"r", b"r")), [None, rows.BAD_QUERY, None, None]
    ),
    "documents that are not UTF-8": Kind(
        texts(document=raw(b"\xc3\xa9", b"\xc3", b"x", b"y")), [None, rows.BAD_DOCUMENT, None, None]
    ),
    "lone surrogates": Kind(
        texts(document=raw(b"\xed\xa0\x80", b"x", b"\xed\xbf\xbf", b"y")),
        [rows.BAD_DOCUMENT, None] * 2,
    ),
    "overlong bytes": Kind(
        texts(document=raw(b"\xc0\x80", b"x", b"y", b"z")), [rows.BAD_DOCUMENT, None, None, None]
    ),
    "bytes beyond Unicode": Kind(
        texts(document=raw(b"x", b"\xf4\x90\x80\x80", b"y", b"z")),
        [None, rows.BAD_DOCUMENT, None, None],
    ),
    "huge document": Kind(
        texts(document=["x", "h" * (9 << 20), "y", "z"]),
        [None, rows.LONG_DOCUMENT, None, None],
        options={"compression": "zstd", "use_dictionary": False},
    ),
    "huge query": Kind(
        texts(query=["q" * (9 << 20), "q", "r", "r"]), [rows.LONG_QUERY, None, None, None]
    ),
    # Rows that can
    "null doc_id": Kind(texts(doc_id=pa.nulls(4, pa.string())), FINE),
    "empty ids": Kind(texts(query_id=["", "", "b", "b"], doc_id=[""] * 4), FINE),
    "white space": Kind(
        texts(query=[" ", "\t", "\n", "\u3000"], document=["\u00a0", " ", "\r\n", "\u200b"]), FINE
    ),
    "NUL bytes": Kind(
        texts(
            query_id=["a\0b"] * 2 + ["a\0c"] * 2,
            doc_id=["\0"] * 4,
            document=["\0", "x\0y", "\0\0", "z"],
        ),
        FINE,
    ),
    "control characters": Kind(texts(document=["\x1b[31mred", "\x07", "\x7f", "\u202e"]), FINE),
    "the ends of Unicode": Kind(
        texts(document=["\ufeffx", "\uffff", "\U0010ffff", "e\u0301" * 50]), FINE
    ),
    "emoji": Kind(texts(query=["👩‍👩‍👧‍👦"] * 4, document=["🏴‍☠️", "🇯🇵", "日本語", "한국어"]), FINE),
    "the tokenizer's own words": Kind(
        texts(query=["[CLS] [SEP]"] * 4, document=["[PAD]", "[MASK] [UNK]", "</s><s>", "##x"]), FINE
    ),
    "hostile markup": Kind(
        texts(
            doc_id=["[bold]", "{{7*7}}", "%s%n", "'; DROP"],
            document=["<script>alert(1)</script>"] * 4,
        ),
        FINE,
    ),
    "long ids": Kind(texts(query_id=["i" * 100_000] * 4, doc_id=["d" * 100_000] * 4), FINE),
    "the same row again": Kind(texts(doc_id=["1"] * 4, document=["x"] * 4), FINE),
    "one id with two queries": Kind(texts(query_id=["a"] * 4, query=["p", "q", "r", "s"]), FINE),
    # Files
    "no rows": Kind({k: pa.array([], pa.string()) for k in texts(doc_id=[1])}, []),
    "one row a group": Kind(
        texts(doc_id=["1", "2", "3", "4"]), FINE, options={"row_group_size": 1}
    ),
    "without statistics and schema": Kind(
        texts(doc_id=["1", "2", "3", "4"]),
        FINE,
        options={"write_statistics": False, "store_schema": False},
    ),
    "dictionary columns": Kind(
        {k: pa.array(v).dictionary_encode() for k, v in texts(doc_id=["1", "2", "3", "4"]).items()},
        FINE,
    ),
    "dictionary with nulls": Kind(
        texts(
            document=pa.DictionaryArray.from_arrays(pa.array([0, None, 1, 0]), pa.array(["x", "y"]))
        ),
        [None, rows.NO_DOCUMENT, None, None],
    ),
    **{
        f"file named {name!r}": Kind(texts(doc_id=["1", "2", "3", "4"]), FINE, name)
        for name in (
            "a b.parquet",
            'it\'s "x".parquet',
            "日本語.parquet",
            "#1.parquet",
            "50%.parquet",
            "%41.parquet",
            "[ab].parquet",
            "*.parquet",
            "?.parquet",
            "x\ny.parquet",
            "no suffix",
            "day=%2F..%2F/x.parquet",
            "folder.parquet/x.parquet",
            "a\\b.parquet",
            "-x.parquet",
            "~.parquet",
            "{in}.parquet",
            "€.PARQUET",
        )
    },
    # Columns that are carried
    **{
        f"carried {what}": Kind(
            texts(doc_id=["1", "2", "3", "4"]) | {f"carried {what}": values}, FINE
        )
        for what, values in {
            "NaN": [float("nan"), float("inf"), None, -0.0],
            "bytes": [b"\xff", b"", None, b"\0"],
            "text that is not UTF-8": raw(b"\xff", b"x", None, b""),
            "timestamp": pa.array([-(2**63), 0, None, 2**63 - 1], pa.timestamp("ns", "Asia/Tokyo")),
            "date": pa.array([-(2**31), 0, None, 2**31 - 1], pa.date32()),
            "time": pa.array([0, 1, None, 2], pa.time64("ns")),
            "duration": pa.array([0, -1, None, 2], pa.duration("us")),
            "decimal": pa.array([1, -1, None, 2]).cast(pa.decimal256(76, 38)),
            "unsigned": pa.array([0, 2**64 - 1, None, 1], pa.uint64()),
            "half": pa.array(np.array([1, -1, np.nan, 65504], np.float16)),
            "list": [[1, None], [], None, [2]],
            "struct": [
                {"a": 1, "b": [{"c": "x"}]},
                None,
                {"a": None, "b": None},
                {"a": 2, "b": []},
            ],
            "map": pa.array([[("k", 1)], [], None, [("k", None)]], pa.map_(pa.string(), pa.int8())),
            "dictionary": pa.array(["a", None, "a", "b"]).dictionary_encode(),
            "dictionary of numbers": pa.array([1, None, 1, 2]).dictionary_encode(),
            "fixed bytes": pa.array([b"abcd", None, b"efgh", b"ijkl"], pa.binary(4)),
            "fixed list": pa.array([[1, 2], None, [3, 4], [5, 6]], pa.list_(pa.int8(), 2)),
            "nulls": pa.nulls(4),
        }.items()
    },
    **{
        f"column named {name!r}": Kind(
            texts(doc_id=["1", "2", "3", "4"]) | {name: [1, 2, 3, 4]}, FINE
        )
        for name in (
            "",
            " ",
            "a.b",
            "a\nb",
            '"',
            "'",
            "`",
            "日本",
            "query_id ",
            "reason",
            "n" * 10_000,
        )
    },
}
DEPTH_ROWS = 100_000


class Finished(NamedTuple):
    """A run of all kinds: what came out and what lies in quarantine, by kind."""

    result: RunResult
    folder: Path
    ranked: pa.Table
    quarantine: pa.Table


def run_of(folder: Path, model: str, **settings: Any) -> RunResult:
    overrides = {
        "input.path": str(folder / "in"),
        "output.path": str(folder / "out"),
        "model.name": model,
        "model.backend": "torch",
        "model.precision": "fp32",
        "compute.workers": 1,
    }
    return rerank(load_config(overrides=overrides | settings))


def quarantine_of(folder: Path) -> pa.Table:
    files = sorted((folder / "out/_rankmill/quarantine").glob("*.arrow"))
    found = [pa.ipc.open_file(file).read_all() for file in files]
    return pa.concat_tables(found, promote_options="permissive")


@pytest.fixture(scope="module")
def all_kinds(
    tiny_model: Callable[[str], str],
    ray_cluster: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Finished:
    """One run over a file of every kind. The column `kind` tells the rows apart."""
    folder = tmp_path_factory.mktemp("kinds")
    for number, (name, kind) in enumerate(KINDS.items()):
        table = pa.table(kind.columns)
        mine = pa.array([f"{name} {n}" for n in range(table.num_rows)], pa.string())
        # Lists of several files are not one list.
        ids = table["query_id"]
        if not pa.types.is_dictionary(ids.type) and name != "ids that are not UTF-8":
            marked = [one and f"{number} {one}" for one in ids.to_pylist()]
            table = table.set_column(0, "query_id", pa.array(marked, pa.string()))
        path = folder / "in" / f"{number:03d}" / (kind.file or "a.parquet")
        bad.write(path, table.append_column("kind", mine), **(kind.options or {}))
    result = run_of(folder, tiny_model("bert"))
    return Finished(result, folder, pq.read_table(result.output), quarantine_of(folder))


def test_a_run_of_all_kinds_is_complete_and_loses_nothing(all_kinds):
    counters = all_kinds.result.counters
    fates = [fate for kind in KINDS.values() for fate in kind.fates]
    assert counters.rows_in == len(fates)
    assert counters.rows_quarantined == sum(fate is not None for fate in fates)
    assert counters.rows_out == sum(fate is None for fate in fates)
    assert all_kinds.ranked.num_rows == counters.rows_out
    assert (all_kinds.folder / "out" / "_SUCCESS").exists()


@pytest.mark.parametrize("name", KINDS)
def test_good_rows_come_out_and_bad_ones_have_their_reason(name, all_kinds):
    wanted = {f"{name} {n}": fate for n, fate in enumerate(KINDS[name].fates)}
    ranked = all_kinds.ranked
    out = [i for i, kind in enumerate(ranked["kind"].to_pylist()) if kind in wanted]
    assert sorted(ranked["kind"][i].as_py() for i in out) == sorted(
        kind for kind, fate in wanted.items() if fate is None
    )
    scores = ranked["rerank_score"].to_numpy()[out]
    assert np.isfinite(scores).all()
    # The input has a column `reason` of its own.
    bad_rows = all_kinds.quarantine.select(["kind", "quarantine_reason"]).to_pylist()
    found = {row["kind"]: row["quarantine_reason"] for row in bad_rows if row["kind"] in wanted}
    assert found == {kind: fate for kind, fate in wanted.items() if fate is not None}


@pytest.mark.parametrize(
    "name", [name for name in KINDS if name.startswith(("carried", "column named"))]
)
def test_other_columns_come_out_as_they_went_in(name, all_kinds):
    (column,) = set(KINDS[name].columns) - set(texts(doc_id=[1]))
    stored = pa.BufferOutputStream()
    pq.write_table(pa.table(KINDS[name].columns).select([column]), stored)
    went_in = pq.read_table(stored.getvalue())[column]
    kinds = all_kinds.ranked["kind"].to_pylist()
    came_out = all_kinds.ranked.take([kinds.index(f"{name} {n}") for n in range(4)])[column]
    assert came_out.type == went_in.type
    assert shown(came_out) == shown(went_in)


def shown(column: pa.ChunkedArray) -> str:
    """The values, in a form in which NaN equals itself and any bytes will do."""
    values = column.combine_chunks()
    if pa.types.is_string(values.type):
        values = values.view(pa.binary())
    if pa.types.is_temporal(values.type):
        values = values.view(pa.int32() if values.type.bit_width == 32 else pa.int64())
    return str(values.to_pylist())


# Nested rows

CANDIDATE = {"doc_id": "1", "document": "x"}
NESTED = {
    "good": ([CANDIDATE, CANDIDATE | {"document": "y"}], [None, None]),
    "null list": (None, []),
    "empty list": ([], []),
    "null candidates": ([None, CANDIDATE, None], [rows.NO_DOCUMENT, None, rows.NO_DOCUMENT]),
    "null fields": ([{"doc_id": None, "document": None}, CANDIDATE], [rows.NO_DOCUMENT, None]),
    "empty document": ([{"doc_id": "1", "document": ""}], [rows.NO_DOCUMENT]),
    "null query": ([CANDIDATE], [rows.NO_QUERY]),
    "null id": ([CANDIDATE, CANDIDATE], [rows.NO_QUERY_ID] * 2),
}


def test_nested_rows_of_all_kinds_lose_nothing(
    tiny_model: Callable[[str], str], ray_cluster: None, tmp_path: Path
):
    kind = pa.struct([("doc_id", pa.string()), ("document", pa.string())])
    table = {
        "query_id": [None if name == "null id" else name for name in NESTED],
        "query": [None if name == "null query" else f"what is {name}" for name in NESTED],
        "kind": list(NESTED),
        "candidates": pa.array([lists for lists, _ in NESTED.values()], pa.list_(kind)),
    }
    bad.write(tmp_path / "in" / "a.parquet", table)
    result = run_of(tmp_path, tiny_model("bert"))

    fates = {name: fates for name, (_, fates) in NESTED.items()}
    assert result.counters.queries_empty == 2
    assert result.counters.rows_in == sum(map(len, fates.values()))
    out = pq.read_table(result.output)["kind"].to_pylist()
    quarantine = quarantine_of(tmp_path).select(["kind", "reason"]).to_pylist()
    for name, wanted in fates.items():
        assert out.count(name) == wanted.count(None)
        found = sorted(one["reason"] for one in quarantine if one["kind"] == name)
        assert found == sorted(fate for fate in wanted if fate is not None)


# Inputs of one file alone

ALONE = {
    "no rows at all": Kind({k: pa.array([], pa.string()) for k in texts(doc_id=[1])}, []),
    "a document of a hundred megabytes": Kind(
        texts(document=["x", "h" * (100 << 20), "y", "z"]),
        [None, rows.LONG_DOCUMENT, None, None],
        options={"compression": "zstd", "use_dictionary": False},
    ),
}


@pytest.mark.parametrize("name", ALONE)
def test_an_input_of_one_file_goes_through_a_run(name, tiny_model, ray_cluster, tmp_path):
    kind = ALONE[name]
    bad.write(tmp_path / "in" / "a.parquet", kind.columns, **(kind.options or {}))
    result = run_of(tmp_path, tiny_model("bert"))
    fates = dict(zip(kind.columns["doc_id"], kind.fates))
    lost = {doc: fate for doc, fate in fates.items() if fate is not None}
    out = pq.read_table(result.output)["doc_id"].to_pylist()
    assert sorted(out) == sorted(fates.keys() - lost.keys())
    assert result.manifest["quarantine"] == dict.fromkeys(lost.values(), 1)
    if lost:
        bad_rows = quarantine_of(tmp_path).select(["doc_id", "reason"]).to_pylist()
        assert {row["doc_id"]: row["reason"] for row in bad_rows} == lost
    assert (tmp_path / "out" / "_SUCCESS").exists()


# Very long, very many


def test_a_document_of_a_hundred_megabytes_is_one_bad_row(tmp_path):
    table = texts(document=["x", "h" * (100 << 20), "y", "z"])
    path = bad.write(tmp_path / "a.parquet", table, compression="zstd", use_dictionary=False)
    source = open_source(InputConfig(path=str(path)))
    (read,) = source.batches(source.row_groups[0])
    limit = InputConfig(path=str(path)).max_text_bytes
    checked = rows.check(read, source.columns, source.has_query_id, limit)
    assert checked.reason.to_pylist() == [None, rows.LONG_DOCUMENT, None, None]
    assert checked.document_text.to_pylist() == ["x", None, "y", "z"]


def test_a_hundred_thousand_candidates_of_one_query_are_one_shard(plan_of):
    many = {
        "query_id": pa.repeat("one", DEPTH_ROWS),
        "query": pa.repeat("what is it", DEPTH_ROWS),
        "doc_id": pa.array(range(DEPTH_ROWS)),
        "document": pa.array([f"document {n}" for n in range(DEPTH_ROWS)]),
    }
    done = plan_of(bad.a_table(many, **{"input.depth": 100}), "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert (facts["shards"], facts["queries"], facts["pairs"]) == (1, 1, DEPTH_ROWS)


# Exit code 1: what is found only when it is read. Its shard fails by name, the others finish

# Arrow decodes a stored dictionary whole or not at all, so its rows cannot be told apart.
BROKEN_DICTIONARY = "a dictionary that is not UTF-8"

# What happens to a file once the run is planned, and what its shard's note says of it.
LATER: dict[str, tuple[Callable[[Path], object], str]] = {
    "corrupt page": (
        lambda path: bad.damage_column(path, "document"),
        "row group 0, cannot be decoded: column document",
    ),
    "corrupt page of a carried column": (
        lambda path: bad.damage_column(path, "extra"),
        "row group 0, cannot be decoded: column extra",
    ),
    "corrupt pages of two columns": (
        lambda path: [bad.damage_column(path, name) for name in ("query", "extra")],
        "column query, extra",
    ),
    "corrupt second group": (
        lambda path: bad.damage_column(path, "document", group=1),
        "row group 1, cannot be decoded: column document",
    ),
    "flipped byte": (
        lambda path: bad.flip_stored_text(path, b"flipped byte 2"),
        "row group 1, cannot be decoded: column document",
    ),
    BROKEN_DICTIONARY: (
        lambda path: None,
        "row group 0, cannot be decoded: column document: Invalid UTF8",
    ),
    "cut short": (lambda path: os.truncate(path, 300), "has changed since the run was planned"),
    "written anew": (
        lambda path: path.write_bytes(path.read_bytes()),
        "has changed since the run was planned",
    ),
    "other rows": (lambda path: bad.write(path, PAIRS), "has changed since the run was planned"),
    "no Parquet any more": (
        lambda path: path.write_text(PAYLOAD),
        "has changed since the run was planned",
    ),
    "vanished": (lambda path: path.unlink(), "nothing at"),
    "a folder by now": (
        lambda path: (path.unlink(), path.mkdir()),
        "has changed since the run was planned",
    ),
    "a link to nothing by now": (
        lambda path: (path.unlink(), path.symlink_to("gone")),
        "nothing at",
    ),
    "emptied": (lambda path: path.write_bytes(b""), "has changed since the run was planned"),
}


class Meanwhile(logging.Handler):
    """Does something when a run says what it has resolved: it has planned and not yet read."""

    def __init__(self, action: Callable[[], None]) -> None:
        super().__init__()
        self._action: Callable[[], None] | None = action

    def emit(self, record: logging.LogRecord) -> None:
        if self._action is not None and "worker(s)" in record.getMessage():
            action, self._action = self._action, None
            action()


@pytest.fixture(scope="module")
def read_late(
    tiny_model: Callable[[str], str], ray_cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, RunFailed]:
    """One run over a file of every kind, a shard each, and what it raised."""
    folder = tmp_path_factory.mktemp("later")
    paths = {name: folder / "in" / name / "a.parquet" for name in ["good", *LATER]}
    for name, path in paths.items():
        table = texts(query_id=[name] * 4, document=[f"{PAYLOAD} {name} {n}" for n in range(4)])
        extra = {"extra": [f"{name} extra {n}" for n in range(4)]}
        options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
        options |= {"write_statistics": False}  # they would hold the texts, too
        if name == BROKEN_DICTIONARY:
            broken = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0, 1]), raw(b"x", b"\xff"))
            table, options = table | {"document": broken}, {}
        bad.write(path, table | extra, row_group_size=2, **options)

    def change() -> None:
        for name, (action, _) in LATER.items():
            action(paths[name])

    handler, log = Meanwhile(change), logging.getLogger("rankmill")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "SHARD_PAIRS", 4)
        try:
            with pytest.raises(RunFailed) as failed:
                run_of(folder, tiny_model("bert"))
        finally:
            log.removeHandler(handler)
            log.setLevel(level)
    return folder, failed.value


def test_a_run_with_files_that_cannot_be_read_does_the_rest_and_says_so(read_late):
    folder, failed = read_late
    assert failed.exit_code == 1
    assert f"{len(LATER)} of {len(LATER) + 1} shards failed" in failed.message
    assert "1 are committed" in str(failed.remedy)
    assert pq.read_table(folder / "out")["query_id"].to_pylist() == ["good"] * 4
    assert not (folder / "out" / "_SUCCESS").exists()


@pytest.mark.parametrize("name", LATER)
def test_a_file_that_cannot_be_read_is_named_with_what_is_wrong(name, read_late):
    folder, _ = read_late
    notes = markers.read_failures(Store(str(folder / "out"))).values()
    (note,) = (note for note in notes if f"{folder}/in/{name}/a.parquet" in note)
    assert LATER[name][1] in note
    assert PAYLOAD not in note


def test_there_are_at_least_fifty_kinds():
    table = [*REFUSED, *CONFIGS, *KINDS, *NESTED, *ALONE, *LATER]
    assert len(table) >= 50
