"""Models as folders: what is in them, and whether they can be trusted.

A folder needs `config.json`, tokenizer files and safetensors. Pickled weights are not read and
no code from a repository is run, whatever its config asks for.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankmill.config import Slopes
from rankmill.errors import ModelError
from rankmill.models import (
    ScorerModel,
    Tokenizer,
    openvino_model,
    quantized,
)
from rankmill.models.architectures import (
    Architecture,
    architecture_of,
)
from rankmill.models.locate import Place
from rankmill.profile import Profile
from rankmill.prompt_tokenizer import PromptTokenizer
from rankmill.prompts import Prompt
from rankmill.storage import user_cache
from rankmill.tokenizer import PairTokenizer
from rankmill.tokens import PairRules

if TYPE_CHECKING:
    from rankmill.models.classifiers import Classifier


@dataclass(frozen=True)
class FolderModel:
    """A sequence classifier of a supported architecture, as a folder on every node.

    prefix: what sentence-transformers was told to put before every query.
    """

    name: str
    digest: str
    config: str
    place: Place
    license: str | None = None
    prefix: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """config.json."""
        values: dict[str, Any] = json.loads(self.config)
        return values

    @property
    def architecture(self) -> Architecture:
        """Found in config.json."""
        return architecture_of(self.name, self.settings)

    @property
    def operations_per_token(self) -> float:
        """Floating-point operations of the encoder for one token."""
        return self.architecture.operations_per_token(self.settings)

    def max_length(self, wanted: int) -> int:
        """`wanted`, or the model's own limit where that is lower."""
        return min(wanted, self.architecture.max_length(self.settings))

    def path(self) -> Path:
        """The folder on this node. Raises `ModelError` when it cannot be had."""
        return self.place.path()

    def fetch(self) -> None:
        """Make the files present on this node; a local folder must be there already."""
        self.path()

    def prepare(self, profile: Profile) -> None:
        """Convert the model where the profile's backend needs it. Raises `BackendUnfit`."""
        if profile.backend == "openvino":
            openvino_model.ready(self, profile, user_cache() / "openvino")

    @property
    def takes_instruction(self) -> bool:
        """Whether an instruction is part of what the model reads."""
        return False

    @property
    def is_int8(self) -> bool:
        """Whether the files are an int8 graph."""
        return False

    def check(self, rules: PairRules) -> Tokenizer:
        """The tokenizer.

        Raises `ModelError` when the weights do not fill the class, or the tokenizer differs.
        """
        self._check_weights(self.path())
        tokenizer = self.tokenizer(rules)
        rows = self.settings.get("vocab_size")
        if isinstance(rows, int) and tokenizer.largest_id >= rows:
            raise ModelError(
                f"The tokenizer of {self.name} has the id {tokenizer.largest_id}, the model only "
                f"{rows} word embeddings.",
                "Give the model the tokenizer that it was trained with.",
            )
        tokenizer.verify()
        return tokenizer

    def tokenizer(self, rules: PairRules) -> Tokenizer:
        """The tokenizer with its pair template."""
        return PairTokenizer.load(self.path(), rules, self.prefix)

    def load(self, profile: Profile) -> ScorerModel:
        """The model on the profile's device, once its digest is confirmed.

        Raises `BackendUnfit` when the profile's backend cannot score it on this node.
        """
        self._confirm_digest()
        if profile.backend == "openvino":
            entry = openvino_model.ready(self, profile, user_cache() / "openvino")
            from rankmill.models import openvino_encoder

            return openvino_encoder.OpenVinoEncoder(entry, profile)
        return self.load_on_torch(profile)

    def load_on_torch(self, profile: Profile) -> ScorerModel:
        """The model on torch, whatever the profile's backend."""
        from rankmill.models import torch_encoder

        return torch_encoder.TorchEncoder(self.path(), profile, self.load_parts)

    def load_parts(self, folder: Path, traced: bool = False) -> Classifier:
        """Body and head on torch. traced: to be recorded by a converter."""
        from rankmill.models import classifiers

        return classifiers.load(folder, traced)

    def to_json(self) -> dict[str, Any]:
        """What names the model in run.json and in the part files."""
        return {
            "name": self.name,
            **self.place.to_json(),
            "digest": self.digest,
            "architecture": self.architecture.name,
            "license": self.license,
        }

    def _confirm_digest(self) -> None:
        found = self._digest_here()
        if found != self.digest:
            raise ModelError(
                f"The model {self.name} on this node has the digest {found[:12]}, "
                f"the run's is {self.digest[:12]}.",
                "Bring the same files to every node.",
            )

    def _digest_here(self) -> str:
        return self.place.digest()

    def _check_weights(self, folder: Path) -> None:
        from rankmill.models import classifiers

        classifiers.check(folder)


@dataclass(frozen=True)
class QuantizedModel(FolderModel):
    """An int8 folder (see `quantized`), which only OpenVINO scores."""

    source: quantized.SourceModel = field(kw_only=True)

    @property
    def is_int8(self) -> bool:
        """Always."""
        return True

    def prepare(self, profile: Profile) -> None:
        """See that this node gives the folder's scores. Raises `BackendUnfit`."""
        quantized.ready(self, profile, user_cache() / "openvino")

    def load(self, profile: Profile) -> ScorerModel:
        """The graphs, compiled, once their digest is confirmed. Raises `BackendUnfit`."""
        self._confirm_digest()
        return quantized.load(self.path(), profile)

    def to_json(self) -> dict[str, Any]:
        """What names the model, and what it was made of."""
        made_of = {"quantized_from": self.source.name, "quantized_digest": self.source.digest}
        return super().to_json() | made_of

    def _check_weights(self, folder: Path) -> None:
        quantized.check_files(folder)


@dataclass(frozen=True)
class JinaModel(FolderModel):
    """A JinaBERT. slopes: how its last heads weigh distance (see `jina_bert.alibi_slopes`)."""

    slopes: Slopes = field(kw_only=True)

    def load_parts(self, folder: Path, traced: bool = False) -> Classifier:
        """Body and head on torch. traced: to be recorded by a converter."""
        from rankmill.models import classifiers

        return classifiers.load_jina(folder, self.slopes, traced)

    def to_json(self) -> dict[str, Any]:
        """What names the model, and its slopes."""
        return super().to_json() | {"alibi_slopes": self.slopes}

    def _check_weights(self, folder: Path) -> None:
        from rankmill.models import classifiers

        classifiers.load_jina(folder, self.slopes)


@dataclass(frozen=True)
class CausalModel(FolderModel):
    """A causal language model, scored by tokens' logits after a prompt.

    tokens: ids of the true and the false token. instruction: in place of the prompt's usual one.
    The digest covers the prompt, too.
    """

    prompt: Prompt = field(kw_only=True)
    tokens: tuple[int, ...] = field(kw_only=True)
    instruction: str | None = field(kw_only=True)

    @property
    def takes_instruction(self) -> bool:
        """Whether the prompt has a place for an instruction."""
        return self.prompt.instructed is not None

    def load_parts(self, folder: Path, traced: bool = False) -> Classifier:
        """Decoder and answering tokens on torch, in the type that the weights are stored in."""
        from rankmill.models import causal_lm

        return causal_lm.load(folder, self.tokens)

    def tokenizer(self, rules: PairRules) -> Tokenizer:
        """The tokenizer with the prompt."""
        return PromptTokenizer.load(self.path(), self.prompt, rules, self.instruction)

    def to_json(self) -> dict[str, Any]:
        """What names the model, and its prompt."""
        return super().to_json() | {"prompt": self.prompt.name}

    def _digest_here(self) -> str:
        return digest_with(self.prompt, self.place)

    def _check_weights(self, folder: Path) -> None:
        from rankmill.models import causal_lm

        causal_lm.check(folder, self.tokens)


def digest_with(prompt: Prompt, place: Place) -> str:
    """SHA-256, hex: of the files and of the prompt that they are asked with."""
    return hashlib.sha256((place.digest() + prompt.model_dump_json()).encode()).hexdigest()
