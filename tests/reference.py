"""What scores are compared with: transformers' own tokenizer and class, one input a batch."""

from __future__ import annotations

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer


class Reference:
    """transformers' own class and tokenizer, one pair a batch."""

    def __init__(self, folder: str, max_length: int) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        self.max_length = max_length

    @torch.inference_mode()
    def score(self, query: str, document: str, truncation: str) -> float:
        encoded = (
            self.document_cut(query, document)
            if truncation == "document"
            else self.tokenizer(
                # A list, because an empty text alone counts as no second text.
                [query],
                [document],
                truncation="longest_first",
                max_length=self.max_length,
                return_tensors="pt",
            )
        )
        return float(self.model(**encoded).logits)

    def document_cut(self, query: str, document: str) -> dict[str, torch.Tensor]:
        """`only_second`; a query that leaves no room is first cut to 3/4 of the length."""
        tokens = self.tokenizer.backend_tokenizer
        tokens.no_truncation()
        tokens.no_padding()
        first = tokens.encode(query, add_special_tokens=False)
        second = tokens.encode(document, add_special_tokens=False)
        room = self.max_length - tokens.num_special_tokens_to_add(is_pair=True)
        if len(first) < room:
            return self.tokenizer(
                [query],
                [document],
                truncation="only_second",
                max_length=self.max_length,
                return_tensors="pt",
            )
        first.truncate(min(self.max_length * 3 // 4, room))
        second.truncate(room - len(first))
        pair = tokens.post_process(first, second)
        encoded = {"input_ids": torch.tensor([pair.ids])}
        if "token_type_ids" in self.tokenizer.model_input_names:
            encoded["token_type_ids"] = torch.tensor([pair.type_ids])
        return encoded


class WindowReference:
    """transformers' own tokenizer and class on each window alone, pooled by hand."""

    def __init__(self, folder: str, max_length: int, stride: int) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        self.cut = {"truncation": "only_second", "max_length": max_length, "stride": stride}

    @torch.inference_mode()
    def windows(self, query: str, document: str) -> list[float]:
        encoded = self.tokenizer(
            # Lists, because an empty text alone counts as no second text.
            [query],
            [document],
            return_overflowing_tokens=True,
            **self.cut,
        )
        rows = range(len(encoded["input_ids"]))
        inputs = [
            {name: torch.tensor([encoded[name][row]]) for name in self.tokenizer.model_input_names}
            for row in rows
        ]
        return [float(self.model(**one).logits) for one in inputs]

    def score(self, pairs: list[tuple[str, str]], how: str) -> np.ndarray:
        pooled = {"max": max, "mean": np.mean}[how]
        return np.array([pooled(self.windows(*pair)) for pair in pairs])
