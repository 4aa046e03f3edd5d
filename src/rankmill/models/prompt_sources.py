"""Where a causal reranker's prompt comes from: a preset, or the files of sentence-transformers.

A folder saved by sentence-transformers holds its prompt as a chat template. It is rendered with
words that stand for the texts, in the sandbox that transformers has for such templates, never with
a run's own texts, and gives the same data as a preset.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from rankmill.errors import ModelError
from rankmill.models import presets
from rankmill.prompts import DOCUMENT, INSTRUCTION, QUERY, TEXT, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AUTO = "auto"
_FROM_FILES = "sentence-transformers"
MODULES, _SETTINGS, _MODEL = (
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
# Words that no template has, that nothing escapes, and one that white space or markup would show.
_WORDS = ("Qv7kQ", "Dw8mD", "Ix9nI")
_ODD = (" Qv7kQ\n <&'\"> ", "\n Dw8mD {} ", " Ix9nI\t")
# Settings that only pad and cut tokens: lengths are the run's own.
_SIZES = frozenset({"padding", "padding_side", "truncation", "max_length", "return_tensors"})
_SIZES |= {"restore_suffix", "logits_to_keep"}

Render = Callable[[str, str, str | None], str]


@cache
def known_prompts() -> dict[str, Prompt]:
    """The prompts that `model.prompt` can name."""
    text = resources.files(__package__).joinpath("prompts.yaml").read_text(encoding="utf-8")
    prompts = [Prompt.model_validate(values) for values in yaml.safe_load(text)]
    return {prompt.name: prompt for prompt in prompts}


def find_prompt(
    name: str,
    asked: str,
    files: Path,
    tokenizer: PreTrainedTokenizerBase,
    base: str | None = None,
) -> Prompt:
    """The prompt of the causal reranker `name`, whose files lie in a folder.

    asked: `model.prompt`: a known prompt's name, or `auto`: that of the preset of this name,
    otherwise that of the folder's own files. base: the model that it is an adapter of, whose
    preset is the adapter's.

    Raises `ModelError` when nothing says which prompt it is, or the files give none that can be
    taken apart into instruction, query and document.
    """
    choices = ", ".join(sorted(known_prompts()))
    preset = presets.find(name) or (None if base is None else presets.find(base))
    wanted = asked if asked != AUTO or preset is None else preset.prompt
    if wanted is not None and wanted in known_prompts():
        return known_prompts()[wanted]
    if asked != AUTO:
        raise ModelError(
            f"There is no prompt {asked}.", f"Set model.prompt to auto or one of: {choices}."
        )
    if not (files / MODULES).is_file():
        raise ModelError(
            f"{name} is a causal language model, and nothing says which prompt it was trained "
            f"with: it is no preset, and the folder has no {MODULES} of sentence-transformers.",
            f"Set model.prompt to one of: {choices}.",
        )
    return _SavedPrompt(name, files, tokenizer).read()


class _SavedPrompt:
    """The files of a CrossEncoder of a Transformer and a LogitScore, as of version 6.2.

    Facts from sentence_transformers: a pair is two messages with the roles query and document, a
    prompt is one before them with the role system (base/modality.py); the chat template's end
    outlives truncation (base/modules/transformer.py, `_restore_chat_template_suffix`).
    """

    def __init__(self, name: str, files: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        self._name, self._files, self._tokenizer = name, files, tokenizer

    def read(self) -> Prompt:
        """The prompt. Raises `ModelError` for what cannot be read or taken apart."""
        modules = self._json(MODULES, list)
        kinds = [str(m.get("type")).rpartition(".")[2] for m in modules if isinstance(m, dict)]
        if kinds != ["Transformer", "LogitScore"]:
            raise self._unfit(f"{MODULES} names the modules {', '.join(kinds) or 'none'}")
        folder = str(modules[1].get("path"))
        if Path(folder).name != folder:
            raise self._unfit(f"{MODULES} leads to another folder ({folder})")
        scored = self._json(f"{folder}/config.json", dict)
        settings = self._json(_SETTINGS, dict)
        message = _section(settings, "modality_config").get("message")
        if not isinstance(message, dict) or self._tokenizer.chat_template is None:
            raise self._unfit("it has no chat template for pairs")
        options = _section(settings, "processing_kwargs")
        more = {**_section(options, "text"), **_section(options, "common")}.keys() - _SIZES
        if settings.get("do_lower_case") or more or message.get("method", "forward") != "forward":
            raise self._unfit(f"{_SETTINGS} asks for more than a forward pass over its tokens")
        render = self._renderer(message.get("format") != "flat", _section(options, "chat_template"))
        try:
            return self._taken_apart(render, scored)
        except ValidationError as error:
            raise self._unfit(f"its parts make no prompt ({error.errors()[0]['msg']})") from None

    def _taken_apart(self, render: Render, scored: dict[str, Any]) -> Prompt:
        query, document, instruction = _WORDS
        plain, between, after = self._around(render(query, document, None))
        head, *same = self._around(render(query, document, instruction))
        instructed = None
        if head.count(instruction) == 1 and same == [between, after]:
            instructed = head.replace(instruction, TEXT)
        usual = default_prompt(self._name, self._files)
        if usual is not None and instructed is None:
            raise self._unfit("its chat template does not put the default prompt before the query")
        prompt = Prompt(
            name=_FROM_FILES,
            pieces=(
                (plain if instructed is None else INSTRUCTION) + QUERY + between + DOCUMENT + after,
            ),
            instructed=instructed,
            plain="" if instructed is None else plain,
            instruction=usual,
            **{key: scored.get(f"{key}_id") for key in ("true_token", "false_token")},
        )
        for strips in (False, True):
            found = prompt.model_copy(update={"strips": strips})
            if self._gives(found, render):
                return found
        raise self._unfit("its chat template changes the texts that it is given")

    def _gives(self, prompt: Prompt, render: Render) -> bool:
        """Whether a prompt gives what the template renders of texts with odd characters."""
        query, document, instruction = _ODD
        # Without an instruction the usual one is taken, where there is one.
        given: list[str | None] = [None] if prompt.instruction is None else []
        given += [instruction] if prompt.instructed is not None else []
        return all(
            prompt.parts().strings(prompt.query_text(query, one), prompt.document_text(document))
            == [render(query, document, one)]
            for one in given
        )

    def _around(self, rendered: str) -> tuple[str, str, str]:
        """What stands before, between and after the two words."""
        query, document, _ = _WORDS
        before, _, rest = rendered.partition(query)
        between, _, after = rest.partition(document)
        if rendered.count(query) != 1 or rest.count(document) != 1 or document in before:
            raise self._unfit("its chat template does not show a query and then a document, once")
        return before, between, after

    def _renderer(self, structured: bool, options: dict[str, Any]) -> Render:
        kept = {key: value for key, value in options.items() if key not in _SIZES}

        def render(query: str, document: str, instruction: str | None) -> str:
            given = [("system", instruction), ("query", query), ("document", document)]
            messages = [
                {"role": role, "content": [{"type": "text", "text": text}] if structured else text}
                for role, text in given
                if text is not None
            ]
            try:
                return str(self._tokenizer.apply_chat_template(messages, tokenize=False, **kept))
            except Exception as error:  # templates raise what they like
                raise self._unfit(
                    f"its chat template cannot be rendered ({type(error).__name__}: {error})"
                ) from error

        return render

    def _json(self, name: str, kind: type) -> Any:  # noqa: ANN401 - whatever the file holds
        try:
            values = json.loads((self._files / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise self._unfit(f"{name} is missing or not valid JSON") from None
        if not isinstance(values, kind):
            raise self._unfit(f"{name} holds a {type(values).__name__}, not a {kind.__name__}")
        return values

    def _unfit(self, reason: str) -> ModelError:
        return ModelError(
            f"{self._name} was saved by sentence-transformers, but {reason}.",
            "Save a CrossEncoder of Transformer and LogitScore whose chat template has the roles "
            f"query and document, or set model.prompt to one of: "
            f"{', '.join(sorted(known_prompts()))}.",
        )


def default_prompt(name: str, files: Path) -> str | None:
    """What sentence-transformers was told to use for every query; None for nothing.

    Raises `ModelError` when the folder's file for it cannot be read.
    """
    if not (files / _MODEL).is_file():
        return None
    try:
        values = json.loads((files / _MODEL).read_text(encoding="utf-8"))
        prompts, chosen = values.get("prompts"), values.get("default_prompt_name")
    except (ValueError, AttributeError):
        raise ModelError(
            f"{files / _MODEL} of {name} holds no JSON object.",
            "Save the model again, or remove that file if it is none of sentence-transformers.",
        ) from None
    found = prompts.get(chosen) if isinstance(prompts, dict) and chosen is not None else None
    return str(found) if found else None


def _section(values: dict[str, Any], name: str) -> dict[str, Any]:
    """A mapping inside another; empty where there is none."""
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def token_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> tuple[int, ...]:
    """The ids of the true token and, where there is one, of the false token.

    Raises `ModelError` when the tokenizer has no such token.
    """
    found: list[int] = []
    for token in (prompt.true_token, prompt.false_token):
        if token is None:
            continue
        number: Any = tokenizer.convert_tokens_to_ids(token) if isinstance(token, str) else token
        if number is None or (isinstance(token, str) and number == tokenizer.unk_token_id):
            raise ModelError(
                f"The tokenizer has no token {token!r}, which the prompt {prompt.name} scores by.",
                "Set model.prompt to the prompt that the model was trained with.",
            )
        found.append(int(number))
    return tuple(found)
