"""How a model is evaluated, and which model that is."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..store.config import Config, default_config
from ..store.errors import UsageError
from ..store.evals import EvalDir, eval_of_run
from ..store.layout import RunDir
from ..store.recipes import recipe

GREEDY = 1e-6
"""A temperature at which the likeliest token has all the mass."""

_OPTIONS = {
    "generate.samples_per_prompt": "--samples",
    "generate.max_new_tokens": "--max-new-tokens",
    "generate.temperature": "--temperature",
    "generate.top_p": "--top-p",
    "generate.seed": "--seed",
}


@dataclass(frozen=True)
class EvalSettings:
    """The options of `omniopd eval`. The defaults are the paper's (§5.1, §5.2)."""

    benchmark: str
    samples: int = 16
    """Responses to each question."""
    max_new_tokens: int = 32768
    """Longest response, tokens; the model's context may be shorter."""
    temperature: float = 1.0
    """0 takes the likeliest token each time."""
    top_p: float = 1.0
    template: str | None = None
    """Text of the user message, with {question}; None: the run's, and outside of a run the paper's (Table 7)."""
    seed: int = 0
    engine: str = "auto"
    graders: tuple[str, ...] = ()
    """None: all that fit the benchmark."""

    def __post_init__(self) -> None:
        if self.temperature == 0 and self.samples > 1:
            raise UsageError(
                "At --temperature 0 all samples of a question are the same.", "Add --samples 1, or raise it."
            )


@dataclass(frozen=True)
class Target:
    """A model that is to be evaluated."""

    model: str
    """Folder or hub id."""
    run: RunDir | None = None
    """The run that it is a policy of."""
    rounds: int | None = None
    """After how many of the run's rounds."""


def find_target(model: str, rounds: int | None) -> Target:
    """What the user means: a run (its policy after `rounds` rounds, or all of them), a policy inside one, or a model.

    Raises:
        UsageError: `rounds` for a model outside of a run, or more of them than were trained.
    """
    path = Path(model)
    if RunDir(path).config_toml.is_file():
        run = RunDir(path)
        trained = sum(round_.policy.is_dir() for round_ in run.rounds())
        wanted = trained if rounds is None else rounds
        if wanted > trained:
            raise UsageError(f"{model} was trained for {trained} rounds, not {wanted}.", "Lower --after, or train on.")
        return Target(run.policy_for(wanted, run.config()), run, wanted)
    if rounds is not None:
        raise UsageError(f"--after {rounds} needs a run directory, and {model} is none.", "Leave it out.")
    round_ = re.fullmatch(r"round=(\d{3,})", path.absolute().parent.name)
    run = RunDir(path.absolute().parent.parent)
    if path.name == "policy" and round_ is not None and run.config_toml.is_file():
        return Target(model, run, int(round_[1]) + 1)
    return Target(model)


def make_config(target: Target, settings: EvalSettings, code: bool, overrides: Sequence[str]) -> Config:
    """A config for the engine and the prompts: the run's or the defaults, then --set, then the options.

    Args:
        code: Whether the questions ask for programs.

    Raises:
        ConfigError: an unknown key or a value out of range.
        UsageError: --set names what an option says.
    """
    options: dict[str, object] = {
        "generate.samples_per_prompt": settings.samples,
        "generate.max_new_tokens": settings.max_new_tokens,
        "generate.temperature": settings.temperature or GREEDY,
        "generate.top_p": settings.top_p,
        "generate.seed": settings.seed,
    }
    for key in options:
        if any(override.partition("=")[0].strip() == key for override in overrides):
            raise UsageError(f"--set {key} has an option of its own here.", f"Use {_OPTIONS[key]}.")
    if settings.template is not None:
        options["data.template"] = settings.template
    if settings.engine != "auto":
        options["student.engine"] = settings.engine
    default = {} if target.run is not None else {"data.template": _papers_template(code)}
    all_ = [*_assignments(default), *overrides, *_assignments(options)]
    config = default_config(all_) if target.run is None else target.run.config(tuple(all_))
    # Every question counts, however long it is.
    return config.model_copy(update={"data": config.data.model_copy(update={"max_prompt_tokens": None})})


def _papers_template(code: bool) -> str:
    return str(recipe("prime-code" if code else "dapo-math-17k")["data"]["template"])


def _assignments(values: Mapping[str, object]) -> list[str]:
    """As --set has them: TOML's numbers and strings are written as JSON's."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]


def default_folder(target: Target, benchmark: str, policy: str) -> EvalDir:
    """Where results go unless --out says otherwise.

    Args:
        policy: Hash of the weights.
    """
    if target.run is not None and target.rounds is not None:
        return eval_of_run(target.run, target.rounds, benchmark)
    return EvalDir(Path("evals") / f"{Path(target.model).name}-{policy[:8]}" / benchmark)
