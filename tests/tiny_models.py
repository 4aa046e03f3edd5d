"""Tiny models of the true architectures, with random weights and tokenizers of the true kinds.

Each builder writes a folder as `save_pretrained` does. Weights are scaled up, so that scores
differ by far more than the tolerance of a comparison.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
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
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=special)
    tokenizer.train_from_iterator(TEXT, trainer)
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


def byte_bpe() -> PreTrainedTokenizerFast:
    """ModernBERT's kind: byte-level BPE, `[CLS] q [SEP] d [SEP]`, no segment ids."""
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.post_processor = _pair_processor(
        tokenizer, "[CLS] $A [SEP] $B [SEP]", "[CLS] $A [SEP]", ["[CLS]", "[SEP]"]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "attention_mask"],
    )


# What prompts of causal rerankers and texts beside them hold, with merges over line ends.
PROMPT_TEXT = [
    *TEXT,
    *["what?\n\nyes.\nno!\n", "yes no 1 0", " <Query>: \n<Document>: query: document: \n"] * 3,
]


def qwen_bpe() -> Qwen2Tokenizer:
    """Qwen's kind: its own class and pre-tokenizer, byte-level BPE over NFC, no pair template."""
    tokenizer: Tokenizer = Qwen2Tokenizer().backend_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(PROMPT_TEXT, trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in learned["merges"]]
    trained = Qwen2Tokenizer(vocab=learned["vocab"], merges=merges)
    trained.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    thinking = [AddedToken(token, normalized=False) for token in ("<think>", "</think>")]
    trained.add_tokens(thinking)
    return trained


def metaspace_bpe() -> PreTrainedTokenizerFast:
    """Llama 2's kind: every string that is tokenized by itself begins with a space of its own."""
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    words = [line.replace(" ", "▁") for line in PROMPT_TEXT]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.train_from_iterator(["yes", "no", *words], trainer)
    tokenizer.pre_tokenizer = None
    tokenizer.decoder = decoders.ByteFallback()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def _save(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    spread: float = 0.15,
) -> Path:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(
                    0.0, 1.0 if name.startswith("classifier") else spread, generator=generator
                )
            elif "bias" in name:
                weight.normal_(0.0, 0.05, generator=generator)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def bert(folder: Path) -> Path:
    """BERT with segment ids."""
    tokenizer = wordpiece()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _save(folder, BertForSequenceClassification(config), tokenizer, 1)


def xlm_roberta(folder: Path) -> Path:
    """XLM-R: positions after the padding id, one segment."""
    tokenizer = unigram()
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=130,
        type_vocab_size=1,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return _save(folder, XLMRobertaForSequenceClassification(config), tokenizer, 2)


def modernbert(folder: Path, pooling: str = "cls") -> Path:
    """ModernBERT: rotary positions, alternating local windows, gated feed-forward blocks."""
    tokenizer = byte_bpe()
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=512,
        local_attention=16,
        global_attn_every_n_layers=3,
        classifier_pooling=pooling,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        bos_token_id=None,
        eos_token_id=None,
    )
    return _save(folder, ModernBertForSequenceClassification(config), tokenizer, 3)


def modernbert_mean(folder: Path) -> Path:
    """ModernBERT that averages its last states."""
    return modernbert(folder, "mean")


def deberta_v2(folder: Path) -> Path:
    """DeBERTa-v2 as in the mxbai rerankers: relative attention, no absolute positions."""
    tokenizer = unigram(pair="<s> $A </s> $B </s>")
    config = DebertaV2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        type_vocab_size=0,
        relative_attention=True,
        position_buckets=16,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        position_biased_input=False,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _save(folder, DebertaV2ForSequenceClassification(config), tokenizer, 4)


# The last token must look far: a prompt's end stands between it and the texts.
_AFTER_A_PROMPT = 0.25


def _causal_sizes(tokenizer: PreTrainedTokenizerBase) -> dict[str, int | None]:
    return {
        "vocab_size": len(tokenizer) + 3,  # rows that no token has, as in the published ones
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 2048,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }


def qwen3(folder: Path) -> Path:
    """Qwen3: heads of their own width that share keys, normalized queries and keys, tied rows."""
    tokenizer = qwen_bpe()
    config = Qwen3Config(**_causal_sizes(tokenizer), head_dim=16, tie_word_embeddings=True)
    return _save(folder, Qwen3ForCausalLM(config), tokenizer, 5, _AFTER_A_PROMPT)


def qwen2(folder: Path) -> Path:
    """Qwen2: biases on queries, keys and values, output rows of its own."""
    tokenizer = qwen_bpe()
    config = Qwen2Config(**_causal_sizes(tokenizer), tie_word_embeddings=False)
    return _save(folder, Qwen2ForCausalLM(config), tokenizer, 6, _AFTER_A_PROMPT)


def llama(folder: Path) -> Path:
    """Llama with a tokenizer that joins texts with the prompt around them."""
    tokenizer = metaspace_bpe()
    config = LlamaConfig(**_causal_sizes(tokenizer), tie_word_embeddings=False)
    return _save(folder, LlamaForCausalLM(config), tokenizer, 7, _AFTER_A_PROMPT)


BUILDERS: dict[str, Callable[[Path], Path]] = {
    "bert": bert,
    "xlm-roberta": xlm_roberta,
    "modernbert": modernbert,
    "modernbert-mean": modernbert_mean,
    "deberta-v2": deberta_v2,
    "qwen3": qwen3,
    "qwen2": qwen2,
    "llama": llama,
}
