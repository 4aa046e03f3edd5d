"""Models: finding one, describing it, loading it.

`describe` turns a name into a `Description`, a small picklable value that travels to workers;
each worker builds the tokenizer or the model from it. Nothing here runs or unpickles anything
from a model repository.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from rankmill.errors import ConfigError
from rankmill.profile import Profile
from rankmill.tokens import (
    Int32,
    PairRules,
    Template,
    TokenBatch,
    TokenizedPairs,
)


class ScorerModel(Protocol):
    """A loaded model. `model.scorer` may name a class of your own that has this method.

    Such a class is built on every worker as `Class(folder: pathlib.Path, profile: Profile)`.
    """

    def score(self, batch: TokenBatch) -> npt.NDArray[np.float32]:
        """Raw scores, float32 [batch], of padded pairs.

        A score that is not finite sends its rows to quarantine; more than a few in a shard fail the
        shard. Raises `MemoryError` when the batch does not fit; it is then halved.
        """
        ...


class Tokenizer(Protocol):
    """How a model's pairs become token ids (see `PairTokenizer` and `PromptTokenizer`).

    fixed_tokens: of every input, whatever its texts: special ones, a prompt's. travels: whether it
    pickles and then needs neither the model's files nor transformers, whose import takes a process
    seconds: a run sends such a one to where texts are tokenized.
    """

    rules: PairRules
    template: Template
    fixed_tokens: int
    travels: bool

    def query_text(self, query: str, instruction: str | None = None) -> str:
        """A query as the model reads it; pairs are told apart by it."""
        ...

    def document_text(self, document: str) -> str:
        """A document as the model reads it."""
        ...

    def leaves_room(self, instruction: str) -> bool:
        """Whether an instruction leaves query and document any of the model's length."""
        ...

    def tokenize(self, texts: Sequence[str], query: Int32, document: Int32) -> TokenizedPairs:
        """Tokenize and cut pairs, given as int32 [pairs] indices into such texts, each distinct.
        The result has its own texts, which may be others."""
        ...

    @property
    def largest_id(self) -> int:
        """The largest id that a text may hold, added tokens included."""
        ...

    def verify(self) -> None:
        """Raise `ModelError` when pairs are not what the model's own tokenizer makes of them."""
        ...


class Pending(Protocol):
    """A batch that was started."""

    def result(self) -> npt.NDArray[np.float32]:
        """Raw scores, float32 [batch]; waits for them. Raises `MemoryError` for no room."""
        ...


@runtime_checkable
class AsyncModel(ScorerModel, Protocol):
    """A model with threads of its own, which works on several batches at once.

    in_flight: how many may be started before the first result is taken.
    """

    in_flight: int

    def start(self, batch: TokenBatch) -> Pending:
        """Begin with a batch, and do not wait for it."""
        ...


class Description(Hashable, Protocol):
    """What is known of a model without loading it. Equal values give equal scores."""

    @property
    def digest(self) -> str:
        """SHA-256 over everything that makes the scores: config, tokenizer, weights."""
        ...

    @property
    def operations_per_token(self) -> float:
        """Floating-point operations of the encoder for one token, attention scores left out."""
        ...

    def max_length(self, wanted: int) -> int:
        """The length that is used when `wanted` tokens are asked for."""
        ...

    @property
    def takes_instruction(self) -> bool:
        """Whether an instruction is part of what the model reads."""
        ...

    @property
    def is_int8(self) -> bool:
        """Whether the files are an int8 graph, which OpenVINO scores on CPUs and nothing else."""
        ...

    def check(self, rules: PairRules) -> Tokenizer:
        """The tokenizer, as `tokenizer` gives it, once nothing speaks against a run.

        Raises what would fail in a worker: `ModelError` for keys, class or tokenizer,
        `ConfigError` for rules that leave a document no room."""
        ...

    def fetch(self) -> None:
        """Make the files present on this node."""
        ...

    def prepare(self, profile: Profile) -> None:
        """Make ready on this node what the profile's backend needs beside the files.

        Raises `BackendUnfit` when that backend cannot score the model here.
        """
        ...

    def tokenizer(self, rules: PairRules) -> Tokenizer:
        """The tokenizer with its pair template or prompt."""
        ...

    def load(self, profile: Profile) -> ScorerModel:
        """The model, ready to score. Verifies the digest."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Name, revision, digest, licence and shape, as stored in run.json and part files."""
        ...


def refuse_instructions(description: Description, column: str | None) -> None:
    """Raise `ConfigError` when a column of instructions is given to a model that takes none."""
    if column is not None and not description.takes_instruction:
        raise ConfigError(
            f"The column {column} holds instructions, but {description.to_json()['name']} takes "
            "none.",
            "Leave columns.instruction out, or choose a causal reranker (`rankmill models`).",
        )
