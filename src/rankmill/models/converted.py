"""Converted models on disk: kept by what makes them, whole or not at all.

    CACHE/<key>/body.xml, body.bin      the body, float32 weights
                head.xml, head.bin      pooler and classifier
                files.json              SHA-256 of the four
                check-<how>.json        how far its scores are from torch's

An entry is built in a folder of its own and renamed. Processes that build it at the same time do
not see halves of each other's; those that come later use the first one's. An entry that does not
match its checksums is built again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from rankmill.profile import SCORING_VERSION, Profile

BODY, HEAD = "body.xml", "head.xml"
FILES = (BODY, "body.bin", HEAD, "head.bin")
_SUMS, _LOCK = "files.json", ".lock"
# Raised whenever the same model is converted into another graph.
_CONVERSION = 1
_MAKERS = ("openvino", "torch", "transformers")
# What a killed process left behind is removed after a day.
_LEFT_BEHIND_SECONDS = 86_400


@dataclass(frozen=True)
class Check:
    """How far a converted model's scores were from torch's, and how far they may be.

    difference, allowed: of the pair that was worst against what it is allowed.
    """

    difference: float
    allowed: float

    @property
    def agrees(self) -> bool:
        """Whether scores are close enough; never where one was not a number."""
        return self.difference <= self.allowed


def key_of(digest: str) -> str:
    """What names a converted model: the model's digest, and all that has a hand in converting."""
    made_by = [f"{name} {metadata.version(name)}" for name in _MAKERS]
    parts = [digest, *made_by, f"conversion {_CONVERSION}", f"scoring {SCORING_VERSION}"]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def find(cache: Path, key: str) -> Path | None:
    """The folder of an entry, or None when there is none that is whole."""
    entry = cache / key
    try:
        sums = json.loads((entry / _SUMS).read_bytes())
        return entry if sums == _sums(entry) else None
    except (OSError, ValueError):
        return None


def build(cache: Path, key: str, convert: Callable[[Path], None]) -> Path:
    """Make an entry: `convert` writes FILES into the folder that it is given.

    Raises `OSError` when the cache cannot be written, and what `convert` raises.
    """
    cache.mkdir(parents=True, exist_ok=True)
    _remove_left_behind(cache)
    with tempfile.TemporaryDirectory(
        prefix=f".{key}-", dir=cache, ignore_cleanup_errors=True
    ) as scratch:
        target = Path(scratch, "made")
        target.mkdir()  # as the umask says, which the scratch folder is not
        convert(target)
        (target / _SUMS).write_text(json.dumps(_sums(target)), encoding="utf-8")
        return _put(target, cache / key)


def _put(target: Path, entry: Path) -> Path:
    """Give a finished entry its name, unless a whole one has it by now."""
    with open(entry.parent / _LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if find(entry.parent, entry.name) is None:
            damaged = target.with_name(f"{target.name}-damaged")
            with contextlib.suppress(FileNotFoundError):
                os.rename(entry, damaged)  # goes with the scratch folder
            os.rename(target, entry)
    return entry


def checked(entry: Path, profile: Profile) -> Check | None:
    """What an earlier check of this entry found under a profile, or None."""
    try:
        return Check(**json.loads((entry / _check_name(profile)).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def keep_check(entry: Path, profile: Profile, found: Check) -> None:
    """Remember what a check found. Raises `OSError` when the cache cannot be written."""
    path = entry / f".check-{uuid.uuid4().hex}"
    path.write_text(json.dumps(asdict(found)), encoding="utf-8")
    path.replace(entry / _check_name(profile))


def _check_name(profile: Profile) -> str:
    return f"check-{profile.precision}-{profile.instructions}.json"


def _sums(entry: Path) -> dict[str, str]:
    sums = {}
    for name in FILES:
        with open(entry / name, "rb") as file:
            sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def _remove_left_behind(cache: Path) -> None:
    for path in cache.glob(".*-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _LEFT_BEHIND_SECONDS:
                shutil.rmtree(path)
