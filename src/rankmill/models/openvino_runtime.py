"""OpenVINO, imported without its telemetry.

By default it tells a server of Google's when it is imported and when a model is converted, and
leaves an id in the user's home. It does without where its telemetry package is missing, so that is
what it finds. nncf does the same.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

_TELEMETRY = "openvino_telemetry"


@contextlib.contextmanager
def without_telemetry(package: str) -> Iterator[None]:
    """While it lasts, a package that is imported for the first time finds no telemetry."""
    if package in sys.modules or _TELEMETRY in sys.modules:  # somebody else's choice
        yield
        return
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[_TELEMETRY]


with without_telemetry("openvino"):
    import openvino

__all__ = ["openvino", "without_telemetry"]
