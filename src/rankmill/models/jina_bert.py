"""JinaBERT cross-encoders on torch, which transformers has no class for.

A BERT with ALiBi in the place of a position table (a bias by distance, arXiv:2108.12409, symmetric
as in arXiv:2310.19923) and a gated feed-forward block (GEGLU). Checkpoints call themselves `bert`:
the stock class would load them and leave feed-forward blocks and positions random.

Memory. The bias alone would be [heads, length, length], 3.2 GB for 12 heads at 8,192 tokens. So
attention goes by blocks of query rows with at most `max_scores` scores (batch x heads x rows x
length; one row at least). The bias takes two such blocks, for the whole batch, and a third where
rows are padded.

Tracing, for converters. The blocks are a scripted loop, which stays a loop in a traced graph, with
both dimensions free and the same bound. `max_scores=None` makes one block of everything and a
graph without loops, for callers who know that batch x heads x length x length stays small.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from rankmill.config import Slopes
from rankmill.errors import ModelError

# 64 MiB in float32: one block up to 341 tokens for 12 heads and 12 pairs.
MAX_SCORES = 1 << 24

# What the gated block and the attention here compute, in config.json's words.
_ARCHITECTURE = {
    "position_embedding_type": "alibi",
    "feed_forward_type": "geglu",
    "hidden_act": "gelu",
}
_SIZES = (
    "vocab_size",
    "type_vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
)


@dataclass(frozen=True)
class JinaBertConfig:
    """The sizes of a JinaBERT. There is always one label, whatever config.json says."""

    vocab_size: int
    type_vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    layer_norm_eps: float

    @classmethod
    def read(cls, settings: Mapping[str, object], source: str | Path) -> JinaBertConfig:
        """From the settings of a config.json; `source` is its name in errors.

        Raises `ModelError` for a size that is missing or impossible, and for a position, an
        activation or a feed-forward block of another architecture.
        """
        for key, expected in _ARCHITECTURE.items():
            if settings.get(key) != expected:
                raise _wrong(source, key, f'"{expected}" for JinaBERT', settings.get(key))
        sizes = {}
        for key in _SIZES:
            value = settings.get(key)
            if type(value) is not int or value < 1:
                raise _wrong(source, key, "a whole number above 0", value)
            sizes[key] = value
        heads, hidden = sizes["num_attention_heads"], sizes["hidden_size"]
        if hidden % heads:
            raise _wrong(source, "hidden_size", f"a multiple of the {heads} heads", hidden)
        eps = settings.get("layer_norm_eps")
        if type(eps) is not float or not 0 < eps < 1:
            raise _wrong(source, "layer_norm_eps", "a number between 0 and 1", eps)
        return cls(**sizes, layer_norm_eps=eps)


def _wrong(source: str | Path, key: str, expected: str, found: object) -> ModelError:
    return ModelError(
        f"{source}: {key} must be {expected}, found {found!r}.",
        "Give the config.json that was published with the weights.",
    )


def alibi_slopes(heads: int, rule: Slopes) -> list[float]:
    """How much a token of distance weighs for each head.

    `standard`, the paper's rule: for a power of two, 2^(-8k/heads); else the slopes of the power
    p below, then every other slope of 2p's. `halved`: those others are halved, so that 12 heads
    end with 2^-1.5, 2^-2.5, 2^-3.5, 2^-4.5 in the place of 2^-0.5 … 2^-3.5. A public port
    (obelisk-complex/llama.cpp) reports that the code published with jina-reranker-v1-turbo-en does
    so, and that the port's logits agree with it (within 0.005) only so. No test with random
    weights can tell; the published scores of real weights can.
    """
    power = 1 << (heads.bit_length() - 1)
    others = [2.0 ** (-4 * k / power) for k in range(1, 2 * (heads - power), 2)]
    factor = {"standard": 1.0, "halved": 0.5}[rule]
    return [2.0 ** (-8 * k / power) for k in range(1, power + 1)] + [factor * s for s in others]


class States(NamedTuple):
    """last_hidden_state: [batch, length, hidden], in the body's precision."""

    last_hidden_state: Tensor


class JinaBertClassifier(nn.Module):
    """A JinaBERT cross-encoder. `state_dict` has the names of the published checkpoints.

    `bert` gives states; its embeddings and layers may run in any precision, or on another backend.
    `head` makes scores of states and belongs in float32. Nothing but parameters is kept, so a
    model built on the meta device is whole once its weights are assigned.
    """

    def __init__(
        self,
        config: JinaBertConfig,
        slopes: Slopes = "halved",
        max_scores: int | None = MAX_SCORES,
    ) -> None:
        super().__init__()
        self.bert = JinaBertEncoder(config, slopes, max_scores)
        self.classifier = nn.Linear(config.hidden_size, 1)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Raw logits, float32 [batch]; inputs as for `JinaBertEncoder`."""
        return self.head(self.bert(input_ids, token_type_ids, attention_mask).last_hidden_state)

    def head(self, states: Tensor) -> Tensor:
        """Raw logits, float32 [batch], of last hidden states [batch, length, hidden]."""
        logits: Tensor = self.classifier(self.bert.pooler(states.float()))
        return logits.squeeze(-1)


class JinaBertEncoder(nn.Module):
    """Embeddings and layers. It holds the pooler, as the checkpoints do, and never calls it."""

    def __init__(self, config: JinaBertConfig, slopes: Slopes, max_scores: int | None) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(config.vocab_size, hidden),
                "token_type_embeddings": nn.Embedding(config.type_vocab_size, hidden),
                "LayerNorm": nn.LayerNorm(hidden, config.layer_norm_eps),
            }
        )
        layers = [_Layer(config) for _ in range(config.num_hidden_layers)]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})
        self.pooler = _Pooler(hidden)
        # Not a buffer: built on the meta device, that would stay without values.
        values = alibi_slopes(config.num_attention_heads, slopes)
        self._slopes = torch.tensor(values, device="cpu")
        self._max_scores = max_scores
        self._first_only = False

    def keep_first_state(self) -> None:
        """From now on give the first state alone, [batch, 1, hidden]: see `leading`."""
        self._first_only = True

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> States:
        """Last hidden states.

        All inputs are int64 [batch, length]. token_type_ids: all 0 when None, as in the models'
        own template. attention_mask: 0 where a row is padded; None when no row is.
        """
        words, segments, norm = self.embeddings.children()
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        states: Tensor = norm(words(input_ids) + segments(token_type_ids))
        # On a CPU attention adds a float32 bias to bfloat16 scores; elsewhere types must agree.
        exact = states.device.type == "cpu"
        dtype = torch.float32 if exact else states.dtype
        if self._slopes.device != states.device:  # once: a GPU's queue would wait for the copy
            self._slopes = self._slopes.to(states.device)
        slopes = self._slopes.to(dtype)
        if self._max_scores is None:
            place = torch.arange(input_ids.shape[1], device=states.device)
            bias = slopes[:, None, None] * -(place[:, None] - place).abs()
        else:
            bias = _alibi_band(input_ids, slopes, self._max_scores)
        keep = None if attention_mask is None else attention_mask[:, None, None, :] != 0
        layers = list(self.encoder["layer"].children())
        for layer in layers[:-1]:
            states = layer(states, states, bias, keep, self._max_scores is not None)
        if not self._first_only:
            return States(layers[-1](states, states, bias, keep, self._max_scores is not None))
        far = torch.arange(input_ids.shape[1], device=states.device)
        bias = slopes[:, None, None] * -far[None]
        return States(layers[-1](states[:, :1], states, bias, keep, False))


class _Pooler(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, hidden)

    def forward(self, states: Tensor) -> Tensor:
        return torch.tanh(self.dense(states[:, 0]))


class _Layer(nn.Module):
    """Attention, then the gated block, each added to its input and normalised after."""

    def __init__(self, config: JinaBertConfig) -> None:
        super().__init__()
        hidden, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        self.attention = nn.ModuleDict(
            {
                "self": nn.ModuleDict(
                    {name: nn.Linear(hidden, hidden) for name in ("query", "key", "value")}
                ),
                "output": nn.ModuleDict(
                    {"dense": nn.Linear(hidden, hidden), "LayerNorm": nn.LayerNorm(hidden, eps)}
                ),
            }
        )
        self.mlp = nn.ModuleDict(
            {
                "gated_layers": nn.Linear(hidden, 2 * inner, bias=False),
                "wo": nn.Linear(inner, hidden),
                "layernorm": nn.LayerNorm(hidden, eps),
            }
        )
        self._heads = (config.num_attention_heads, hidden // config.num_attention_heads)

    def forward(
        self, states: Tensor, seen: Tensor, bias: Tensor, keep: Tensor | None, blocks: bool
    ) -> Tensor:
        """The states that follow on `states`, which attend to those in `seen`."""
        projections = zip(self.attention["self"].children(), (states, seen, seen), strict=True)
        query, key, value = (
            project(given).unflatten(-1, self._heads).transpose(1, 2)
            for project, given in projections
        )
        attend = _attend_in_blocks if blocks else _attend
        context = attend(query, key, value, bias, keep).transpose(1, 2).flatten(-2)
        dense, norm = self.attention["output"].children()
        states = norm(dense(context) + states)
        gated, wo, norm = self.mlp.children()
        opening, content = gated(states).chunk(2, -1)
        output: Tensor = norm(wo(functional.gelu(opening) * content) + states)
        return output


# Scripted where a trace is recorded: which loop runs depends on the shapes of each batch.
@torch.jit.script_if_tracing  # type: ignore[untyped-decorator]
def _alibi_band(input_ids: Tensor, slopes: Tensor, max_scores: int) -> Tensor:
    """The bias of every block of query rows: [heads, rows, last + length], `last` being the row
    at which the last block starts. The bias depends on distance alone, so the block of rows from
    `start` is the window of it from column `last - start`.
    """
    batch, length = input_ids.shape
    rows = max(1, min(length, max_scores // (batch * slopes.shape[0] * length)))
    last = (length - 1) // rows * rows
    row = torch.arange(rows, device=slopes.device)
    column = torch.arange(last + length, device=slopes.device)
    return slopes[:, None, None] * -(row[:, None] + last - column).abs()


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, keep: Tensor | None) -> Tensor:
    bias = bias[None]
    if keep is not None:
        # Finite in float32 and bfloat16, so that even a row with nothing to see gives no NaN.
        bias = torch.where(keep, bias, -1e30)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)


@torch.jit.script_if_tracing  # type: ignore[untyped-decorator]
def _attend_in_blocks(
    query: Tensor, key: Tensor, value: Tensor, band: Tensor, keep: Tensor | None
) -> Tensor:
    rows, length = band.shape[1], query.shape[2]
    last = band.shape[2] - length
    out = torch.empty_like(query)
    for start in range(0, length, rows):
        block = query[:, :, start : start + rows]
        bias = band[:, : block.shape[2], last - start : last - start + length]
        out[:, :, start : start + rows] = _attend(block, key, value, bias, keep)
    return out
