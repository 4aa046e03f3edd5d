"""Finding a model: from its name to what is known of it, or to why it cannot be scored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from rankmill import tokenizer_files
from rankmill.config import ModelConfig, Slopes
from rankmill.errors import ConfigError, ModelError
from rankmill.models import Description, adapter, custom, presets, prompt_sources, quantized
from rankmill.models.architectures import (
    JINA_BERT_KEY,
    Architecture,
    architecture_of,
    refuse_broken,
)
from rankmill.models.folder import (
    CausalModel,
    FolderModel,
    JinaModel,
    QuantizedModel,
    digest_with,
)
from rankmill.models.locate import Place, locate
from rankmill.models.prompt_sources import token_ids
from rankmill.models.weights import weight_files, weight_names
from rankmill.storage_settings import ENVIRONMENT, StorageConfig


def describe(config: ModelConfig, access: StorageConfig = ENVIRONMENT) -> Description:
    """Find a model: `demo`, a local folder, a folder on an object store, or a hub id.

    The folder may be a LoRA adapter's. access: how an object store is reached.

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
        return custom.describe(name, config.scorer, locate(name, config.revision, access), license_)
    if preset is not None and not preset.supported and not Path(name).is_dir():
        raise ModelError(f"{name} is not supported in this version: {preset.reason}")
    place = locate(name, config.revision, access)
    files = place.path()
    if adapter.is_adapter(files):
        merged = adapter.find_base(name, place, access)
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
        digest_with(prompt, common[1]),
        *common,
        prompt=prompt,
        tokens=token_ids(tokenizer, prompt),
        instruction=config.instruction,
    )
