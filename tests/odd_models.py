"""Models that OpenVINO cannot score, which a run's workers can import."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from rankmill.config import ModelConfig
from rankmill.models.classifiers import Classifier
from rankmill.models.describe import describe
from rankmill.models.folder import FolderModel


class Exponential(nn.Module):
    """A body that needs an operation which OpenVINO does not have."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> BaseModelOutput:
        states = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        turned = torch.linalg.matrix_exp(0.1 * torch.eye(states.shape[-1]))
        return BaseModelOutput(last_hidden_state=states @ turned.to(states.dtype))


class LoneIsSpecial(nn.Module):
    """A body that treats a batch of one in another way, which a trace does not notice."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> BaseModelOutput:
        states = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return BaseModelOutput(last_hidden_state=2 * states if len(input_ids) == 1 else states)


class OddModel(FolderModel):
    """A folder's model, changed after it is loaded."""

    def _digest_here(self) -> str:
        return self.digest


class Unconvertible(OddModel):
    """With an exponential behind its body."""

    def load_parts(self, folder: Path, traced: bool = False) -> Classifier:
        parts = super().load_parts(folder, traced)
        return Classifier(Exponential(parts.body), parts.head)


class Misconverted(OddModel):
    """With a graph that gives other scores."""

    def load_parts(self, folder: Path, traced: bool = False) -> Classifier:
        parts = super().load_parts(folder, traced)
        return Classifier(LoneIsSpecial(parts.body), parts.head)


def odd(kind: type[OddModel], folder: str) -> OddModel:
    """A folder's model as one of these, under a digest of its own."""
    found = describe(ModelConfig(name=folder))
    values = {one.name: getattr(found, one.name) for one in fields(found)}
    return kind(**values | {"digest": f"{kind.__name__} {values['digest']}"})
