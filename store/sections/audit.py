# pyright: strict
"""Which chunks are audited, whom the teacher's answers come from, and what they may cost."""

from typing import Annotated, Any, Literal

from pydantic import Field

from .section import Section


class SelectConfig(Section):
    chunks: int = Field(default=10, gt=0)
    """M, audited chunks for each trajectory."""
    chunk_tokens: int = Field(default=50, gt=0)
    """C, student tokens in a chunk."""
    strategy: Literal["peak_entropy", "surprisal", "uniform"] = "peak_entropy"
    """Anchors: the M highest entropies (Eq. 7), the M tokens that were least likely when they were sampled, or uniform
    at random (the ablation of Table 6)."""
    overlap: Literal["resample", "merge"] = "resample"
    """A chunk that would overlap an earlier one: take the next anchor instead, or merge the two."""
    boundary: Literal["char", "word"] = "char"
    """Move a chunk's start left to the nearest whole character, or to the nearest word."""
    keep: Literal["all", "earliest"] = "all"
    """Which of a trajectory's M chunks are audited: all (Eq. 7), or only the one that comes first in the response, as
    train.objective = "draft" does unless it is set."""
    seed: int = 0
    """Seed of the uniform strategy."""


class Price(Section):
    input: float = Field(ge=0)
    """USD per million prompt tokens."""
    output: float = Field(ge=0)
    """USD per million completion tokens."""
    cached_input: float | None = Field(default=None, ge=0)
    """USD per million prompt tokens read from the provider's cache; unset: the input price."""
    cache_write: float | None = Field(default=None, ge=0)
    """USD per million prompt tokens written to the provider's cache; unset: the input price."""


CONTINUE = (
    "Your last message was cut off. Go on writing it from exactly the character where it stops, in the same style and"
    " format. Write only the continuation: repeat nothing, and neither comment nor apologise."
)


class TeacherConfig(Section):
    kind: str = "openai"
    """Dialect of the API: openai (any OpenAI-compatible server), anthropic, gemini, or one that an installed package
    registers under the entry point group omniopd.teachers."""
    base_url: str | tuple[str, ...] = ""
    """Where the server is, up to and including /v1; several servers of the same model share the trajectories. Unset:
    the provider's own address, and http://127.0.0.1:8000/v1 for openai."""
    model: str = ""
    """Model id that the server knows."""
    api_key_env: str = ""
    """Name of the environment variable that holds the key; no key is sent where it is not set. Unset: OPENAI_API_KEY,
    ANTHROPIC_API_KEY or GEMINI_API_KEY, by kind."""
    api_key_file: str = ""
    """File that holds the key and nothing else; it takes precedence over the environment."""
    continuation: Literal["auto", "completion", "prefill", "instruct"] = "auto"
    """How the teacher is made to continue the student's prefix: the completions endpoint on the raw text, a chat whose
    last assistant message is left open, or a chat that is told to continue; auto is the first that the server
    supports."""
    instruction: str = Field(default=CONTINUE, min_length=1)
    """The user message that makes the teacher continue where the continuation is instruct."""
    system: str = ""
    """System prompt of each request: a system message, Anthropic's `system`, Gemini's systemInstruction. A raw
    completion has no place for one: there it is refused, and auto chooses a chat."""
    extra: dict[str, Any] = Field(default={})
    """A table that is merged into the body of each request, tables inside it too, as the provider documents it. OpenAI:
    reasoning_effort, service_tier; vLLM and SGLang: chat_template_kwargs = { enable_thinking = false }; OpenRouter:
    provider, reasoning; Anthropic: thinking, service_tier; Gemini: generationConfig = { thinkingConfig = { ... } }. Not
    what other keys of [teacher] set. It is written into the run's tables, so no secrets."""
    rollouts: Annotated[int, Field(gt=0)] | Literal["adaptive"] = 10
    """N, continuations of each chunk's prefix; adaptive: as many as the chunk's own answers call for. With
    train.objective = "sft": whole answers to each prompt."""
    max_rollouts: int = Field(default=10, gt=0)
    """Most rollouts of a chunk where rollouts is adaptive."""
    precision: float = Field(default=0.07, gt=0, lt=1)
    """Where rollouts is adaptive: stop asking about a chunk once its weight is known to this much, half the width of a
    95 % interval, in [0, 1]. score.phi, unit and alpha decide with it."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature of the teacher."""
    seed: int | None = None
    """Sent with each request, mixed with the chunk's id: makes rollouts repeatable where the server honours it."""
    max_tokens: int | None = Field(default=None, gt=0)
    """Longest rollout in teacher tokens; unset: half again the chunk's student tokens, plus 8, and
    generate.max_new_tokens for the whole answers of train.objective = "sft". Of a draft draft_tokens is the length."""
    draft_tokens: Annotated[int, Field(gt=0)] | Literal["adaptive"] = "adaptive"
    """Longest draft in teacher tokens, at most max_tokens. adaptive: generate.max_new_tokens at first; then the
    longest that would have brought nearly the most accepted tokens for its price in the round before."""
    budget_usd: float | None = Field(default=None, ge=0)
    """Hard cap on the run's spend. Needs a price, of teacher.price or of a model that genai-prices knows."""
    budget_tokens: int | None = Field(default=None, ge=0)
    """Hard cap on the run's teacher tokens, prompt and completion together."""
    round_budget_usd: float | None = Field(default=None, ge=0)
    """Hard cap on the spend of each round."""
    round_budget_tokens: int | None = Field(default=None, ge=0)
    """Hard cap on the teacher tokens of each round."""
    model_budget_usd: float | None = Field(default=None, ge=0)
    """Hard cap on the run's spend at this model, where rounds have different teachers."""
    model_budget_tokens: int | None = Field(default=None, ge=0)
    """Hard cap on the run's tokens of this model."""
    price: Price | None = None
    """Price of the model; unset: that of genai-prices, and where it knows none, requests are counted as free."""
    mode: Literal["live", "batch"] = "live"
    """live asks and waits; batch hands the rollouts to the batch API of OpenAI, Anthropic or Gemini, which takes up to
    a day and half the price (teacher.price stays the live one)."""
    poll_s: float = Field(default=30.0, gt=0)
    """Seconds between looks at whether a batch is done."""
    max_concurrency: int = Field(default=64, gt=0)
    """Most requests in flight; how many there are is found out from the server's answers."""
    rpm: float | None = Field(default=None, gt=0)
    """Most requests a minute."""
    tpm: float | None = Field(default=None, gt=0)
    """Most teacher tokens a minute, prompt and completion together."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Longest wait for one answer, seconds."""
    max_attempts: int = Field(default=5, gt=0)
    """Attempts at one request before its rollouts are recorded as failed."""

    @property
    def most_rollouts(self) -> int:
        """N, or the most of it."""
        return self.max_rollouts if self.rollouts == "adaptive" else self.rollouts
