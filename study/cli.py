"""`omniopd study`: what the estimator is worth on a run, and many runs side by side."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from ..store.config import Config
    from .arms import Choice, Kind
    from .runner import StudyOptions

study = typer.Typer(no_args_is_help=True, help="Compare methods and settings over seeds; or study a run's estimator.")

Study = Annotated[Path, typer.Argument(help="Folder with the config.toml that all arms begin with.")]
Benchmark = Annotated[
    str, typer.Option(help="What arms are evaluated on: a name or FILE, as for `omniopd eval`; unset: eval.benchmark.")
]
Seeds = Annotated[int, typer.Option(min=1, help="Each arm is trained once for each seed.")]
Jobs = Annotated[int, typer.Option(min=1, help="Arms trained at a time, each in a process.")]
Curve = Annotated[bool, typer.Option("--curve", help="Evaluate after every round: learning curves.")]
Equal = Annotated[Literal["tokens", "usd"], typer.Option(help="What sft spends as much of as omniopd.")]
Grid = Annotated[
    list[str],
    typer.Option(help="A key and its values; unset: M, N, C, phi, alpha and beta around the base's. Repeatable."),
]
Set = Annotated[list[str], typer.Option("--set", help="Override a key of the base: --set run.rounds=3. Repeatable.")]
StudiedRound = Annotated[int, typer.Option("--round", min=0, help="Which round.")]


@study.command("compare")
def compare(
    study: Study,
    benchmark: Benchmark = "",
    seeds: Seeds = 5,
    equal: Equal = "tokens",
    jobs: Jobs = 1,
    curve: Curve = False,
    set_: Set = [],
) -> None:
    """OmniOPD beside SFT, white-box OPD, GRPO and constant weights, at equal teacher tokens or dollars (Tables 1-2).

    opd needs train.teacher, grpo needs data.answer. Resumes where it was stopped; docs/studies.md says what arms share
    and what the intervals hold for.

    Example: omniopd study compare studies/first --benchmark math500 --set run.rounds=3
    """
    from .arms import compare_arms
    from .runner import StudyOptions

    options = StudyOptions(seeds, jobs, curve, equal)
    _run(study, "compare", lambda base: compare_arms(base, equal), options, benchmark, set_)


@study.command("ablation")
def ablation(
    study: Study,
    benchmark: Benchmark = "",
    seeds: Seeds = 5,
    jobs: Jobs = 1,
    curve: Curve = False,
    set_: Set = [],
) -> None:
    """OmniOPD without one part at a time (Table 6), and with this implementation's own choices the other way round.

    Example: omniopd study ablation studies/first --benchmark math500 --set eval.samples=4
    """
    from .arms import ablation_arms
    from .runner import StudyOptions

    _run(study, "ablation", ablation_arms, StudyOptions(seeds, jobs, curve), benchmark, set_)


@study.command("sensitivity")
def sensitivity(
    study: Study,
    benchmark: Benchmark = "",
    grid: Grid = [],
    seeds: Seeds = 5,
    jobs: Jobs = 1,
    curve: Curve = False,
    set_: Set = [],
) -> None:
    """One key at a time over a few values, all others as in the base (Tables 4-5, Fig. 2).

    Example: omniopd study sensitivity studies/first --benchmark math500 --grid score.alpha=0,0.5,1,4
    """
    from .arms import parse_grids, sensitivity_arms
    from .runner import StudyOptions

    grids = parse_grids(grid)
    options = StudyOptions(seeds, jobs, curve)
    _run(study, "sensitivity", lambda base: sensitivity_arms(base, grids), options, benchmark, set_)


def _run(
    folder: Path,
    kind: "Kind",
    choose: "Callable[[Config], Choice]",
    options: "StudyOptions",
    benchmark: str,
    overrides: list[str],
) -> None:
    from ..store.studies import StudyDir
    from .runner import run_study

    named = [f"eval.benchmark={json.dumps(benchmark, ensure_ascii=False)}"] if benchmark else []
    base = _config(folder, [*overrides, *named])
    _say(run_study(StudyDir(folder), kind, base, choose(base), options, _say))


@study.command("estimator")
def study_estimator(
    run: Annotated[Path, typer.Argument(help="The run directory.", show_default=False)],
    teacher: Annotated[str, typer.Option(help="Folder or hub id of the teacher's weights, or `server`.")],
    round_: StudiedRound = 0,
    set_: Set = [],
) -> None:
    """Compare both estimators with the teacher's true probabilities, for every phi and N (Table 3).

    `server` asks the config's own teacher for the log-probs of a prompt (echo), which vLLM has and paid APIs have not.

    Example: omniopd study estimator runs/first --teacher Qwen/Qwen3-32B --round 0
    """
    from ..store.layout import RunDir
    from .estimator.study import study_estimator

    _say(study_estimator(RunDir(run), round_, _config(run, set_), teacher))


@study.command("alpha")
def study_alpha(
    run: Annotated[Path, typer.Argument(help="The run directory.", show_default=False)],
    teacher: Annotated[str | None, typer.Option(help="Also against this teacher's true probabilities.")] = None,
    round_: StudiedRound = 0,
    set_: Set = [],
) -> None:
    """Find the prior strength with the least error on a round's scores (Theorem 4.1c).

    Example: omniopd study alpha runs/first --round 0
    """
    from ..store.layout import RunDir
    from .estimator.study import study_alpha

    _say(study_alpha(RunDir(run), round_, _config(run, set_), teacher))


def _config(folder: Path, overrides: list[str]) -> "Config":
    from ..store.layout import RunDir

    return RunDir(folder).config(tuple(overrides))


def _say(line: str) -> None:
    typer.echo(line)
