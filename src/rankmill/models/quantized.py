"""int8 folders: what `rankmill quantize` leaves, told from other models by its card.

    config.json, tokenizer files        the source's, byte for byte
    body.xml, body.bin                  the quantized body
    head.xml, head.bin                  pooler and classifier, float32
    quantized.json                      the card

A node's processor is compared with the one that quantized: without instructions for products of
int8, sums may saturate, and the scores are then others.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from rankmill.agreement import Agreement
from rankmill.config import ModelConfig
from rankmill.errors import BackendUnfit, ConfigError, ModelError
from rankmill.models import ScorerModel, converted, openvino_model
from rankmill.models.locate import CARD
from rankmill.profile import Profile

if TYPE_CHECKING:
    from rankmill.models.folder import FolderModel

_REMEDY = "Make the folder again with `rankmill quantize`."


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceModel(_Part):
    """The model that was quantized. alibi_slopes: a JinaBERT's, now part of the graph."""

    name: str
    digest: str
    revision: str | None
    alibi_slopes: str | None


class Calibration(_Part):
    """What the ranges of int8 were found with.

    digest: SHA-256 over the texts of these pairs and of the held-out ones, and `settings`.
    """

    digest: str
    pairs: int
    lists: int
    batches: int
    tokens: int
    settings: dict[str, Any]


class Card(_Part):
    """quantized.json. files: SHA-256 of the graphs. check_scores: of `check_batches`, in int8.

    agreement: int8 against the source in fp32, on pairs of the sample that it was not calibrated
    with.
    """

    format: int
    precision: str
    source: SourceModel
    calibration: Calibration
    agreement: Agreement
    check_scores: tuple[float, ...]
    versions: dict[str, str]
    files: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return self.model_dump(mode="json")

    def to_bytes(self) -> bytes:
        """As stored."""
        return json.dumps(self.to_json(), indent=1, ensure_ascii=False).encode() + b"\n"


def refuse_settings(config: ModelConfig) -> None:
    """Raise `ConfigError` for what is settled when a model is quantized."""
    for setting, value in (("precision", config.precision), ("alibi_slopes", config.alibi_slopes)):
        if value != "auto":
            raise ConfigError(
                f"model.{setting} is {value}, but {config.name} is an int8 folder, in which it is "
                "settled.",
                f"Leave model.{setting} at auto, or score the model that was quantized.",
            )


def is_quantized(folder: Path) -> bool:
    """Whether a folder is one that `rankmill quantize` made."""
    return (folder / CARD).is_file()


def read_card(folder: Path) -> Card:
    """The card of a folder. Raises `ModelError` when this version cannot read it."""
    try:
        card = Card.model_validate_json((folder / CARD).read_bytes())
    except (OSError, ValidationError):
        raise ModelError(
            f"{folder / CARD} is damaged or was written by another version of rankmill.", _REMEDY
        ) from None
    if (card.format, card.precision) != (1, "int8"):
        raise ModelError(
            f"{folder / CARD} is of the format {card.format} ({card.precision}); this version "
            "reads format 1 (int8).",
            _REMEDY,
        )
    return card


def file_sums(folder: Path) -> dict[str, str]:
    """SHA-256 of each graph file. Raises `ModelError` when one is missing."""
    sums = {}
    for name in converted.FILES:
        try:
            with open(folder / name, "rb") as file:
                sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            raise ModelError(f"The int8 folder {folder} has no {name}.", _REMEDY) from None
    return sums


def check_files(folder: Path) -> None:
    """Raise `ModelError` when the graphs are not those that the card was written for."""
    sums = file_sums(folder)
    wrong = [name for name, expected in read_card(folder).files.items() if sums[name] != expected]
    if wrong:
        raise ModelError(
            f"{', '.join(wrong)} in {folder} is not what its card {CARD} was written for.",
            _REMEDY,
        )


def ready(model: FolderModel, profile: Profile, cache: Path) -> None:
    """See that this node gives the scores that the folder had when it was made; told once.

    They may differ by as much as int8 itself differs from fp32, as root mean squares. Raises
    `BackendUnfit` when they do not, or OpenVINO is missing.
    """
    if not openvino_model.is_installed():
        raise BackendUnfit(
            f"{model.name} is an int8 model, which OpenVINO scores; it is not installed on this "
            "node.",
            "pip install 'rankmill[cpu]'",
        )
    entry = cache / f"int8-{converted.key_of(model.digest)}"
    found = converted.checked(entry, profile)
    if found is None:
        card = read_card(model.path())
        scores = check_scores(model, model.path(), profile)
        difference = float(np.sqrt(np.mean((scores - np.array(card.check_scores)) ** 2)))
        found = converted.Check(difference, card.agreement.score_rms_difference)
        try:
            entry.mkdir(parents=True, exist_ok=True)
            converted.keep_check(entry, profile, found)
        except OSError as error:
            raise BackendUnfit(
                f"What was checked cannot be kept in {cache}: {error}.",
                "Make room there, or let XDG_CACHE_HOME name another folder.",
            ) from error
    if not found.agrees:
        raise BackendUnfit(
            f"On this processor ({profile.instructions}) the scores of {model.name} differ by "
            f"{found.difference:.2g} from those that it had when it was quantized; "
            f"{found.allowed:.2g} is allowed.",
            "Quantize on a machine of this kind, or score with the source model here.",
        )


def check_scores(model: FolderModel, folder: Path, profile: Profile) -> npt.NDArray[np.float64]:
    """Scores float64 that a folder's graphs give the pairs with which every node is checked.

    model: whose tokenizer the folder has.
    """
    scorer = load(folder, profile)
    batches = openvino_model.check_batches(model)
    return np.concatenate([scorer.score(batch) for batch in batches]).astype(np.float64)


def load(folder: Path, profile: Profile) -> ScorerModel:
    """The folder's graphs, compiled. Raises `BackendUnfit` when they cannot be."""
    from rankmill.models import openvino_encoder

    return openvino_encoder.OpenVinoEncoder(folder, profile)
