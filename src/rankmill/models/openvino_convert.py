"""From torch to OpenVINO: a cross-encoder's body and head as graphs, and a check of their scores.

The body is traced with transformers' `eager` attention. With `sdpa`, ModernBERT's graph gives NaN
for rows that are padded by more than its local window: their padding sees nothing at all, which
torch provides for and OpenVINO does not. It is no slower: OpenVINO finds the attention in it.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from rankmill.encoding import without_noise
from rankmill.errors import BackendUnfit
from rankmill.models import ScorerModel
from rankmill.models.classifiers import Classifier
from rankmill.models.converted import BODY, HEAD, Check
from rankmill.models.openvino_encoder import OpenVinoEncoder
from rankmill.models.openvino_runtime import nothing_sent, openvino
from rankmill.profile import Profile
from rankmill.tokens import TokenBatch

# Of a score, or of 1 where it is smaller. The graphs agree with torch to 6e-6.
_ROUNDING = 1e-4
# The error of bf16 against fp32 that OpenVINO may make, in errors that torch itself makes in bf16
# on the same pairs. With a dozen pairs either's root mean square is known to a factor of two or so.
_TIMES_TORCHS = 4.0


class _Body(nn.Module):
    """A body as a graph of plain inputs that gives states [batch, length or 1, hidden]."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            given["token_type_ids"] = token_type_ids
        states: torch.Tensor = self.body(**given).last_hidden_state
        return states


def convert(model: Classifier, target: Path, batch: TokenBatch) -> None:
    """Write a model's graphs into a folder. batch: padded input to trace it with.

    Raises `BackendUnfit` when it does not convert.
    """
    ids = torch.from_numpy(batch.input_ids)
    mask = torch.ones_like(ids) if batch.mask is None else torch.from_numpy(batch.mask)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if "token_type_ids" in inspect.signature(model.body.forward).parameters:
        inputs["token_type_ids"] = torch.zeros_like(ids)
    body = _Body(model.body)
    with torch.no_grad():
        states = body(**inputs)
    _write(body, inputs, target / BODY)
    _write(model.head, {"states": states, "mask": mask}, target / HEAD)


def _write(module: nn.Module, inputs: dict[str, torch.Tensor], file: Path) -> None:
    try:
        with without_noise(), nothing_sent(), _root_logger_kept(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a trace takes for fixed: the check will tell
            graph = openvino.convert_model(module.eval(), example_input=inputs)
    except Exception as error:  # torch's tracer and OpenVINO's front end raise what they like
        reason = " ".join(str(error).split())[:200]
        raise BackendUnfit(
            f"OpenVINO cannot convert the model: {type(error).__name__}: {reason}."
        ) from error
    if any(node.get_type_name() == "If" for node in graph.get_ops()):
        # Of such a graph OpenVINO 2026.4 gave a wrong first answer, NaN among it, and right ones
        # after: no check could be trusted.
        raise BackendUnfit("OpenVINO cannot be trusted with the model: its graph has branches.")
    openvino.save_model(graph, file, compress_to_fp16=False)


@contextlib.contextmanager
def _root_logger_kept() -> Iterator[None]:
    """A conversion that fails leaves everybody's logging at the level of errors."""
    root = logging.getLogger()
    level, filters, handlers = root.level, list(root.filters), list(root.handlers)
    try:
        yield
    finally:
        root.setLevel(level)
        root.filters, root.handlers = filters, handlers


def check(
    on_torch: Callable[[Profile], ScorerModel],
    entry: Path,
    profile: Profile,
    batches: Sequence[TokenBatch],
) -> Check:
    """Compare a converted model with torch in float32, and under the profile's precision.

    on_torch: loads it there. In fp32 a score may differ by 1e-4 of itself, or of 1. In bf16 the
    measure is what the choice is about: torch in bf16 would make an error, too, and OpenVINO's, as
    a root mean square, may be four times that.
    """
    fp32 = replace(profile, precision="fp32")
    exact = _scores(on_torch(fp32), batches)
    graph = _worst(exact, _scores(OpenVinoEncoder(entry, fp32), batches))
    if profile.precision == "fp32" or not graph.agrees:
        return graph
    own = _error(exact, _scores(on_torch(profile), batches))
    found = _error(exact, _scores(OpenVinoEncoder(entry, profile), batches))
    return Check(found, _TIMES_TORCHS * own + _ROUNDING * max(1.0, float(np.abs(exact).max())))


def _scores(model: ScorerModel, batches: Sequence[TokenBatch]) -> npt.NDArray[np.float64]:
    return np.concatenate([model.score(batch) for batch in batches]).astype(np.float64)


def _worst(exact: npt.NDArray[np.float64], found: npt.NDArray[np.float64]) -> Check:
    allowed = _ROUNDING * np.maximum(1.0, np.abs(exact))
    difference = np.where(np.isfinite(exact - found), np.abs(exact - found), np.inf)
    worst = int(np.argmax(difference / allowed))
    return Check(float(difference[worst]), float(allowed[worst]))


def _error(exact: npt.NDArray[np.float64], found: npt.NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean((exact - found) ** 2)))
