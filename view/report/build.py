"""`omniopd report`: gather, draw, fill in the page, and write it as one file."""

import contextlib
import functools
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from ...method.objectives.registry import objective_of
from ...store import files
from ...store.config import Config
from ...store.errors import InputError, TableError
from ...store.layout import RunDir
from ...store.reader import open_reader
from ..decoder import find_decoder
from ..sanitize import one_line
from ..status import Status, read_status
from . import charts, figures
from .explorer import HEAT, block, marked, rollouts_of, sha256_source
from .glossary import terms

if TYPE_CHECKING:
    import duckdb

_HERE = Path(__file__).parent
_EXTREMES = 5
_CONTEXT = 160
"""Characters before a chunk that its card shows."""
_ANSWERS = 4
_NOTHING = ["Nothing yet."]


def write_report(run: RunDir, config: Config, target: Path, most_trajectories: int) -> str:
    """Write the report of a run as it is now. Returns a line about it.

    Args:
        most_trajectories: Trajectories that can be searched in it; of more, this many are drawn.

    Raises:
        InputError: there is no trajectory yet.
    """
    status = read_status(run, config)
    if all(round_.stages[0].state != "damaged" and not round_.stages[0].done for round_ in status.rounds):
        raise InputError(f"{run.path} has no trajectory yet.", f"Run `omniopd generate {run.path}` first.")
    page = _page(run, config, status, most_trajectories)
    files.write_text(target, page)
    return f"wrote {target} ({len(page.encode()) / 1e6:.1f} MB); open it in a browser"


def _page(run: RunDir, config: Config, status: Status, most_trajectories: int) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    left_out: list[TableError] = []
    with contextlib.closing(open_reader(run, left_out=left_out)) as db:
        students, audits, steps = figures.students(db), figures.audits(db), figures.training(db)
        accuracy = figures.accuracy(run)
        sections = _sections(run, students, audits, steps, accuracy, figures.distributions(db), figures.rewards(db))
        if objective_of(config).weights_from != "scores":
            # What is empty now stays so: it is about chunks and their weights.
            sections = [section for section in sections if section["charts"] != _NOTHING]
        worst, best = (_cards(db, best=best) for best in (False, True))
        trajectories = block(db, most_trajectories, find_decoder(run, config))
    specs = [chart for section in sections for chart in section["charts"] if not isinstance(chart, str)]
    css, script = ((_HERE / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    library = _library()
    sources = " ".join(sha256_source(text) for text in (library, script))
    policy = (
        f"default-src 'none'; script-src {sources}; style-src {sha256_source(css)};"
        " img-src data:; base-uri 'none'; form-action 'none'"
    )
    environment = Environment(loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html.j2").render(
        policy=policy, css=Markup(css), script=Markup(script), library=Markup(library), specs=Markup(_as_script(specs)),
        name=figures.bundle_name(run.path), student=_model_name(config.student.model), teacher=_teacher_name(config),
        left_out=[one_line(error.problem) for error in left_out],
        tiles=_tiles(status, students, audits, accuracy), settings=objective_of(config).shown(config),
        sections=sections, costs=figures.costs(students, audits, config.teacher.most_rollouts),
        priced=status.spend.prices not in ([], ["unknown"]), decode_to_prefill=figures.DECODE_TO_PREFILL,
        worst=worst, best=best, glossary=terms(), block=trajectories, heat=HEAT, version=version("omniopd"),
        made=f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
    )  # fmt: skip


@functools.cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, out of the package vl-convert-python."""
    import vl_convert

    library = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    assert "</script" not in library.lower()
    return library


def _as_script(value: Any) -> str:
    """JSON that no text in it can end as a script (HTML Standard, 4.12.1.3)."""
    return orjson.dumps(value).decode().replace("<", "\\u003c")


def _sections(
    run: RunDir, students: list[figures.Row], audits: list[figures.Row], steps: list[figures.Row],
    accuracy: list[figures.Row], bins: dict[str, figures.Histogram], rewards: list[figures.Row],
) -> list[dict[str, Any]]:  # fmt: skip
    dynamics = [
        charts.by_step("chunk-loss", steps, "chunk_loss", "Chunk loss", "nats per audited token"),
        charts.by_step("kl", steps, "kl_mean", "KL to the initial student", "nats per un-audited token"),
        charts.accuracy(accuracy, steps)
        or f"No accuracy yet: omniopd eval {one_line(str(run.path))} --benchmark … measures it.",
        charts.by_step("nll", steps, "audited_nll", "Audited NLL", "nats per token"),
        charts.by_step("entropy-steps", steps, "audited_entropy", "Entropy at audited tokens", "nats per token"),
        charts.by_step("weight-steps", steps, "mean_weight", "Mean weight of the batch", "mean π̂"),
    ]
    student = [
        charts.by_round("length-rounds", students, "length", "Response length", "tokens (band: 10–90 %)", "length"),
        charts.by_round("entropy-rounds", students, "entropy", "Entropy", "nats per token"),
        charts.by_round("repetition-rounds", students, "repetition", "Repetition", "share of the response (%)"),
        charts.by_round("cut-rounds", students, "cut_off", "Cut off at the limit", "share of trajectories (%)"),
        charts.histogram(bins["length"], "Response length", "tokens"),
        charts.histogram(bins["repetition"], "Repetition", "share of the response"),
    ]
    teacher = [
        charts.by_round("phi-rounds", audits, "phi", "Mean similarity φ", "mean φ"),
        charts.by_round("weight-rounds", audits, "weight", "Mean weight π̂", "mean π̂"),
        charts.histogram(bins["anchor_entropy"], "Entropy at the anchors", "nats"),
        charts.histogram(bins["phi"], "Similarity φ, mean of a chunk", "φ"),
        charts.histogram(bins["weight"], "Weight π̂ (Eq. 5)", "π̂"),
        charts.histogram(bins["prior"], "Prior π̄ (Eq. 4)", "π̄"),
    ]
    if any(row["accepted"] is not None for row in audits):
        teacher.insert(
            0, charts.by_round("accepted-rounds", audits, "accepted", "Accepted of the drafts", "tokens (%)")
        )
    graded = [
        charts.by_round("reward-rounds", rewards, "reward", "Mean reward", "mean reward"),
        charts.by_round("signal-rounds", rewards, "signal", "Prompts that carry signal", "share of prompts (%)"),
    ]
    sections: list[tuple[str, str, list[Any]]] = [
        (
            "Training dynamics",
            "As Fig. 3 of the paper. The loss falls also when the student merely becomes more certain, so it is no"
            " progress by itself: read it beside the accuracy, the NLL and the entropy. Dashed rules are rounds.",
            dynamics,
        ),
        (
            "What the student writes",
            "Growing repetition, or responses that run into the limit, indicate a degenerating student."
            " Distributions are of the last round (filled) and the first (line).",
            student,
        ),
        (
            "What the teacher says",
            "Similarity of a chunk to the teacher's rollouts, the student's own confidence, and the weight that"
            " they give together. Distributions are of the last round (filled) and the first (line).",
            teacher,
        ),
        *(
            [
                (
                    "What the grader says",
                    "Rewards of the student's responses; a prompt whose samples are all right, or all"
                    " wrong, teaches nothing.",
                    graded,
                )
            ]
            if rewards
            else []
        ),
    ]
    return [
        {"title": title, "about": about, "charts": [chart for chart in drawn if chart is not None] or _NOTHING}
        for title, about, drawn in sections
    ]


def _tiles(
    status: Status, students: list[figures.Row], audits: list[figures.Row], accuracy: list[figures.Row]
) -> list[dict[str, str]]:
    trajectories = sum(row["trajectories"] for row in students)
    tokens = sum(row["length"] * row["trajectories"] for row in students)
    trained = sum(round_.stages[3].state == "done" for round_ in status.rounds)
    out = [
        ("Rounds trained", f"{trained}", f"of {status.rounds_planned}"),
    ]
    if trajectories:
        out.append(("Trajectories", f"{trajectories:,}", f"{tokens / trajectories:,.0f} tokens on average"))
    if audits:
        chunks, rollouts = (sum(row[name] or 0 for row in audits) for name in ("chunks", "rollouts"))
        if trajectories:
            out.append(("Audited chunks", f"{chunks:,}", f"{chunks / trajectories:.1f} a trajectory"))
        else:
            out.append(("Prompts", f"{chunks:,}", "answered by the teacher"))
        answered = sum(row["answered"] or 0 for row in audits)
        out.append(("Rollouts", f"{rollouts:,}", f"{answered / rollouts:.1%} answered" if rollouts else "none"))
    distinct = [round_.distinct_rollouts for round_ in status.rounds if round_.distinct_rollouts is not None]
    if distinct:
        out.append(("Distinct rollouts", f"{distinct[-1]:.1f}", "a chunk, in the last round"))
    spend = status.spend
    cached = "" if spend.cache_share is None else f"{spend.cache_share:.0%} of the prompts cached"
    out.append(("Teacher tokens", _large(spend.tokens), cached))
    priced = spend.prices not in ([], ["unknown"])
    budget = "no budget set" if spend.budget_usd is None else f"of ${spend.budget_usd:,.2f}"
    out.append(("Spent", f"${spend.usd:,.2f}" if priced else "–", budget if priced else "no price known"))
    weights = [row for row in audits if row["weight"] is not None]
    if weights:
        note = f"{weights[0]['weight']:.3f} in round {weights[0]['round']}"
        out.append(("Mean weight π̂", f"{weights[-1]['weight']:.3f}", note if len(weights) > 1 else "of round 0"))
    if accuracy:
        same = [row for row in accuracy if (row["benchmark"], row["grader"]) == _main_benchmark(accuracy)]
        note = f"{same[0]['accuracy']:.1%} after {same[0]['rounds']} rounds" if len(same) > 1 else same[0]["grader"]
        out.append((f"Pass@1, {same[0]['benchmark']}", f"{same[-1]['accuracy']:.1%}", note))
    return [{"label": label, "value": value, "note": note} for label, value, note in out]


def _main_benchmark(accuracy: list[figures.Row]) -> tuple[str, str]:
    """The benchmark and grader with the most answers, the first of equals."""
    answers: dict[tuple[str, str], int] = {}
    for row in accuracy:
        key = row["benchmark"], row["grader"]
        answers[key] = answers.get(key, 0) + row["answers"]
    return max(sorted(answers), key=lambda key: (answers[key], key[1] != "dapo_regex"))


def _large(count: int) -> str:
    return f"{count / 1e6:,.1f} M" if count >= 10_000_000 else f"{count:,}"


def _model_name(model: str) -> str:
    """A hub id as it is, and of a folder the name: where it lies on this machine is nobody's business."""
    return Path(model).name if model.count("/") != 1 or model.startswith((".", "/")) else model


def _teacher_name(config: Config) -> str:
    objective = objective_of(config)
    if objective.graded:
        return f"rewards of {config.score.grader}"
    return _model_name(config.train.teacher) if objective.frozen == "teacher" else config.teacher.model


def _cards(db: "duckdb.DuckDBPyConnection", *, best: bool) -> list[figures.Row]:
    chunks = figures.extreme_chunks(db, _EXTREMES, best=best)
    answers = rollouts_of(db, [chunk["chunk_id"] for chunk in chunks], None)
    for chunk in chunks:
        prefix = chunk["prefix_text"]
        chunk["before"] = ("…" if len(prefix) > _CONTEXT else "") + prefix[-_CONTEXT:]
        chunk["answers"] = [marked(chunk, answer) for answer in answers[chunk["chunk_id"]][:_ANSWERS]]
    return chunks
