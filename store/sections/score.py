# pyright: strict
"""How weights come out of the teacher's answers."""

import importlib.metadata
from typing import Literal

from pydantic import Field, field_validator

from .section import Section

METRIC_NAMES = ("edit", "rouge1", "rougeL", "jaccard", "bleu1", "bleu2", "exact", "embedding")
"""The values of score.phi that the package brings itself."""

METRIC_GROUP = "omniopd.metrics"
"""Entry point group under which an installed package adds another."""


class ScoreConfig(Section):
    weights: Literal["teacher", "constant"] = "teacher"
    """Where the weights come from. constant does not ask the teacher and gives every audited token the weight 1: the
    control against which a claim of learning is made."""
    phi: str = "edit"
    """Similarity of a chunk and a rollout (Eq. 3), in [0, 1]: edit, rouge1, rougeL, jaccard, bleu1, bleu2, exact,
    embedding, or the name of an entry point in the group omniopd.metrics."""
    unit: Literal["word", "char", "digit", "token"] = "word"
    """What the similarity counts: words and symbols, characters, tokens of the student, or the digits 0 to 9 alone,
    which leaves out all wording (Remark 4.5). In scripts without spaces a word is a character (docs/similarity.md). A
    chunk without a unit is treated as un-audited."""
    embedding_model: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Folder or hub id of the sentence-transformers model that the metric embedding uses (extra: embedding)."""
    alpha: float = Field(default=1.0, ge=0)
    """Prior strength (Eq. 5); 0 is the frequentist estimate."""
    min_rollouts: int = Field(default=1, gt=0)
    """A chunk with fewer usable rollouts is treated as un-audited."""
    centre: Literal["none", "batch_mean"] = "none"
    """Subtract the global batch's mean weight from the weights: none is the paper, batch_mean has less variance."""
    accept: Literal["min_p", "typical", "probability", "rank"] = "min_p"
    """draft: when the student accepts a token of the teacher's. min_p: it is at least accept_threshold as likely as the
    likeliest one; probability: at least that likely; typical: at least min(t, sqrt(t) exp(-entropy)); rank: among the
    accept_threshold likeliest. What follows the first token that is not accepted is not learned."""
    accept_threshold: float | None = Field(default=None, gt=0)
    """Unset: 0.02, and 50 for rank."""
    grader: Literal["math_verify", "dapo_regex", "tests"] = "math_verify"
    """What rewards a response (1 right, 0 wrong) with train.objective = "grpo"; as in `omniopd eval`."""
    memory_gb: float = Field(default=1.0, gt=0)
    """Memory that DuckDB may use, GB; what does not fit goes to a spill folder in the run directory."""
    threads: int | None = Field(default=None, gt=0)
    """Threads that compare and aggregate; unset: one a core."""

    @property
    def threshold(self) -> float:
        """Of `accept`: accept_threshold, or its default."""
        if self.accept_threshold is not None:
            return self.accept_threshold
        return 50.0 if self.accept == "rank" else 0.02

    @field_validator("phi")
    @classmethod
    def _phi_is_known(cls, phi: str) -> str:
        # Asked for here and not when it is loaded: by then the rollouts are paid for.
        if phi in METRIC_NAMES:
            return phi
        installed = importlib.metadata.entry_points(group=METRIC_GROUP)
        if len(installed.select(name=phi)) != 1:
            known = ", ".join([*METRIC_NAMES, *sorted({entry.name for entry in installed})])
            raise ValueError(f"{phi!r} is no known similarity (known: {known}; or an entry point of {METRIC_GROUP})")
        return phi
