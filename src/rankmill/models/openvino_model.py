"""A model on OpenVINO: converted once a node, checked against torch, and kept.

A node that has it needs torch no more, which is most of a scoring actor's start.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rankmill.errors import BackendUnfit
from rankmill.models import converted
from rankmill.profile import Profile
from rankmill.tokens import PairRules, TokenBatch
from rankmill.windows import assemble, cut

if TYPE_CHECKING:
    from rankmill.models.folder import FolderModel

# Tokens. Local windows of the architectures here are far shorter (ModernBERT: 128).
_LONGEST = 512
_QUERY = "how do bees find the way back to their hive"
_RELEVANT = "Bees find the way back to their hive by the sun and by landmarks they remember. "
_OTHER = "Sourdough is bread raised by wild yeast; 東京は日本の首都 and 3.14 is nearly π. "
# Documents of the check: batches of very different lengths, of about the same, and of one pair.
_CHECKED = (
    ("Honey.", _RELEVANT * 2, _OTHER * 8, (_OTHER + _RELEVANT) * 40),
    (_RELEVANT, _OTHER, _RELEVANT + _OTHER, _OTHER + "Bees dance."),
    (_OTHER * 3 + _RELEVANT,),
)


def is_installed() -> bool:
    """Whether this environment has OpenVINO."""
    return importlib.util.find_spec("openvino") is not None


def ready(model: FolderModel, profile: Profile, cache: Path) -> Path:
    """The folder of the converted model, made where it is not there yet.

    Raises `BackendUnfit` when it cannot be had, or its scores are too far from torch's.
    """
    if not is_installed():
        raise BackendUnfit(
            "OpenVINO is not installed on this node.",
            "pip install 'rankmill[cpu]', or set model.backend to torch.",
        )
    if not model.architecture.openvino:
        raise BackendUnfit(f"{model.architecture.name} is not run on OpenVINO in this version.")
    key = converted.key_of(model.digest)
    try:
        entry = converted.find(cache, key)
        if entry is None:
            entry = converted.build(cache, key, lambda target: _convert(model, target))
        found = converted.checked(entry, profile)
        if found is None:
            found = _check(model, entry, profile)
            converted.keep_check(entry, profile, found)
    except OSError as error:
        raise BackendUnfit(
            f"The converted model cannot be kept in {cache}: {error}.",
            "Make room there, or let XDG_CACHE_HOME name another folder.",
        ) from error
    if not found.agrees:
        raise BackendUnfit(
            f"OpenVINO's scores of {model.name} differ from torch's by {found.difference:.2g} on "
            f"the check's pairs; {found.allowed:.2g} is allowed."
        )
    return entry


def check_batches(model: FolderModel) -> list[TokenBatch]:
    """Inputs with real tokens: batches with next to no padding and with rows of hardly else."""
    tokenizer = model.tokenizer(PairRules(model.max_length(_LONGEST), "longest_first"))
    batches = []
    for documents in _CHECKED:
        document = np.arange(1, len(documents) + 1, dtype=np.int32)
        pairs = tokenizer.tokenize([_QUERY, *documents], np.zeros_like(document), document)
        windows = cut(pairs, tokenizer.rules)
        batches.append(assemble(windows, tokenizer.template, np.arange(len(windows))))
    return batches


def _convert(model: FolderModel, target: Path) -> None:
    from rankmill.models import openvino_convert

    parts = model.load_parts(model.path(), traced=True)
    openvino_convert.convert(parts, target, check_batches(model)[0])


def _check(model: FolderModel, entry: Path, profile: Profile) -> converted.Check:
    from rankmill.models import openvino_convert

    return openvino_convert.check(model.load_on_torch, entry, profile, check_batches(model))
