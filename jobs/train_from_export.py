"""Train a cross-encoder on an export, which Ray Data streams straight into a Ray Train loop.

    rankmill export ranked/ training/ --format labeled-pair
    python jobs/train_from_export.py training/ --model MODEL --output trained/

An example to start from: BinaryCrossEntropy on labels between 0 and 1, every worker its share of
the rows. The last line of stdout is JSON: the mean loss of each epoch, and the checkpoint below
OUTPUT that holds model and tokenizer.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import ray.data
import ray.train
import torch
from ray.train.torch import TorchTrainer, prepare_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase


def train_loop(settings: dict[str, Any]) -> None:
    """What every worker does with its share of the rows."""
    torch.manual_seed(settings["seed"])
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    plain = AutoModelForSequenceClassification.from_pretrained(settings["model"], num_labels=1)
    model = prepare_model(plain)
    optimizer = torch.optim.AdamW(model.parameters(), settings["learning_rate"])
    rows = ray.train.get_dataset_shard("train")
    losses: list[float] = []
    for epoch in range(settings["epochs"]):
        total, seen = 0.0, 0
        for batch in rows.iter_batches(
            batch_size=settings["batch"],
            local_shuffle_buffer_size=16 * settings["batch"],
            local_shuffle_seed=settings["seed"] + epoch,
        ):
            loss = _loss(model, tokenizer, batch, settings["max_length"])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total, seen = total + loss.item() * len(batch["score"]), seen + len(batch["score"])
        losses.append(total / max(seen, 1))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if ray.train.get_context().get_world_rank() == 0:
            plain.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({"losses": losses}, checkpoint=checkpoint)


def _loss(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    batch: dict[str, Any],
    max_length: int,
) -> torch.Tensor:
    pairs = tokenizer(
        batch["query"].tolist(),
        batch["document"].tolist(),
        truncation="longest_first",
        max_length=max_length,
        padding=True,
        return_tensors="pt",
    )
    device = next(model.parameters()).device
    logits = model(**pairs.to(device)).logits.squeeze(-1)
    labels = torch.tensor(batch["score"], dtype=torch.float32, device=device)
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)


def main() -> None:
    """Read the arguments, train, print the losses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("export", help="an export of format labeled-pair")
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--gpu", action="store_true", help="a GPU for each worker")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    settings = vars(parser.parse_args())
    output = str(settings.pop("output").absolute())
    trainer = TorchTrainer(
        train_loop,
        train_loop_config=settings,
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings["workers"], use_gpu=settings["gpu"]
        ),
        run_config=ray.train.RunConfig(storage_path=output),
        datasets={"train": ray.data.read_parquet(settings["export"])},
    )
    found = trainer.fit()
    print(json.dumps({"losses": found.metrics["losses"], "checkpoint": found.checkpoint.path}))


if __name__ == "__main__":
    main()
