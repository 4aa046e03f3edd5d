"""Training data from a ranked run: a part in, a file of examples out, each by a task on Ray.

    ranked/part-00007.parquet -> lists -> mining -> examples -> training/part-00007.parquet

The driver holds settings, judgements, a hash a query of other runs, and counts; never a row. The
files are a function of the run, the settings and the seed: how many tasks there are, and where,
changes nothing. An export that was stopped starts again from its first part. One at a time writes
to a folder, as with runs: a lease, and behind a fence, which is the export's own record.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from rankmill import runs, storage
from rankmill.config import ComputeConfig
from rankmill.errors import OutputError, RunFailed, StartError
from rankmill.export import counts as counting
from rankmill.export import examples, lists
from rankmill.export.agreement import index, query_hashes
from rankmill.export.counts import Counts
from rankmill.export.part import TASK_CPUS, Work, export_part, model_of, out_of_reach
from rankmill.export.ranked import Ranked, open_ranked
from rankmill.export.recipe import ExportConfig, refuse_contradictions
from rankmill.lease import Lease
from rankmill.markers import PRIVATE
from rankmill.output import fenced, refuse_links, refuse_overlap, refuse_relative, remove_scraps
from rankmill.progress import Listener, Progress
from rankmill.qrels import Judgements, TableSource, read_judgements
from rankmill.settings import Setting, read_section
from rankmill.storage_settings import of_profile
from rankmill.store import Store

log = logging.getLogger("rankmill")

REPORT = f"{PRIVATE}/report.json"
_FILE = re.compile(r"part-\d{5,}\.(parquet|trec)")


@dataclass(frozen=True)
class ExportResult:
    """A finished export. `files`: URLs, in the order of the run's parts; `report`: report.json."""

    output: str
    report: dict[str, Any]
    counts: Counts
    files: tuple[str, ...]


def export(
    ranked: str | Path,
    output: str | Path,
    *,
    format: str,
    qrels: TableSource | None = None,
    agree_runs: Sequence[str | Path] = (),
    allow_incomplete: bool = False,
    overwrite: bool = False,
    address: str | None = None,
    profile: str | None = None,
    listener: Listener | None = None,
    **settings: Setting,
) -> ExportResult:
    """Write training data from a ranked run. The same call again finds it complete.

    ranked: the output folder of a run. format: `labeled-pair`, `labeled-list`, `triplet`,
    `n-tuple` or `trec`. qrels: judgements as `evaluate` takes them; the documents that they call
    relevant are the positives. agree_runs: output folders of other runs over these queries, which
    must find a negative as irrelevant as this run does. allow_incomplete: take what is committed
    of a run that has not finished. address: of a Ray cluster, as `compute.address`; profile: of
    AWS. settings: the fields of `ExportConfig`, for example `negatives=4, margin=1.0`.

    Raises `StartError` (nothing was started), `OutputBusy`, or `RunFailed`.
    """
    from rankmill import cluster, pipeline

    started = time.monotonic()
    config = read_section(ExportConfig, {"format": format, **settings})
    refuse_contradictions(config, qrels is not None, bool(agree_runs))
    compute = ComputeConfig(address=address)
    sources = [str(ranked), *map(str, agree_runs)]
    if cluster.is_foreign_cluster(compute):
        refuse_relative([*sources, str(output)])
    store = Store(storage.absolute(str(output)), of_profile(profile))
    sources = [storage.absolute(path) for path in sources]
    refuse_overlap(sources, store.url)
    work, others = _prepare(store, config, sources, qrels, allow_incomplete)
    if (found := _look(work, overwrite)) is not None:
        log.info("Already complete: nothing was exported.")
        return _result(store, found)
    with ExitStack() as stack:
        with storage.reaching(store.url, "written"):
            lease = stack.enter_context(Lease(store))
            work = _begin(work, lease, overwrite)
        stack.enter_context(cluster.connected(compute))
        try:
            indexed = [
                index(run, pipeline.map_shared(query_hashes, run, range(len(run.parts))))
                for run in others
            ]
            work = replace(work, others=tuple(indexed))
            done: list[Counts] = []
            parts = range(len(work.ranked.parts))
            for counts in pipeline.map_shared(export_part, work, parts, TASK_CPUS):
                done.append(counts)
                if listener is not None:
                    listener(_progress(work.ranked, len(done), time.monotonic() - started))
            return _finish(work, lease, counting.add(done), time.monotonic() - started)
        except StartError as error:  # too late to be one
            raise RunFailed(error.message, error.remedy) from error
        except OSError as error:
            raise out_of_reach(store, error) from error


def _prepare(
    store: Store,
    config: ExportConfig,
    sources: list[str],
    qrels: TableSource | None,
    allow_incomplete: bool,
) -> tuple[Work, list[Ranked]]:
    """Look at everything that is read: the run that is exported (the first source), and those that
    must agree, which are not indexed yet."""
    ranked, *others = (
        open_ranked(path, store.access, allow_incomplete=allow_incomplete) for path in sources
    )
    judged = None if qrels is None else read_judgements(qrels, store.access)
    label = config.chosen_label if config.is_labeled else None
    identity = {
        "settings": config.model_dump(mode="json") | {"label": label},
        "ranked": ranked.identity,
        "agree_runs": [run.identity for run in others],
        "qrels": None if judged is None else _digest(judged),
    }
    columns = lists.needed_columns(ranked, config, by_id=judged is not None or bool(others))
    for other in others:
        lists.refuse_unlike(ranked, other)
    work = Work(store, ranked, config, tuple(columns), judged, (), identity)
    return work, others


def _digest(judged: Judgements) -> str:
    """SHA-256 over the judgements, whatever file they come from."""
    found = hashlib.sha256()
    for query, document, grade in zip(
        judged.queries.take(pa.array(judged.query)).to_pylist(),
        judged.document.to_pylist(),
        judged.grade.tolist(),
    ):
        found.update(f"{query}\t{document}\t{grade}\n".encode())
    return found.hexdigest()


def _look(work: Work, overwrite: bool) -> dict[str, Any] | None:
    """The report of the same export, if it is complete.

    Raises `OutputError` when the folder holds anything but this export.
    """
    store = work.store
    with storage.reaching(store.url):
        refuse_links(store)
        names = store.sizes()
        stored, report = store.read(runs.EXPORT), store.read(REPORT)
        is_run = store.read(runs.RUN) is not None
    visible = [name for name in names if not name.startswith(("_", "."))]
    foreign = [name for name in visible if is_run or not _FILE.fullmatch(name)]
    if is_run or foreign or (visible and stored is None):
        shown = ", ".join(sorted(foreign or visible)[:3]) or runs.RUN
        raise OutputError(
            f"The output {store.url} holds files that are not of an export: {shown}.",
            "Choose an empty folder.",
        )
    if stored is None or overwrite:
        return None
    try:
        known, complete = json.loads(stored), None if report is None else json.loads(report)
    except ValueError:
        raise OutputError(
            f"The record of the export at {store.url} is damaged.",
            "Start again with --overwrite, or choose another output.",
        ) from None
    runs.refuse_other(store, known, work.identity, "export")
    return complete if runs.SUCCESS in names else None


def _begin(work: Work, lease: Lease, overwrite: bool) -> Work:
    """Make ready for a start, again looking first: another export may have come and gone.

    The work comes back behind the fence.
    """
    store = work.store
    record = {"fingerprint": work.fingerprint, "identity": work.identity}
    with store.locked():
        lease.refuse_lost()
        _look(work, overwrite)
        store.delete([runs.SUCCESS, REPORT])
        # Before the old files go: from here on no task of another export can write one again.
        store.write(runs.EXPORT, json.dumps(record, indent=1, ensure_ascii=False).encode())
        store.delete([name for name in store.sizes() if _FILE.fullmatch(name)])
        remove_scraps(store)
        return replace(work, store=fenced(store, runs.EXPORT))


def _finish(work: Work, lease: Lease, counts: Counts, seconds: float) -> ExportResult:
    """Check files and sums, write the report and `_SUCCESS`."""
    counts.refuse_imbalance()
    with work.store.locked():
        lease.refuse_lost()
        there = {name for name in work.store.sizes() if _FILE.fullmatch(name)}
        # What another export's task wrote that slept between its check and its write, on S3.
        work.store.delete(sorted(there.difference(work.file_names)))
    if missing := sorted({*work.file_names} - there):
        raise RunFailed(
            f"{len(missing)} files of the export at {work.store.url} are gone: {missing[0]}.",
            "Run the same command again.",
        )
    if not counts.examples:
        log.warning("No example came out of %d rows; the report says why.", counts.rows)
    report = {
        "complete": True,
        "fingerprint": work.fingerprint,
        **work.identity,
        "run": work.ranked.url,
        "model": model_of(work.ranked),
        "counts": asdict(counts),
        "columns": [] if work.config.format == "trec" else examples.columns(work.config).names,
        "files": work.file_names,
        "seconds": round(seconds, 3),
        "versions": runs.versions(),
    }
    work.store.write(REPORT, json.dumps(report, indent=1, ensure_ascii=False).encode())
    work.store.write(runs.SUCCESS, b"")
    return _result(work.store, report)


def _result(store: Store, report: dict[str, Any]) -> ExportResult:
    files = tuple(storage.join(store.url, name) for name in report["files"])
    return ExportResult(store.url, report, Counts(**report["counts"]), files)


def _progress(ranked: Ranked, done: int, seconds: float) -> Progress:
    rows = [part.rows for part in ranked.parts]
    finished = sum(rows[:done])
    return Progress(len(rows), done, sum(rows), finished, finished / seconds, seconds)
