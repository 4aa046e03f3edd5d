"""GTE checkpoints in their published layout, as settings of the class that transformers has.

Alibaba-NLP publishes them with model_type "new" and code of their own. That code is not run:
transformers' `gte` class has the same arithmetic and renames the weights; what differs is how a
config.json says it. Meanings and defaults of the fields are those of the published implementation
(Alibaba-NLP/new-impl, configuration.py and modeling.py).
"""

from __future__ import annotations

from typing import Any

from rankmill.errors import ModelError

# Fields of the same meaning in both, with the published implementation's defaults.
_SHARED: dict[str, Any] = {
    "vocab_size": 30528,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 2048,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-12,
    "pad_token_id": None,
}
_LABELS = ("id2label", "num_labels")
_DEFAULT_THETA = 10000.0

# What the published implementation can also compute and the class cannot: field, the only value
# that both know, which is the published default.
_ONLY: dict[str, Any] = {
    "position_embedding_type": "rope",
    "layer_norm_type": "layer_norm",
    "logn_attention_scale": False,
    "pack_qkv": True,
}


def gte_settings(name: str, published: dict[str, Any]) -> dict[str, Any]:
    """Arguments of transformers' GteConfig for a config.json of model_type "new".

    Raises `ModelError` naming a field whose value the class cannot express.
    """
    for field, known in _ONLY.items():
        found = published.get(field, known)
        if found != known:
            raise _inexpressible(name, field, found, known)
    settings = {field: published.get(field, default) for field, default in _SHARED.items()}
    settings |= {field: published[field] for field in _LABELS if field in published}
    head = settings["hidden_size"] // settings["num_attention_heads"]
    return settings | {"rope_parameters": _rotary(name, published, head)}


def _rotary(name: str, published: dict[str, Any], head: int) -> dict[str, Any]:
    """Rotary positions of heads of `head` dimensions.

    Scaled by "ntk" with factor k the frequencies are (theta k)^(-2i/head) / k^(2/head), at every
    length (https://kexue.fm/archives/9706, formula 6): the plain ones of base theta k, linearly
    scaled by k^(2/head). No base alone gives them.
    """
    theta = published.get("rope_theta", _DEFAULT_THETA)
    scaling = published.get("rope_scaling")
    if scaling is None:
        return {"rope_type": "default", "rope_theta": theta}
    if not isinstance(scaling, dict) or scaling.get("type") != "ntk":
        raise _inexpressible(name, "rope_scaling", scaling, {"type": "ntk"})
    if scaling.get("mixed_b") is not None:
        raise _inexpressible(name, "rope_scaling.mixed_b", scaling["mixed_b"], None)
    factor = scaling.get("factor")
    if not isinstance(factor, int | float) or factor < 1:
        raise ModelError(
            f"The config of {name} has rope_scaling.factor {factor!r}, expected a number from 1.",
            "Give the config.json that the model was published with.",
        )
    return {"rope_type": "linear", "rope_theta": theta * factor, "factor": factor ** (2 / head)}


def _inexpressible(name: str, field: str, found: object, known: object) -> ModelError:
    return ModelError(
        f"The config of {name} has {field} {found!r}; transformers' GTE class computes "
        f"{field} {known!r} only.",
        "Checkpoints with this value are not supported in this version.",
    )
