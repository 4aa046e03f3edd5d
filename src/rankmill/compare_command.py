"""The command `compare`."""

from __future__ import annotations

import json
import re
from typing import Annotated

import typer
from rich.console import Console

from rankmill import console, storage
from rankmill.compare import compare
from rankmill.compare.comparison import MOST, TOP
from rankmill.compare.page import render
from rankmill.comparison_tables import print_comparison
from rankmill.errors import ConfigError
from rankmill.storage_settings import of_profile


def compare_command(
    run_a: Annotated[str, typer.Argument(help="The output folder of a run.")],
    run_b: Annotated[str, typer.Argument(help="That of another over the same queries.")],
    top: Annotated[str, typer.Option(help="Overlap of the first k, joined by commas.")] = ",".join(
        map(str, TOP)
    ),
    most: Annotated[int, typer.Option(help="Show the N largest movers of each kind.")] = MOST,
    texts: Annotated[bool, typer.Option("--texts", help="Show the movers' texts.")] = False,
    html: Annotated[
        str | None, typer.Option(help="Draw a page for a browser, to this file.")
    ] = None,
    allow_incomplete: Annotated[
        bool, typer.Option("--allow-incomplete", help="Take what is committed of a run.")
    ] = False,
    profile: Annotated[str | None, typer.Option(help="AWS profile.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Machine-readable; nothing else on stdout.")
    ] = False,
) -> None:
    """Show what changed from RUN_A to RUN_B: order, first places, scores, new and gone documents.

    No judgements are needed; to know which of two is better, use evaluate.

    [bold]Examples[/]

      rankmill compare ranked-monday/ ranked-tuesday/ --top 1,10

      rankmill compare old/ new/ --html changes.html --texts
    """
    if not re.fullmatch(r"\s*\d{1,9}\s*(,\s*\d{1,9}\s*)*", top, re.ASCII):
        raise ConfigError(f"--top is {top!r}.", "Give ranks joined by commas: 1,5,10.")
    if html is not None:
        storage.require_folder(html)
    with console.own_stdout() as stdout:
        with console.progress() as tell:
            found = compare(
                run_a,
                run_b,
                top=[int(k) for k in top.split(",")],
                most=most,
                texts=texts,
                allow_incomplete=allow_incomplete,
                profile=profile,
                listener=tell,
            )
        if html is not None:
            storage.write_file(html, render(found), of_profile(profile))
        if as_json:
            print(json.dumps(found.to_json(), indent=1, ensure_ascii=False), file=stdout)
        else:
            print_comparison(Console(file=stdout, highlight=False), found)
            if html is not None:
                print(f"\n{html}", file=stdout)
