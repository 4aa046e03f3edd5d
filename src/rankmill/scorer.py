"""Scoring without Ray: pairs of texts in, raw scores out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt

from rankmill import profile as profiles
from rankmill.backend import resolve
from rankmill.batches import make_batches, pad_widths
from rankmill.config import AskedPrecision, ComputeConfig, ModelConfig, Slopes
from rankmill.errors import ConfigError, InputError
from rankmill.flight import Indices, ScoredBatch, run_batches
from rankmill.models import ScorerModel
from rankmill.models.describe import describe
from rankmill.profile import Backend, Profile
from rankmill.settings import AnyPath, plain, read_section
from rankmill.tokens import (
    Float32,
    Overflow,
    PairRules,
    Pooling,
    Template,
    TokenBatch,
    TokenizedPairs,
    Truncation,
)
from rankmill.windows import assemble, cut, pool

# Scores batches: what `flight.run_batches` is for a loaded model.
BatchRunner = Callable[
    [Iterable[Indices], Callable[[Indices], TokenBatch]],
    Iterator[ScoredBatch],
]


@dataclass(frozen=True)
class ScoredPairs:
    """Scores of distinct pairs and what they cost.

    scores: float32 [pairs], NaN where the model gave none that is finite. windows: inputs of the
    model. tokens: all tokens it saw. padded_tokens: places of padding beside them. degraded: a
    batch had to be halved. reasons: why pairs could not be scored at all.
    """

    scores: Float32
    windows: int
    tokens: int
    padded_tokens: int
    degraded: bool
    reasons: dict[int, str]


def score_pairs(
    model: ScorerModel,
    pairs: TokenizedPairs,
    rules: PairRules,
    template: Template,
    profile: Profile,
) -> ScoredPairs:
    """Score tokenized pairs batch by batch. A batch that does not fit in memory is halved."""
    return score_pairs_by(partial(run_batches, model), pairs, rules, template, profile)


def score_pairs_by(
    run: BatchRunner,
    pairs: TokenizedPairs,
    rules: PairRules,
    template: Template,
    profile: Profile,
) -> ScoredPairs:
    """Score tokenized pairs batch by batch with whatever scores batches."""
    windows = cut(pairs, rules)
    widths = pad_widths(windows.lengths, profile.pad_to_multiple_of, rules.max_length)
    scores = np.full(len(windows), np.nan, np.float32)
    padded, degraded = 0, False
    reasons: dict[int, str] = {}
    batches = make_batches(widths, profile.token_budget)

    def fill(chosen: Indices) -> TokenBatch:
        return assemble(windows, template, chosen, int(widths[chosen].max()))

    # Where there is nothing to score the model need not even be loaded.
    for done in run(batches, fill) if len(windows) else ():
        scores[done.chosen] = done.scores
        if done.reason is not None:
            reasons.setdefault(int(windows.pair[done.chosen[0]]), done.reason)
        padded += int(widths[done.chosen].max()) * len(done.chosen)
        degraded |= done.halved
    tokens = int(windows.lengths.sum())
    pooled = pool(windows, scores, rules.pooling)
    return ScoredPairs(pooled, len(windows), tokens, padded - tokens, degraded, reasons)


class Scorer:
    """A cross-encoder in this process.

        scorer = Scorer("demo")
        scores = scorer.score([("query", "document"), ...])

    Settings mean what they mean in `ModelConfig`; `window_stride` and `window_pool` are
    `window.stride` and `window.pool`. `scorer` names a class of your
    own (`"module:Class"`, see `ScorerModel`) that scores the model's folder.

    Raises `ModelError` when the model cannot be used and `ConfigError` for a device or precision
    that is not there, a length that leaves the document no room, or an instruction that the
    model does not take.
    """

    def __init__(
        self,
        model: AnyPath,
        *,
        revision: str | None = None,
        scorer: str | None = None,
        backend: Literal["auto"] | Backend = "auto",
        device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
        precision: AskedPrecision = "auto",
        max_length: int = 512,
        max_query_tokens: int | None = None,
        max_document_tokens: int | None = None,
        truncation: Truncation = "document",
        overflow: Overflow = "truncate",
        window_stride: int = 128,
        window_pool: Pooling = "max",
        instruction: str | None = None,
        prompt: str = "auto",
        alibi_slopes: Literal["auto"] | Slopes = "auto",
        threads: int | None = None,
    ) -> None:
        asked = {
            "name": plain(model),
            "revision": revision,
            "scorer": scorer,
            "backend": backend,
            "precision": precision,
            "max_length": max_length,
            "max_query_tokens": max_query_tokens,
            "max_document_tokens": max_document_tokens,
            "truncation": truncation,
            "overflow": overflow,
            "window": {"stride": window_stride, "pool": window_pool},
            "instruction": instruction,
            "prompt": prompt,
            "alibi_slopes": alibi_slopes,
        }
        config = read_section(ModelConfig, asked)
        read_section(ComputeConfig, {"device": device})
        if threads is not None and (type(threads) is not int or threads < 1):
            raise ConfigError(f"threads must be a whole number above 0, found {threads!r}.")
        self.description = describe(config)
        rules = PairRules.of(config, self.description.max_length(max_length))
        self.tokenizer = self.description.check(rules)
        hardware = profiles.probe("cuda" if device == "auto" else device)
        found: profiles.Device = "cpu"
        if device != "auto":
            found = device
        elif hardware.cuda:
            found = "cuda"
        compute = ComputeConfig(cpus_per_worker=threads or hardware.cores)
        self.profile = resolve(self.description, config, compute, found).tell()
        self.model = self.description.load(self.profile)

    def score(self, pairs: Sequence[tuple[str, str]]) -> Float32:
        """Raw scores, float32 [pairs], in the order given. Equal pairs are scored once.

        A score that is not finite is NaN, if need be all of them: there is no shard here that
        could fail. Raises `InputError` for what is not a pair of texts.
        """
        queries: dict[str, int] = {}
        documents: dict[str, int] = {}
        numbers: list[tuple[int, int]] = []
        for place, pair in enumerate(pairs):
            if not _is_pair(pair):
                raise InputError(
                    f"Pair {place} is not a query and a document, each a string of valid Unicode.",
                    'Give [("query", "document"), ...].',
                )
            query, document = pair
            numbers.append(
                (
                    queries.setdefault(query, len(queries)),
                    documents.setdefault(document, len(documents)),
                )
            )
        number = np.array(numbers, np.int32).reshape(-1, 2)
        distinct, inverse = np.unique(number, axis=0, return_inverse=True)
        texts = [*map(self.tokenizer.query_text, queries)]
        texts += map(self.tokenizer.document_text, documents)
        tokenized = self.tokenizer.tokenize(
            texts, distinct[:, 0], distinct[:, 1] + np.int32(len(queries))
        )
        scored = score_pairs(
            self.model, tokenized, self.tokenizer.rules, self.tokenizer.template, self.profile
        )
        return scored.scores[inverse.reshape(-1)]

    def rank(self, query: str, documents: Sequence[str]) -> npt.NDArray[np.int64]:
        """Indices of the documents, best first, int64 [documents].

        Ties keep their order; documents whose score is NaN come last.
        """
        if isinstance(documents, str):
            raise InputError("documents must be a list of texts, found one text.")
        scores = self.score([(query, document) for document in documents])
        return np.argsort(-scores.astype(np.float64), kind="stable")


def _is_pair(value: object) -> bool:
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        return False
    return len(value) == 2 and all(map(_is_text, value))


def _is_text(value: object) -> bool:
    """Whether a value is a string that UTF-8 can hold (lone surrogates cannot be tokenized)."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
