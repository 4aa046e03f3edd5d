"""Logs for machines: a JSON object a line, with the run and the shard that it is about.

No line holds a query or a document: messages name ids, places and counts, and are masked.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

log = logging.getLogger("rankmill")
_ALWAYS = frozenset(vars(logging.makeLogRecord({})))


class JsonLines(logging.Formatter):
    """time (UTC), level, message, run and shard (null where it is about none), and what a call
    has put into `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        extra = {key: value for key, value in vars(record).items() if key not in _ALWAYS}
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "run": None,
            "shard": None,
        }
        return json.dumps(line | extra, ensure_ascii=False, default=str)


def write_json() -> None:
    """Send rankmill's own messages to stderr as JSON, those about single shards among them."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    log.handlers = [handler]
    log.setLevel(logging.DEBUG)
    log.propagate = False


def are_json() -> bool:
    """Whether `write_json` was the last to say where messages go."""
    return any(isinstance(handler.formatter, JsonLines) for handler in log.handlers)


def hush_ray_data() -> None:
    """Of Ray Data's own messages errors alone; a run says by itself what ended it.

    Two of its loggers print what a task raised, with every call of Ray's own on the way.
    """
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    for name in ("_internal.execution.streaming_executor_state", "exceptions"):
        logging.getLogger(f"ray.data.{name}").setLevel(logging.CRITICAL)


def name_run(fingerprint: str) -> None:
    """From now on every message of this process is about a run, until another is named."""
    log.filters = [one for one in log.filters if not isinstance(one, _OfRun)]
    log.addFilter(_OfRun(fingerprint))


class _OfRun(logging.Filter):
    def __init__(self, fingerprint: str) -> None:
        super().__init__()
        self._fingerprint = fingerprint

    def filter(self, record: logging.LogRecord) -> bool:
        record.run = self._fingerprint
        return True
