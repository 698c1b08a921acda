"""How a model is evaluated, and which model that is."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..store.config import Config, default_config
from ..store.errors import UsageError
from ..store.evals import EvalDir, eval_of_run
from ..store.layout import RunDir
from ..store.recipes import recipe
from ..store.sections import EvalConfig

GREEDY = 1e-6
"""A temperature at which the likeliest token has all the mass."""

_READ_INSTEAD = {
    "generate.samples_per_prompt": "eval.samples",
    "generate.max_new_tokens": "eval.max_new_tokens",
    "generate.temperature": "eval.temperature",
    "generate.top_p": "eval.top_p",
    "generate.seed": "eval.seed",
}
"""What the trajectories are sampled with, and what a benchmark's responses are."""


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


def read_by_eval(overrides: Sequence[str]) -> list[str]:
    """The overrides but those that `eval_config` refuses: where the settings of all stages are given at once."""
    return [override for override in overrides if override.partition("=")[0].strip() not in _READ_INSTEAD]


def eval_config(target: Target, overrides: Sequence[str]) -> Config:
    """The run's config, or the defaults for a model outside of a run, with --set on top.

    Raises:
        ConfigError: an unknown key or a value out of range.
        UsageError: --set names a key that sampling for a benchmark does not read; or see `check_settings`.
    """
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key in _READ_INSTEAD:
            raise UsageError(f"eval does not read {key}.", f"Use --set {_READ_INSTEAD[key]}=...")
    config = default_config(overrides) if target.run is None else target.run.config(tuple(overrides))
    check_settings(config.eval)
    return config


def check_settings(settings: EvalConfig) -> None:
    """Refuse settings under which nothing can be measured.

    Raises:
        UsageError: no benchmark; or several samples of the likeliest response.
    """
    if not settings.benchmark:
        raise UsageError("No benchmark is set.", "Add --benchmark math500, or set eval.benchmark.")
    if settings.temperature == 0 and settings.samples > 1:
        raise UsageError(
            f"At eval.temperature = 0 all {settings.samples} samples of a question are the same.",
            "Set eval.samples to 1, or raise eval.temperature.",
        )


def sampling_config(config: Config, target: Target, code: bool) -> Config:
    """The config for engine and prompts: that of the run, with eval's settings in the place of generate's.

    Args:
        code: Whether the questions ask for programs.
    """
    settings = config.eval
    generate = {
        "samples_per_prompt": settings.samples,
        "max_new_tokens": settings.max_new_tokens,
        "temperature": settings.temperature or GREEDY,
        "top_p": settings.top_p,
        "seed": settings.seed,
    }
    # Every question counts, however long it is.
    data = {"template": _template(config, target, code), "max_prompt_tokens": None}
    return config.model_copy(
        update={
            "generate": config.generate.model_copy(update=generate),
            "data": config.data.model_copy(update=data),
        }
    )


def _template(config: Config, target: Target, code: bool) -> str:
    if config.eval.template is not None:
        return config.eval.template
    if target.run is not None or "template" in config.data.model_fields_set:
        return config.data.template
    return str(recipe("prime-code" if code else "dapo-math-17k")["data"]["template"])


def default_folder(target: Target, benchmark: str, policy: str) -> EvalDir:
    """Where results go unless --out says otherwise.

    Args:
        policy: Hash of the weights.
    """
    if target.run is not None and target.rounds is not None:
        return eval_of_run(target.run, target.rounds, benchmark)
    return EvalDir(Path("evals") / f"{Path(target.model).name}-{policy[:8]}" / benchmark)
