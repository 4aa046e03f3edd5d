"""A scorer that keeps a journal and can be made to fail. A test double for `chaos.py`.

Scores depend on the texts. Every pair that is scored is written down first, so that what a fault
made the run do again can be counted after any death.
"""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rankmill.profile import Profile
from rankmill.tokenizer import PairTokenizer
from rankmill.tokens import PairRules, TokenBatch, TokenizedTexts
from stand_in import StandIn, StandInModel, StandInTokenizer

_TOKENS_A_TEXT = 8
_JOURNAL = "journal"


class HashTokenizer(StandInTokenizer):
    """Gives every text eight tokens of its digest."""

    def encode(self, texts: Sequence[str]) -> TokenizedTexts:
        """Ids from 3 to 65,538."""
        digests = b"".join(
            hashlib.blake2b(text.encode(), digest_size=2 * _TOKENS_A_TEXT).digest()
            for text in texts
        )
        ids = np.frombuffer(digests, np.uint16).astype(np.int32) + 3
        return TokenizedTexts(ids, np.arange(len(texts) + 1, dtype=np.int64) * _TOKENS_A_TEXT)


class FragileModel(StandInModel):
    """Writes down what it scores; takes `seconds` a batch."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self._folder, self._seconds = folder, seconds
        self._journal = os.open(folder / _JOURNAL, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def score(self, batch: TokenBatch) -> npt.NDArray[np.float32]:
        """float32 [batch]. Raises `MemoryError` where that was asked for."""
        ids = batch.input_ids
        keys = [hashlib.blake2b(row.tobytes(), digest_size=8).hexdigest() for row in ids]
        os.write(self._journal, f"{os.getpid()} {' '.join(keys)}\n".encode())
        if self._is_asked_for("memory"):
            allocate_too_much()
        if self._is_asked_for("killed"):
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out
        time.sleep(self._seconds)
        weights = np.sqrt(np.arange(1, ids.shape[1] + 1))
        return ((ids * weights).sum(axis=1) % 997 / 100).astype(np.float32)

    def _is_asked_for(self, trouble: str) -> bool:
        """Whether trouble is asked for; the request is taken away, so that one suffers."""
        try:
            (self._folder / trouble).unlink()
        except FileNotFoundError:
            return False
        return True


def allocate_too_much() -> None:
    """Ask for more memory than this process may have. Raises `MemoryError`, a real one."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (64 << 20, before[1]))
    try:
        np.ones(1 << 30, np.uint8)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@dataclass(frozen=True)
class Fragile(StandIn):
    """Describes the double. folder: for the journal and for requests of trouble."""

    folder: str = ""
    seconds: float = 0.0

    def tokenizer(self, rules: PairRules) -> PairTokenizer:
        """The double's tokenizer."""
        return HashTokenizer(rules)

    def load(self, profile: Profile) -> FragileModel:
        """The double's model."""
        return FragileModel(Path(self.folder), self.seconds)


def read_journal(folder: Path) -> tuple[list[int], Counter[str]]:
    """The scoring processes, in the order of their batches, and how often each pair was scored."""
    path = folder / _JOURNAL
    lines = path.read_text().splitlines() if path.exists() else []
    pairs: Counter[str] = Counter()
    for line in lines:
        pairs.update(line.split()[1:])
    return [int(line.split()[0]) for line in lines if line.split()], pairs
