"""Several runs side by side: where they stand, how good they are, and in which settings they differ."""

import contextlib
import json
from typing import Any

from ...store.config import by_key
from ...store.errors import without_credentials
from ...store.layout import RunDir
from ...store.reader import open_reader
from ..report import charts, figures
from ..report.parts import Part, environment
from ..status import read_status

_CURVES = (
    ("chunk-loss", "chunk_loss", "Chunk loss", "nats per audited token"),
    ("kl", "kl_mean", "KL to the initial student", "nats per un-audited token"),
    ("nll", "audited_nll", "Audited NLL", "nats per token"),
    ("entropy-steps", "audited_entropy", "Entropy at audited tokens", "nats per token"),
    ("weight-steps", "mean_weight", "Mean weight of the batch", "mean π̂"),
)


def names_of(runs: list[RunDir]) -> list[str]:
    """The runs' short names, or their paths where two have the same."""
    short = [figures.bundle_name(run.path) for run in runs]
    return short if len(set(short)) == len(short) else [str(run.path) for run in runs]


def compared(runs: list[RunDir]) -> Part:
    """The runs as columns of a table, and their curves in the same charts."""
    names = names_of(runs)
    statuses = [read_status(run, run.config()) for run in runs]
    accuracies = [figures.accuracy(run) for run in runs]
    steps: dict[str, list[figures.Row]] = {}
    for name, run in zip(names, runs, strict=True):
        with contextlib.closing(open_reader(run, left_out=[])) as db:
            steps[name] = figures.training(db)
    drawn: list[dict[str, Any] | None] = []
    if evaluated := [row for rows in accuracies for row in rows]:
        by_run = dict(zip(names, accuracies, strict=True))
        drawn.append(charts.accuracy_of_runs(by_run, steps, *figures.main_benchmark(evaluated)))
    drawn += [charts.of_runs(curve, steps, column, title, unit) for curve, column, title, unit in _CURVES]
    specs = [chart for chart in drawn if chart is not None]
    html = environment().get_template("runs.html.j2").render(
        names=names, statuses=statuses, accuracy=_accuracy_rows(accuracies),
        differences=differences([_settings(run) for run in runs]), section={"charts": specs},
    )  # fmt: skip
    return Part(html, specs)


def _accuracy_rows(accuracies: list[list[figures.Row]]) -> list[tuple[str, list[figures.Row | None]]]:
    """For each benchmark and grader what every run has reached last, None where it was not evaluated."""
    keys = sorted({(row["benchmark"], row["grader"]) for rows in accuracies for row in rows})
    return [
        (
            f"{benchmark}, {grader}",
            [next((r for r in reversed(rows) if (r["benchmark"], r["grader"]) == (benchmark, grader)), None)
             for rows in accuracies],
        )
        for benchmark, grader in keys
    ]  # fmt: skip


def _settings(run: RunDir) -> dict[str, Any]:
    """What ran last, or what is to run."""
    recorded = run.resolved_config
    return json.loads(recorded.read_text(encoding="utf-8") if recorded.exists() else run.config().model_dump_json())


def differences(configs: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """The config keys in which the runs are not all the same, with each run's value."""
    flat = [by_key(config) for config in configs]
    keys = dict.fromkeys(key for one in flat for key in one)
    rows = [(key, [without_credentials(json.dumps(one.get(key), ensure_ascii=False)) for one in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]
