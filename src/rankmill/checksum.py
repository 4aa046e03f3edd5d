"""Whether files still hold the bytes that were committed, as far as a start can afford to look.

On disk every file is hashed: beside the minute that a shard took to score, its megabyte costs a
few milliseconds. On an object store nothing is read that the listing vouches for: the ETag of an
object that was written at once is the MD5 of its bytes, unless KMS or a customer's key encrypts it
(Amazon S3, "Common response headers"). What neither vouches for is read, up to a bound. Bytes that
are those of the marker hold the rows that it counts, so no footer is opened.

This finds what a disk, a copy or a person has done, not a forger: see SECURITY.md.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from rankmill import storage
from rankmill.markers import Marker, WrittenFile
from rankmill.store import Listed, Store

log = logging.getLogger("rankmill")

# A start hashes so much of an output on disk (a minute or two) and reads so much of one on an
# object store (some ten seconds) whose ETags are not MD5s. `status --verify` knows no bound.
DISK_BYTES = 64 << 30
STORE_BYTES = 1 << 30
_THREADS = 4


def changed(store: Store, found: Iterable[Marker], files: Mapping[str, Listed]) -> dict[int, str]:
    """What is wrong with the bytes of committed shards, by shard.

    found: shards whose files are there, with the sizes that were committed; files: as listed.
    Raises `OSError` for a file that cannot be read.
    """
    pending = [(marker.shard, file) for marker in found for file in marker.files]
    unread = [(s, file) for s, file in pending if not file.md5 or files[file.name].tag != file.md5]
    left = DISK_BYTES if store.local else STORE_BYTES
    chosen: list[tuple[int, WrittenFile]] = []
    for shard, file in unread:
        left -= file.size
        if left < 0:
            log.warning(
                "%s of %s files in %s were compared by size alone; all bytes of them by: "
                "rankmill status %s --verify",
                f"{len(unread) - len(chosen):,}",
                f"{len(pending):,}",
                store.url,
                store.url,
            )
            break
        chosen.append((shard, file))
    with ThreadPoolExecutor(_THREADS) as pool:
        problems = pool.map(lambda each: _problem(store, each[1]), chosen)
        return {s: why for (s, _), why in zip(chosen, problems, strict=True) if why is not None}


def _problem(store: Store, file: WrittenFile) -> str | None:
    same = _sha256(store, file) == file.sha256
    return None if same else f"{file.name} is not what was committed (checksum)"


def _sha256(store: Store, file: WrittenFile) -> str:
    if not store.local:
        return hashlib.sha256(store.read(file.name) or b"").hexdigest()
    with open(storage.join(store.url, file.name), "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
