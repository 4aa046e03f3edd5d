"""Attention masks made here, so that a GPU need not be asked what is in them.

transformers looks into a mask whether anything is padded at all (`padding_mask.all()`), which makes
the processor wait until the GPU has done all that was queued: no batch could be prepared ahead.
Here a mask is given only where something is padded, so the answer is known. Masks that are ready
also stay small: one row a pair where all its tokens see the same, in place of one a token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

# The models whose every layer sees all tokens, by `model_type`.
_SEE_ALL = frozenset({"bert", "electra", "roberta", "camembert", "xlm-roberta", "gte"})


def make_ready(body: nn.Module, kind: str) -> None:
    """Let a body of transformers, with `sdpa` attention, be given its masks ready-made.

    kind: its `model_type`. Others make their own, DeBERTa-v2 without looking into it.
    """
    if kind in _SEE_ALL:
        body.register_forward_pre_hook(_with_one_mask, with_kwargs=True)
    elif kind == "modernbert":
        body.register_forward_pre_hook(_with_two_masks, with_kwargs=True)


def _with_one_mask(
    _: nn.Module, places: tuple[Any, ...], given: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    mask = given.get("attention_mask")
    if mask is None:
        return places, given
    return places, given | {"attention_mask": _seen(mask)}


def _with_two_masks(
    body: nn.Module, places: tuple[Any, ...], given: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    mask = given.get("attention_mask")
    if mask is None:
        return places, given
    seen = _seen(mask)
    config: Any = body.config
    masks = {"full_attention": seen, "sliding_attention": _near(seen, config.sliding_window)}
    return places, given | {"attention_mask": masks}


def _seen(mask: torch.Tensor) -> torch.Tensor:
    """bool [batch, 1, 1, length], True for what every token sees."""
    return mask[:, None, None, :] != 0


def _near(seen: torch.Tensor, window: int) -> torch.Tensor:
    """bool [batch, 1, length, length]: of what is seen that within the window, both ends included.

    Padding that is too far from any token would see nothing, and could become NaN; it sees itself,
    which no token does.
    """
    length = seen.shape[-1]
    if length <= window:
        return seen
    place = torch.arange(length, device=seen.device)
    apart = (place[:, None] - place).abs()
    return (seen & (apart <= window)) | (apart == 0)
