"""A model's own tokenizer, as its files mean it.

transformers 5 does not always load what a folder holds. Three things are put right here, each to
what transformers 4, with which nearly all published checkpoints were trained, made of the files.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankmill.encoding import without_noise
from rankmill.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

# What holds a vocabulary, of every kind of tokenizer among the architectures'.
_VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "sentencepiece.bpe.model",
    "spiece.model",
    "spm.model",
    "tokenizer.model",
)
# Steps and template of a tokenizer.json stand for themselves: ids are written in the template.
_WITHOUT_VOCABULARY: dict[str, Any] = {
    "model": {"type": "BPE", "vocab": {}, "merges": []},
    "added_tokens": [],
}
_REMEDY = "The folder needs tokenizer.json, or the vocabulary files of its tokenizer."
_SEGMENTS = "token_type_ids"
# MeCab gives up on a text whose best path costs more than 2^31 - 1 (`viterbi.cpp`), and fugashi
# 1.5 then ends the process. A word and its connection cost at most 2 x 32,767, and every word has
# a character, so this many are always safe.
_MECAB_CHARACTERS = 32_000


def has_vocabulary(folder: Path) -> bool:
    """Whether a folder holds a tokenizer's vocabulary, of whatever kind."""
    return any((folder / name).is_file() for name in _VOCABULARIES)


def load(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a local folder.

    Raises `ModelError` when there is none, when it cannot be read, or when it needs a package
    that is not installed.
    """
    from transformers import AutoTokenizer

    try:
        with without_noise():
            tokenizer = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
    except ImportError as error:
        raise _without_package(folder, error) from error
    except Exception as error:  # the tokenizers library raises plain ones
        reason = " ".join(str(error).split())
        raise ModelError(
            f"The tokenizer in {folder} cannot be loaded: {reason}.", _REMEDY
        ) from error
    # Without its files transformers makes one that knows special tokens only.
    files = tokenizer.vocab_files_names.values()
    if not any(Path(folder, name).is_file() for name in files):
        raise ModelError(f"{folder} has no tokenizer ({' or '.join(files)}).", _REMEDY)
    _restore_segments(tokenizer, Path(folder))
    if tokenizer.is_fast:
        _restore_steps(tokenizer, Path(folder))
    elif getattr(tokenizer, "word_tokenizer_type", None) == "mecab":
        tokenizer.word_tokenizer = _InPieces(tokenizer.word_tokenizer)
    return tokenizer


def _without_package(folder: str | Path, error: ImportError) -> ModelError:
    reason = " ".join(str(error).split())
    if any(package in reason for package in ("fugashi", "unidic_lite")):
        return ModelError(
            f"The tokenizer in {folder} splits Japanese with MeCab, which is not installed.",
            "Install it on every node: pip install 'rankmill[japanese]'.",
        )
    return ModelError(
        f"The tokenizer in {folder} needs a package that is missing: {reason}",
        "Install it on every node.",
    )


def _restore_segments(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Give segment ids where neither class nor files say whether the model takes them.

    That was the default of transformers 4; since 5 such tokenizers give none, and every token
    counts as one of the query (transformers issue 48128). Files that 5 wrote name their backend.
    """
    from transformers import PreTrainedTokenizerBase

    names = PreTrainedTokenizerBase.model_input_names
    told = _settings(folder / "tokenizer_config.json")
    silent = type(tokenizer).model_input_names is names and "model_input_names" not in told
    segments = _settings(folder / "config.json").get("type_vocab_size", 0)
    if silent and "backend" not in told and segments > 1:
        tokenizer.model_input_names = [*names, _SEGMENTS]


def _settings(file: Path) -> dict[str, Any]:
    settings: dict[str, Any] = (
        json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    )
    return settings


def _restore_steps(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Put back steps that transformers' class leaves out when it rebuilds a tokenizer.

    Classes of transformers 5 take the vocabulary from tokenizer.json and build the rest anew, so
    that, say, the Lowercase of a RobertaTokenizer is lost, and DebertaV2Tokenizer leaves out the
    normalization of its SentencePiece model. Settings of the same steps stay the class's: they
    come from tokenizer_config.json.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    if type(tokenizer) is PreTrainedTokenizerFast:
        return  # which takes tokenizer.json as it stands
    file = folder / "tokenizer.json"
    if not file.is_file():
        _restore_charsmap(tokenizer, folder)
        return
    settings, rebuilt = _settings(file), tokenizer.backend_tokenizer
    # Read as a tokenizer, 250,000 pieces take 1.1 s, as JSON 0.15 s; they are seldom needed.
    bare = Tokenizer.from_str(json.dumps(settings | _WITHOUT_VOCABULARY))
    same = (
        settings["model"].get("type") == type(rebuilt.model).__name__
        and _steps(bare) == _steps(rebuilt)
        and _specials(bare) == _specials(rebuilt)
        and {token["content"] for token in settings.get("added_tokens") or ()} <= _added(rebuilt)
    )
    if not same:
        # A tokenizer object given to a constructor would be copied, a second for 250,000 pieces.
        tokenizer._tokenizer = Tokenizer.from_file(str(file))


def _restore_charsmap(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    from tokenizers import normalizers

    file = folder / tokenizer.vocab_files_names.get("vocab_file", "")
    if file.suffix != ".model" or "Precompiled" in _steps(tokenizer.backend_tokenizer):
        return
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(file.read_bytes())  # type: ignore[attr-defined]
    charsmap = model.normalizer_spec.precompiled_charsmap
    if charsmap:
        rest = tokenizer.backend_tokenizer.normalizer
        steps = [normalizers.Precompiled(charsmap), *([] if rest is None else [rest])]
        tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(steps)


def _steps(tokenizer: Tokenizer) -> list[str]:
    """The kinds of all steps before the model, in order."""
    parts = (tokenizer.normalizer, tokenizer.pre_tokenizer)
    states = [json.loads(part.__getstate__()) for part in parts if part is not None]
    return [kind for state in states for kind in _kinds(state)]


def _kinds(state: dict[str, Any]) -> Iterator[str]:
    if state["type"] != "Sequence":
        yield state["type"]
        return
    for step in state.get("normalizers", []) + state.get("pretokenizers", []):
        yield from _kinds(step)


def _added(tokenizer: Tokenizer) -> set[str]:
    """Texts that are tokens whatever the steps make of them."""
    return {token.content for token in tokenizer.get_added_tokens_decoder().values()}


def _specials(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Ids and segment ids of a pair of empty texts."""
    nothing = tokenizer.encode("", "")
    return nothing.ids, nothing.type_ids


class _InPieces:
    """transformers' MecabTokenizer, given long texts in pieces that MeCab can hold."""

    def __init__(self, words: Any) -> None:  # noqa: ANN401 - transformers is not typed
        self._words = words

    def tokenize(self, text: str, never_split: Sequence[str] | None = None) -> list[str]:
        """The words of a text. As transformers' own, of texts up to `_MECAB_CHARACTERS`."""
        if self._words.normalize_text:
            # Here, because it makes up to eighteen characters of one.
            text = unicodedata.normalize("NFKC", text)
        return [
            word
            for start in range(0, len(text), _MECAB_CHARACTERS)
            for word in self._words.tokenize(
                text[start : start + _MECAB_CHARACTERS], never_split=never_split
            )
        ]
