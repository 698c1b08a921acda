# pyright: strict
"""How the policy is trained."""

from typing import Literal

from pydantic import Field, field_validator

from ..errors import ConfigError
from ..objectives import REGISTERED
from .section import Section


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
