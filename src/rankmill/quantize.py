"""An int8 folder from a cross-encoder and a sample of its work, and how well it agrees with fp32.

The body's graph gets int8 weights and activations whose ranges are found once, on pairs of the
sample (static quantization); the head stays in float32. What is made is judged on other pairs of
the sample, against the source in fp32, before it is given its name.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from rankmill import agreement, profile, sample, storage
from rankmill.agreement import Agreement
from rankmill.batches import make_batches, pad_widths
from rankmill.config import ModelConfig, RunConfig
from rankmill.errors import ConfigError, ModelError, OutputError
from rankmill.models import Tokenizer, openvino_model, quantized, refuse_instructions
from rankmill.models.converted import BODY, HEAD
from rankmill.models.describe import describe
from rankmill.models.folder import CausalModel, FolderModel, JinaModel, QuantizedModel
from rankmill.models.locate import CARD
from rankmill.models.quantized import Calibration, Card, SourceModel
from rankmill.profile import Profile, make_profile, with_threads
from rankmill.sample import Pairs
from rankmill.scorer import score_pairs
from rankmill.source import open_source
from rankmill.tokens import Float32, PairRules, TokenBatch, TokenizedPairs, pair_digests
from rankmill.windows import assemble, cut

log = logging.getLogger("rankmill")

# Mean Kendall's tau-b. A MiniLM-L6 cross-encoder trained on this kind of task lost no nDCG@10 on
# cranfield at 0.945; orders that are by chance have 0.
MIN_AGREEMENT = 0.9
# Of a model's folder, beside the weights that are replaced.
_COPIED = (".json", ".jinja", ".txt", ".model")
_NOT_COPIED = frozenset(
    {"model.safetensors.index.json", "adapter_config.json", "modules.json", "trainer_state.json"}
)
_MAKERS = ("nncf", "openvino", "torch", "transformers", "rankmill")


@dataclass(frozen=True)
class Quantized:
    """What was made: the folder, its digest and its card."""

    folder: Path
    digest: str
    card: Card


def quantize(
    config: RunConfig, *, min_agreement: float = MIN_AGREEMENT, seed: int = 0
) -> Quantized:
    """Quantize `config.model` with `config.input` as the sample; `config.output.path` is made.

    Tokens, lengths and batches are a run's. min_agreement: the lowest mean Kendall's tau with
    fp32 at which the folder is kept. The same model and sample give the same graphs again.

    Raises a `StartError` for whatever keeps the folder from being made; nothing is left behind.
    """
    folder = _refuse_target(config.output.path)
    model = _source_model(config)
    _refuse_missing_packages()
    rules = PairRules.of(config.one_model, model.max_length(config.one_model.max_length))
    model.check(rules)
    source = open_source(config.input, config.storage)
    drawn = sample.draw(source, config.input, seed)
    tokenizer = model.tokenizer(rules)
    hardware = profile.probe("cpu")
    asked = ModelConfig(name=config.one_model.name, precision="fp32")
    exact = make_profile(
        asked,
        config.compute,
        "cpu",
        hardware,
        operations_per_token=model.operations_per_token,
        backend="openvino",
    )
    exact = with_threads(exact, config.compute, hardware.cores)
    entry = openvino_model.ready(model, exact, storage.user_cache() / "openvino")

    calibration = _tokenized(tokenizer, drawn.calibration)
    batches = _batches(tokenizer, calibration, exact)
    settings = _settings(config, rules, exact, seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        made = Path(scratch, "made")
        made.mkdir()
        _copy_files(model.path(), made)
        for file in (HEAD, HEAD.replace(".xml", ".bin")):
            shutil.copyfile(entry / file, made / file)
        log.info("Calibrating with %d pairs in %d batches.", len(drawn.calibration), len(batches))
        from rankmill.models import openvino_quantize

        openvino_quantize.quantize(entry / BODY, made / BODY, batches)
        log.info("Judging by %d held-out pairs.", len(drawn.held_out))
        int8 = replace(exact, precision="int8")
        held_out = _tokenized(tokenizer, drawn.held_out)
        found = agreement.measure(
            _scores(entry, held_out, tokenizer, exact),
            _scores(made, held_out, tokenizer, int8),
            drawn.held_out.list,
        )
        _refuse_disagreement(config.one_model.name, found, min_agreement)
        card = Card(
            format=1,
            precision="int8",
            source=SourceModel(
                name=config.one_model.name,
                digest=model.digest,
                revision=model.place.revision,
                alibi_slopes=model.slopes if isinstance(model, JinaModel) else None,
            ),
            calibration=Calibration(
                digest=_digest(drawn.calibration, drawn.held_out, settings),
                pairs=len(drawn.calibration),
                lists=len(np.unique(drawn.calibration.list)),
                batches=len(batches),
                tokens=int(cut(calibration, rules).lengths.sum()),
                settings=settings,
            ),
            agreement=found,
            check_scores=tuple(quantized.check_scores(model, made, int8).tolist()),
            versions={name: metadata.version(name) for name in _MAKERS},
            files=quantized.file_sums(made),
        )
        (made / CARD).write_bytes(card.to_bytes())
        _put(made, folder)
    return Quantized(folder, describe(ModelConfig(name=str(folder))).digest, card)


def _refuse_target(path: str) -> Path:
    if storage.is_remote(path):
        raise ConfigError(
            f"--output is {path}; an int8 folder is made on a local disk.",
            "Give a local folder, and copy it afterwards: model.name takes it from a store, too.",
        )
    folder = Path(storage.absolute(path))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(
            f"{folder} is already there.", "Choose another --output, or remove it first."
        )
    return folder


def _source_model(config: RunConfig) -> FolderModel:
    """The model to quantize. Raises `ConfigError` or `ModelError` for what cannot be."""
    asked = config.one_model
    for setting, value, allowed in (
        ("model.scorer", asked.scorer, (None,)),
        ("model.backend", asked.backend, ("auto", "openvino")),
        ("model.precision", asked.precision, ("auto",)),
        ("compute.device", config.compute.device, ("auto", "cpu")),
    ):
        if value not in allowed:
            raise ConfigError(
                f"{setting} is {value}; int8 is made for OpenVINO on CPUs, which scores it.",
                f"Leave {setting} out.",
            )
    model = describe(asked, config.storage)
    if isinstance(model, QuantizedModel):
        raise ModelError(
            f"{asked.name} is an int8 folder already, made of {model.source.name}.",
            "Give the model that it was made of.",
        )
    if isinstance(model, CausalModel):
        raise ModelError(
            f"{asked.name} is a causal reranker ({model.architecture.name}, prompt "
            f"{model.prompt.name}); only sequence classifiers are quantized.",
            "Choose one (`rankmill models`).",
        )
    assert isinstance(model, FolderModel), "without a scorer of one's own, models are folders"
    refuse_instructions(model, config.input.columns.instruction)
    return model


def _refuse_missing_packages() -> None:
    missing = [name for name in ("openvino", "nncf") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"Quantizing needs {' and '.join(missing)}, not installed here.",
            "pip install 'rankmill[quantize]'",
        )


def _copy_files(source: Path, target: Path) -> None:
    for file in sorted(source.iterdir()):
        if file.suffix in _COPIED and file.name not in _NOT_COPIED:
            shutil.copyfile(file, target / file.name)


def _tokenized(tokenizer: Tokenizer, pairs: Pairs) -> TokenizedPairs:
    """int32 [pairs] pairs of distinct texts, in order; equal ones are not joined."""
    texts: dict[str, int] = {}
    queries = [texts.setdefault(tokenizer.query_text(text), len(texts)) for text in pairs.queries]
    documents = [
        texts.setdefault(tokenizer.document_text(text), len(texts)) for text in pairs.documents
    ]
    query, document = (np.array(numbers, np.int32) for numbers in (queries, documents))
    return tokenizer.tokenize(list(texts), query, document)


def _batches(tokenizer: Tokenizer, pairs: TokenizedPairs, run: Profile) -> list[TokenBatch]:
    """Inputs as a run makes them."""
    windows = cut(pairs, tokenizer.rules)
    widths = pad_widths(windows.lengths, run.pad_to_multiple_of, tokenizer.rules.max_length)
    return [
        assemble(windows, tokenizer.template, chosen, int(widths[chosen].max()))
        for chosen in make_batches(widths, run.token_budget)
    ]


def _scores(folder: Path, pairs: TokenizedPairs, tokenizer: Tokenizer, run: Profile) -> Float32:
    model = quantized.load(folder, run)
    return score_pairs(model, pairs, tokenizer.rules, tokenizer.template, run).scores


def _settings(config: RunConfig, rules: PairRules, run: Profile, seed: int) -> dict[str, Any]:
    """What changes calibration, beside the texts and the model."""
    unlike = {"name", "revision", "scorer", "backend"}
    given = config.one_model.model_dump(mode="json", exclude=unlike)
    return given | {
        "max_length": rules.max_length,
        "depth": config.input.depth,
        "seed": seed,
        "token_budget": run.token_budget,
        "pad_to_multiple_of": run.pad_to_multiple_of,
    }


def _digest(calibration: Pairs, held_out: Pairs, settings: dict[str, Any]) -> str:
    whole = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for pairs in (calibration, held_out):
        numbers = np.arange(len(pairs), dtype=np.int32)
        whole.update(b"".join(pair_digests(pairs.queries, pairs.documents, numbers, numbers)))
        whole.update(pairs.list.tobytes())
    return whole.hexdigest()


def _refuse_disagreement(name: str, found: Agreement, least: float) -> None:
    if found.kendall_tau < least or not np.isfinite(found.score_rms_difference):
        over = f"{found.lists} candidate lists" if found.lists else f"{found.pairs} pairs"
        raise ModelError(
            f"int8 orders the sample too differently from {name} in fp32: Kendall's tau is "
            f"{found.kendall_tau:.3f} (mean over {over}), below {least:g}; scores differ by "
            f"{found.score_rms_difference:.3g} (root mean square), and spread by "
            f"{found.score_spread:.3g}. The folder was not kept.",
            "Give a sample that is like the pairs you rank, or lower --min-agreement and judge "
            "by `rankmill evaluate`; bf16 (the default) loses less than int8.",
        )


def _put(made: Path, folder: Path) -> None:
    try:
        os.rename(made, folder)  # onto an empty folder, too
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be made: {error}.", "Choose another --output."
        ) from None
