"""What transformers itself makes of a pair: its own tokenizer's windows, its own class's scores."""

from __future__ import annotations

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer


class Reference:
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
