"""What a page about a run consists of, in parts, so that a page that stays open can ask for those that have changed.

`omniopd report` writes all of them into one file; `omniopd view` serves them one by one.
"""

import contextlib
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...method.objectives.registry import objective_of
from ...store.config import Config
from ...store.errors import TableError
from ...store.layout import STAGES, RunDir
from ...store.reader import open_reader
from ..decoder import find_decoder
from ..sanitize import one_line
from ..status import Status
from ..status_text import amount, lines, now, pace
from . import charts, figures
from .explorer import HEAT, block, marked, rollouts_of
from .glossary import OF_CHARTS, meaning, terms

if TYPE_CHECKING:
    import duckdb
    from jinja2 import Environment

_EXTREMES = 5
_CONTEXT = 160
"""Characters before a chunk that its card shows."""
_ANSWERS = 4
_NOTHING = ["Nothing yet."]
_OF_THIS_MACHINE = ("policy", "next", "failed")
"""Lines that say where the run lies: a report is handed on."""


@dataclass(frozen=True)
class Part:
    """A part of a page: markup in which all text is escaped, and what the page's script makes of it."""

    html: str
    specs: list[dict[str, Any]] = field(default_factory=list)
    """Charts, each for the place of its name in the markup."""
    data: str = ""
    """The block of trajectories (explorer.Block)."""


@functools.cache
def environment() -> "Environment":
    """The templates of the page and its parts."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    out = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
    out.globals.update(meaning=meaning, amount=amount, pace=pace, chart_terms=OF_CHARTS, now=now)
    return out


def progress(status: Status, *, live: bool) -> Part:
    """Rounds x stages, and spend against budget and prediction.

    Args:
        live: With the policy's folder, what to do next and what went wrong.
    """
    shown = [line for line in lines(status) if live or line[0] not in _OF_THIS_MACHINE]
    predicted = [round_.predicted for round_ in status.rounds if round_.predicted is not None]
    template = environment().get_template("progress.html.j2")
    html = template.render(status=status, stages=STAGES, lines=shown, predicted=predicted, priced=status.spend.priced)
    return Part(html)


def findings(run: RunDir, config: Config, status: Status, *, newest: bool) -> Part:
    """Figures, charts, cost, failures and the cards of chunks.

    Args:
        newest: with the chunks that were answered last.
    """
    left_out: list[TableError] = []
    with contextlib.closing(open_reader(run, left_out=left_out)) as db:
        students, audits, steps = figures.students(db), figures.audits(db), figures.training(db)
        accuracy = figures.accuracy(run)
        sections = _sections(run, students, audits, steps, accuracy, figures.distributions(db), figures.rewards(db))
        if objective_of(config).weights_from != "scores":
            # What is empty now stays so: it is about chunks and their weights.
            sections = [section for section in sections if section["charts"] != _NOTHING]
        cards = [
            ("Newest", _cards(db, figures.newest_chunks(run, db, _EXTREMES)) if newest else []),
            ("Lowest weight", _cards(db, figures.extreme_chunks(db, _EXTREMES, best=False))),
            ("Highest weight", _cards(db, figures.extreme_chunks(db, _EXTREMES, best=True))),
        ]
        failures = figures.failures(db)
    html = environment().get_template("findings.html.j2").render(
        left_out=[one_line(error.problem) for error in left_out],
        tiles=_tiles(status, students, audits, accuracy), settings=objective_of(config).shown(config),
        sections=sections, costs=figures.costs(students, audits, config.teacher.most_rollouts),
        priced=status.spend.priced, decode_to_prefill=figures.DECODE_TO_PREFILL, failures=failures,
        unknown_requests=status.spend.unknown_requests, cards=[card for card in cards if card[1]],
    )  # fmt: skip
    return Part(html, [chart for section in sections for chart in section["charts"] if not isinstance(chart, str)])


def trajectories(run: RunDir, config: Config, most: int) -> Part:
    """At most `most` trajectories, to be searched. By far the most work."""
    with contextlib.closing(open_reader(run, left_out=[])) as db:
        found = block(db, most, find_decoder(run, config))
    html = environment().get_template("trajectories.html.j2").render(block=found, heat=HEAT)
    return Part(html, data=found.data)


def glossary() -> Part:
    """Every term with its meaning."""
    return Part(environment().get_template("glossary.html.j2").render(glossary=terms()))


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
        ("Rounds trained", f"{trained}", f"of {status.rounds_planned}", "round"),
    ]
    if trajectories:
        out.append(
            ("Trajectories", f"{trajectories:,}", f"{tokens / trajectories:,.0f} tokens on average", "trajectory")
        )
    if audits:
        chunks, rollouts = (sum(row[name] or 0 for row in audits) for name in ("chunks", "rollouts"))
        if trajectories:
            out.append(("Audited chunks", f"{chunks:,}", f"{chunks / trajectories:.1f} a trajectory", "chunk"))
        else:
            out.append(("Prompts", f"{chunks:,}", "answered by the teacher", ""))
        answered = sum(row["answered"] or 0 for row in audits)
        share = f"{answered / rollouts:.1%} answered" if rollouts else "none"
        out.append(("Rollouts", f"{rollouts:,}", share, "rollout"))
    distinct = [round_.distinct_rollouts for round_ in status.rounds if round_.distinct_rollouts is not None]
    if distinct:
        out.append(("Distinct rollouts", f"{distinct[-1]:.1f}", "a chunk, in the last round", "rollout"))
    spend = status.spend
    cached = "" if spend.cache_share is None else f"{spend.cache_share:.0%} of the prompts cached"
    out.append(("Teacher tokens", _large(spend.tokens), cached, "ledger"))
    priced = status.spend.priced
    budget = "no budget set" if spend.budget_usd is None else f"of ${spend.budget_usd:,.2f}"
    out.append(("Spent", f"${spend.usd:,.2f}" if priced else "–", budget if priced else "no price known", "ledger"))
    weights = [row for row in audits if row["weight"] is not None]
    if weights:
        note = f"{weights[0]['weight']:.3f} in round {weights[0]['round']}"
        note = note if len(weights) > 1 else f"of round {weights[0]['round']}"
        out.append(("Mean weight π̂", f"{weights[-1]['weight']:.3f}", note, "pi_teacher (π̂_teacher)"))
    if accuracy:
        same = [row for row in accuracy if (row["benchmark"], row["grader"]) == figures.main_benchmark(accuracy)]
        note = f"{same[0]['accuracy']:.1%} after {same[0]['rounds']} rounds" if len(same) > 1 else same[0]["grader"]
        out.append((f"Pass@1, {same[0]['benchmark']}", f"{same[-1]['accuracy']:.1%}", note, "Pass@1"))
    return [{"label": label, "value": value, "note": note, "term": term} for label, value, note, term in out]


def _large(count: int) -> str:
    return f"{count / 1e6:,.1f} M" if count >= 10_000_000 else f"{count:,}"


def _cards(db: "duckdb.DuckDBPyConnection", chunks: list[figures.Row]) -> list[figures.Row]:
    answers = rollouts_of(db, [chunk["chunk_id"] for chunk in chunks], None)
    for chunk in chunks:
        prefix = chunk["prefix_text"]
        chunk["before"] = ("…" if len(prefix) > _CONTEXT else "") + prefix[-_CONTEXT:]
        chunk["answers"] = [marked(chunk, answer) for answer in answers[chunk["chunk_id"]][:_ANSWERS]]
    return chunks
