"""Causal language models of transformers as rerankers: what the last token of a prompt says.

The score is one logit, or one less another, at the place after the prompt. Of the vocabulary only
those tokens' rows are kept, so there are never logits of all of it, nor of other places.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from rankmill.errors import ModelError
from rankmill.models.classifiers import Classifier, Weights, complete, from_folder
from rankmill.models.weights import weight_files

# safetensors' names of the types whose values survive a model loaded in 16 bits.
_HALVES = {"BF16": torch.bfloat16, "F16": torch.float16}


class LastToken(nn.Module):
    """A decoder that gives the state of each row's last token.

    Rows are padded on the right, where causal attention never looks from a token before: a mask
    would change nothing but the speed, so none is given to the decoder.
    """

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> BaseModelOutput:
        """last_hidden_state [batch, 1, hidden]. The mask only says how long each row is."""
        states = self.decoder(input_ids=input_ids, use_cache=False).last_hidden_state
        if attention_mask is None:
            return BaseModelOutput(last_hidden_state=states[:, -1:])
        last = attention_mask.sum(dim=1) - 1
        rows = torch.arange(len(states), device=states.device)
        return BaseModelOutput(last_hidden_state=states[rows, last].unsqueeze(1))


class TokenLogit(nn.Module):
    """The logit of the true token, less that of the false token where there is one."""

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows, requires_grad=False)

    def forward(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Scores float32 [batch] of states float32 [batch, 1, hidden]."""
        logits = states[:, 0] @ self.rows.T
        return logits[:, 0] if len(self.rows) == 1 else logits[:, 0] - logits[:, 1]


def load(folder: Path, tokens: tuple[int, ...]) -> Classifier:
    """The decoder, in the type that its weights are stored in, and the tokens' rows in float32.

    A checkpoint of 16-bit weights is never held in 32 bits as a whole.
    """
    model = from_folder(folder, AutoModelForCausalLM, dtype=_stored_type(folder))
    model.eval()
    rows = _rows(folder, model.get_output_embeddings(), tokens)[list(tokens)].detach().float()
    return Classifier(LastToken(model.base_model), TokenLogit(rows))


def check(folder: Path, tokens: tuple[int, ...]) -> None:
    """Compare names and shapes of the weights with the class, without loading them.

    Raises `ModelError` for keys that are missing (but for output rows that the config ties to the
    input's), unexpected or of another shape, and when there is no row for a token.
    """
    model = from_folder(folder, AutoModelForCausalLM, device_map={"": "meta"})
    _rows(folder, model.get_output_embeddings(), tokens)


def load_completed(folder: Path, given: Weights, changed: Iterable[str]) -> PreTrainedModel:
    """A checkpoint in float32, whatever it is stored in, with some weights from elsewhere.

    changed: names of all that an adapter brings. peft changes input or output rows alone, which a
    checkpoint that ties them cannot hold.

    Raises `ModelError` as `classifiers.load_completed` does, and for a change of tied rows.
    """
    model = from_folder(folder, AutoModelForCausalLM, given)
    output, words = model.get_output_embeddings(), model.get_input_embeddings()
    rows = sorted(name for name in changed if "lm_head." in name or "embed_tokens." in name)
    if rows and isinstance(output, nn.Linear) and output.weight is words.weight:
        raise ModelError(
            f"The adapter changes {rows[0]}, whose rows its base ties to those at its other end: "
            "merged into both they would give other scores.",
            "Train it without lm_head and embed_tokens, or give a merged model with untied rows.",
        )
    return complete(folder, model, given)


def _rows(folder: Path, output: object, tokens: tuple[int, ...]) -> torch.Tensor:
    if not isinstance(output, nn.Linear) or output.bias is not None:
        raise ModelError(
            f"The model in {folder} does not end in one matrix without bias.",
            "This causal language model is not supported in this version.",
        )
    if max(tokens) >= len(output.weight):
        raise ModelError(
            f"The model in {folder} has {len(output.weight)} output rows, and none for token "
            f"{max(tokens)}, which its prompt scores by.",
            "Check that tokenizer and weights belong together.",
        )
    return output.weight


def _stored_type(folder: Path) -> torch.dtype:
    """The one 16-bit type of all weights, otherwise float32."""
    found = set()
    for file in weight_files(str(folder), folder):
        with safe_open(str(file), framework="pt") as tensors:
            found |= {tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118
    return _HALVES.get(found.pop(), torch.float32) if len(found) == 1 else torch.float32
