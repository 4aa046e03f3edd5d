"""The command `calibrate`."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from rankmill import storage
from rankmill.calibrate import CurveMethod, calibrate
from rankmill.folds import FOLDS, SEED
from rankmill.storage_settings import of_profile
from rankmill.tuning_tables import print_fit


def calibrate_command(
    ranked: Annotated[str, typer.Argument(help="The output folder of a run.")],
    qrels: Annotated[str, typer.Option(help="Judgements: Parquet, TREC or BEIR TSV, also .gz.")],
    output: Annotated[str, typer.Option(help="The file to write, for rank.calibration.")],
    method: Annotated[
        CurveMethod, typer.Option(help="platt: a logistic curve; isotonic: any rising one.")
    ] = "platt",
    folds: Annotated[int, typer.Option(help="Parts of the queries to cross-validate by.")] = FOLDS,
    seed: Annotated[int, typer.Option(min=0, help="Of drawing the folds.")] = SEED,
    query_id: Annotated[str, typer.Option(help="The table's query column.")] = "query_id",
    doc_id: Annotated[str, typer.Option(help="The table's document column.")] = "doc_id",
    profile: Annotated[str | None, typer.Option(help="AWS profile.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Machine-readable; nothing else on stdout.")
    ] = False,
) -> None:
    """Fit probabilities of relevance to a run's scores, for later runs of the same model.

    [bold]Example[/]

      rankmill calibrate ranked/ --qrels qrels.parquet --output calibration.json
    """
    storage.require_folder(output)
    found = calibrate(
        ranked,
        qrels,
        method=method,
        folds=folds,
        seed=seed,
        ids=(query_id, doc_id),
        profile=profile,
    )
    storage.write_file(output, found.calibration.to_bytes(), of_profile(profile))
    if as_json:
        print(json.dumps(found.to_json(), indent=1, ensure_ascii=False))
    else:
        print_fit(Console(highlight=False), found)
        print(f"\n{output}")
