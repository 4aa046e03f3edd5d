"""The report of a run: one HTML file without scripts, made from the run's own files.

Drawn when a run ends, and again by `rankmill report`. It reads the markers alone (see `summary`),
and part files only where texts are asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from rankmill import output, runs, storage
from rankmill.errors import InputError, RankmillError
from rankmill.lease import holder
from rankmill.markers import Marker
from rankmill.report.facts import gather
from rankmill.report.movers import read_movers
from rankmill.report.page import render
from rankmill.storage_settings import ENVIRONMENT, StorageConfig
from rankmill.store import Store

log = logging.getLogger("rankmill")

__all__ = ["draw_or_warn", "draw_report"]


def draw_report(path: str, access: StorageConfig = ENVIRONMENT, texts: bool | None = None) -> str:
    """Draw the report of an output, finished or not; the report's URL.

    texts: show the documents that moved most; None: as the run's `report.texts` says.

    Raises `InputError` when there is no run under the path, or it cannot be read or written.
    """
    store = Store(storage.absolute(path), access)
    with storage.reaching(store.url):
        stored = runs.stored_run(store)
        if stored is None:
            raise InputError(
                f"There is no run at {path}.", f"An output folder holds {runs.RUN}; check the path."
            )
        output.refuse_links(store)
        done, _ = output.committed(store, stored["fingerprint"], stored["plan"]["shards"])
        if texts is None:
            texts = bool(stored["config"].get("report", {}).get("texts"))
        return _draw(store, done, texts, running=holder(store) is not None)


def draw_or_warn(store: Store, done: Mapping[int, Marker], texts: bool) -> None:
    """Draw the report at the end of a run. Whatever goes wrong, it costs no more than a warning.

    done: the committed shards.
    """
    try:
        _draw(store, done, texts, running=False)
    except Exception as error:  # noqa: BLE001 - the run is what counts
        # Of an error that is not rankmill's own the kind alone: its text may quote a row.
        why = error.message if isinstance(error, RankmillError) else type(error).__name__
        log.warning("No report was drawn: %s Draw it with: rankmill report %s", why, store.url)


def _draw(store: Store, done: Mapping[int, Marker], texts: bool, *, running: bool) -> str:
    stored = runs.stored_run(store)
    assert stored is not None, "a run has its record"
    facts = gather(store, stored, done, running=running)
    summary = facts.summary
    gains, losses = (
        read_movers(store, stored, done, moves) if texts else None
        for moves in (summary.gains, summary.losses)
    )
    store.write(runs.REPORT, render(facts, gains, losses))
    return storage.join(store.url, runs.REPORT)
