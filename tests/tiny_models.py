"""Tiny models of the true architectures, with random weights and tokenizers of the true kinds.

Each builder writes a folder as `save_pretrained` does. Weights are scaled up, so that scores
differ by far more than the tolerance of a comparison.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
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
    BertConfig,
    BertForSequenceClassification,
    BertJapaneseTokenizer,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)
from transformers.models.bert_japanese.tokenization_bert_japanese import MecabTokenizer

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


def lowercase_bpe() -> PreTrainedTokenizerFast:
    """JinaBERT's kind: lower-casing byte-level BPE, `<s> q </s></s> d </s>`, no segment ids."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.post_processor = _pair_processor(
        tokenizer, "<s> $A </s> </s> $B </s>", "<s> $A </s>", ["<s>", "</s>"]
    )
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


def _save(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, seed: int
) -> Path:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                spread = 1.0 if name.startswith("classifier") else 0.15
                weight.normal_(0.0, spread, generator=generator)
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


def modernbert(folder: Path, pooling: str = "cls", positions: int = 512) -> Path:
    """ModernBERT: rotary positions, alternating local windows, gated feed-forward blocks."""
    tokenizer = byte_bpe()
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=positions,
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


def jina_bert_settings(**sizes: float) -> dict[str, Any]:
    """config.json as jina-reranker-v1 has it, without `auto_map`, and with other sizes."""
    return {
        "architectures": ["JinaBertForSequenceClassification"],
        "attention_probs_dropout_prob": 0.0,
        "attn_implementation": "torch",
        "classifier_dropout": None,
        "emb_pooler": "mean",
        "feed_forward_type": "geglu",
        "gradient_checkpointing": False,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 384,
        "initializer_range": 0.02,
        "intermediate_size": 1536,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 8192,
        "model_max_length": 8192,
        "model_type": "bert",
        "num_attention_heads": 12,
        "num_hidden_layers": 4,
        "pad_token_id": 0,
        "position_embedding_type": "alibi",
        "type_vocab_size": 2,
        "use_cache": True,
        "vocab_size": 61056,
        **sizes,
    }


def jina_bert_shapes(settings: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The published checkpoints' names of weights, and each one's shape."""
    hidden, inner = settings["hidden_size"], settings["intermediate_size"]

    def linear(name: str, size: int, of: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (size, of), f"{name}.bias": (size,)}

    def norm(name: str) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (hidden,), f"{name}.bias": (hidden,)}

    shapes: dict[str, tuple[int, ...]] = {
        "bert.embeddings.word_embeddings.weight": (settings["vocab_size"], hidden),
        "bert.embeddings.token_type_embeddings.weight": (settings["type_vocab_size"], hidden),
        **norm("bert.embeddings.LayerNorm"),
    }
    for number in range(settings["num_hidden_layers"]):
        layer = f"bert.encoder.layer.{number}"
        shapes |= {
            **linear(f"{layer}.attention.self.query", hidden, hidden),
            **linear(f"{layer}.attention.self.key", hidden, hidden),
            **linear(f"{layer}.attention.self.value", hidden, hidden),
            **linear(f"{layer}.attention.output.dense", hidden, hidden),
            **norm(f"{layer}.attention.output.LayerNorm"),
            f"{layer}.mlp.gated_layers.weight": (2 * inner, hidden),
            **linear(f"{layer}.mlp.wo", hidden, inner),
            **norm(f"{layer}.mlp.layernorm"),
        }
    return {
        **shapes,
        **linear("bert.pooler.dense", hidden, hidden),
        **linear("classifier", 1, hidden),
    }


def jina_bert_weights(settings: dict[str, Any], seed: int = 5) -> dict[str, torch.Tensor]:
    """Random weights, large enough that scores differ by about 1."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in jina_bert_shapes(settings).items():
        values = torch.randn(shape, generator=generator)
        if "Norm.weight" in name or "norm.weight" in name:
            weights[name] = 1 + 0.1 * values
        elif name.endswith(".bias"):
            weights[name] = 0.1 * values
        else:
            # Products are then about as large as what is multiplied, whatever its width.
            spread = 2.0 if name.startswith("classifier") else 1.2
            weights[name] = values * (spread / shape[1] ** 0.5)
    return weights


def jina_bert(folder: Path) -> Path:
    """JinaBERT, as in jina-reranker-v1: ALiBi, gated blocks, a number of heads like 12."""
    tokenizer = lowercase_bpe()
    settings = jina_bert_settings(
        vocab_size=len(tokenizer),
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=6,
        intermediate_size=64,
        max_position_embeddings=512,
    )
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings, indent=2))
    save_file(jina_bert_weights(settings), folder / "model.safetensors", {"format": "pt"})
    tokenizer.save_pretrained(folder)
    return folder


def bert_japanese(folder: Path) -> Path:
    """Japanese BERT, as tohoku's v3: MeCab's words, WordPiece, segment ids."""
    tokenizer = BertJapaneseTokenizer.from_pretrained(mecab_files(folder))
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
    _save(folder, BertForSequenceClassification(config), tokenizer, 6)
    # As transformers 4 wrote it, with which these models were trained: 5 adds its backend.
    return mecab_files(folder)


# Tokenizers alone, in files as published models have them.


def _write(folder: Path, tokenizer_config: dict[str, Any], **config: object) -> Path:
    """Settings of a tokenizer, and a config.json where there is no model yet."""
    folder.mkdir(exist_ok=True)
    if not (folder / "config.json").exists():
        (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return folder


def mecab_files(folder: Path, subwords: str = "wordpiece") -> Path:
    """tohoku's kind: vocab.txt alone."""
    settings = {
        "tokenizer_class": "BertJapaneseTokenizer",
        "do_lower_case": False,
        "word_tokenizer_type": "mecab",
        "subword_tokenizer_type": subwords,
        "mecab_kwargs": {"mecab_dic": "unidic_lite"},
        "model_max_length": 512,
    }
    _write(folder, settings, model_type="bert", type_vocab_size=2)
    words = sorted({word for text in TEXT for word in MecabTokenizer().tokenize(text)})
    characters = sorted({character for text in TEXT for character in text} - {" "})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # Every second word, so that the others fall into pieces.
    vocabulary = [*characters, *(f"##{c}" for c in characters), *words[::2]]
    lines = [*special, *dict.fromkeys(word for word in vocabulary if word not in special)]
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n")
    return folder


def _sentencepiece(**options: object) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT),
        model_writer=model,
        hard_vocab_limit=False,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


def xlm_roberta_spm_files(folder: Path) -> Path:
    """XLM-R's kind without tokenizer.json: ids are those of SentencePiece plus one."""
    _write(folder, {"tokenizer_class": "XLMRobertaTokenizer"}, model_type="xlm-roberta")
    (folder / "sentencepiece.bpe.model").write_bytes(_sentencepiece(vocab_size=250))
    return folder


def deberta_spm_files(folder: Path) -> Path:
    """DeBERTa-v3's kind without tokenizer.json."""
    settings = {"tokenizer_class": "DebertaV2Tokenizer", "do_lower_case": False}
    _write(folder, settings, model_type="deberta-v2", type_vocab_size=0)
    ids = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}
    pieces = {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]"}
    model = _sentencepiece(vocab_size=250, unk_piece="[UNK]", **ids, **pieces)
    (folder / "spm.model").write_bytes(model)
    return folder


def llama_files(folder: Path) -> Path:
    """ModernBERT-ja's kind: a tokenizer.json made of a SentencePiece model, Llama's settings."""
    special = ["<pad>", "<sep>", "<mask>", "<cls>"]
    model = _sentencepiece(
        vocab_size=600,
        byte_fallback=True,
        control_symbols=special,
        normalization_rule_name="identity",
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocabulary = [(pieces.id_to_piece(n), pieces.get_score(n)) for n in range(len(pieces))]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", *special])
    tokenizer.post_processor = _pair_processor(
        tokenizer, "<s> $A </s> <s>:1 $B:1 </s>:1", "<s> $A </s>", ["<s>", "</s>"]
    )
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": True,
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        **{f"{token[1:-1]}_token": token for token in special},
    }
    _write(folder, settings, model_type="modernbert")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def jina_files(folder: Path) -> Path:
    """jina-reranker-v1's kind: tokenizer.json lower-cases, the class that it names does not."""
    tokens = {"bos": "<s>", "eos": "</s>", "cls": "<s>", "sep": "</s>", "pad": "<pad>"}
    settings = {"tokenizer_class": "RobertaTokenizer", "unk_token": "<unk>"}
    settings |= {f"{name}_token": token for name, token in tokens.items()}
    _write(folder, settings, model_type="bert", type_vocab_size=2)
    lowercase_bpe().backend_tokenizer.save(str(folder / "tokenizer.json"))
    return folder


BUILDERS: dict[str, Callable[[Path], Path]] = {
    "bert": bert,
    "xlm-roberta": xlm_roberta,
    "modernbert": modernbert,
    "modernbert-mean": modernbert_mean,
    "deberta-v2": deberta_v2,
    "jina-bert": jina_bert,
    "bert-japanese": bert_japanese,
}
