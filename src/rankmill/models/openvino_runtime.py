"""OpenVINO, imported without its telemetry.

By default it tells a server of Google's when it is imported and when a model is converted, and
leaves an id in the user's home. It does without where its telemetry package is missing, so that is
what it finds. nncf does the same. Where they were imported before, with it, rankmill's conversions
send nothing all the same: each message goes through a fork of the process, which can wait for ever
for a lock that one of Ray's threads holds.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

_TELEMETRY = "openvino_telemetry"


@contextlib.contextmanager
def without_telemetry(package: str) -> Iterator[None]:
    """While it lasts, a package that is imported for the first time finds no telemetry."""
    if package in sys.modules or _TELEMETRY in sys.modules:  # too late: see nothing_sent
        yield
        return
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[_TELEMETRY]


@contextlib.contextmanager
def nothing_sent() -> Iterator[None]:
    """While it lasts, telemetry that is there sends nothing; afterwards others may again."""
    sender = sys.modules.get(f"{_TELEMETRY}.utils.sender")
    if sender is None:
        yield
        return
    kept = sender.TelemetrySender.send
    sender.TelemetrySender.send = _send_nothing
    try:
        yield
    finally:
        sender.TelemetrySender.send = kept


def _send_nothing(*_: object) -> None:
    """In place of `TelemetrySender.send`."""


with without_telemetry("openvino"):
    import openvino

__all__ = ["nothing_sent", "openvino", "without_telemetry"]
