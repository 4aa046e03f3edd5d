"""A run of every night: wait for the input, find the last output, run, say how it went.

The summary is written at the start and again at the end, so that an alert need read one file: a
night that was killed on its way has a summary that still says `waiting` or `running`.
"""

from __future__ import annotations

import json
import logging
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal

from rankmill import cluster, job, runs, storage
from rankmill.config import RunConfig
from rankmill.errors import ConfigError, InputError, OutputError, RankmillError, kind_and_place
from rankmill.output import refuse_relative
from rankmill.progress import Listener, duration
from rankmill.settings import read_section
from rankmill.status import read_status
from rankmill.storage_settings import ENVIRONMENT, StorageConfig
from rankmill.store import Store

log = logging.getLogger("rankmill")

State = Literal[
    "waiting", "running", "complete", "failed", "not started", "gate failed", "busy", "stopped"
]
# By the run's exit code.
_ENDED: dict[int, State] = {
    0: "complete",
    1: "failed",
    2: "not started",
    3: "gate failed",
    4: "busy",
}
_DAYS_AGO = {"today": 0, "yesterday": 1}


@dataclass(frozen=True)
class Night:
    """What a nightly run is told beside its configuration.

    wait: seconds to wait for the input's `_SUCCESS` at most (0: it is not looked for), a look
    every `pause` seconds. reuse_under: the folder that holds the outputs of other nights.
    summary: where the summary is written.
    """

    config: RunConfig
    date: str
    wait: float
    pause: float
    reuse_under: str | None = None
    summary: str | None = None


@dataclass(frozen=True)
class Summary:
    """How a night went. Times are UTC; `seconds` count from the start, waiting included.

    seconds_waited: for the input, once it has come. exit_code, reason: of a night that is over;
    reason is None when all is well. run: the fingerprint that logs and metrics name. counters,
    shards: of what is committed, None where there is no run.
    """

    date: str
    output: str
    state: State
    started: str
    seconds: float = 0.0
    seconds_waited: float = 0.0
    reused_from: str | None = None
    exit_code: int | None = None
    reason: str | None = None
    remedy: str | None = None
    run: str | None = None
    shards: int | None = None
    shards_committed: int | None = None
    shards_degraded: int | None = None
    pairs_per_second: float | None = None
    counters: dict[str, Any] | None = None

    def to_json(self) -> str:
        """One object."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)


def read_date(text: str, today: date | None = None) -> str:
    """`today`, `yesterday` (UTC) or a date of ISO 8601, as such a date.

    Raises `ConfigError` for anything else.
    """
    try:
        if text in _DAYS_AGO:
            day = today or datetime.now(UTC).date()
            return (day - timedelta(days=_DAYS_AGO[text])).isoformat()
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise ConfigError(
            f"--date expects a date, found {text[:40]!r}.",
            "For example: --date 2026-11-21, --date today or --date yesterday (in UTC).",
        ) from None


def run_night(
    night: Night,
    listener: Listener | None = None,
    ended: Callable[[Summary], None] | None = None,
) -> Summary:
    """Do a night's run, or go on with it.

    ended: given the last summary, however the night ended.

    Raises what `job.rerank` raises, `InputError` when the input's `_SUCCESS` does not come in
    time, and `ConfigError` when the summary cannot be written, or would be on a node of a cluster
    in a folder of its own; `ended` is told all of it.
    """
    begun, access = time.monotonic(), night.config.storage
    output = storage.absolute(night.config.output.path)
    now = Summary(night.date, output, "waiting", datetime.now(UTC).isoformat(timespec="seconds"))
    kept = None  # where the summary is kept, once that is known to be a good place
    try:
        if cluster.is_foreign_cluster(night.config.compute):
            # The folder that a job runs in is gone with it, and who reads the summary is elsewhere.
            refuse_relative(list(filter(None, [night.summary, night.reuse_under])))
        _write(night.summary, now, access)
        kept = night.summary
        waited = wait_for_input(night)
        config = with_reuse(night.config, night.reuse_under)
        reused = config.reuse[0] if config.reuse else None
        now = replace(now, state="running", seconds_waited=round(waited, 1), reused_from=reused)
        _write(kept, now, access)
        result = job.rerank(config, listener=listener)
        rate = result.manifest["pairs_per_second"]
        now = replace(now, state="complete", exit_code=0, pairs_per_second=rate)
    except BaseException as error:  # whatever ended the night, its summary says so
        now = _ended_by(error, now)
        raise
    finally:
        now = replace(now, seconds=round(time.monotonic() - begun, 1))
        now = _with_committed(now, access)
        _write_or_warn(kept, now, access)
        if ended is not None:
            ended(now)
    return now


def tell_refused(day: str, path: str | None, error: RankmillError) -> Summary:
    """Write the summary of a night whose configuration was refused, and give it."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    summary = _ended_by(error, Summary(day, "", "not started", started))
    _write_or_warn(path, summary, ENVIRONMENT)
    return summary


def wait_for_input(night: Night) -> float:
    """Wait until every folder that is read holds `_SUCCESS`; how many seconds that took.

    Queries and documents that lie in tables of their own are waited for where the night's date is
    in their folders; others' `_SUCCESS` may be another night's.

    Raises `InputError` that names what is missing when the time is over.
    """
    if night.wait == 0:
        return 0.0
    begun = time.monotonic()
    missing = sorted({marked_folder(path) for path in _dated_paths(night)})
    told = False
    while True:
        try:
            missing = [folder for folder in missing if not _is_written(folder, night.config)]
        except InputError as error:
            if not told:
                raise
            log.warning("%s", error.message)  # it could be reached before
        waited = time.monotonic() - begun
        if not missing:
            return waited
        names = ", ".join(storage.join(folder, runs.SUCCESS) for folder in missing)
        if waited >= night.wait:
            raise InputError(
                f"{names} did not come within {duration(night.wait)}.",
                "See why the input is late and start again, or give it longer (--wait). An "
                f"input without {runs.SUCCESS} needs --wait 0.",
            )
        if not told:
            log.info("Waiting for %s, %s at most.", names, duration(night.wait))
            told = True
        time.sleep(min(night.pause, night.wait - waited))


def _dated_paths(night: Night) -> Iterator[str]:
    for setting, paths in night.config.input.all_paths.items():
        yield from (
            path for path in paths if setting == "path" or night.date in marked_folder(path)
        )


def marked_folder(path: str) -> str:
    """The folder of an input, where its `_SUCCESS` lies.

    Of a glob it is the last one before the first wildcard, of a Parquet file its own.
    """
    path = storage.absolute(path)
    if re.search(r"[*?\[]", path):
        return re.split(r"[*?\[]", path, maxsplit=1)[0].rpartition("/")[0]
    return path.rpartition("/")[0] if path.endswith((".parquet", ".pq")) else path


def _is_written(folder: str, config: RunConfig) -> bool:
    with storage.reaching(folder):
        return Store(folder, config.storage).read(runs.SUCCESS) is not None


def with_reuse(config: RunConfig, reuse_under: str | None) -> RunConfig:
    """The configuration with the newest complete output under `reuse_under` first in `reuse`.

    A run that goes on keeps what it began with. Raises `ConfigError` as a configuration does.
    """
    if reuse_under is None:
        return config
    own = storage.absolute(config.output.path)
    with storage.reaching(own):
        stored = runs.stored_run(Store(own, config.storage))
    if stored is not None:
        reuse = stored["config"].get("reuse", [])
    else:
        found = newest_complete(reuse_under, own, config.storage)
        reuse = list(dict.fromkeys([*([found] if found else []), *config.reuse]))
    # What nobody set stays unset: a default is another wish than the same value asked for.
    given = config.model_dump(mode="json", exclude_unset=True)
    return read_section(RunConfig, given | {"reuse": reuse})


def newest_complete(folder: str, own: str, access: StorageConfig = ENVIRONMENT) -> str | None:
    """The complete output in a folder whose name comes last, as the latest date's does.

    `own`, the output that is to be written, does not count. None when there is no other.
    """
    folder = storage.absolute(folder)
    with storage.reaching(folder):
        for name in reversed(Store(folder, access).folders()):
            url = storage.join(folder, name)
            store = Store(url, access)
            if url == own or store.read(runs.SUCCESS) is None:
                continue
            try:
                if runs.stored_run(store) is not None:
                    return url
            except OutputError as error:  # of another version: nothing to go by
                log.warning("Not reused: %s", error.message)
    return None


def _ended_by(error: BaseException, now: Summary) -> Summary:
    if isinstance(error, RankmillError):
        return replace(
            now,
            state=_ENDED[error.exit_code],
            exit_code=error.exit_code,
            reason=error.message,
            remedy=error.remedy,
        )
    if isinstance(error, SystemExit | KeyboardInterrupt):
        code = error.code if isinstance(error, SystemExit) else 128 + signal.SIGINT
        return replace(
            now,
            state="stopped",
            exit_code=code if isinstance(code, int) else 1,
            reason="The process was asked to stop.",
            remedy="The same command goes on where it was.",
        )
    return replace(now, state="failed", exit_code=1, reason=kind_and_place(error))


def _with_committed(now: Summary, access: StorageConfig) -> Summary:
    """With the counters of what is committed, where the run is this night's and there is time."""
    if now.state in ("not started", "busy", "stopped"):
        return now
    try:
        found = read_status(now.output, access)
        stored = runs.stored_run(Store(now.output, access))
    except (RankmillError, OSError):
        return now
    if stored is None:
        return now
    return replace(
        now,
        run=stored["fingerprint"],
        shards=found.shards,
        shards_committed=found.committed,
        shards_degraded=len(found.degraded),
        counters=asdict(found.counters),
    )


def _write(path: str | None, summary: Summary, access: StorageConfig) -> None:
    if path is not None:
        storage.write_file(path, f"{summary.to_json()}\n".encode(), access)


def _write_or_warn(path: str | None, summary: Summary, access: StorageConfig) -> None:
    """At the end the run's own exit code says more than that the summary was not written."""
    try:
        _write(path, summary, access)
    except RankmillError as error:
        log.error("The summary is not up to date. %s", error.message)
