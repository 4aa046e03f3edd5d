"""The command `tune`."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from rankmill.folds import FOLDS, SEED
from rankmill.rank_settings import Method
from rankmill.tune import METRIC, tune
from rankmill.tuning_tables import print_tuning


def tune_command(
    ranked: Annotated[str, typer.Argument(help="A ranked table: file, folder or glob.")],
    qrels: Annotated[str, typer.Option(help="Judgements: Parquet, TREC or BEIR TSV, also .gz.")],
    column: Annotated[str, typer.Option(help="The first stage's score, e.g. bm25_score.")],
    method: Annotated[Method, typer.Option(help="How both are brought to one scale.")] = "minmax",
    k: Annotated[int, typer.Option(min=1, help="With rrf: added to each place.")] = 60,
    metric: Annotated[str, typer.Option(help="The measure to raise.")] = METRIC,
    folds: Annotated[int, typer.Option(help="Parts of the queries to cross-validate by.")] = FOLDS,
    seed: Annotated[int, typer.Option(min=0, help="Of drawing the folds.")] = SEED,
    prefix: Annotated[
        str | None,
        typer.Option(help="The run's output.column_prefix, where run.json does not say it."),
    ] = None,
    query_id: Annotated[str, typer.Option(help="The table's query column.")] = "query_id",
    doc_id: Annotated[str, typer.Option(help="The table's document column.")] = "doc_id",
    as_json: Annotated[
        bool, typer.Option("--json", help="Machine-readable; nothing else on stdout.")
    ] = False,
) -> None:
    """Find the model's share in a fused order (rank.fuse.weight) on judgements.

    Takes the scores of an output that holds all candidates; nothing is scored again.

    [bold]Examples[/]

      rankmill tune ranked/ --qrels qrels.parquet --column bm25_score

      rankmill tune ranked/ --qrels qrels.tsv --column bm25_rank --method rrf --json
    """
    found = tune(
        ranked,
        qrels,
        column,
        method=method,
        k=k,
        metric=metric,
        folds=folds,
        seed=seed,
        prefix=prefix,
        ids=(query_id, doc_id),
    )
    if as_json:
        print(json.dumps(found.to_json(), indent=1, ensure_ascii=False))
    else:
        print_tuning(Console(highlight=False), found)
