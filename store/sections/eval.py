# pyright: strict
"""How a model is measured."""

from typing import Literal

from pydantic import Field, field_validator

from .section import Section, with_place


class EvalConfig(Section):
    benchmark: str = ""
    """math500, aime24, aime25, amc23, olympiadbench; apps, codecontests, taco, codeforces; or a .jsonl, .parquet or
    .csv file with the columns question and answer (or tests)."""
    samples: int = Field(default=16, gt=0)
    """Responses to each question."""
    max_new_tokens: int = Field(default=32768, gt=0)
    """Longest response, tokens; the model's context may be shorter."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature; 0 is greedy decoding, for which eval.samples must be 1."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus of the sampling distribution."""
    template: str | None = None
    """Text of the user message, with {question}; unset: data.template for a run, and for another model the paper's
    (Table 7)."""
    seed: int = 0
    """Seed of the sampling."""
    graders: tuple[Literal["math_verify", "dapo_regex", "tests"], ...] = ()
    """Who decides what is right; unset: all that fit the benchmark."""

    @field_validator("template")
    @classmethod
    def _template_has_a_place_for_the_question(cls, template: str | None) -> str | None:
        return None if template is None else with_place(template)
