# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
"""What a training objective asks of each stage: one frozen record, which the stages read instead of asking for names.

Cheap to import: the config is checked against the records.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ...store.objectives import ObjectiveRules, Refusal

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

    from ...store.config import Config
    from ...store.sections import ScoreConfig, TrainConfig

Asked = Literal["chunks", "answers", "nobody"]
"""What the teacher writes: continuations of the chunks' prefixes, whole answers to the prompts, or nothing."""

Anchored = Literal["unaudited", "response"]
"""Which tokens are held to a frozen model: those of the response that are not audited, or all of them."""

DividedBy = Literal["tokens", "weights"]
"""What the loss of a global batch is divided by: its audited tokens, or the sum of their weights."""

Frozen = Literal["initial", "teacher"]
"""A model beside the policy that is not trained: the initial student, or the teacher of train.teacher."""

ENDED = """coalesce(lower(rollouts.finish_reason) IN (
    'stop', 'end_turn', 'stop_sequence', 'eos', 'eos_token', 'stop_token', 'complete', 'endoftext'
), false)"""
"""SQL: the teacher came to an end by itself, in the providers' words: stop (OpenAI's dialect, Gemini), end_turn
(Anthropic), eos (Together), eos_token (TGI), stop_token, complete (Cohere), endoftext (AI21)."""


@dataclass(frozen=True)
class Spans:
    """Training sequences are the student's trajectories, in which spans of tokens have a weight."""

    sql: str
    """One row a span: trajectory_id, start and "end" (tokens of the response), weight. The spans of a trajectory do not
    overlap. It reads the tables of the round; a $name is a key of [score]."""


@dataclass(frozen=True)
class Answers:
    """Training sequences are texts of the teacher's, each behind what it goes on from."""

    sql: str
    """One row an answer: trajectory_id, chunk_id, rollout_index, and what `sequences` reads."""
    sequences: "Callable[[pa.Table, PreTrainedTokenizerBase, int | None], pa.Table]"
    """From such rows to rows of the shards table, given the token that ends a turn, if there is one."""


@dataclass(frozen=True, kw_only=True)
class Objective(ObjectiveRules):
    """One objective. `name` and the rules of the config are the store's part of it."""

    samples_student: bool = True
    """Whether `generate` samples the student; if not, a trajectory is a prompt alone, one for each."""
    rescored: bool = False
    """Whether its loss has the ratio to the sampler's log-probs in its gradient: then generate.entropy = "auto" takes
    them from a teacher-forced pass in the trainer's precision, or clipping would begin with the engine's rounding."""
    least_samples: int = 1
    """Fewest samples of a prompt to learn from."""
    asks: Asked = "nobody"
    """What `audit` asks of the teacher."""
    weights_from: Literal["scores", "rewards", "drafts"] | None = None
    """The table that `score` fills before it makes sequences: similarities to the teacher (Eq. 3-5), a grader's
    verdicts, which need a reference answer to each prompt, or what the policy makes of the teacher's drafts. None:
    there is no such table."""
    learns: Spans | Answers
    """What the training sequences are made of."""
    summary_sql: str
    """One row about what the sequences rest on, for the line that `score` prints; a $name is a key of [score]."""
    summary: "Callable[[tuple[Any, ...], ScoreConfig], str]"
    """That row in words."""
    frozen: Frozen | None = None
    """The frozen model, which the initial student is only while train.beta > 0."""
    anchored: Anchored = "response"
    """The tokens that its divergences are summed over."""
    divided_by: DividedBy = "tokens"
    may_centre: bool = False
    """Whether score.centre applies to the weights."""
    shown: "Callable[[Config], list[tuple[str, str]]]"
    """The settings that matter to it, with their names, for the report."""

    @property
    def graded(self) -> bool:
        """Whether responses are rewarded."""
        return self.weights_from == "rewards"

    def frozen_model(self, train: "TrainConfig") -> Frozen | None:
        """The frozen model that a [train] section needs."""
        return None if self.frozen == "initial" and train.beta == 0 else self.frozen


def no_constant_weights(name: str) -> Refusal:
    """For an objective whose weights are not of the teacher's making."""
    return Refusal(
        "score.weights",
        "constant",
        f'score.weights = "constant" is the control of omniopd, and train.objective is {name}.',
        'Set score.weights = "teacher".',
    )


def shown_of_all(config: "Config") -> list[tuple[str, str]]:
    """The settings that the report shows of every baseline."""
    train = config.train
    return [("objective", train.objective), ("lr", f"{train.lr:g}"), ("batch", f"{train.global_batch}")]
