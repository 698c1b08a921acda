"""The command line. It parses, calls one function, and prints; heavy imports happen inside the commands."""

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .store.errors import Interrupted, OmniopdError, UsageError
from .store.layout import RunDir, Stage
from .store.storage import storage_error
from .study.cli import study
from .view import cli as reading
from .view.cli import Json, Run, Set, as_json
from .view.console import allow_every_character


class _Commands(TyperGroup):
    """All commands. Typer's own way with Ctrl-C is to end without a word."""

    def invoke(self, ctx: typer.Context) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted("Interrupted.", "Run the same command again to resume.") from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Distil a teacher that returns only text into a small student, on the student's own trajectories.",
    epilog="Start with [bold]omniopd demo[/], or [bold]omniopd init runs/first[/], then plan, then run.",
)

app.add_typer(study, name="study")

NoCheck = Annotated[bool, typer.Option("--no-check", help="Do not look at the set-up first (omniopd check).")]
On = Annotated[
    str, typer.Option("--on", help="local | ray: short for --set cluster.on=... (docs/cluster.md).", show_default=False)
]
Round = Annotated[
    int | None, typer.Option("--round", min=0, help="Which round; the first unfinished one if not given.")
]


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        _say(f"omniopd {version('omniopd')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    if debug:
        os.environ["OMNIOPD_DEBUG"] = "1"


@app.command()
def init(
    run: Run,
    student: Annotated[str, typer.Option(help="Hub id or folder of the student.")] = "",
    prompts: Annotated[str, typer.Option(help="Prompt file or hub id of a data set.")] = "",
    teacher: Annotated[str, typer.Option(help="Model id of the teacher.")] = "",
    base_url: Annotated[str, typer.Option(help="Where the teacher's server is, up to /v1.")] = "",
    recipe: Annotated[
        str, typer.Option(help="A row of the paper's tables, or layers separated by commas: docs/recipes.md.")
    ] = "",
    set_: Set = [],
) -> None:
    """Write a commented config.toml into a new run directory.

    Example: omniopd init runs/first --student Qwen/Qwen3-1.7B --prompts prompts.jsonl --teacher Qwen/Qwen3-32B
    --base-url http://127.0.0.1:8000/v1

    Example: omniopd init runs/haiku --recipe table1/qwen3-4b/claude-haiku-4.5/omniopd --set teacher.budget_usd=50
    """
    from . import run as api
    from .store.config import toml_value

    given = {
        "student.model": student, "data.prompts": prompts, "teacher.model": teacher, "teacher.base_url": base_url
    }  # fmt: skip
    settings = [f"{key}={toml_value(value)}" for key, value in given.items() if value]
    made = api.Run.create(run, [*settings, *set_], recipe=recipe)
    _say(f"wrote {made.folder.config_toml}; edit it, then: omniopd plan {run}")


for _command in (reading.plan, reading.check):
    app.command()(_command)


@app.command()
def generate(
    run: Run,
    round_: Round = None,
    no_check: NoCheck = False,
    shard: Annotated[str, typer.Option(help="i/n: fill share i of n; torchrun and srun say it by themselves.")] = "",
    on: On = "",
    set_: Set = [],
) -> None:
    """Stage 1: sample the student's trajectories, with the entropy of every token.

    With an engine for each GPU of this machine (generate.processes); --shard spreads a round over machines.

    Example: omniopd generate runs/first --set generate.processes=4
    """
    from . import run as api
    from .stages.generate.workers import which_worker

    made = api.Run(run, _with_on(set_, on))
    # A driver may be one of several tasks of srun (ray symmetric-run), which says nothing of its share.
    environment = {} if made.config.cluster.on == "ray" else os.environ
    _say(made.generate(round_, worker=which_worker(shard, environment), check=not no_check))


@app.command()
def audit(
    run: Run,
    round_: Round = None,
    follow: Annotated[bool, typer.Option("--follow", help="Begin while `generate` still writes.")] = False,
    rebuild_ledger: Annotated[
        bool,
        typer.Option("--rebuild-ledger", help="Ask nothing: rebuild a lost ledger.sqlite from the rollouts' bills."),
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask once more for the rollouts that are recorded as failed.")
    ] = False,
    no_check: NoCheck = False,
    set_: Set = [],
) -> None:
    """Stage 2: pick the peak-entropy chunks and ask the teacher to continue their prefixes, under the budget.

    Example: omniopd audit runs/first --set teacher.budget_usd=5
    """
    if rebuild_ledger:
        from .store import ledger_repair

        _say(str(ledger_repair.rebuild_ledger(RunDir(run))))
        return
    from . import run as api

    _say(api.Run(run, set_).audit(round_, follow=follow, retry_failed=retry_failed, check=not no_check))


@app.command()
def batches(
    run: Run,
    cancel: Annotated[
        str, typer.Option(help="A batch's key, its id at the provider, or all: ask the provider for no more of it.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    set_: Set = [],
) -> None:
    """List the batches that `audit` has sent (teacher.mode = "batch"), or cancel one.

    Example: omniopd batches runs/first --cancel batch_68a2
    """
    import dataclasses

    from .stages.audit.batches import overview
    from .store.ledger_read import read_batches

    config = RunDir(run).config(tuple(set_))
    if cancel:
        _say(overview.cancel(RunDir(run), config, cancel))
        return
    found = read_batches(RunDir(run).ledger)
    _say(json.dumps([dataclasses.asdict(batch) for batch in found]) if as_json else overview.describe(found))


@app.command()
def score(run: Run, round_: Round = None, set_: Set = []) -> None:
    """Stage 3: turn rollouts into weights and training sequences. Never asks the teacher.

    Example: omniopd score runs/first --set score.alpha=0.5
    """
    from . import run as api

    _say(api.Run(run, set_).score(round_))


@app.command()
def train(run: Run, round_: Round = None, on: On = "", set_: Set = []) -> None:
    """Stage 4: train the policy with Megatron-Core, and write it as Hugging Face safetensors.

    Example: omniopd train runs/first --set train.processes=8 --set train.tensor_parallel=2
    """
    from . import run as api

    _say(api.Run(run, _with_on(set_, on)).train(round_))


@app.command("run")
def run_(
    run: Run,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds in all.")] = None,
    no_check: NoCheck = False,
    on: On = "",
    set_: Set = [],
) -> None:
    """Drive the four stages, round after round; resumes where it was stopped.

    Example: omniopd run runs/first --rounds 5
    """
    from . import run as api

    policy = api.Run(run, _with_on(set_, on)).run(rounds, check=not no_check, say=_say)
    _say(f"policy of the last round: {policy}")


@app.command()
def pull(
    mirror: Annotated[str, typer.Argument(help="What run.mirror says: s3://..., gs://..., az://... or a folder.")],
    run: Annotated[Path, typer.Argument(help="The run directory; must not exist.")],
) -> None:
    """Restore a run from its mirror (run.mirror), and compare every file with its hash.

    Example: omniopd pull s3://bucket/first runs/first
    """
    import functools

    from .stages.progress import progress
    from .store.mirror.pull import pull

    place = mirror if "://" in mirror else str(Path(mirror).absolute())
    _say(pull(place, run, functools.partial(progress, "pull")))


@app.command()
def reset(
    run: Run,
    round_: Annotated[int, typer.Option("--round", min=0, help="Which round.", show_default=False)],
    from_: Annotated[
        Stage,
        typer.Option("--from", help="This stage and all behind it are taken back.", show_default=False),
    ],
    discard_paid: Annotated[
        bool, typer.Option("--discard-paid", help="Delete the rollouts too, instead of setting them aside.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Take a round back to before a stage, to do it again. Shows what goes, and asks. What was spent stays spent.

    Example: omniopd reset runs/first --round 2 --from audit
    """
    from .store.reset import carry_out, plan_reset

    wanted = plan_reset(RunDir(run), round_, from_, discard_paid=discard_paid)
    _say(wanted)
    if not (yes or sys.stdin.isatty()):
        raise UsageError("Nobody is here to be asked.", "Add --yes.")
    if yes or typer.confirm("Go on?"):
        _say(carry_out(wanted))


for _command in (
    reading.status,
    reading.inspect,
    reading.sql,
    reading.report,
    reading.view,
    reading.export,
    reading.card,
):
    app.command()(_command)


@app.command("eval")
def eval_(
    model: Annotated[
        str | None,
        typer.Argument(help="Folder or hub id of a model, a run directory, or a policy in one.", show_default=False),
    ] = None,
    benchmark: Annotated[
        str,
        typer.Option(
            help="math500, aime24, aime25, amc23, olympiadbench; apps, codecontests, taco, codeforces; or FILE."
            " Short for --set eval.benchmark=...",
            show_default=False,
        ),
    ] = "",
    after: Annotated[
        int | None, typer.Option(min=0, help="Of a run: after so many rounds, 0 is the initial student; unset: all.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; unset: RUN/eval/... or evals/...")] = None,
    shard: Annotated[str, typer.Option(help="i/n: answer share i of n of the questions.")] = "",
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Two folders of results: is the first model better?")
    ] = None,
    json_: Json = False,
    set_: Set = [],
) -> None:
    """Measure a model on a benchmark: Pass@1 and pass@k with intervals, length, truncation, repetition.

    Samples, length, temperature, template, seed and graders are keys of
    \\[eval], in a run's config.toml or by --set. Resumes where it was stopped.

    FILE is .jsonl, .parquet or .csv with the columns question and answer
    (or tests, for programs, which run in a sandbox): docs/evaluation.md.

    Examples:

    omniopd eval Qwen/Qwen3-1.7B --benchmark math500

    omniopd eval runs/first --after 0 --benchmark aime24.jsonl --set eval.samples=4

    omniopd eval --compare runs/first/eval/after=003/math500 runs/first/eval/after=000/math500
    """
    from .eval.describe import describe, describe_comparison

    if compare is not None:
        from .eval.compare import compare as compare_
        from .store.evals import EvalDir

        difference = compare_(EvalDir(compare[0]), EvalDir(compare[1]))
        _say(as_json(difference) if json_ else describe_comparison(difference))
        return
    if model is None:
        raise UsageError("MODEL is needed.", "Example: omniopd eval runs/first --benchmark math500.")
    from .eval.results import result
    from .eval.settings import eval_config, find_target
    from .eval.stage import evaluate
    from .run import tracked
    from .stages.generate.workers import which_worker

    target = find_target(model, after)
    overrides = [*set_, f"eval.benchmark={json.dumps(benchmark)}"] if benchmark else set_
    share = which_worker(shard, os.environ)
    config = eval_config(target, overrides)
    with tracked(target.run, config) if target.run is not None else contextlib.nullcontext():
        folder, whole = evaluate(target, config, out, share)
    if whole:
        _say(as_json(result(folder)) if json_ else describe(result(folder)))
    else:
        _say(f"share {share} is answered; the last worker to finish grades them all")


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where the runs go.")] = Path("runs/demo"),
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in all.")] = 6,
    seed: Annotated[int, typer.Option(help="Of prompts, sampling and held-out problems.")] = 0,
) -> None:
    """Improve a small student that ships with the package: no download, no GPU, no key.

    Example: omniopd demo runs/demo --seed 1
    """
    # Models of a megabyte are fastest on one thread, and the teacher's server wants a core too. Before torch is there.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from .demo.run import demo

    demo(folder, rounds, seed, _say)


def main() -> None:
    """Run a command; an error that the user can fix is one line, and its exit code says of what kind it is."""
    allow_every_character()
    try:
        app(standalone_mode=True)
    except Interrupted as error:
        # Another Ctrl-C would be heard in the middle of the interpreter's end, where libraries print what it cut off.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with contextlib.suppress(SystemExit):
            _fail(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(error.exit_code)
    except OmniopdError as error:
        _fail(error)
    except Exception as error:
        if (told := storage_error(error)) is None:
            raise
        _fail(told)


def _fail(error: OmniopdError) -> None:
    if os.environ.get("OMNIOPD_DEBUG"):
        raise error
    sys.stderr.write(f"omniopd: {error}\n")
    raise SystemExit(error.exit_code)


def _say(line: Any) -> None:
    typer.echo(str(line))


def _with_on(overrides: list[str], on: str) -> list[str]:
    return [*overrides, f"cluster.on={on}"] if on else overrides
