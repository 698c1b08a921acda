# pyright: strict
"""The sections of a run's configuration, one frozen model each.

The docstring under each field is what `omniopd init` writes beside it, so this file is the reference.
"""

import importlib.metadata
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from .errors import ConfigError
from .objectives import REGISTERED

METRIC_NAMES = ("edit", "rouge1", "rougeL", "jaccard", "bleu1", "bleu2", "exact", "embedding")
"""The values of score.phi that the package brings itself."""

METRIC_GROUP = "omniopd.metrics"
"""Entry point group under which an installed package adds another."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def _with_place(template: str) -> str:
    if "{question}" not in template:
        raise ValueError("template has no {question}: put it where the question's text belongs")
    return template


class StudentConfig(Section):
    model: str = ""
    """Hub id or folder of the initial student (also the frozen reference of Eq. 8)."""
    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """What samples the trajectories; auto is vllm where it is installed. Column entropy_source says what it was."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of generation; auto is bfloat16 on a GPU and float32 on a CPU."""


class DataConfig(Section):
    prompts: str | tuple[str, ...] = ""
    """A .jsonl, .jsonl.gz, .jsonl.zst, .parquet or .csv file, a folder of them, the hub id of a dataset, or a list of
    such. A relative path is looked for in the current folder, then in the run directory; `init` writes an absolute
    one."""
    subset: str | None = None
    """Configuration of a hub dataset that has several."""
    split: str = "train"
    """Split of a hub dataset, or of a folder whose file names tell splits apart."""
    field: str = "question"
    """Column that holds the question: a text, or a chat in OpenAI's form (system, user, assistant and tool messages) or
    that chat's JSON, which the student goes on with. An assistant message at its end is left out."""
    tools: str | None = "tools"
    """Column with the tools of a chat, in OpenAI's form, where the data set has it."""
    system: str | None = None
    """System prompt of every conversation, in place of its own; "" drops it, unset keeps it."""
    answer: str | None = None
    """Column with the reference answer, or the tests of a program, for train.objective = "grpo"; a dot reaches into a
    struct. Values are those of the file: 025 in a CSV stays 025, and 1 in JSON is not 1.0."""
    filter: str | None = None
    """Use only rows that meet this SQL condition over the data set's columns, such as "length(answer) < 9". The
    cells of a CSV are text, as is a column of several types: TRY_CAST(level AS DOUBLE) > 3."""
    template: str = "{question}"
    """Text of the last user message; {question} is replaced."""
    chat_template: Literal["auto", "on", "off"] = "auto"
    """Wrap the message in the tokenizer's chat template; auto does so where the tokenizer has one (base models have
    none)."""
    enable_thinking: bool | None = None
    """Qwen3's switch of that name in the chat template; unset: what the template does by itself."""
    max_prompt_tokens: int | None = Field(default=None, gt=0)
    """Drop prompts of more student tokens, templates included."""
    limit: int | None = Field(default=None, gt=0)
    """Use only the first N prompts after the shuffle."""
    per_round: int | None = Field(default=None, gt=0)
    """Prompts a round takes, in turn and starting over at the end; unset: every round takes all."""
    seed: int = 0
    """Seed of the shuffle."""

    @property
    def prompts_label(self) -> str:
        """The data set's name for messages."""
        return self.prompts if isinstance(self.prompts, str) else ", ".join(self.prompts)

    @field_validator("template")
    @classmethod
    def _template_has_a_place_for_the_question(cls, template: str) -> str:
        return _with_place(template)


class GenerateConfig(Section):
    samples_per_prompt: int = Field(default=1, gt=0)
    """Trajectories for each prompt; with train.objective = "sft" there is one, and grpo needs two or more."""
    max_new_tokens: int = Field(default=4096, gt=0)
    """Longest response, tokens."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature. The stored log-probs and entropies are those at temperature 1 whatever this is."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus of the sampling distribution."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end a response, beside those of the model's generation_config.json."""
    seed: int = 0
    """Seed of the sampling; each trajectory has its own random stream."""
    entropy: Literal["auto", "decode", "rescore"] = "auto"
    """Where log-probs and entropies come from: the sampler itself, or a second, teacher-forced pass in the trainer's
    precision (train.precision), which costs about as much as the sampling and a second copy of the model. auto: rescore
    for grpo, whose loss has a ratio to these log-probs in its gradient; decode for the others."""
    batch_size: int | None = Field(default=None, gt=0)
    """Sequences decoded together; unset: 64 for transformers, and what vLLM chooses for vLLM."""
    tensor_parallel: int = Field(default=1, gt=0)
    """GPUs that share the model (vLLM)."""
    processes: Literal["auto"] | Annotated[int, Field(gt=0)] = "auto"
    """Engines that `omniopd generate` and `omniopd run` start on this machine, each in a process with tensor_parallel
    GPUs of its own. auto: as many as there are GPUs for, of those that CUDA_VISIBLE_DEVICES leaves, and 1 without a
    GPU. A shard (--shard, torchrun, srun) has one engine."""
    vllm: dict[str, Any] = {}
    """More arguments of vLLM's LLM, such as gpu_memory_utilization or max_num_batched_tokens."""
    part_rows: int = Field(default=512, gt=0)
    """Trajectories committed together; a crash loses at most these."""


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
    extra: dict[str, Any] = {}
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


class LoraConfig(Section):
    rank: int = Field(default=16, gt=0)
    """Rank of each adapter."""
    alpha: float = Field(default=32, gt=0)
    """What the adapters add is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of the adapters' input, while they are trained."""
    targets: tuple[Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), min_length=1
    )
    """Projections that have one."""


class TrainConfig(Section):
    objective: str = "omniopd"
    """omniopd: Eq. 8. The paper's baselines: sft, likelihood of the teacher's whole answers (Eq. 1); opd, forward and
    reverse KL to a teacher whose weights are here, on the student's trajectories (Eq. 2); grpo, the student's own
    rewards, without a teacher. draft: the likelihood of the teacher's words from the student's earliest fork, as far as
    the student follows. docs/baselines.md says what each stage does for them."""
    teacher: str = ""
    """opd: folder or hub id of the teacher's weights. Its tokenizer and vocabulary must be the student's."""
    forward_kl: float = Field(default=0.5, ge=0, le=1)
    """opd: weight of KL(teacher || student); KL(student || teacher) has the rest (Eq. 2 is 0, section 5.1 says 0.5)."""
    clip_low: float = Field(default=0.2, ge=0, lt=1)
    """grpo: a token's gradient ends where its ratio to the sampling policy falls below 1 minus this."""
    clip_high: float = Field(default=0.2, ge=0)
    """grpo: and where the ratio rises above 1 plus this."""
    beta: float = Field(default=0.1, ge=0)
    """Weight of the KL to the initial student: on un-audited tokens (omniopd), on all of the response (grpo). sft and
    opd have none."""
    lr: float = Field(default=1e-6, gt=0)
    """Learning rate of AdamW, constant after the warm-up."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up in each round."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    carry_optimizer: bool = True
    """Begin a round with the optimizer's state of the round before, as one long training would; false begins afresh,
    which with few steps a round leaves Adam without a memory."""
    clip_grad: float = Field(default=1.0, ge=0)
    """Largest norm of the gradient; 0 does not clip."""
    epochs: int = Field(default=1, gt=0)
    """Passes over a round's trajectories."""
    steps: int | None = Field(default=None, gt=0)
    """Stop a round after this many steps."""
    global_batch: int = Field(default=64, gt=0)
    """Trajectories in one optimizer step."""
    micro_batch: int = Field(default=2, gt=0)
    """Trajectories in one forward pass of one rank, if train.micro_tokens is not set."""
    micro_tokens: int | None = Field(default=None, gt=0)
    """Tokens in one forward pass of one rank, padding included, in place of train.micro_batch: one long trajectory, or
    many short ones. A longer one is alone. Loss and gradient are the same."""
    normalise: Literal["audited_tokens", "sum"] = "audited_tokens"
    """Divide both terms of Eq. 8 by the audited tokens of the global batch, or by nothing."""
    importance_cap: float = Field(default=2.0, ge=1)
    """Cap of the importance weight of tokens that became stale within a round."""
    off_policy: bool = False
    """Accept trajectories that another policy sampled (of another run, say); the importance weight then counts from
    the first step on."""
    lora: LoraConfig | None = None
    """Train adapters beside frozen weights, such as { rank = 16, alpha = 32 }, instead of all weights: the reference of
    Eq. 8 is then the same model without them. More keys: dropout, targets. Unset: all weights are trained."""
    tensor_parallel: int = Field(default=1, gt=0)
    """Ranks that share each layer."""
    pipeline_parallel: int = Field(default=1, gt=0)
    """Ranks that share the depth."""
    context_parallel: int = Field(default=1, gt=0)
    """Ranks that share each sequence."""
    sequence_parallel: bool = False
    """Split the activations between layers over the tensor-parallel ranks too."""
    distributed_optimizer: bool = False
    """Split the optimizer's state over the data-parallel ranks; its checkpoints fit only runs that do so too."""
    recompute: bool = False
    """Recompute activations in the backward pass instead of keeping them."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of parameters, activations and the policy that is written; loss and optimizer are always fp32. auto:
    bf16 on a GPU that has it, fp32 elsewhere."""
    loss_rows: int = Field(default=0, ge=0)
    """Rows of logits held at a time; 0: 2,048 on a GPU, which wants large products, and 256 on a CPU."""
    deterministic: bool = False
    """On a GPU, use kernels that give the same bits each time, so that a resumed round does too; they are slower. A CPU
    always does."""
    checkpoint_every: int = Field(default=50, gt=0)
    """Steps between checkpoints inside a round."""
    keep_checkpoints: int = Field(default=2, gt=0)
    """Newest checkpoints of a round that are kept."""
    processes: int = Field(default=1, gt=0)
    """Trainer processes that `omniopd train` starts on this machine, or in all on a cluster; under torchrun, torchrun
    decides."""
    seed: int = 0
    """Seed of the order of trajectories."""

    def on(self, *, cuda: bool, bf16: bool = True) -> "TrainConfig":
        """The section with what depends on the device filled in.

        Args:
            cuda: the device is a GPU.
            bf16: it computes in bfloat16.

        Raises:
            ConfigError: it does not, and was told to.
        """
        if cuda and not bf16 and self.precision == "bf16":
            raise ConfigError("This GPU does not compute in bfloat16.", "Set train.precision = fp32.")
        precision = ("bf16" if cuda and bf16 else "fp32") if self.precision == "auto" else self.precision
        rows = self.loss_rows or (2048 if cuda else 256)
        return self.model_copy(update={"precision": precision, "loss_rows": rows})

    @field_validator("objective")
    @classmethod
    def _objective_is_registered(cls, objective: str) -> str:
        if objective not in REGISTERED:
            *others, last = (repr(name) for name in REGISTERED)
            raise ValueError(f"Input should be {', '.join(others)} or {last}")
        return objective


class ClusterConfig(Section):
    on: Literal["local", "ray"] = "local"
    """Where generate and train run: on this machine, or on the slots of a Ray cluster (docs/cluster.md). A slot is a
    GPU, or what a machine without one offers by `ray start --resources='{"slot": 1}'`."""
    address: str = Field(default="auto", min_length=1)
    """HOST:PORT of the cluster's head; auto: RAY_ADDRESS, or the cluster that this machine belongs to."""
    engines: int = Field(default=0, ge=0)
    """Engines that generate runs at a time, each with generate.tensor_parallel GPUs of one machine, or with one slot.
    0: as many as there are slots when it begins."""
    units_per_engine: int = Field(default=4, gt=0)
    """Shares of a round that an engine fills one after the other. After a machine is lost, what others do again is what
    its engine had not committed (generate.part_rows) of one of them."""

    @field_validator("address")
    @classmethod
    def _address_is_of_the_cluster_itself(cls, address: str) -> str:
        if "://" in address:
            raise ValueError("Ray Client is not supported: run the command on a machine of the cluster, with HOST:PORT")
        return address


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
        return None if template is None else _with_place(template)


class Phase(Section):
    objective: str
    """train.objective of these rounds."""
    rounds: int = Field(default=1, gt=0)
    set: dict[str, dict[str, Any]] = {}
    """Other keys that they have of their own, such as { teacher.rollouts = 4 }."""


class RunConfig(Section):
    rounds: int = Field(default=1, gt=0)
    """Rounds that `omniopd run` drives."""
    schedule: tuple[Phase, ...] = ()
    """Rounds that the run begins with, before those of train.objective: [{ objective = "sft", rounds = 1 }] is a cold
    start. The budget and the initial student are those of the whole run; `set` gives the rounds keys of their own."""
    mirror: str | None = Field(default=None, min_length=1)
    """Where a copy of the run is kept, pushed after each stage and while audit runs: s3://bucket/path, gs://..., az://...
    or the absolute path of a folder. `omniopd pull` restores it."""
    trackers: tuple[Literal["wandb", "mlflow"], ...] = ()
    """Who is told of spend, similarity, steps, failures and accuracy while the stages work (docs/metrics.md); their own
    variables, such as WANDB_PROJECT and MLFLOW_TRACKING_URI, say where. TensorBoard's files are always written."""
    overlap: bool = False
    """Audit what generate has committed while it still writes. Only live and without a budget: otherwise which chunks
    are worth it is known only once all are there, and audit waits."""
