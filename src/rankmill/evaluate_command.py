"""The command `evaluate`: its options, in the groups in which `--help` shows them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from typing import Annotated, Any

import pandas as pd
import typer
from rich.console import Console

from rankmill import storage
from rankmill.errors import ConfigError
from rankmill.evaluate import METRICS, evaluate
from rankmill.evaluation_tables import print_evaluation

_PART = re.compile(r"part-\d{5,}\.parquet")


def _comparing(text: str) -> Any:  # noqa: ANN401 - typer's own options have no public type
    return typer.Option(help=text, rich_help_panel="Comparing")


def _columns(text: str) -> Any:  # noqa: ANN401
    return typer.Option(help=text, rich_help_panel="Columns")


def evaluate_command(
    ranked: Annotated[
        list[str],
        typer.Argument(help="A ranked table (file, folder, glob), or several to compare."),
    ],
    qrels: Annotated[str, typer.Option(help="Judgements: Parquet, TREC or BEIR TSV, also .gz.")],
    metrics: Annotated[
        str,
        typer.Option(help="Names joined by commas: ndcg, map, mrr, hit, recall, precision, @k."),
    ] = ",".join(METRICS),
    baseline: Annotated[
        str | None,
        _comparing(
            "A column with another order to compare with, e.g. bm25_rank. The run must hold all "
            "candidates (no output.top_k)."
        ),
    ] = None,
    by: Annotated[
        list[str] | None, _comparing("Slice the queries by this column; repeatable.")
    ] = None,
    queries: Annotated[
        str | None, _comparing("Parquet with a row a query, for columns to slice by.")
    ] = None,
    depths: Annotated[
        str | None,
        _comparing("Quality had only the baseline's first N been reranked: 5,10,20,50,100."),
    ] = None,
    prefix: Annotated[
        str | None, _columns("The run's output.column_prefix, where run.json does not say it.")
    ] = None,
    query_id: Annotated[str, _columns("The ranked table's query column.")] = "query_id",
    doc_id: Annotated[str, _columns("The ranked table's document column.")] = "doc_id",
    per_query: Annotated[
        str | None,
        typer.Option(help="Write a row a query to this .parquet or .csv file."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Machine-readable; nothing else on stdout.")
    ] = False,
) -> None:
    """Measure rankings against judgements, as trec_eval does.

    [bold]Examples[/]

      rankmill evaluate ranked/ --qrels qrels.parquet --baseline bm25_rank

      rankmill evaluate old/ new/ --qrels qrels.tsv.gz --metrics ndcg@10,map --by language

      rankmill evaluate ranked/ --qrels qrels.tsv --baseline bm25_rank --depths 5,10,20,50
    """
    write = None if per_query is None else _writer(per_query)
    if per_query is not None:
        storage.require_folder(per_query)
    runs = name_runs(ranked)
    found = evaluate(
        runs if len(runs) > 1 else next(iter(runs.values())),
        qrels,
        metrics=metrics,
        baseline=baseline,
        by=by or (),
        queries=queries,
        depths=depths or (),
        prefix=prefix,
        ids=(query_id, doc_id),
    )
    if write is not None and per_query is not None:
        storage.write_file(per_query, write(found.per_query))
    if as_json:
        print(json.dumps(found.to_json(), indent=1, ensure_ascii=False))
    else:
        print_evaluation(Console(highlight=False), found)


def name_runs(paths: list[str]) -> dict[str, str | list[str]]:
    """The runs among some paths, by the shortest endings that tell them apart.

    Part files of one folder, as a shell's wildcard names them, are one run.
    """
    runs: dict[str, str | list[str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        if not _PART.fullmatch(name):
            runs[path] = path
            continue
        parts = runs.setdefault(folder or ".", [])
        if isinstance(parts, list):
            parts.append(path)
    split = {path: path.rstrip("/").split("/") for path in runs}
    depth = 1
    while depth < max(map(len, split.values())) and len(
        {tuple(names[-depth:]) for names in split.values()}
    ) < len(split):
        depth += 1
    names = {path: "/".join(split[path][-depth:]) for path in runs}
    bare = {path: name.removesuffix(".parquet") for path, name in names.items()}
    told = bare if len(set(bare.values())) == len(runs) else names
    return {told[path]: source for path, source in runs.items()}


def _writer(path: str) -> Callable[[pd.DataFrame], bytes]:
    """How to write a file of this name. Raises `ConfigError` for an ending that is not known."""
    writers: dict[str, Callable[[pd.DataFrame], bytes]] = {
        ".parquet": lambda frame: bytes(frame.to_parquet(index=False)),
        ".csv": lambda frame: str(frame.to_csv(index=False)).encode(),
    }
    ending = os.path.splitext(path)[1].lower()
    if ending not in writers:
        raise ConfigError(
            f"--per-query {path} does not say what to write.",
            f"End the name in {' or '.join(writers)}.",
        )
    return writers[ending]
