"""The commands that look at a run, or hand it over: they parse, call one function, and print. Imports happen inside."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..store.errors import UsageError
from ..store.files import check_target
from ..store.layout import RunDir

Run = Annotated[Path, typer.Argument(help="The run directory.", show_default=False)]
Format = Literal["table", "csv", "json", "jsonl", "parquet"]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]
Set = Annotated[list[str], typer.Option("--set", help="Override a config key: --set train.lr=1e-5. Repeatable.")]


def as_json(value: Any) -> str:
    """Dataclasses and paths too; what is not a number is null."""
    import orjson

    return orjson.dumps(value, default=str, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode()


def plan(run: Run, json_: Json = False, set_: Set = []) -> None:
    """Predict requests, tokens and dollars of a round, and which GPU holds a step of training. Sends nothing.

    Example: omniopd plan runs/first --set teacher.rollouts=20
    """
    from ..check import offline
    from .plan import describe, forecasts, plan

    config = RunDir(run).config(tuple(set_))
    found = [finding for finding in offline(RunDir(run), config) if finding.verdict != "ok"]
    phases = [(first, config.of_round(first)) for first in config.first_rounds]
    plans = [(first, of_round, plan(RunDir(run), of_round)) for first, of_round in phases]
    if json_:
        told = [
            {"from_round": first, "objective": of_round.train.objective, "plan": one,
             "forecasts": forecasts(one, of_round)}
            for first, of_round, one in plans
        ]  # fmt: skip
        typer.echo(as_json({"rounds": config.run.rounds, "plans": told, "findings": found}))
        return
    for first, of_round, one in plans:
        if config.run.schedule:
            typer.echo(f"From round {first} on, {of_round.train.objective}:")
        typer.echo(describe(one, of_round))
    if found:
        typer.echo("\n".join(map(str, found)))


def check(run: Run, set_: Set = []) -> None:
    """Look at student, teacher, key, price, budget and disk before a run; asks the teacher two small questions.

    Example: omniopd check runs/first
    """
    from ..check import check

    findings = check(RunDir(run), RunDir(run).config(tuple(set_)))
    typer.echo("\n".join(map(str, findings)))
    if any(finding.verdict == "fail" for finding in findings):
        raise typer.Exit(3)


def status(
    run: Run,
    json_: Annotated[bool, typer.Option("--json", help="For programs; docs/reading-a-run.md has the fields.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing it until all rounds are done.")] = False,
) -> None:
    """Show rounds x stages: what is done, missing and failed, what was spent, and how long it will take.

    Example: omniopd status runs/first --watch
    """
    from .status import read_status
    from .status_text import show

    config = RunDir(run).config()
    if json_:
        typer.echo(read_status(RunDir(run), config).model_dump_json(indent=1))
    else:
        show(RunDir(run), config, watch=watch)


def inspect(
    run: Run,
    table: Annotated[str, typer.Argument(help="trajectories, chunks, rollouts, or any view of sql.")] = "trajectories",
    where: Annotated[str, typer.Option(help="A SQL condition over the columns (omniopd sql RUN --schema).")] = "true",
    sort: Annotated[str, typer.Option(help='SQL order, such as "pi_teacher DESC".')] = "",
    limit: Annotated[int, typer.Option(min=1, help="Rows shown.")] = 3,
    offset: Annotated[int, typer.Option(min=0, help="Rows left out before them.")] = 0,
    sample: Annotated[int | None, typer.Option(min=1, help="Draw this many rows at random first.")] = None,
    seed: Annotated[int, typer.Option(help="Of the drawing.")] = 0,
    json_: Json = False,
) -> None:
    """Read rows: a trajectory with its chunks marked and the teacher's rollouts under them; chunks as case studies.

    Example: omniopd inspect runs/first chunks --where "round = 0 AND n >= 8" --sort pi_teacher --limit 10
    """
    from .console import open_console
    from .inspect import Selection, find, inspect

    selection = Selection(where, sort, limit, offset, sample, seed)
    if json_:
        typer.echo(as_json(find(RunDir(run), table, selection)))
        return
    console = open_console()
    for block in inspect(RunDir(run), RunDir(run).config(), table, selection):
        console.print(block)


def sql(
    run: Run,
    query: Annotated[str | None, typer.Argument(help="Statements; a shell if not given.", show_default=False)] = None,
    format_: Annotated[Format | None, typer.Option("--format", help="How to write the answer.")] = None,
    out: Annotated[Path | None, typer.Option(help="Into this file; its name tells the format.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Show views and columns with docs and units.")] = False,
    allow_files: Annotated[bool, typer.Option(help="Let SQL open files and load extensions.")] = False,
) -> None:
    """Ask DuckDB about all tables of the run; it cannot change them.

    Example: omniopd sql runs/first "SELECT round, avg(prior) FROM chunks GROUP BY round" --out priors.csv
    """
    from .shell import run_sql

    RunDir(run).config()
    if out is not None:
        check_target(out)
    run_sql(RunDir(run), query, format_, out, schema=schema, allow_files=allow_files)


def report(
    run: Run,
    out: Annotated[Path | None, typer.Option(help="The file; unset: RUN/report.html.", show_default=False)] = None,
    trajectories: Annotated[int, typer.Option(min=1, help="Searchable trajectories; drawn if there are more.")] = 1000,
) -> None:
    """Write one self-contained HTML file: training dynamics, distributions, cost, chunks, searchable trajectories.

    Example: omniopd report runs/first --out first.html
    """
    from .report.build import write_report

    config, target = RunDir(run).config(), out or RunDir(run).report
    check_target(target)
    typer.echo(write_report(RunDir(run), config, target, trajectories))


def view(
    runs: Annotated[list[Path], typer.Argument(help="One run directory or several.", show_default=False)],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where to listen; 0: any free port.")] = 8787,
    host: Annotated[
        str, typer.Option(help="Address to listen on. What is no loopback address needs the token in the link.")
    ] = "127.0.0.1",
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the link.")] = False,
) -> None:
    """Serve the report's page of a run while its stages go on; of several runs, side by side. Ctrl-C ends it.

    Example: omniopd view runs/first runs/second
    """
    from .live.server import view

    view([RunDir(run) for run in runs], host, port, browser=not no_browser, say=typer.echo)


def export(
    run: Run,
    folder: Annotated[Path, typer.Argument(help="Where to; must not exist.", show_default=False)],
    after: Annotated[
        int | None, typer.Option(min=1, help="After this many rounds; unset: all that are trained.")
    ] = None,
    dtype: Annotated[
        Literal["keep", "float32", "bfloat16", "float16"], typer.Option(help="Precision of the weights.")
    ] = "keep",
    adapter: Annotated[
        bool, typer.Option("--adapter", help="The adapters of train.lora alone, in PEFT's format.")
    ] = False,
    dataset: Annotated[
        bool, typer.Option("--dataset", help="Trajectories, chunks and rollouts of all rounds, in place of the policy.")
    ] = False,
    push_to_hub: Annotated[
        str, typer.Option(help="Upload the folder to this repository too: name/repository.", show_default=False)
    ] = "",
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
) -> None:
    """Copy a trained policy and its card into a Hugging Face folder; or the run's tables, as a data set.

    Example: omniopd export runs/first student-distilled --dtype bfloat16

    Example: omniopd export runs/first student-distilled --push-to-hub my-name/student-distilled
    """
    from . import handover

    if dataset and (after is not None or adapter or dtype != "keep"):
        raise UsageError(
            "--dataset has the tables of all rounds, and no weights.", "Leave out --after, --dtype and --adapter."
        )
    if push_to_hub:
        handover.check_hub()
    if dataset:
        typer.echo(handover.export_dataset(RunDir(run), folder))
    else:
        typer.echo(handover.export_policy(RunDir(run), RunDir(run).config(), after, folder, dtype, adapter=adapter))
    if push_to_hub:
        typer.echo(handover.push(folder, push_to_hub, "dataset" if dataset else "model", public=public))


def card(
    run: Run,
    after: Annotated[
        int | None, typer.Option(min=1, help="After this many rounds; unset: all that are trained.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The file; unset: RUN/card.md.", show_default=False)] = None,
    json_: Json = False,
) -> None:
    """Write a page about the policy: student, teacher, data, rounds, accuracy, cost, settings, and how to load it.

    Example: omniopd card runs/first
    """
    from .card import read_card, write_card

    if json_:
        typer.echo(read_card(RunDir(run), RunDir(run).config(), after).model_dump_json(indent=1))
        return
    if out is not None:
        check_target(out)
    typer.echo(write_card(RunDir(run), RunDir(run).config(), out, after))
