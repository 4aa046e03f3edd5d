"""The command `nightly`: a dated run that a scheduler starts; also `jobs/nightly.py`."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from rankmill import console
from rankmill.config import load_config
from rankmill.errors import RankmillError
from rankmill.nightly import Night, Summary, read_date, run_night, tell_refused
from rankmill.settings import DATE, parse_override


def nightly_command(
    date: Annotated[
        str, typer.Option("--date", help="YYYY-MM-DD, today or yesterday (UTC); for {date}.")
    ],
    config: Annotated[
        Path, typer.Option("--config", help="YAML with settings; {date} may stand in any.")
    ] = Path("configs/nightly.yaml"),
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting: a.b=value. May be repeated.")
    ] = None,
    wait: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds to wait for the input's _SUCCESS; 0: it is not looked for."
        ),
    ] = 3600,
    pause: Annotated[float, typer.Option(min=1, help="Seconds between two looks for it.")] = 30,
    reuse_under: Annotated[
        str | None,
        typer.Option(help="Folder of other nights' outputs: the newest complete one is reused."),
    ] = None,
    summary: Annotated[
        str | None, typer.Option(help="File for the summary, local or s3://; {date} may be in it.")
    ] = None,
) -> None:
    """Do one night's run, or go on with it: wait for the input, run, say how it went.

    The summary (state, exit code, reason, counters) is printed on stdout, and kept in --summary.
    Exit codes are those of rerank; 2 also says that the input did not come in time.

    [bold]Example[/]

      rankmill nightly --date yesterday --config configs/nightly.yaml --wait 7200
      --reuse-under s3://search/reranked/ --summary s3://search/nights/{date}.json
    """
    day = read_date(date)
    path = None if summary is None else summary.replace(DATE, day)
    try:
        wanted = load_config(config, dict(map(parse_override, set_ or [])), date=day)
    except RankmillError as error:
        print(tell_refused(day, path, error).to_json())
        raise
    night = Night(wanted, day, wait, pause, reuse_under, path)
    # A scheduler's request to stop unwinds what is open, as Ray makes it do once it is there.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    over: list[Summary] = []
    with console.own_stdout() as stdout:
        try:
            with console.progress() as tell:
                run_night(night, tell, over.append)
        finally:
            # Whoever started the night may be gone: what the night ended with says more than that.
            with suppress(OSError):
                print(*(done.to_json() for done in over), file=stdout, flush=True)
