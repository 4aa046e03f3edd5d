"""What one writes without rankmill: Ray Data around `CrossEncoder.predict`, Parquet to Parquet."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

_BATCH_ROWS = 1024


class Predict:
    """CrossEncoder.predict over batches."""

    def __init__(self, model: str, max_length: int, threads: int) -> None:
        import torch
        from sentence_transformers import CrossEncoder

        torch.set_num_threads(threads)
        self._model = CrossEncoder(model, device="cpu", max_length=max_length)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The batch with a column of scores."""
        pairs = list(zip(batch["query"], batch["document"], strict=True))
        return batch | {"score": self._model.predict(pairs)}


def run(source: Path, output: Path, model: str, max_length: int, cores: int) -> float:
    """Seconds of the pipeline, with one actor that has all cores, on the cluster that is up.

    source: Parquet with query and document.
    """
    import ray

    started = time.perf_counter()
    ray.data.read_parquet(str(source)).map_batches(
        Predict,
        fn_constructor_args=(model, max_length, cores),
        batch_size=_BATCH_ROWS,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=max(cores - 1, 1),
    ).write_parquet(str(output))
    return time.perf_counter() - started
