"""Encoders that compute only the states that the head reads.

A head that reads the first state leaves most of the last layer without a reader: keys and values
are needed of every token, but queries, output projection and feed-forward block of one. Below a
layer with a local window the same holds for the tokens that the window reaches, layer after layer
down to the first that sees everything. What is left out has no reader, so scores are those of the
whole encoder up to rounding.

In pairs a second (OpenVINO, bf16, cranfield's pairs of mean 237 tokens): from 94 to 108 with
MiniLM-L6's shape; from 268 to 772 with that of japanese-reranker-tiny-v2, whose last two of three
layers are local.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

if TYPE_CHECKING:
    from transformers.models.bert.modeling_bert import BertLayer
    from transformers.models.gte.modeling_gte import GteLayer
    from transformers.models.modernbert.modeling_modernbert import ModernBertEncoderLayer


def keep_first_state(body: PreTrainedModel) -> None:
    """Let a body compute its last hidden states for the first token only: [batch, 1, hidden].

    Leaves a body of an architecture that is not known here as it is, [batch, length, hidden].
    """
    shorten = _SHORTENED.get(body.config.model_type)
    if shorten is not None:
        shorten(body)


def _shorten_bert(body: PreTrainedModel) -> None:
    layers = body.encoder.layer
    layers[-1] = FirstStateBert(layers[-1])


def _shorten_gte(body: PreTrainedModel) -> None:
    body.layers[-1] = FirstStateGte(body.layers[-1])


def _shorten_modernbert(body: PreTrainedModel) -> None:
    layers = body.layers
    kept = 1
    for index in reversed(range(len(layers))):
        local = layers[index].attention_type == "sliding_attention"
        reach = kept + body.config.sliding_window if local else None
        layers[index] = LeadingModernBert(layers[index], kept, reach)
        if reach is None:
            return
        kept = reach


class FirstStateBert(nn.Module):
    """A layer of BERT or of its kin that gives the first state only."""

    def __init__(self, layer: BertLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self, states: torch.Tensor, mask: torch.Tensor | None = None, *_: object, **__: object
    ) -> torch.Tensor:
        """[batch, 1, hidden] of states [batch, length, hidden]."""
        attention = self.layer.attention
        own = attention.self
        first = states[:, :1]
        context = _attend(
            _heads(own.query(first), own.attention_head_size),
            _heads(own.key(states), own.attention_head_size),
            _heads(own.value(states), own.attention_head_size),
            None if mask is None else mask[:, :, :1],
        )
        attended = attention.output(context, first)
        given: torch.Tensor = self.layer.feed_forward_chunk(attended)
        return given


class FirstStateGte(nn.Module):
    """A layer of GTE that gives the first state only."""

    def __init__(self, layer: GteLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self,
        states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **_: object,
    ) -> torch.Tensor:
        """[batch, 1, hidden] of states [batch, length, hidden]."""
        assert position_embeddings is not None, "GTE's positions are rotary"
        layer, own = self.layer, self.layer.self_attn
        cos, sin = (table.unsqueeze(1) for table in position_embeddings)
        first = states[:, :1]
        context = _attend(
            _rotate(_heads(own.q_proj(first), own.head_dim), cos[:, :, :1], sin[:, :, :1]),
            _rotate(_heads(own.k_proj(states), own.head_dim), cos, sin),
            _heads(own.v_proj(states), own.head_dim),
            None if attention_mask is None else attention_mask[:, :, :1],
        )
        attended = layer.post_attention_layernorm(first + own.o_proj(context))
        given: torch.Tensor = layer.post_mlp_layernorm(attended + layer.mlp(attended))
        return given


class LeadingModernBert(nn.Module):
    """A layer of ModernBERT that gives the first `kept` states.

    reach: the leading states that those attend to; None where they attend to all.
    """

    def __init__(self, layer: ModernBertEncoderLayer, kept: int, reach: int | None) -> None:
        super().__init__()
        self.layer = layer
        self.kept = kept
        self.reach = reach
        self.attention_type = layer.attention_type  # the model chooses mask and positions by it

    def forward(
        self,
        states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **_: object,
    ) -> torch.Tensor:
        """[batch, kept, hidden] of states [batch, reach or more, hidden]; fewer of short rows."""
        assert position_embeddings is not None, "ModernBERT's positions are rotary"
        own, mlp = self.layer.attn, self.layer.mlp
        kept, reach = slice(self.kept), slice(self.reach)
        states = states[:, reach]
        normed = self.layer.attn_norm(states)
        hidden, inner = states.shape[-1], mlp.Wo.in_features
        cos, sin = (table.unsqueeze(1) for table in position_embeddings)
        query, key, value = (
            _heads(_rows(own.Wqkv, part * hidden, hidden, seen), own.head_dim)
            for part, seen in enumerate((normed[:, kept], normed, normed))
        )
        context = _attend(
            _rotate(query, cos[:, :, kept], sin[:, :, kept]),
            _rotate(key, cos[:, :, reach], sin[:, :, reach]),
            value,
            None if attention_mask is None else attention_mask[:, :, kept, reach],
        )
        given: torch.Tensor = states[:, kept] + own.Wo(context)
        normed = self.layer.mlp_norm(given)
        opening, gate = (_rows(mlp.Wi, first, inner, normed) for first in (0, inner))
        return given + mlp.Wo(mlp.act(opening) * gate)


def _rows(linear: nn.Linear, first: int, count: int, states: torch.Tensor) -> torch.Tensor:
    """Some outputs of a linear layer: products of their own, so that nothing is copied apart."""
    rows = slice(first, first + count)
    bias = None if linear.bias is None else linear.bias[rows]
    return functional.linear(states, linear.weight[rows], bias)


def _heads(states: torch.Tensor, size: int) -> torch.Tensor:
    """[batch, length, hidden] as [batch, heads, length, size]."""
    return torch.unflatten(states, -1, (-1, size)).transpose(1, 2)


def _rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864), halves paired, in float32."""
    one, other = states.float().chunk(2, dim=-1)
    turned = states.float() * cos + torch.cat((-other, one), dim=-1) * sin
    return turned.to(states.dtype)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Attention over [batch, heads, length, size], as [batch, queries, hidden].

    mask: what transformers' `sdpa` and `eager` make: bool (True: seen) or a float that is added.
    """
    context = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return context.transpose(1, 2).flatten(2)


_SHORTENED: dict[str, Callable[[PreTrainedModel], None]] = {
    "bert": _shorten_bert,
    "electra": _shorten_bert,
    "roberta": _shorten_bert,
    "camembert": _shorten_bert,
    "xlm-roberta": _shorten_bert,
    "modernbert": _shorten_modernbert,
    "gte": _shorten_gte,
}
