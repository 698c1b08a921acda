"""One arm with one seed: where it is, what its config is, and after which rounds it is evaluated."""

from dataclasses import dataclass
from typing import Any

from ..store.config import Config, commented_toml, config_of, made_with
from ..store.errors import ConfigChangedError
from ..store.evals import EvalDir, eval_of_run
from ..store.layout import RunDir
from ..store.schema import TABLES
from ..store.studies import StudyDir
from .arms import REFERENCE, Arm, arm_values

_SAMPLED_WITH = ("samples", "max_new_tokens", "temperature", "top_p", "template", "seed")
"""Keys of [eval] that determine the responses. Other graders add verdicts to the same responses."""


@dataclass(frozen=True)
class Task:
    """One arm with one seed. It travels to a worker process."""

    study: StudyDir
    base: Config
    """The study's config; [eval] names one benchmark and one grader."""
    arm: Arm
    seed: int
    benchmark: str
    """Name of what eval.benchmark holds: a folder of the run's evaluations."""
    curve: bool
    """Evaluate after every round, and not only after the last one."""

    @property
    def run(self) -> RunDir:
        return self.study.run(self.arm.folder, self.seed)

    @property
    def rounds(self) -> int:
        return self.base.run.rounds

    @property
    def grader(self) -> str:
        return self.base.eval.graders[0]

    @property
    def evaluated(self) -> list[int]:
        """After how many rounds. The initial student is the same for all arms, and evaluated once a seed."""
        first = 0 if self.arm.name == REFERENCE else 1
        return [k for k in range(first, self.rounds + 1) if self.curve or k in (0, self.rounds)]

    def evaluation(self, rounds: int) -> EvalDir:
        """Responses and verdicts of the policy after some rounds."""
        return eval_of_run(self.run, rounds, self.benchmark)


def write_config(task: Task) -> None:
    """Write the arm's config.toml: the base's with the changes. It follows the base until the run has trajectories.

    Raises:
        ConfigError: a value is out of range.
        ConfigChangedError: a setting differs from the one that the run's tables were made with.
    """
    values = arm_values(task.base, task.arm, task.seed)
    config = config_of(values, f"It is the arm {task.arm.name!r}: fix the grid, or {task.study.base.config_toml}.")
    run = task.run
    begun = run.config_toml.is_file() and any(round_.trajectories.manifest.parts for round_ in run.rounds())
    if begun and (changed := changed_settings(run.config(), config)):
        raise ConfigChangedError(
            f"The study's config changed under {run.path}: {', '.join(changed)}.",
            f"Set it back, or begin another study: omniopd init {task.study.path}-2.",
        )
    run.path.mkdir(parents=True, exist_ok=True)
    run.config_toml.write_text(commented_toml(values), encoding="utf-8")


def changed_settings(before: Config, now: Config) -> list[str]:
    """Keys whose change would leave tables, policy or evaluations of a run made with two different values.

    Another benchmark is an evaluation in a folder of its own, so it may differ in everything.
    """
    old, new = _made_with_all(before), _made_with_all(now)
    if before.eval.benchmark == now.eval.benchmark:
        old, new = old | _sampled_with(before), new | _sampled_with(now)
    return [key for key in {**old, **new} if old.get(key) != new.get(key)]


def _made_with_all(config: Config) -> dict[str, Any]:
    """All settings that determine the content of some table or of the policy."""
    return {key: value for table in (*TABLES, "policy") for key, value in made_with(config, table).items()}


def _sampled_with(config: Config) -> dict[str, Any]:
    return {f"eval.{key}": getattr(config.eval, key) for key in _SAMPLED_WITH}
