# pyright: strict
"""The student, the questions, and how it samples its trajectories."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from .section import Section, with_place


class StudentConfig(Section):
    model: str = ""
    """Hub id or folder of the initial student (also the frozen reference of Eq. 8)."""
    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """What samples the trajectories; auto is vllm where it is installed. Column entropy_source says what it was."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of generation; auto is bfloat16 on a GPU that has it and float32 elsewhere."""


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
        return with_place(template)


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
    vllm: dict[str, Any] = Field(default={})
    """More arguments of vLLM's LLM, such as gpu_memory_utilization or max_num_batched_tokens."""
    part_rows: int = Field(default=512, gt=0)
    """Trajectories committed together; a crash loses at most these."""
