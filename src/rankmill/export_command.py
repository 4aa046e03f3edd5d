"""The command `export`: its many options, in the groups in which `--help` shows them."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console

from rankmill import console
from rankmill.export import export


def _positives(text: str) -> Any:  # noqa: ANN401 - typer's own options have no public type
    return typer.Option(help=text, rich_help_panel="Positives")


def _negatives(text: str) -> Any:  # noqa: ANN401
    return typer.Option(help=text, rich_help_panel="Negatives (without positives: documents)")


def _scores(text: str) -> Any:  # noqa: ANN401
    return typer.Option(help=text, rich_help_panel="Scores")


def export_command(
    ranked: Annotated[str, typer.Argument(help="The output folder of a run.")],
    output: Annotated[str, typer.Argument(help="Folder for the examples, local or s3://.")],
    format_: Annotated[
        str,
        typer.Option("--format", help="labeled-pair, labeled-list, triplet, n-tuple or trec."),
    ],
    label: Annotated[
        str | None, _scores("What score(s) holds: score (raw), sigmoid, binary or relevance.")
    ] = None,
    scores: Annotated[
        bool,
        typer.Option(
            "--scores",
            help="n-tuple: add the scores of all, positive first.",
            rich_help_panel="Scores",
        ),
    ] = False,
    bounds_on: Annotated[
        str | None, _scores("Scale of bounds and margins: score (raw, the default) or sigmoid.")
    ] = None,
    model: Annotated[str | None, _scores("Take the column rerank_score_MODEL.")] = None,
    stage: Annotated[int | None, _scores("Of a cascade: the scores of that stage.")] = None,
    qrels: Annotated[
        str | None, _positives("Judgements, as evaluate takes them: what is relevant is positive.")
    ] = None,
    positive_min_score: Annotated[float | None, _positives("Score at least.")] = None,
    positive_max_rank: Annotated[int | None, _positives("Among the first N.")] = None,
    negatives: Annotated[int | None, _negatives("At most N a query; all unless given.")] = None,
    sampling: Annotated[
        str | None, _negatives("Which of more than N: hardest (the default) or random.")
    ] = None,
    seed: Annotated[int | None, _negatives("For random; 0 unless given.")] = None,
    negative_min_rank: Annotated[int | None, _negatives("Rank at least.")] = None,
    negative_max_rank: Annotated[int | None, _negatives("Rank at most.")] = None,
    negative_min_score: Annotated[float | None, _negatives("Score at least.")] = None,
    negative_max_score: Annotated[float | None, _negatives("Score at most.")] = None,
    margin: Annotated[
        float | None, _negatives("Score so far below the query's lowest positive.")
    ] = None,
    relative_margin: Annotated[
        float | None, _negatives("The same as a share of that positive, for example 0.05.")
    ] = None,
    agree_run: Annotated[
        list[str] | None,
        _negatives("Output of another run whose scores must keep these bounds too; repeatable."),
    ] = None,
    agree_model: Annotated[
        list[str] | None, _negatives("The same for a column rerank_score_NAME; repeatable.")
    ] = None,
    allow_incomplete: Annotated[
        bool, typer.Option("--allow-incomplete", help="Take what is committed of a run.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove an old export first.")
    ] = False,
    profile: Annotated[str | None, typer.Option(help="AWS profile.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report; nothing else on stdout.")
    ] = False,
) -> None:
    """Write training data from a ranked run, as sentence-transformers' trainers take it.

    [bold]Examples[/]

      rankmill export ranked/ pairs/ --format labeled-pair

      rankmill export ranked/ triplets/ --format triplet --qrels qrels.tsv

      rankmill export ranked/ tuples/ --format n-tuple --negatives 7 --positive-max-rank 1
    """
    settings: dict[str, Any] = {
        "label": label,
        "scores": scores or None,
        "bounds_on": bounds_on,
        "model": model,
        "stage": stage,
        "positive_min_score": positive_min_score,
        "positive_max_rank": positive_max_rank,
        "negatives": negatives,
        "sampling": sampling,
        "seed": seed,
        "negative_min_rank": negative_min_rank,
        "negative_max_rank": negative_max_rank,
        "negative_min_score": negative_min_score,
        "negative_max_score": negative_max_score,
        "margin": margin,
        "relative_margin": relative_margin,
        "agree_models": agree_model or None,
    }
    with console.own_stdout() as stdout:
        with console.progress() as tell:
            found = export(
                ranked,
                output,
                format=format_,
                qrels=qrels,
                agree_runs=agree_run or (),
                allow_incomplete=allow_incomplete,
                overwrite=overwrite,
                profile=profile,
                listener=tell,
                **{name: value for name, value in settings.items() if value is not None},
            )
        if as_json:
            print(json.dumps(found.report, indent=1, ensure_ascii=False), file=stdout)
        else:
            Console(file=stdout).print(console.export_table(found))
