"""What a person sees: progress on stderr, tables on stdout. Nothing is decided here."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from rankmill import load, logs, markers, runs
from rankmill.cells import Cell, cell, facts_table
from rankmill.demo.run import DemoResult
from rankmill.errors import RankmillError
from rankmill.evaluation_tables import evaluation_table
from rankmill.export import ExportResult
from rankmill.masking import mask, mask_values
from rankmill.models import presets
from rankmill.prepared import Prepared
from rankmill.progress import Listener, Progress, duration

# A log file gets a line when something was committed, but not more often than this.
_LOG_SECONDS = 10.0

errors = Console(stderr=True, highlight=False)
log = logging.getLogger("rankmill")


def set_up_logging(as_json: bool = False) -> None:
    """Send rankmill's own messages to stderr, for people or for machines."""
    if as_json:
        logs.write_json()
        return
    handler = RichHandler(console=errors, show_path=False, show_level=False, show_time=False)
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


def show_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """A traceback on stderr without credentials; takes the place of `sys.excepthook`."""
    shown = "".join(traceback.format_exception(kind, error, trace))
    print("\n".join(map(mask, shown.split("\n"))), end="", file=sys.stderr)


@contextmanager
def own_stdout() -> Iterator[TextIO]:
    """The real stdout; meanwhile all else that writes there (Ray, its workers) goes to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(kept), "w", encoding="utf-8") as stdout:
            yield stdout
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def show_error(error: RankmillError) -> None:
    """What went wrong and what to do, on stderr."""
    if logs.are_json():
        ended = {"remedy": error.remedy, "exit_code": error.exit_code}
        log.error("%s", error.message, extra=ended)
        return
    errors.print(Text("Error:", "bold red"), cell(error.message), soft_wrap=True)
    if error.remedy:
        errors.print(Text("To mend it:", "bold"), cell(error.remedy), soft_wrap=True)


@contextmanager
def stoppable(output: str) -> Iterator[None]:
    """Ctrl-C ends a run with a word of what stays of it, on stderr; the exit code is 130."""
    try:
        yield
    except KeyboardInterrupt:
        told = f"Stopped. What is committed in {output} stays; the same command resumes."
        if logs.are_json():
            log.error("%s", told, extra={"exit_code": 128 + signal.SIGINT})
        else:
            errors.print(cell(told), soft_wrap=True)
        raise


@contextmanager
def progress() -> Iterator[Listener]:
    """A bar on a terminal, a line now and then elsewhere; both on stderr."""
    if logs.are_json() or not errors.is_terminal:
        yield _LineLog().tell
        return
    columns = (
        TextColumn("shards"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[line]}"),
    )
    with Bar(*columns, console=errors) as bar:
        task = bar.add_task("", total=None, line="starting")

        def tell(now: Progress) -> None:
            bar.update(task, total=now.shards, completed=now.shards_done, line=_rates(now))

        yield tell


def _rates(now: Progress) -> str:
    left = now.seconds_left
    shown = "" if left is None else f", {duration(left)} left"
    return f"{now.pairs_done:,}/{now.pairs:,} pairs, {now.pairs_per_second:,.0f} pairs/s{shown}"


class _LineLog:
    def __init__(self) -> None:
        self._done, self._at = -1, -math.inf

    def tell(self, now: Progress) -> None:
        finished = now.shards_done == now.shards
        due = time.monotonic() - self._at >= _LOG_SECONDS
        if now.shards_done != self._done and (due or finished):
            self._done, self._at = now.shards_done, time.monotonic()
            if logs.are_json():
                log.info("%s", now.line(), extra=asdict(now))
                return
            print(f"shards {now.shards_done:,}/{now.shards:,}, {_rates(now)}", file=sys.stderr)


def manifest_table(manifest: dict[str, Any], output: str) -> Table:
    """What a finished run did."""
    profile, workers = manifest["profile"], manifest["workers"]["workers"]
    pool = f"{workers} of {profile['threads']} thread(s)" if workers else "none were needed"
    rows: list[tuple[Cell, Cell]] = [
        ("output", output),
        ("model", f"{manifest['model']['name']} ({manifest['model']['digest'][:12]})"),
        ("computed by", f"{profile['backend']} {profile['precision']} on {profile['device']}"),
        ("workers", pool),
        ("queries", f"{manifest['queries']:,}"),
        ("rows in", f"{manifest['rows_in']:,}"),
        ("  written, ranked", f"{manifest['rows_out']:,}"),
        ("  below the cut", f"{manifest['rows_below_cut']:,}"),
        ("  in quarantine", f"{manifest['rows_quarantined']:,}"),
        ("pairs scored", f"{manifest['pairs_scored']:,}"),
        ("pairs reused", f"{manifest['pairs_reused']:,}"),
        *_given_to_models(manifest.get("models", {})),
        ("pairs cut to length", f"{manifest['pairs_truncated']:,}"),
        ("time", duration(manifest["seconds"])),
        ("pairs/s", f"{manifest['pairs_per_second']:,.0f}"),
        ("report", f"{output}/{runs.REPORT}"),
    ]
    rows += [(f"    {reason}", f"{count:,}") for reason, count in manifest["quarantine"].items()]
    rows += [gate_row(gate) for gate in manifest.get("gates", [])]
    return facts_table(rows)


def _given_to_models(models: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What each of several models was given: a pair counts for each, so this adds up to more."""
    if models:
        yield "pairs given to", ""
    for label, one in models.items():
        reused = f", {one['reused']:,} of them reused" if one["reused"] else ""
        yield f"  {label}", f"{one['pairs']:,} by {one['model']['name']}{reused}"


def plan_facts(ready: Prepared, rate: float | None) -> dict[str, Any]:
    """What a run would do, as plain values. `rate`: pairs/s, given or measured."""
    pending, length = ready.pending, ready.model.rules.max_length
    done = sum(marker.counters.rows_in for marker in ready.committed.values())
    if rate is None:
        # Committed shards tell what one worker does; their sum is a lower bound for several.
        spent = sum(marker.seconds for marker in ready.committed.values())
        rate = done / spent if spent else None
    left = max(ready.plan.pairs - done, 0)
    seconds = None if rate is None else left / rate
    return {
        "files": len(ready.source.files),
        "layout": ready.source.layout,
        "queries": int(ready.plan.queries.sum()),
        "pairs": ready.plan.pairs,
        "tokens_estimated": ready.plan.tokens,
        "max_length": length,
        "authors_length": presets.authors_length(ready.model.asked, length),
        "staging": ready.staging.to_json(),
        "staging_folder": ready.staging.store.url if ready.staging.needs_folder else None,
        "shards": len(ready.plan),
        "shards_committed": len(ready.committed),
        "shards_pending": len(pending),
        "pairs_per_second": rate,
        "seconds_estimated": seconds,
        "reuse": [one.to_json() for one in ready.previous],
        "model": ready.model.description.to_json(),
        "models": _model_facts(ready, seconds) if len(ready.models) > 1 else [],
        "config": mask_values(ready.config.model_dump(mode="json")),
    }


def _unknown_time(facts: dict[str, Any]) -> str:
    return "see below" if facts.get("capacity") else "unknown: give --rate or --rates-from"


def _model_facts(ready: Prepared, seconds: float | None) -> list[dict[str, Any]]:
    """What each of several models would do. seconds: of the run, which they share as the committed
    shards did, or before there are any by their operations."""
    estimates = ready.estimates
    spent = [cost.seconds for cost in markers.add_costs(ready.committed.values())]
    shares = [one / sum(spent) for one in spent] if sum(spent) else load.shares(estimates)
    return [
        {
            "label": model.label,
            **model.description.to_json(),
            "max_length": model.rules.max_length,
            "pairs_estimated": estimate.pairs,
            "tokens_estimated": estimate.tokens,
            "share": share,
            "seconds_estimated": None if seconds is None else seconds * share,
        }
        for model, estimate, share in zip(ready.models, estimates, shares, strict=True)
    ]


def plan_table(facts: dict[str, Any]) -> Table:
    """A dry run."""
    seconds = facts["seconds_estimated"]
    model, theirs = facts["model"], facts["authors_length"]
    hint = "" if theirs is None else f" (the authors use {theirs:,})"
    rows: list[tuple[Cell, Cell]] = [
        ("input", f"{facts['files']:,} file(s), layout {facts['layout']}"),
        ("queries", f"{facts['queries']:,}"),
        ("pairs", f"{facts['pairs']:,}"),
        ("tokens, estimated", f"{facts['tokens_estimated']:,}"),
        ("tokens an input, at most", f"{facts['max_length']:,}{hint}"),
        ("shards", f"{facts['shards']:,}"),
        ("  committed", f"{facts['shards_committed']:,}"),
        ("  pending", f"{facts['shards_pending']:,}"),
        ("model", f"{model['name']} ({model['architecture']}, {model['digest'][:12]})"),
        (
            "time, estimated",
            _unknown_time(facts) if seconds is None else duration(seconds),
        ),
    ]
    rows += [(f"  {one['label']}", _model_line(one)) for one in facts["models"]]
    rows += list(_staging_rows(facts))
    rows += [("scores to reuse", f"{one['pairs']:,} in {one['output']}") for one in facts["reuse"]]
    rows += [(key, str(value)) for key, value in _flat(facts["config"])]
    return facts_table(rows)


def _model_line(one: dict[str, Any]) -> str:
    seconds = one["seconds_estimated"]
    time = "" if seconds is None else f", {duration(seconds)}"
    return (
        f"{one['name']}: about {one['pairs_estimated']:,} pairs of up to "
        f"{one['max_length']:,} tokens, {100 * one['share']:.0f} % of the work{time}"
    )


def _staging_rows(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What a run does before it scores: rows sorted, texts joined."""
    for name, found in facts["staging"].items():
        size = f"{found['rows']:,} rows, about {found['bytes'] / 1e6:,.1f} MB"
        if name == "sorted":
            yield "rows lie apart", f"{size} are sorted by query first"
        else:
            yield f"input.{name}", f"{size}, {found['strategy']}"
    if facts["staging_folder"] is not None:
        yield "staging folder", f"{facts['staging_folder']} (removed at the end)"


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def gate_row(gate: Mapping[str, Any]) -> tuple[Cell, Cell]:
    """A gate's setting and limit, and what was found."""
    found = "not measured" if gate["found"] is None else f"{gate['found']:.4g}"
    verdict = cell("passed") if gate["passed"] else cell("failed", "red")
    return f"gate {gate['name']} {gate['limit']:g}", Text(f"{found}, ").append_text(verdict)


def print_demo(out: Console, found: DemoResult) -> None:
    """What the demo found, and what to do next."""
    out.print(evaluation_table(found.evaluation))
    out.print("\n[bold]Three questions[/], their first answers before and after (✓: right)")
    for sample in found.samples:
        title = Text(f"\n{sample.what}: ").append_text(cell(sample.question, "italic"))
        table = Table(title=title, title_justify="left", box=None)
        table.add_column("BM25", no_wrap=True)
        table.add_column("reranked", no_wrap=True)
        for before, after in zip(sample.before, sample.after):
            table.add_row(
                *(cell(f"{'✓' if right else ' '} {doc}") for doc, right in (before, after))
            )
        out.print(table)
    run = found.run
    seconds, rate = run.manifest["seconds"], run.manifest["pairs_per_second"]
    lines = (
        f"Done: {run.counters.pairs_scored:,} pairs in {duration(seconds)} ({rate:,.0f} pairs/s).",
        f"Ranked table:  {run.output}",
        f"What was done: {run.output}/{runs.REPORT}",
        "",
        "Now your own table (Parquet with query_id, query, doc_id, document):",
        "  rankmill rerank --input candidates.parquet --output ranked --model demo",
    )
    for line in lines:
        out.print(cell(line), soft_wrap=True)


def export_table(found: ExportResult) -> Table:
    """What an export made, and of what; what was dropped, and why."""
    counts, report = found.counts, found.report
    rows: list[tuple[Cell, Cell]] = [
        ("output", f"{found.output} ({len(found.files):,} file(s))"),
        ("examples", f"{counts.examples:,}"),
        ("columns", ", ".join(report["columns"]) or "TREC run"),
        ("queries", f"{counts.queries:,}"),
        ("  used", f"{counts.queries_used:,}"),
        ("  without a positive", f"{counts.queries_without_positive:,}"),
        ("  with too few negatives", f"{counts.queries_with_too_few_negatives:,}"),
        ("rows", f"{counts.rows:,}"),
        ("  used", f"{counts.rows_used:,}, of them {counts.positives:,} positive"),
        ("  dropped", f"{sum(counts.dropped.values()):,}"),
    ]
    rows += [(f"    {reason}", f"{count:,}") for reason, count in counts.dropped.items()]
    if counts.positives_missing:
        rows.append(("relevant, not in the lists", f"{counts.positives_missing:,}"))
    return facts_table(rows)
