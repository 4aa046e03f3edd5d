"""Models as folders: what is in them, and whether they can be trusted.

A folder needs `config.json`, tokenizer files and safetensors. Pickled weights are not read and
no code from a repository is run, whatever its config asks for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from rankmill import tokenizer_files
from rankmill.config import ModelConfig, Slopes
from rankmill.errors import ConfigError, ModelError
from rankmill.models import (
    Description,
    ScorerModel,
    Tokenizer,
    adapter,
    custom,
    openvino_model,
    presets,
    prompt_sources,
    quantized,
)
from rankmill.models.architectures import (
    JINA_BERT_KEY,
    Architecture,
    architecture_of,
    refuse_broken,
)
from rankmill.models.locate import Place, locate
from rankmill.models.prompt_sources import token_ids
from rankmill.models.weights import weight_files, weight_names
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
        return _digest_with(self.prompt, self.place)

    def _check_weights(self, folder: Path) -> None:
        from rankmill.models import causal_lm

        causal_lm.check(folder, self.tokens)


def describe(config: ModelConfig, profile: str | None = None) -> Description:
    """Find a model: `demo`, a local folder, a folder on an object store, or a hub id.

    The folder may be a LoRA adapter's. profile: the AWS profile for an object store.

    Raises `ModelError` when it cannot be found, has no safetensors, asks for code of its own, is
    of an architecture that this version does not score, or is a causal language model of which
    nothing says the prompt; `ConfigError` for an instruction, a prompt or slopes that it does not
    take.
    """
    name = config.name
    preset = presets.find(name)
    license_ = preset.licence if preset is not None else None
    if config.scorer is not None:
        _refuse_settings(config, custom.PLAIN)
        return custom.describe(
            name, config.scorer, locate(name, config.revision, profile), license_
        )
    if preset is not None and not preset.supported and not Path(name).is_dir():
        raise ModelError(f"{name} is not supported in this version: {preset.reason}")
    place = locate(name, config.revision, profile)
    files = place.path()
    if adapter.is_adapter(files):
        merged = adapter.find_base(name, place, profile)
        return _described(config, merged, [merged.base.path(), files], license_)
    return _described(config, place, [files], license_)


def _described(
    config: ModelConfig, place: Place, folders: Sequence[Path], license_: str | None
) -> FolderModel:
    """folders: first the one with config and weights; any of them may hold the tokenizer."""
    name, files = config.name, folders[0]
    config_file = files / "config.json"
    if not config_file.is_file():
        raise ModelError(
            f"The model {name} has no config.json in {files}.",
            "Give a folder written by save_pretrained.",
        )
    try:
        settings = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{config_file} is not valid JSON: {error}.") from None
    if not isinstance(settings, dict):
        raise ModelError(
            f"{config_file} must hold a JSON object, found a {type(settings).__name__}.",
            "Give a folder written by save_pretrained.",
        )
    if isinstance(place, adapter.MergedAdapter):  # which brings the head, or lacks it by name
        settings.pop("architectures", None)
    found = architecture_of(name, settings)
    refuse_broken(config_file, settings, found)
    int8 = quantized.is_quantized(files)
    weights = set() if int8 else weight_names(weight_files(name, files))
    if found.name == "bert" and any(key.endswith(JINA_BERT_KEY) for key in weights):
        raise ModelError(
            f"The weights of {name} are JinaBERT's, but its config.json does not say "
            "position_embedding_type alibi.",
            "Fetch the config.json that they were published with.",
        )
    if not any(map(tokenizer_files.has_vocabulary, folders)):
        raise ModelError(
            f"The model {name} has no tokenizer: neither tokenizer.json nor a vocabulary in "
            f"{files}.",
            "Save it beside the model: tokenizer.save_pretrained(FOLDER).",
        )
    _refuse_settings(config, found)
    common = (json.dumps(settings), place, license_)
    if int8:
        quantized.refuse_settings(config)
        card = quantized.read_card(files)
        return QuantizedModel(name, place.digest(), *common, source=card.source)
    if found.task == "ForCausalLM":
        return _prompted(config, folders, common)
    # An adapter's own, where sentence-transformers saved it.
    prompts = filter(None, (prompt_sources.default_prompt(name, one) for one in folders[::-1]))
    prefix = next(prompts, "")
    if found.name == "jina-bert":
        slopes = _slopes(config, settings)
        return JinaModel(name, place.digest(), *common, prefix, slopes=slopes)
    return FolderModel(name, place.digest(), *common, prefix)


def _slopes(config: ModelConfig, settings: dict[str, Any]) -> Slopes:
    """What the configuration says, or else config.json; the published ones do not."""
    if config.alibi_slopes != "auto":
        return config.alibi_slopes
    written = settings.get("alibi_slopes", "halved")
    if written not in get_args(Slopes):
        raise ModelError(
            f"The config.json of {config.name} has alibi_slopes {written!r}.",
            f"It must be one of {', '.join(get_args(Slopes))}, or be left out.",
        )
    slopes: Slopes = written
    return slopes


def _refuse_settings(config: ModelConfig, found: Architecture) -> None:
    """Settings that only models of one kind have."""
    causal, jina = found.task == "ForCausalLM", found.name == "jina-bert"
    for setting, given, wanted, whose in (
        ("instruction", config.instruction is not None, causal, "a causal reranker"),
        ("prompt", config.prompt != prompt_sources.AUTO, causal, "a causal reranker"),
        ("alibi_slopes", config.alibi_slopes != "auto", jina, "a JinaBERT"),
    ):
        if given and not wanted:
            raise ConfigError(
                f"model.{setting} is set, but {config.name} is a {found.name} model.",
                f"Leave model.{setting} out, or choose {whose} (`rankmill models`).",
            )


def _prompted(
    config: ModelConfig, folders: Sequence[Path], common: tuple[str, Place, str | None]
) -> CausalModel:
    """folders: as for `_described`; the last that has a tokenizer, or a prompt, gives it."""
    place = common[1]
    *_, with_tokenizer = filter(tokenizer_files.has_vocabulary, folders)
    saved = [one for one in folders if (one / prompt_sources.MODULES).is_file()]
    tokenizer = tokenizer_files.load(with_tokenizer)
    prompt = prompt_sources.find_prompt(
        config.name,
        config.prompt,
        [*folders[:1], *saved][-1],
        tokenizer,
        place.base_name if isinstance(place, adapter.MergedAdapter) else None,
    )
    if config.instruction is not None and prompt.instructed is None:
        raise ConfigError(
            f"model.instruction is set, but the prompt {prompt.name} of {config.name} has no place "
            "for one before the query.",
            "Leave model.instruction out.",
        )
    return CausalModel(
        config.name,
        _digest_with(prompt, common[1]),
        *common,
        prompt=prompt,
        tokens=token_ids(tokenizer, prompt),
        instruction=config.instruction,
    )


def _digest_with(prompt: Prompt, place: Place) -> str:
    return hashlib.sha256((place.digest() + prompt.model_dump_json()).encode()).hexdigest()
