"""`omniopd card`: what a run's policy is, where it comes from, how good it is and what it cost, on one page.

What a round was made with is read from its tables, not from today's config. No address, key or folder of this machine
is in it, and no text of a model.
"""

import functools
import json
from pathlib import Path, PurePath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ..store import files
from ..store.config import Config, determining_keys, toml_value
from ..store.layout import RoundDir, RunDir
from ..store.model import load_tokenizer, weights_hash
from ..train.export import last_round
from .status import Evaluation, RoundStatus, Spend, read_status
from .status_text import duration

PAPER = "2606.01476"

_TEMPLATE = Path(__file__).with_name("card.md.j2")
_LOCAL = ("student.model", "data.prompts", "train.teacher")
"""Keys that may name a folder or file of this machine."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class CardRound(_Model):
    """One round that the policy was trained in."""

    round: int
    objective: str
    trajectories: int
    chunks: int
    rollouts: int | str | None
    """Asked for at each chunk; None where the teacher was not asked."""
    steps: int
    accepted: float | None
    """Share of the drafts' tokens that the policy accepted; None without drafts."""
    tokens: int
    """Of the teacher, prompt and completion."""
    usd: float
    seconds: float | None
    """Of the runs of its stages that did the work; None where one left no record."""


class Card(_Model):
    """What `--json` prints. Programs rely on it: fields are added, none renamed."""

    version: Literal[1] = 1
    name: str
    student: str
    """The initial student: a hub id, or the name of its folder."""
    teacher: str
    data: str
    """The prompts: a hub id, or the file's name."""
    policy: str
    """Hash of the weights."""
    rounds: list[CardRound]
    evaluations: list[Evaluation]
    """By rounds and benchmark, up to this policy's."""
    spend: Spend
    """Of the whole run."""
    settings: dict[str, Any]
    """Keys that determine the last round and are not the defaults."""
    chat: bool
    """Whether the policy's tokenizer has a chat template."""
    engine: str
    """Engine, version and precision that sampled the last round, and which way the entropies came."""


def read_card(run: RunDir, config: Config, after: int | None = None) -> Card:
    """The card of the policy after some rounds; None: of all that are trained.

    Raises:
        InputError: there is no such policy.
    """
    last, status = last_round(run, after), read_status(run, config)
    made = _made_with(run.round(last), config)
    return Card(
        name=run.path.resolve().name,
        student=_named(_made_with(run.round(0), config)["student.model"]),
        teacher=_teacher(run, last),
        data=_named(made["data.prompts"]),
        policy=weights_hash(run.round(last).policy),
        rounds=[_card_round(run.round(r.round), r) for r in status.rounds if r.round <= last],
        evaluations=[one for one in status.evaluations if one.rounds <= last + 1],
        spend=status.spend,
        settings=_settings(made), chat=bool(load_tokenizer(run.round(last).policy).chat_template),
        engine=_engine(run.round(last)),
    )  # fmt: skip


def write_card(run: RunDir, config: Config, target: Path | None = None, after: int | None = None) -> str:
    """Write the card as Markdown, into the run unless `target` says where. Returns a line about it.

    Raises:
        InputError: there is no such policy.
    """
    target = target or run.card
    files.write_text(target, markdown(read_card(run, config, after)))
    return f"wrote {target}"


def markdown(card: Card, *, adapter: bool = False) -> str:
    """The card as a model card: metadata that model hubs read, and a page for people.

    Args:
        adapter: It is about the adapters of train.lora alone.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    measured = [one for one in card.evaluations if one.rounds == len(card.rounds)]
    data = ModelCardData(
        base_model=card.student if "/" in card.student else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["omniopd", "on-policy-distillation", f"arxiv:{PAPER}"],
        model_name=card.name,
        eval_results=[
            EvalResult(task_type="text-generation", task_name="Text generation", dataset_type=one.benchmark,
                       dataset_name=one.benchmark, metric_type="pass@1", metric_name="Pass@1",
                       metric_value=round(100 * one.pass_at_1, 2))
            for one in measured
        ] or None,
    )  # fmt: skip
    benchmarks = list(dict.fromkeys(one.benchmark for one in card.evaluations))
    by = {(one.benchmark, one.rounds): one for one in card.evaluations}
    rows = [(name, by.get((name, 0)), by.get((name, len(card.rounds)))) for name in benchmarks]
    settings = [f"{key} = {toml_value(value)}" for key, value in card.settings.items()]
    text = ModelCard.from_template(
        data, template_str=_TEMPLATE.read_text(encoding="utf-8"), card=card, adapter=adapter, rows=rows,
        settings=settings, paper=PAPER, drafts=any(one.accepted is not None for one in card.rounds),
        interval=_interval, duration=duration,
        usd=functools.partial(_usd, priced=card.spend.priced),
    )  # fmt: skip
    return str(text)


def _interval(one: Evaluation | None) -> str:
    return "-" if one is None else one.percent


def _usd(amount: float, *, priced: bool) -> str:
    return f"${amount:,.2f}" if priced else "no known price"


def _made_with(round_: RoundDir, config: Config) -> dict[str, Any]:
    """The settings that a round was made with, as `{"generate.top_p": 1.0, ...}`: its tables', then the trainer's."""
    made = {key: value for table in round_.tables for key, value in table.manifest.made_with.items()}
    record = round_.checkpoint / "made_with.json"
    if record.is_file():
        made |= json.loads(record.read_text(encoding="utf-8"))
    flat = config.by_key()
    return flat | {key: value for key, value in made.items() if key in flat}


def _settings(made: dict[str, Any]) -> dict[str, Any]:
    """What determines a table, and differs from the defaults, without what only this machine knows."""
    defaults = Config().model_dump(mode="json")
    out: dict[str, Any] = {}
    for key in determining_keys():
        section, _, name = key.partition(".")
        value = made[key]
        if value != defaults[section][name] and value is not None:
            out[key] = _named(value) if key in _LOCAL else value
    return out


def _named(model_or_file: str) -> str:
    """A hub id as it is; of something on this machine only its name."""
    return PurePath(model_or_file).name if Path(model_or_file).exists() or model_or_file[:1] in "/.~" else model_or_file


def _teacher(run: RunDir, last: int) -> str:
    """The models that answered, the one of the latest rollouts first."""
    made = [run.round(index).rollouts.manifest.made_with.get("teacher.model") for index in range(last, -1, -1)]
    names = list(dict.fromkeys(_named(name) for name in made if name))
    return ", ".join(names) or "none"


def _engine(round_: RoundDir) -> str:
    sources = round_.trajectories.read(["entropy_source"])["entropy_source"].unique().to_pylist()
    return ", ".join(sorted(source for source in sources if source)) or "none"


def _card_round(round_: RoundDir, status: RoundStatus) -> CardRound:
    made = round_.rollouts.manifest.made_with
    took = [stage.seconds for stage in status.stages]
    return CardRound(
        round=status.round,
        objective=round_.shards.manifest.made_with.get("train.objective", status.objective),
        trajectories=round_.trajectories.manifest.rows,
        chunks=round_.chunks.manifest.rows,
        rollouts=made.get("teacher.rollouts") if round_.rollouts.manifest.rows else None,
        steps=status.stages[-1].done,
        accepted=status.accepted,
        tokens=status.spend.tokens,
        usd=status.spend.usd,
        seconds=None if any(one is None for one in took) else sum(one for one in took if one is not None),
    )
