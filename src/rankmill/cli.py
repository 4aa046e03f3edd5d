"""The command line. Reads arguments, calls the library, prints; exit codes are the errors' own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console

from rankmill import console, job, model_tables, status_tables
from rankmill.calibrate_command import calibrate_command
from rankmill.capacity_tables import capacity_tables
from rankmill.compare_command import compare_command
from rankmill.config import RunConfig, load_config
from rankmill.errors import ConfigError, GatesFailed, RankmillError
from rankmill.evaluate_command import evaluate_command
from rankmill.export_command import export_command
from rankmill.forecast import capacity_facts
from rankmill.masking import has_credentials
from rankmill.models.presets import presets
from rankmill.nightly import read_date, with_reuse
from rankmill.nightly_command import nightly_command
from rankmill.prepared import prepare
from rankmill.quantize_command import quantize_command
from rankmill.report import draw_report
from rankmill.settings import Setting, parse_override
from rankmill.status import read_status
from rankmill.storage_settings import of_profile
from rankmill.tune_command import tune_command
from rankmill.verify import verify

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Batch reranking: Parquet tables of queries and candidates in, ranked tables out.",
)

models_app = typer.Typer(rich_markup_mode="rich")
app.add_typer(models_app, name="models", short_help="List the models that rankmill knows by name.")

ConfigFile = Annotated[Path | None, typer.Argument(help="YAML with settings; flags override it.")]
InputOption = Annotated[
    list[str] | None, typer.Option("--input", help="File, folder or glob; may be repeated.")
]
OutputOption = Annotated[str | None, typer.Option("--output", help="Folder, local or s3://.")]
ModelOption = Annotated[str | None, typer.Option("--model", help="Hub id, folder, s3:// or demo.")]
TopKOption = Annotated[int | None, typer.Option("--top-k", help="Write the best N of a query.")]
LimitOption = Annotated[int | None, typer.Option("--limit", help="Only the first N queries.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Any setting: a.b=value. May be repeated.")
]
DateOption = Annotated[
    str | None, typer.Option("--date", help="Takes the place of {date} in the settings.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Remove an old run first.")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Machine-readable; nothing else on stdout.")
]


@app.callback()
def settings(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks; goes with every command.")
    ] = False,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="Messages as JSON lines; goes with every command.")
    ] = False,
) -> None:
    """What goes with every command; `main` takes it out, wherever it stands."""


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option("--output", help="Folder for the demo's input and output.")
    ] = Path("demo-output"),
) -> None:
    """Rerank a real search problem with the embedded model, in about a minute.

    [bold]Example[/]

      rankmill demo --output /tmp/rankmill-demo
    """
    # Its packages belong to the extra `demo`.
    from rankmill.demo.run import run_demo

    with console.own_stdout() as stdout:
        out = Console(file=stdout, highlight=False)
        with console.progress() as tell:
            found = run_demo(output, lambda line: out.print(line, soft_wrap=True), tell)
        console.print_demo(out, found)


@app.command()
def rerank(
    config: ConfigFile = None,
    input_: InputOption = None,
    output: OutputOption = None,
    model: ModelOption = None,
    top_k: TopKOption = None,
    limit: LimitOption = None,
    set_: SetOption = None,
    date: DateOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Score every pair and write the pairs back, ranked. The same command resumes.

    [bold]Examples[/]

      rankmill rerank --input candidates.parquet --output ranked/ --model demo

      rankmill rerank configs/s3.yaml --set output.top_k=20
    """
    wanted = _config(config, input_, output, model, top_k, limit, set_, date)
    with console.stoppable(wanted.output.path), console.own_stdout() as stdout:
        with console.progress() as tell:
            try:
                result = job.rerank(wanted, overwrite=overwrite, listener=tell)
            except GatesFailed as failed:
                if as_json:
                    _print_json(failed.manifest, stdout)
                raise
        if as_json:
            _print_json(result.manifest, stdout)
        else:
            Console(file=stdout).print(console.manifest_table(result.manifest, result.output))


@app.command()
def plan(
    config: ConfigFile = None,
    input_: InputOption = None,
    output: OutputOption = None,
    model: ModelOption = None,
    top_k: TopKOption = None,
    limit: LimitOption = None,
    set_: SetOption = None,
    date: DateOption = None,
    overwrite: OverwriteOption = False,
    rate: Annotated[float | None, typer.Option(help="Pairs/s, to estimate the time.")] = None,
    rates_from: Annotated[
        list[str] | None,
        typer.Option(help="Output of a run with the same model: its rates tell what is needed."),
    ] = None,
    reuse_under: Annotated[
        str | None,
        typer.Option(help="As nightly's: the newest complete output in this folder is reused."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a run would do, and do nothing.

    Where rates were measured, by the run's own committed shards or by those of --rates-from
    (finished or not; may be repeated), it shows hours for 1, 2, 4, … workers of each model, and
    core-hours or GPU-hours.

    [bold]Examples[/]

      rankmill plan configs/nightly.yaml --date today --rate 250

      rankmill plan configs/nightly.yaml --date today --rates-from s3://search/reranked/2026-11-20/
    """
    wanted = _config(config, input_, output, model, top_k, limit, set_, date)
    with console.own_stdout() as stdout:
        ready = prepare(with_reuse(wanted, reuse_under), overwrite=overwrite)
        facts = console.plan_facts(ready, rate)
        facts["capacity"] = capacity_facts(ready, rates_from or [])
        if as_json:
            _print_json(facts, stdout)
        else:
            out = Console(file=stdout)
            out.print(console.plan_table(facts), *capacity_tables(facts["capacity"]))


@app.command()
def status(
    output: Annotated[str, typer.Argument(help="The output folder of a run.")],
    verify: Annotated[bool, typer.Option("--verify", help="Read and hash every file.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat while it runs.")] = False,
    profile: Annotated[str | None, typer.Option(help="AWS profile.")] = None,
) -> None:
    """Show how far a run is, from its own files: running, stopped or complete.

    [bold]Example[/]

      rankmill status ranked/ --verify
    """
    access = of_profile(profile)
    found = read_status(output, access, verify)
    if watch and found.running:
        found = status_tables.watch_status(found, lambda: read_status(output, access))
    else:
        Console().print(status_tables.status_table(found))
    if found.damaged:
        raise typer.Exit(1)


@app.command()
def report(
    output: Annotated[str, typer.Argument(help="The output folder of a run, finished or not.")],
    texts: Annotated[
        bool | None,
        typer.Option(
            "--texts/--no-texts",
            help="Show the documents that moved most; unless given, as the run's report.texts.",
        ),
    ] = None,
    profile: Annotated[str | None, typer.Option(help="AWS profile.")] = None,
) -> None:
    """Draw the HTML report of a run again, from its own files, and print where it is.

    [bold]Example[/]

      rankmill report ranked/ --texts
    """
    print(draw_report(output, of_profile(profile), texts))


app.command("evaluate")(evaluate_command)
app.command("tune")(tune_command)
app.command("calibrate")(calibrate_command)
app.command("compare")(compare_command)
app.command("export")(export_command)
app.command("nightly")(nightly_command)
app.command("quantize")(quantize_command)


@models_app.callback(invoke_without_command=True)
def models(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the models that rankmill knows by name. Any other checkpoint of their architectures
    works as well. A shape is layers x hidden size; tokens are those of the longest pair that a
    model takes, and of the length at which its authors use it (model.max_length, 512 by default).

    [bold]Example[/]

      rankmill models
    """
    if context.invoked_subcommand is not None:
        return
    known = presets()
    if as_json:
        print(json.dumps([preset.model_dump() for preset in known], indent=1, ensure_ascii=False))
        return
    out = Console(highlight=False)
    for line in model_tables.models_lines(known, out.width):
        out.print(line, soft_wrap=True, markup=False)
    for note in model_tables.models_notes(known):
        out.print(f"\n{note}", markup=False)


@models_app.command("verify")
def verify_command(
    name: Annotated[str, typer.Argument(help="A preset with published scores, e.g. demo.")],
    model: Annotated[
        str | None,
        typer.Option("--model", help="Where its weights are: a folder, s3:// or hub id."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Score the examples that were published with a model, and say whether they match.

    The weights are the hub's, or those of a copy that --model names.

    Exit code 0: they match; 1: they do not; 2: there are none, or the weights cannot be reached.

    [bold]Example[/]

      rankmill models verify demo

      rankmill models verify jinaai/jina-reranker-v1-tiny-en --model s3://models/jina-tiny
    """
    found = verify(name, model)
    if as_json:
        print(json.dumps(found.to_json(), indent=1, ensure_ascii=False))
    else:
        model_tables.print_verification(Console(highlight=False), found)
    if not found.matches:
        raise typer.Exit(1)


def _config(
    path: Path | None,
    input_: list[str] | None,
    output: str | None,
    model: str | None,
    top_k: int | None,
    limit: int | None,
    set_: list[str] | None,
    date: str | None,
) -> RunConfig:
    """The configuration that a command's arguments mean; `--set` wins over the other flags."""
    flags: dict[str, Setting] = {
        "input.path": input_,
        "output.path": output,
        "model.name": model,
        "output.top_k": top_k,
        "input.limit": limit,
    }
    overrides: dict[str, Setting] = {
        key: value for key, value in flags.items() if value not in (None, [])
    }
    if input_ and len(input_) == 1:
        overrides["input.path"] = input_[0]
    overrides |= dict(parse_override(text) for text in set_ or [])
    if path is None and not overrides:
        raise ConfigError(
            "Nothing to do: neither a configuration file nor --input and --output were given.",
            "rankmill rerank --help shows examples.",
        )
    return load_config(path, overrides, None if date is None else read_date(date))


def main() -> None:
    """The `rankmill` command."""
    sys.excepthook = console.show_traceback
    arguments = [one for one in sys.argv[1:] if one not in ("--debug", "--log-json")]
    console.set_up_logging(as_json="--log-json" in sys.argv)
    try:
        _refuse_credentials(arguments)
        app(arguments)
    except RankmillError as error:
        if "--debug" in sys.argv:
            console.show_traceback(type(error), error, error.__traceback__)
        else:
            console.show_error(error)
        sys.exit(error.exit_code)


def _print_json(facts: dict[str, Any], stdout: TextIO) -> None:
    print(json.dumps(facts, indent=1, ensure_ascii=False), file=stdout)


def _refuse_credentials(arguments: list[str]) -> None:
    """Raise `ConfigError` before anything repeats them: usage errors would, and so does Ray."""
    for argument in arguments:
        name, _, value = argument.partition("=")
        if has_credentials(argument) or has_credentials(value):
            shown = name if name.startswith("-") and "://" not in name else "An argument"
            raise ConfigError(
                f"{shown} carries credentials.", "Leave them to the environment or an AWS profile."
            )
