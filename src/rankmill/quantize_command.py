"""The command `quantize`."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from rankmill import console, model_tables
from rankmill.config import load_config
from rankmill.quantize import MIN_AGREEMENT, quantize
from rankmill.settings import Setting, parse_override


def quantize_command(
    model: Annotated[str, typer.Argument(help="Hub id, folder, s3:// or demo.")],
    sample: Annotated[
        list[str],
        typer.Option("--sample", help="Candidates as rerank takes them: file, folder or glob."),
    ],
    output: Annotated[str, typer.Option("--output", help="The int8 folder, on a local disk.")],
    min_agreement: Annotated[
        float,
        typer.Option(
            "--min-agreement", help="Kendall's tau with fp32 below which nothing is kept."
        ),
    ] = MIN_AGREEMENT,
    seed: Annotated[int, typer.Option(help="Which pairs of the sample are taken.")] = 0,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Settings of input.*, model.* and storage.*; repeatable."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the card; nothing else on stdout.")
    ] = False,
) -> None:
    """Make an int8 model folder for CPUs, calibrated once on a sample of your pairs.

    It is judged by other pairs of the sample, against the model in fp32, and is then a model like
    any other. Lengths and truncation (--set) should be those of your runs.

    [bold]Examples[/]

      rankmill quantize demo --sample candidates/ --output demo-int8

      rankmill quantize models/mine --sample c.parquet --output int8 --set model.max_length=256
    """
    settings: dict[str, Setting] = {
        "input.path": sample[0] if len(sample) == 1 else list[object](sample),
        "output.path": output,
        "model.name": model,
    }
    config = load_config(overrides=settings | dict(parse_override(text) for text in set_ or []))
    with console.own_stdout() as stdout:
        found = quantize(config, min_agreement=min_agreement, seed=seed)
        if as_json:
            card = {"folder": str(found.folder), "digest": found.digest, **found.card.to_json()}
            print(json.dumps(card, indent=1, ensure_ascii=False), file=stdout)
        else:
            Console(file=stdout).print(model_tables.quantized_table(found))
