"""The state of a run as people read it: a table, lines below it, and `--watch`."""

import sys
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from ..stages.audit.forecast import Forecast
from ..store.config import Config
from ..store.layout import STAGES, RunDir
from .console import open_console
from .sanitize import one_line
from .status import ANSWERED, Evaluation, Spend, StageStatus, Status, finished, read_status

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_SECONDS_BETWEEN_LOOKS = 2.0
_WITH_COMMANDS = ("failed", "next")
_COLOUR = {
    "done": "green",
    "running": "cyan",
    "partial": "yellow",
    "failed": "bold red",
    "damaged": "bold red",
    "missing": "dim",
}


def show(run: RunDir, config: Config, *, watch: bool) -> None:
    """Print the state; with `watch`, again and again until nothing runs any more that could change it, or Ctrl-C."""
    from rich.text import Text

    console = open_console()
    if not watch:
        status = read_status(run, config)
        console.print(render(status, leave_out=_WITH_COMMANDS))
        for name, text in lines(status):
            if name in _WITH_COMMANDS:
                # The terminal's own line break: a command that is copied over it stays whole.
                console.print(Text.assemble((f"{name:<11}", _style(name)), text), soft_wrap=True)
    elif console.is_terminal:
        _watch(run, config, console)
    else:
        _watch_plain(run, config)


def _watch(run: RunDir, config: Config, console: "Console") -> None:
    from rich.live import Live

    with Live(console=console, auto_refresh=False) as live:
        while True:
            status = read_status(run, config)
            live.update(render(status), refresh=True)
            if finished(status):
                return
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def _watch_plain(run: RunDir, config: Config) -> None:
    """A line whenever something has changed."""
    last = ""
    while True:
        status = read_status(run, config)
        line = one_liner(status)
        if line != last:
            sys.stdout.write(f"{status.time.astimezone():%H:%M:%S}  {line}\n")
            sys.stdout.flush()
            last = line
        if finished(status):
            return
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def one_liner(status: Status) -> str:
    """The whole state in a line."""
    return f"{now(status)}; ${status.spend.usd:.4f}, {status.spend.tokens:,} teacher tokens"


def now(status: Status) -> str:
    """What is going on."""
    current = _current(status)
    if current is not None:
        round_, stage = current
        return f"round {round_} {stage.stage} {stage.state} {amount(stage)}{pace(stage)}"
    return "all rounds are done" if finished(status) else "nothing runs"


def render(status: Status, leave_out: Collection[str] = ()) -> "RenderableType":
    """The table of rounds and stages, and what there is to say below it, but for the lines of some labels."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("round", justify="right")
    scheduled = len({round_.objective for round_ in status.rounds}) > 1
    if scheduled:
        table.add_column("objective", no_wrap=True)
    for stage in STAGES:
        table.add_column(stage, no_wrap=True)
    for heading in ("tokens", "cached", "USD", "cut off"):
        table.add_column(heading, justify="right", no_wrap=True)
    for round_ in status.rounds:
        table.add_row(
            str(round_.round), *([round_.objective] if scheduled else []),
            *(_cell(stage) for stage in round_.stages), f"{round_.spend.tokens:,}",
            _share(round_.spend.cache_share), f"{round_.spend.usd:.4f}", _share(round_.cut_off),
        )  # fmt: skip
    title = Text(one_line(status.run), "bold")
    title.append(f"   {_rounds_done(status)} of {status.rounds_planned} rounds done", "default")
    below = Table.grid(padding=(0, 2, 0, 0))
    for name, text in lines(status):
        if name not in leave_out:
            below.add_row(Text(name, _style(name)), Text(text))
    return Group(title, Text(), table, Text(), below)


def _style(label: str) -> str:
    return "bold red" if label == "failed" else "dim"


def lines(status: Status) -> list[tuple[str, str]]:
    """What stands below the table, as (label, text)."""
    spend = status.spend
    out = [("spend", _spend(spend))]
    if spend.requests:
        unknown = f", {spend.unknown_requests} without an answer (charged in full)" if spend.unknown_requests else ""
        checks = f", {spend.check_requests} of them by checks" if spend.check_requests else ""
        cache = "" if spend.cache_share is None else f" ({spend.cache_share:.1%} from its cache)"
        tokens = f"{spend.prompt_tokens:,} prompt tokens{cache} and {spend.completion_tokens:,} of rollouts"
        out.append(("teacher", f"{spend.requests:,} requests{checks}{unknown}: {tokens}"))
    if predictions := [round_.predicted for round_ in status.rounds if round_.predicted is not None]:
        out.append(("predicted", _predicted(predictions)))
    total = sum(status.outcomes.values())
    if total:
        order = sorted(status.outcomes, key=lambda name: (name not in ANSWERED, name))
        out.append((
            "rollouts", ", ".join(f"{status.outcomes[s]:,} {s} ({status.outcomes[s] / total:.1%})" for s in order)
        ))  # fmt: skip
    distinct = [round_.distinct_rollouts for round_ in status.rounds if round_.distinct_rollouts is not None]
    if distinct:
        out.append(("variety", f"{distinct[-1]:.1f} distinct rollouts a chunk in the last round"))
    accepted = [round_.accepted for round_ in status.rounds if round_.accepted is not None]
    if accepted:
        out.append(("drafts", f"{accepted[-1]:.1%} of their tokens accepted in the last round"))
    repetition = [round_.repetition for round_ in status.rounds if round_.repetition is not None]
    if repetition:
        out.append(("student", f"repetition {repetition[0]:.1%} in round 0, {repetition[-1]:.1%} in the last"))
    out += [("accuracy", line) for line in _accuracy(status.evaluations)]
    if status.policy is not None:
        out.append(("policy", one_line(status.policy)))
    for round_ in status.rounds:
        out += [("failed", one_line(f"round {round_.round} {s.stage}: {s.error}")) for s in round_.stages if s.error]
    current = _current(status)
    if current is not None:
        index, stage = current
        out.append(("now", f"round {index} {stage.stage}: {amount(stage)} {stage.unit}{pace(stage)}"))
    if status.eta_s is not None:
        out.append(("left", f"about {duration(status.eta_s)} until the last round is trained"))
    elif status.next is not None:
        out.append(("next", one_line(status.next)))
    return out


def _accuracy(evaluations: list[Evaluation]) -> list[str]:
    """For each benchmark Pass@1 at first and at last, percent."""
    out: list[str] = []
    for benchmark in dict.fromkeys(one.benchmark for one in evaluations):
        own = [one for one in evaluations if one.benchmark == benchmark]
        ends = [own[0], own[-1]] if len(own) > 1 else own
        shown = (f"{one.percent} {f'after {one.rounds} rounds' if one.rounds else 'before'}" for one in ends)
        out.append(one_line(f"{benchmark}: Pass@1 {', '.join(shown)}"))
    return out


def _predicted(rounds: list[Forecast]) -> str:
    """The rounds' predictions as one, to be read beside the bill above it."""
    requests, prompt, cached, completion = (
        sum(getattr(p, name) for p in rounds)
        for name in ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")
    )
    low, high = sum(p.usd for p in rounds), sum(p.usd_uncached for p in rounds)
    dollars = f"${low:.4f}" if low == high else f"${low:.4f} to ${high:.4f}"
    return (
        f"{requests:,} requests: {prompt:,} prompt tokens (at best {cached:,} of them cached) and at most"
        f" {completion:,} of rollouts, {dollars}"
    )


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _rounds_done(status: Status) -> int:
    return sum(all(stage.state == "done" for stage in round_.stages) for round_ in status.rounds)


def _current(status: Status) -> tuple[int, StageStatus] | None:
    running = [(r.round, s) for r in status.rounds for s in r.stages if s.state == "running"]
    return running[-1] if running else None


def _spend(spend: Spend) -> str:
    if spend.prices == ["unknown"]:
        usd = "$0 (no price is known: set teacher.price to see dollars)"
    else:
        by = f" by {', '.join(spend.prices)}" if spend.prices else ""
        usd = f"${spend.usd:.4f}{_of_budget(spend.usd, spend.budget_usd, '${:,.2f}')}{by}"
    return f"{usd}, {spend.tokens:,} teacher tokens{_of_budget(spend.tokens, spend.budget_tokens, '{:,}')}"


def _of_budget(amount: float, budget: float | None, form: str) -> str:
    if budget is None:
        return ""
    share = f" ({amount / budget:.0%})" if budget else ""
    return f" of {form.format(budget)}{share}"


def amount(stage: StageStatus) -> str:
    return f"{stage.done:,}" if stage.expected in (None, stage.done) else f"{stage.done:,}/{stage.expected:,}"


def pace(stage: StageStatus) -> str:
    if stage.waiting is not None:
        return f", {stage.waiting}"
    rate = "" if stage.rate_per_s is None else f", {stage.rate_per_s:.3g}/s"
    rate += "" if stage.tokens_per_s is None else f", {stage.tokens_per_s:,.0f} tokens/s"
    return rate + ("" if stage.eta_s is None else f", {duration(stage.eta_s)} left")


def _cell(stage: StageStatus) -> Any:
    from rich.text import Text

    text = Text("-" if stage.state == "missing" else stage.state, _COLOUR[stage.state])
    if stage.done or stage.state != "missing":
        text.append(f" {amount(stage)}", "default")
    if stage.failed:
        text.append(f" ({stage.failed:,} {'skipped' if stage.stage == 'train' else 'failed'})", "red")
    return text


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
