# pyright: strict
"""The configuration of a run: one frozen tree, defaults < config.toml < --set a.b=c."""

import json
import tomllib
from collections.abc import Iterable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from .errors import ConfigError
from .objectives import REGISTERED
from .sections import (
    ClusterConfig,
    DataConfig,
    EvalConfig,
    GenerateConfig,
    Phase,
    RunConfig,
    ScoreConfig,
    Section,
    SelectConfig,
    StudentConfig,
    TeacherConfig,
    TrainConfig,
)


class Config(Section):
    student: StudentConfig = StudentConfig()
    data: DataConfig = DataConfig()
    generate: GenerateConfig = GenerateConfig()
    select: SelectConfig = SelectConfig()
    teacher: TeacherConfig = TeacherConfig()
    score: ScoreConfig = ScoreConfig()
    train: TrainConfig = TrainConfig()
    run: RunConfig = RunConfig()
    cluster: ClusterConfig = ClusterConfig()
    eval: EvalConfig = EvalConfig()

    @classmethod
    def of_tree(cls, tree: dict[str, Any]) -> "Config":
        """From sections as they are written, with the objective's own defaults, which do not count as set."""
        laid, added = _with_objectives_defaults(tree)
        config = cls.model_validate(laid)
        for section, leaf in added:
            getattr(config, section).model_fields_set.discard(leaf)
        return config

    def by_key(self) -> dict[str, Any]:
        """Every key and its value as JSON has it: {"teacher.rollouts": 10, ...}."""
        return by_key(self.model_dump(mode="json"))

    def of_round(self, index: int) -> "Config":
        """The config as it holds in a round: run.schedule may begin with another objective."""
        for phase in self.run.schedule:
            if index < phase.rounds:
                return self._of_phase(phase)
            index -= phase.rounds
        return self

    @property
    def first_rounds(self) -> list[int]:
        """The rounds in which another phase of run.schedule begins, or what follows it."""
        return list(accumulate((phase.rounds for phase in self.run.schedule), initial=0))

    def _of_phase(self, phase: Phase) -> "Config":
        tree = self.model_dump(exclude_unset=True)
        for section, keys in (*phase.set.items(), ("train", {"objective": phase.objective})):
            tree[section] = {**tree.get(section, {}), **keys}
        return _validated(tree, (), f"Fix run.schedule, where the rounds of {phase.objective} are.")


def by_key(tree: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A config as JSON has it, section by section, as one table: {"teacher.rollouts": 10, ...}."""
    return {f"{section}.{key}": value for section, keys in tree.items() for key, value in keys.items()}


def load_config(path: Path, overrides: Iterable[str] = ()) -> Config:
    """Read config.toml and lay `a.b=value` overrides on top.

    Raises:
        ConfigError: no such file, no TOML, an unknown key, a value out of range, one that the objective needs and that
            is not set, or one that it gives no meaning.
    """
    if not path.is_file():
        raise ConfigError(f"{path} does not exist.", f"Write one with `omniopd init {path.parent}`.")
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors put a mark of byte order first
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error.reason} at byte {error.start}.", "Save it as UTF-8.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}.", "Fix that line.") from error
    config = _validated(tree, overrides, f"Fix it in {path} or in --set.")
    for first in config.first_rounds:
        _refuse(config.of_round(first), path)
    return config


def _refuse(config: Config, path: Path) -> None:
    objective = REGISTERED[config.train.objective]
    for key in (*_REQUIRED, *objective.required):
        if not _value(config, key):
            raise ConfigError(f"{key} is not set.", f"Set it in {path} or by --set {key}=....")
    for refusal in objective.refused:
        if _value(config, refusal.key) == refusal.value:
            raise ConfigError(refusal.problem, refusal.hint)


_REQUIRED = ("student.model", "data.prompts")
"""The keys without which no run can begin."""


def _value(config: Config, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def default_config(overrides: Iterable[str]) -> Config:
    """The defaults with `a.b=value` overrides on top, for work on a model that belongs to no run.

    Raises:
        ConfigError: an unknown key, a value out of range.
    """
    return _validated({}, overrides, "Fix it in --set.")


def config_of(tree: dict[str, dict[str, Any]], hint: str) -> Config:
    """A config from its sections.

    Raises:
        ConfigError: an unknown key, a value out of range; it ends with `hint`.
    """
    return _validated(tree, (), hint)


def overridden(tree: dict[str, dict[str, Any]], overrides: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Sections with `a.b=value` overrides in them; a key that is unset is left out. Changes the tree.

    Raises:
        ConfigError: the result has an unknown key, or a value out of range.
    """
    _validated(tree, overrides, "Fix it in --set.")
    return {section: {key: value for key, value in keys.items() if value is not None} for section, keys in tree.items()}


def _validated(tree: dict[str, Any], overrides: Iterable[str], hint: str) -> Config:
    for override in overrides:
        _set(tree, override)
    try:
        return Config.of_tree(tree)
    except ValidationError as error:
        raise ConfigError(_first_problem(error), hint) from error


def _with_objectives_defaults(tree: dict[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The tree with the objective's own defaults for the keys that nobody set, and which they are."""
    sections = {name: cast("dict[str, Any]", keys) for name, keys in tree.items() if isinstance(keys, dict)}
    objective = REGISTERED.get(str(sections.get("train", {}).get("objective")))
    added: list[tuple[str, str]] = []
    for key, value in objective.defaults.items() if objective else ():
        section, _, leaf = key.partition(".")
        if leaf not in sections.get(section, {}) and (section in sections or section not in tree):
            sections[section] = {leaf: value} | sections.get(section, {})
            added.append((section, leaf))
    return tree | sections, added


def _set(tree: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and key):
        raise ConfigError(f"--set {override} is not of the form section.key=value.", "Example: --set train.lr=1e-5.")
    # A bare word is a string, as in a shell; everything else is TOML, which has no word for a key that is unset.
    try:
        value: Any = tomllib.loads(f"v = {text.strip()}")["v"]
    except tomllib.TOMLDecodeError:
        value = None if text.strip() == "none" and _may_be_unset(section, key) else text.strip()
    branch = tree.setdefault(section, {})
    *parents, leaf = key.split(".")
    for parent in parents:
        branch = branch.setdefault(parent, {})
    branch[leaf] = value


def _may_be_unset(section: str, key: str) -> bool:
    """Whether a key's default is that it is not set."""
    model: Any = Config.model_fields[section].annotation if section in Config.model_fields else None
    return model is not None and key in model.model_fields and model.model_fields[key].default is None


def _first_problem(error: ValidationError) -> str:
    problem, *others = error.errors()
    where = ".".join(str(part) for part in problem["loc"]) or "config"
    if problem["type"] == "extra_forbidden":
        return f"Unknown config key {where}{_suggestion(problem['loc'])}."
    said = problem["msg"].removeprefix("Value error, ")
    *key, kind = problem["loc"] or ("",)
    if not (isinstance(kind, int) or kind.isidentifier()):
        # The key may be of several kinds, and there is an error for each, with the kind behind the key's name.
        where = ".".join(str(part) for part in key)
        wanted = [other["msg"].removeprefix("Input should be ") for other in others if list(other["loc"][:-1]) == key]
        said = " or ".join([said, *wanted])
    return f"{where}: {said}."


def _suggestion(loc: tuple[int | str, ...]) -> str:
    import difflib

    model: Any = Config
    for part in loc[:-1]:
        annotation = model.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ""
        model = annotation
    known = cast("list[str]", list(model.model_fields))
    close = difflib.get_close_matches(str(loc[-1]), known, n=1)
    return f" (did you mean {close[0]}?)" if close else f" (known here: {', '.join(known)})"


def commented_toml(values: dict[str, dict[str, Any]]) -> str:
    """A config.toml with every key, its meaning and its default; the given values are set, the rest commented out."""
    lines: list[str] = []
    own, _ = _with_objectives_defaults({name: dict(keys) for name, keys in values.items()})
    for section, field in Config.model_fields.items():
        model = cast("type[BaseModel]", field.annotation)
        lines += [f"[{section}]"]
        for key, info in model.model_fields.items():
            doc = " ".join((info.description or "").split())
            lines.append(f"# {doc}")
            if key in values.get(section, {}):
                lines.append(f"{key} = {toml_value(values[section][key])}")
            elif (default := own.get(section, {}).get(key, info.default)) is None:
                lines.append(f"# {key} =")
            else:
                lines.append(f"# {key} = {toml_value(default)}")
        lines.append("")
    return "\n".join(lines)


def toml_value(value: Any) -> str:
    """A value as config.toml and --set take it."""
    if isinstance(value, dict):
        pairs = cast("dict[str, Any]", value).items()
        return "{ " + ", ".join(f"{k} = {toml_value(v)}" for k, v in pairs) + " }"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml_value, cast('Iterable[Any]', value)))}]"
    # TOML's strings, numbers, booleans and arrays are written as JSON's.
    return json.dumps(value, ensure_ascii=False)


# What determines the content of each table. A key that is not named (a batch size, a concurrency, a budget, a URL)
# may change at any time; a named one may not change under rows that were made with another value.
_DETERMINED_BY: dict[str, dict[str, set[str] | None]] = {
    "trajectories": {
        "student": None,
        "data": None,
        "generate": {
            "samples_per_prompt", "max_new_tokens", "temperature", "top_p", "stop_token_ids", "seed", "entropy",
        },
    },
    "chunks": {"select": None},
    "rollouts": {
        "teacher": {
            "kind", "model", "continuation", "instruction", "system", "extra", "rollouts", "temperature", "seed",
            "max_tokens",
        },
        "score": {"weights"},
    },
    "scores": {"score": {"phi", "unit", "embedding_model", "alpha"}},
    "shards": {
        "score": {"phi", "unit", "embedding_model", "alpha", "weights", "min_rollouts"},
        "train": {"objective"},
    },
    "policy": {
        "score": {"centre"},
        "train": {
            "objective", "beta", "lr", "warmup_steps", "weight_decay", "carry_optimizer", "clip_grad", "epochs",
            "steps", "global_batch", "normalise", "importance_cap", "off_policy", "precision", "seed",
            "distributed_optimizer", "teacher", "forward_kl", "clip_low", "clip_high", "lora",
        },
    },
    "drafts": {"score": {"accept", "accept_threshold", "phi", "unit", "embedding_model"}},
    "rewards": {"score": {"grader"}, "data": {"answer"}},
}  # fmt: skip


_ADAPTIVE: dict[str, set[str] | None] = {
    "teacher": {"max_rollouts", "precision"},
    "score": {"phi", "unit", "embedding_model", "alpha"},
}
"""What decides, beside the above, which rollouts there are when their number is adaptive."""


def determining_keys() -> list[str]:
    """Every key that determines what is in some table, or the policy, in the order of the config."""
    groups = [item for sections in _DETERMINED_BY.values() for item in sections.items()]
    return [
        f"{section}.{key}"
        for section, values in Config().model_dump().items()
        for key in values
        if any(section == named and (keys is None or key in keys) for named, keys in groups)
    ]


def made_with(config: Config, table: str) -> dict[str, Any]:
    """The settings that determine a table's content, as `{"generate.top_p": 1.0, ...}`."""
    groups = [_DETERMINED_BY[table]]
    if table == "rollouts" and config.teacher.rollouts == "adaptive":
        groups.append(_ADAPTIVE)
    out: dict[str, Any] = {}
    for section, keys in (item for group in groups for item in group.items()):
        values = getattr(config, section).model_dump(mode="json")
        out |= {f"{section}.{key}": value for key, value in values.items() if keys is None or key in keys}
    if table in REGISTERED[config.train.objective].own_tables:
        out["train.objective"] = config.train.objective
    return out
