# pyright: strict
"""Which arms a study has: each is the base config with a few keys changed. Pure."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from ..store.config import Config
from ..store.errors import UsageError
from ..store.objectives import REGISTERED

Kind = Literal["compare", "ablation", "sensitivity", "explore"]
"""explore: arms that a user of this package describes (benchmarks/experiments/explore.py)."""
Equal = Literal["tokens", "usd"]
"""What an arm spends as much of, each round, as the reference arm of its seed did."""

More = Literal["prompts", "answers"]

REFERENCE = "omniopd"
"""The arm without a change: others borrow its tables, match its spend and are compared with it."""

GROUP = 8
"""Samples of a prompt that grpo normalises its rewards over."""

_SEEDS = ("data.seed", "generate.seed", "select.seed", "train.seed", "eval.seed")
_OF_ALL_ARMS = ("run", "eval")
"""Sections that say how arms are compared, and so may not differ between them."""
_LONGEST_NAME = 100


@dataclass(frozen=True)
class Arm:
    """A variant of the base config."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Config keys and their values, such as {"score.alpha": 0}."""
    note: str = ""
    """What is to be known about it, for the legend under the table."""
    equal: Equal | None = None
    """It spends what the reference arm spent; None: what it spends by itself."""
    more: More = "prompts"
    """What it buys for that: more prompts, or more answers to each of the reference arm's."""

    @property
    def folder(self) -> str:
        """Named after the changes and not after the arm, so that one variant is trained once for all studies."""
        words = [
            f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
            for key, value in sorted(self.changes.items())
        ]
        words += [] if self.equal is None else [f"equal={self.equal}"]
        words += ["more=answers"] if self.more == "answers" else []
        name = ",".join(words).replace("/", "_").replace(" ", "") or REFERENCE
        return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}-{_digest(name)}"


@dataclass(frozen=True)
class Missing:
    """An arm that cannot be run, and why."""

    name: str
    reason: str


Choice = tuple[list[Arm], list[Missing]]


def compare_arms(base: Config, equal: Equal) -> Choice:
    """All objectives (Tables 1 and 2), and the control that ignores the teacher."""
    spends = f"the {_unit(equal)} that {REFERENCE} spent buy"
    arms = [
        _arm(base, REFERENCE, {}, "as the study's config.toml says"),
        _arm(base, "constant", {"score.weights": "constant", "score.centre": "none"}, "teacher ignored, weights 1"),
        _arm(base, "sft", _sft_changes(base),
             f"a whole answer of the teacher to each prompt, and as many prompts as {spends}; 2 epochs", equal=equal),
        _arm(base, "sft answers", {"train.objective": "sft", "teacher.max_tokens": None},
             f"whole answers, as many to each of {REFERENCE}'s prompts as {spends}", equal=equal, more="answers"),
        _arm(base, "draft", _draft_changes(base),
             f"the teacher's words as far as the student follows, and as many prompts as {spends}", equal=equal),
    ]  # fmt: skip
    missing: list[Missing] = []
    if base.train.teacher:
        arms.append(_arm(base, "opd", {"train.objective": "opd"}, "reads the teacher's distribution, asks nothing"))
    else:
        missing.append(Missing("opd", "the teacher's weights are not here (train.teacher is not set)"))
    if base.data.answer is not None:
        arms.append(_arm(base, "grpo", _grpo_changes(base), _grpo_note(base)))
    else:
        missing.append(Missing("grpo", "the prompts have no answers to reward (data.answer is not set)"))
    if base.score.centre != "none":
        arms.append(_arm(base, f"{REFERENCE} paper", {"score.centre": "none"}, "weights not centred, as in Eq. 8"))
    return arms, missing


def _sft_changes(base: Config) -> dict[str, Any]:
    """teacher.max_tokens is the length of a chunk's rollout, and an answer is longer."""
    return {
        "train.objective": "sft", "teacher.max_tokens": None, "teacher.rollouts": 1, "train.epochs": 2,
        "train.global_batch": _half_a_batch(base),
    }  # fmt: skip


def _draft_changes(base: Config) -> dict[str, Any]:
    """The objective's own defaults, where the base says something else."""
    return {
        "train.objective": "draft", "teacher.max_tokens": None, "train.global_batch": _half_a_batch(base),
        **REGISTERED["draft"].defaults,
    }  # fmt: skip


def _half_a_batch(base: Config) -> int:
    """More prompts are more steps; docs/experiments.md has the sizes that were compared."""
    return max(1, base.train.global_batch // 2)


def _grpo_changes(base: Config) -> dict[str, Any]:
    """Group samples of each prompt, and so many fewer prompts: a round has as many trajectories as in other arms."""
    changes: dict[str, Any] = {"train.objective": "grpo", "generate.samples_per_prompt": GROUP}
    if base.data.per_round is not None:
        trajectories = base.data.per_round * base.generate.samples_per_prompt
        changes["data.per_round"] = max(1, trajectories // GROUP)
    return changes


def _grpo_note(base: Config) -> str:
    if base.data.per_round is None:
        return f"{GROUP} samples of every prompt, so more trajectories a round (data.per_round is not set)"
    return f"{GROUP} samples of fewer prompts, the same trajectories a round; the teacher is not asked"


def ablation_arms(base: Config) -> Choice:
    """Table 6, and the choices that are this implementation's own."""
    uncentred = base.score.centre == "none"
    fixed = base.teacher.rollouts != "adaptive"
    arms = [
        _arm(base, REFERENCE, {}, "as the study's config.toml says"),
        _arm(base, "w/o entropy selection", {"select.strategy": "uniform"}, "chunks at random"),
        _arm(base, "w/o Bayesian smoothing", {"score.alpha": 0.0}, "alpha = 0"),
        _arm(base, "w/o anchor", {"train.beta": 0.0}, "beta = 0"),
        _arm(base, "constant weights", {"score.weights": "constant", "score.centre": "none"}, "teacher ignored"),
        _arm(base, "centred weights" if uncentred else "uncentred weights",
             {"score.centre": "batch_mean" if uncentred else "none"}),
        _arm(base, "surprisal selection", {"select.strategy": "surprisal"}, "chunks at the least likely tokens"),
    ]  # fmt: skip
    if fixed:
        most = base.teacher.most_rollouts
        adaptive = {"teacher.rollouts": "adaptive", "teacher.max_rollouts": most}
        arms.append(_arm(base, "adaptive rollouts", adaptive, f"at most {most} a chunk"))
    return _unchanged_once(arms)


def sensitivity_arms(base: Config, grids: Mapping[str, Sequence[Any]]) -> Choice:
    """One key at a time, all others as in the base (Tables 4 and 5, Fig. 2)."""
    arms = [_arm(base, REFERENCE, {}, "as the study's config.toml says")]
    for key, values in (grids or default_grids(base)).items():
        arms += [_arm(base, f"{key}={value}", {key: value}) for value in values]
    return _unchanged_once(arms)


def _unchanged_once(arms: Sequence[Arm]) -> Choice:
    """A variant that is the base itself is the reference arm."""
    return [arm for i, arm in enumerate(arms) if i == 0 or arm.changes], []


def default_grids(base: Config) -> dict[str, list[Any]]:
    """Values around the base's, as the paper varies them."""
    alpha, beta = base.score.alpha, base.train.beta
    grids: dict[str, list[Any]] = {
        "select.chunks": _around(base.select.chunks),
        "select.chunk_tokens": _around(base.select.chunk_tokens),
        "score.phi": list(dict.fromkeys(["edit", "rouge1", "rougeL", base.score.phi])),
        "score.alpha": sorted({0.0, alpha, (alpha or 1.0) / 2, (alpha or 1.0) * 4}),
        "train.beta": sorted({0.0, beta, (beta or 0.1) / 10, (beta or 0.1) * 10}),
    }
    if base.teacher.rollouts != "adaptive":
        grids["teacher.rollouts"] = _around(base.teacher.rollouts)
    return grids


def _around(value: int) -> list[Any]:
    return sorted({max(1, value // 4), max(1, value // 2), value, 2 * value})


def parse_grids(words: Sequence[str]) -> dict[str, list[Any]]:
    """`--grid score.alpha=0,0.5,1` for each key.

    Raises:
        UsageError: not of that form, not a key of the config, or one that does not vary between arms.
    """
    grids: dict[str, list[Any]] = {}
    for word in words:
        key, equals, values = (part.strip() for part in word.partition("="))
        section, _, name = key.partition(".")
        fields = getattr(Config.model_fields.get(section), "annotation", None)
        if not (equals and values) or fields is None or name not in fields.model_fields:
            raise UsageError(
                f"--grid {word} is not a config key and its values.", "Example: --grid score.alpha=0,0.5,1,4."
            )
        if section in _OF_ALL_ARMS:
            raise UsageError(f"--grid {word}: [{section}] is the same for all arms.", f"Use --set {key}=....")
        grids.setdefault(key, []).extend(_value(text) for text in values.split(","))
    return grids


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip()


def arm_values(base: Config, arm: Arm, seed: int) -> dict[str, dict[str, Any]]:
    """Sections of the config of one arm and seed. The arms of a seed share its seeds, so they see the same prompts, and
    answer the benchmark from the same random numbers."""
    values = cast("dict[str, dict[str, Any]]", base.model_dump(mode="json", exclude_unset=True))
    seeds = {key: _get(base, key) + seed for key in _SEEDS}
    if base.teacher.seed is not None:
        seeds["teacher.seed"] = base.teacher.seed + seed
    for key, value in {**seeds, **arm.changes}.items():
        section, _, name = key.partition(".")
        values.setdefault(section, {})[name] = value
        if value is None:  # TOML has no such value: a key that is not there is unset
            del values[section][name]
    values.get("run", {}).pop("mirror", None)  # one mirror holds one run
    return values


def _arm(
    base: Config, name: str, changes: Mapping[str, Any], note: str = "", equal: Equal | None = None,
    more: More = "prompts",
) -> Arm:  # fmt: skip
    """An arm with the changes that are some."""
    return Arm(name, {key: new for key, new in changes.items() if new != _get(base, key)}, note, equal, more)


def _get(base: Config, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(base, section), name)


def _unit(equal: Equal) -> str:
    return "teacher tokens" if equal == "tokens" else "dollars"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
