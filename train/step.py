"""One optimizer step: the frozen model's and the policy's forward passes, the loss, its gradient, AdamW."""

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from ..store.sections import TrainConfig
from . import mcore
from .cpu import without_stand_ins
from .data import MicroBatch
from .lora import base_of
from .loss import LossOutput, LossRows, fused_loss
from .mcore import parallel_state as mpu
from .model import Student
from .objective import LossTerms
from .optimizer import make_optimizer
from .weights import BatchFacts


@dataclass(frozen=True)
class StepSums:
    """Sums over the rows of a global batch, before normalisation."""

    chunk_loss: float
    """The weighted term over audited tokens; - sum w rho log pi(y) in Eq. 8."""
    kl: float
    """Sum of KL(q || pi) over anchored tokens, nats, without its weight."""
    reverse_kl: float
    """Sum of KL(pi || q) over anchored tokens, nats; 0 where the objective has no such term."""
    nll: float
    """- sum log pi(y) over audited tokens, nats."""
    entropy: float
    """Sum of the policy's entropy at audited tokens, nats."""
    clipped: float
    """Audited tokens whose importance weight was capped, or whose gradient the clipping ended."""
    gap: float
    """Sum of |log pi(y) - behaviour log-prob| over audited tokens, nats."""


class Learner:
    """A policy, its optimizer, and the frozen model that the objective holds it to.

    It lives for one round; the optimizer's state may be carried over from the round before through its checkpoint.
    """

    def __init__(self, policy: Student, reference: Student | None, config: TrainConfig, device: torch.device) -> None:
        """
        Args:
            policy: filled with the weights that the round starts from.
            reference: filled with the initial student's weights, or with the teacher's (opd); the policy itself where
                it is to be taken without its adapters; None where the objective has no divergence.
            config: the [train] section.
            device: where both models are.
        """
        self.policy = policy
        self._shared = reference is policy
        if reference is not None and not self._shared:
            reference.requires_grad_(False).eval()
        self.reference = reference
        self.config = config
        self.device = device
        policy.config.finalize_model_grads_func = _sum_gradients
        self.ddp = mcore.DistributedDataParallel(
            policy.config,
            mcore.DistributedDataParallelConfig(
                grad_reduce_in_fp32=True, use_distributed_optimizer=config.distributed_optimizer
            ),
            policy,
        )
        self.optimizer = make_optimizer(self.ddp, config)
        self._schedule = mcore.get_forward_backward_func()

    def gradients(self, batches: Sequence[MicroBatch], facts: BatchFacts, terms: LossTerms) -> StepSums:
        """Form the objective's gradient over a global batch, normalised and summed over all ranks. Collective.

        Args:
            batches: this data-parallel rank's micro-batches.
            facts: of the whole global batch.
            terms: the weights of its terms.
        """
        self.ddp.zero_grad_buffer()
        self.optimizer.zero_grad()
        if self.reference is None:
            batches = [batch.without_anchor() for batch in batches]
        batches = [batch.to(self.device) for batch in batches]

        def forward(iterator: Iterator[tuple[MicroBatch, Tensor | None]], model: Any) -> Any:
            batch, reference_TH = next(iterator)

            def loss(hidden_SBH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
                with without_stand_ins():
                    out = self._loss(hidden_SBH, reference_TH, batch.rows, terms)
                # The normaliser is known from the masks, so Megatron's own division (by a count) gets nothing to do.
                nothing = torch.zeros((), dtype=torch.int, device=self.device)
                return out.loss / facts.normaliser, nothing, _sums(out, batch.rows)

            return _forward(model, batch), loss

        sums = self._run(forward, self._with_reference(batches), self.ddp, len(batches), forward_only=False)
        return self._add_up(sums)

    def _loss(self, hidden_SBH: Tensor, reference_TH: Tensor | None, rows: LossRows, terms: LossTerms) -> LossOutput:
        return fused_loss(
            self.policy.rows(hidden_SBH),
            self.policy.head(),
            rows,
            terms,
            reference_TH=reference_TH,
            reference_head=None if self.reference is None else self.reference.head(),
            chunk=self.config.loss_rows,
        )

    def update(self, sums: StepSums, lr: float) -> tuple[float, bool]:
        """Clip the gradient and apply it; a loss or gradient that is not finite is dropped. Collective.

        Returns:
            The gradient's norm before clipping, and whether the weights were updated.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
            group["weight_decay"] = self.config.weight_decay * group["wd_mult"]  # 0 on biases and norms
        self.optimizer.prepare_grads()
        norm = self.optimizer.clip_grad_norm(self.config.clip_grad or math.inf)
        if not (math.isfinite(norm) and math.isfinite(sums.chunk_loss) and math.isfinite(sums.kl + sums.reverse_kl)):
            return norm, False
        self.optimizer.step_with_ready_grads()
        return norm, True

    def _with_reference(self, batches: Sequence[MicroBatch]) -> Iterator[tuple[MicroBatch, Tensor | None]]:
        """Micro-batches with the reference's hidden states [S * B, H], on the last pipeline stage.

        Without a pipeline they are made one micro-batch at a time, just before they are needed. The stages of a
        pipeline must pass the reference's messages before the policy's, so there they are made all at once, here.
        """
        if self.reference is None:
            return zip(batches, itertools.repeat(None))
        if mpu.get_pipeline_model_parallel_world_size() == 1:
            return ((batch, self._reference_rows([batch])[0]) for batch in batches)
        rows = self._reference_rows(batches)  # none on the stages before the last
        return zip(batches, rows or itertools.repeat(None), strict=False)

    @torch.no_grad()
    def _reference_rows(self, batches: Sequence[MicroBatch]) -> list[Tensor]:
        reference = self.reference
        assert reference is not None

        def rows(hidden_SBH: Tensor, non_loss_data: bool) -> Tensor:
            return reference.rows(hidden_SBH)

        def forward(iterator: Iterator[MicroBatch], model: Student) -> Any:
            return _forward(model, next(iterator)), rows

        with base_of(reference) if self._shared else contextlib.nullcontext():
            return self._run(forward, iter(batches), reference, len(batches), forward_only=True)

    def _run(self, forward: Any, data: Iterator[Any], model: Any, count: int, *, forward_only: bool) -> list[Tensor]:
        """Megatron's schedule over `count` micro-batches; what the loss function returned, on the last stage."""
        return self._schedule(
            forward_step_func=forward,
            data_iterator=data,
            model=[model],
            num_microbatches=count,
            seq_length=1,  # lengths and sizes travel with the tensors
            micro_batch_size=1,
            forward_only=forward_only,
            collect_non_loss_data=forward_only,
        )

    def _add_up(self, sums: list[Tensor]) -> StepSums:
        """The micro-batches' sums added over all of them and all ranks, with one transfer to the host."""
        total = torch.stack(sums).sum(0) if sums else torch.zeros(7, dtype=torch.float64, device=self.device)
        if mpu.get_pipeline_model_parallel_world_size() > 1:
            group = cast(dist.ProcessGroup, mpu.get_pipeline_model_parallel_group())
            dist.broadcast(total, src=mpu.get_pipeline_model_parallel_last_rank(), group=group)
        dist.all_reduce(total, group=cast(dist.ProcessGroup, mpu.get_data_parallel_group(with_context_parallel=True)))
        return StepSums(*total.tolist())


def _forward(model: Any, batch: MicroBatch) -> Tensor:
    """What a pipeline stage hands on: [S, B, H]. No positions (they are rotary) and no mask (attention is causal)."""
    # Megatron slices the rotary frequencies for context parallelism on a CUDA device.
    names_cuda = mpu.get_context_parallel_world_size() > 1
    with contextlib.nullcontext() if names_cuda else without_stand_ins():
        return model(batch.ids_BS, None, None)


def _sum_gradients(model: list[Any], num_tokens: Tensor | None, **groups: Any) -> None:
    """Megatron's sum of gradients over the ranks, without its division by a token count."""
    mcore.finalize_model_grads(model, None, **groups)


def _sums(out: LossOutput, rows: LossRows) -> Tensor:
    """The fields of StepSums, for one micro-batch, float64 [7]."""
    logp_A = out.logp_A.double()
    return torch.stack(
        [
            out.chunk_loss.double(),
            out.kl_U.double().sum(),
            out.reverse_kl_U.double().sum(),
            -logp_A.sum(),
            out.entropy_A.double().sum(),
            out.clipped_A.sum().double(),
            (logp_A - rows.behaviour_A).abs().sum(),
        ]
    )
