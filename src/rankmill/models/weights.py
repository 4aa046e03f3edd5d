"""The safetensors files of a model's folder. Pickled weights are named and never read."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from rankmill.errors import ModelError

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_WEIGHTS = "model.safetensors"
_WEIGHTS_INDEX = "model.safetensors.index.json"


def weight_files(name: str, files: Path) -> list[Path]:
    """The safetensors files that transformers would load: one, or those that an index names.

    Raises `ModelError` when there are none, or when one that the index names is missing.
    """
    if (files / _WEIGHTS).is_file():
        return [_readable(files / _WEIGHTS)]
    index = files / _WEIGHTS_INDEX
    if not index.is_file():
        others = sorted(p.name for p in files.iterdir() if p.suffix in (".safetensors", *_PICKLED))
        found = f"only {', '.join(others)} (nothing is ever unpickled)" if others else "no weights"
        raise ModelError(
            f"The model {name} has no {_WEIGHTS}: {found}.",
            "Convert it once where you trust it: model.save_pretrained(FOLDER) writes safetensors.",
        )
    try:
        named = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(
            f"{index} is not an index of safetensors files.",
            "Give a folder written by save_pretrained.",
        ) from None
    missing = [n for n in named if Path(n).name != n or not (files / n).is_file()]
    if missing or not named:
        raise ModelError(
            f"{index} names {', '.join(missing) or 'no file'}, which is not in the folder.",
            "Fetch the model again.",
        )
    return [_readable(files / n) for n in named]


def weight_names(files: list[Path]) -> set[str]:
    """The names of all weights in readable safetensors files."""
    names: set[str] = set()
    for file in files:
        with safe_open(str(file), framework="numpy") as weights:
            names.update(weights.keys())
    return names


def _readable(file: Path) -> Path:
    try:
        with safe_open(str(file), framework="numpy"):
            return file
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{file} is not a readable safetensors file: {error}.", "Fetch the model again."
        ) from None
