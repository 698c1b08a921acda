# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The loss from final hidden states: output head, weighted likelihood and divergences in one exact, chunked function.

    loss = - sum_A w rho log pi(y)  +  beta sum_U KL(pi_ref || pi)

is Eq. 8, over audited rows A and anchored (un-audited) rows U; objective.py has the terms of the baselines. All other
rows never touch the vocabulary. No more than `chunk` rows of logits exist at a time: the gradient is formed in the
forward pass, while they are there.

Shapes, as suffixes of names: T rows of hidden states, H hidden size, V vocabulary (this rank's slice of it), A audited
rows, U anchored rows, R rows of one chunk. Log-probabilities, entropies and divergences are in nats.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .columns import sums, sums_and_matrix
from .memory import LOSS_BLOCK
from .objective import Clipped, LossTerms, Truncated


class LossRows(NamedTuple):
    """Which rows of hidden states count, and how. In either list a row occurs once."""

    audited_A: Tensor
    """int64, rows that predict a weighted token."""
    target_A: Tensor
    """int64, the tokens they predict."""
    weight_A: Tensor
    """float32, pi_teacher of the token's chunk (Eq. 5), possibly centred, or an advantage; may be zero or negative."""
    behaviour_A: Tensor
    """float32, log-prob of the token when it was sampled, nats."""
    anchored_U: Tensor
    """int64, rows whose divergence from the frozen model counts."""


class LossOutput(NamedTuple):
    """The loss, summed and not normalised, and what it consists of, detached, one value a row."""

    loss: Tensor
    """The only output with a gradient. It can be handed out once: see `fused_loss`."""
    chunk_loss: Tensor
    """Its first term, without the divergences."""
    logp_A: Tensor
    """log pi(y), nats."""
    entropy_A: Tensor
    """Entropy of the policy over the full vocabulary, nats."""
    ratio_A: Tensor
    """pi(y) / behaviour(y), before the cap."""
    clipped_A: Tensor
    """bool, the ratio was capped, or has ended the gradient."""
    kl_U: Tensor
    """KL(pi_ref || pi) over the full vocabulary, nats."""
    reverse_kl_U: Tensor
    """KL(pi || pi_ref), nats; zeros where its weight is zero, since it is not computed then."""


class Normalizer(NamedTuple):
    """Of each row, over the whole vocabulary: log pi = (logits - top) - log_total."""

    top_R: Tensor
    """The largest logit."""
    log_total_R: Tensor
    """log sum exp(logits - top)."""

    def apply(self, logits_RV: Tensor) -> Tensor:
        """Turn logits into log-probs, in place."""
        return logits_RV.sub_(self.top_R[:, None]).sub_(self.log_total_R[:, None])


@dataclass(frozen=True)
class Head:
    """An output head, or one rank's slice of it when the vocabulary is split over a tensor-parallel group."""

    weight_VH: Tensor
    first_id: int = 0
    """Token id of the first row of weight_VH."""
    group: dist.ProcessGroup | None = None
    """The ranks that hold the other slices; None where this rank holds the whole vocabulary."""

    def logits(self, hidden_RH: Tensor, out_RV: Tensor) -> tuple[Tensor, "Normalizer"]:
        """Logits over this rank's slice of the vocabulary, in the dtype and memory of `out_RV`, and what they lack."""
        logits_RV = _product(hidden_RH, self.weight_VH.t(), out_RV)
        top_R = logits_RV.amax(-1)
        if self.group is not None:
            dist.all_reduce(top_R, op=dist.ReduceOp.MAX, group=self.group)
        return logits_RV, Normalizer(top_R, self.summed(_sum_exp((logits_RV,), top_R)).log())

    def summed(self, partial: Tensor) -> Tensor:
        """The sum over all slices of the vocabulary. In place."""
        if self.group is not None:
            dist.all_reduce(partial, group=self.group)
        return partial


def fused_loss(
    hidden_TH: Tensor,
    head: Head,
    rows: LossRows,
    terms: LossTerms,
    *,
    reference_TH: Tensor | None = None,
    reference_head: Head | None = None,
    chunk: int = 256,
) -> LossOutput:
    """The terms of an objective, summed over rows.

    Logits, log-probs and the gradient of the head are accumulated in float32 (float64 for float64 inputs).

    Under tensor parallelism the gradient of hidden_TH that comes out is this rank's share: pass hidden states through
    Megatron's `copy_to_tensor_model_parallel_region` (or its sequence-parallel gather) first, which sums the shares.

    Args:
        hidden_TH: final hidden states of the policy, after the last norm; float64, float32 or bfloat16.
        head: the policy's output head.
        rows: which rows count; `rows.anchored_U` must be empty without a reference.
        terms: their weights.
        reference_TH: final hidden states of the frozen model for the same tokens; its hidden size may be another.
        reference_head: the frozen model's output head, split as `head` is.
        chunk: rows of logits held at a time.

    Raises:
        RuntimeError: in a second backward pass. The gradients are scaled in place on their way out, since a copy of
            the head's would be the largest tensor of the step.
    """
    if reference_TH is None or reference_head is None:
        if len(rows.anchored_U):
            raise ValueError("anchored rows need the reference's hidden states and head")
        reference_TH, reference_head = hidden_TH.detach(), head
    outputs: Any = _FusedLoss.apply(hidden_TH, head.weight_VH, head, rows, reference_TH, reference_head, terms, chunk)
    return LossOutput(*outputs)


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: Tensor,
        weight_VH: Tensor,  # the tensor inside `head`, here for autograd to see it
        head: Head,
        rows: LossRows,
        reference_TH: Tensor,
        reference_head: Head,
        terms: LossTerms,
        chunk: int,
    ) -> tuple[Tensor, ...]:
        dtype = torch.promote_types(hidden_TH.dtype, torch.float32)
        gradients = _Gradients(hidden_TH, weight_VH, dtype, ctx.needs_input_grad[0], ctx.needs_input_grad[1])
        logp_A, entropy_A, ratio_A, loss_A = (
            rows.weight_A.new_zeros(len(rows.audited_A), dtype=dtype) for _ in range(4)
        )
        clipped_A = torch.zeros_like(rows.audited_A, dtype=torch.bool)
        kl_U, reverse_kl_U = (logp_A.new_zeros(len(rows.anchored_U)) for _ in range(2))

        # Two buffers for the whole call. Fresh ones in each chunk would stand beside those of the chunk before.
        policy_RV = weight_VH.new_empty((min(chunk, max(len(logp_A), len(kl_U))), len(weight_VH)), dtype=dtype)
        reference_RV = torch.empty_like(policy_RV[: len(kl_U)])

        for part in _parts(len(rows.audited_A), chunk):
            hidden_RH, target_R = hidden_TH[rows.audited_A[part]], rows.target_A[part]
            logits_RV, normalizer = head.logits(hidden_RH, policy_RV[: len(target_R)])
            local_R = target_R - head.first_id
            here_R = (local_R >= 0) & (local_R < logits_RV.shape[1])
            local_R = local_R.clamp(0, logits_RV.shape[1] - 1)
            logp_R = normalizer.apply(logits_RV.gather(1, local_R[:, None])).squeeze(1) * here_R
            negentropy_R, probs_RV = _into_probs((logits_RV,), normalizer, dtype=dtype)
            logp_R, negentropy_R = head.summed(torch.stack([logp_R, negentropy_R]))
            ratio_R = torch.exp(logp_R - rows.behaviour_A[part])
            logp_A[part], entropy_A[part], ratio_A[part] = logp_R, -negentropy_R, ratio_R
            loss_A[part], scale_R, clipped_A[part] = weighted(terms, rows.weight_A[part], ratio_R, logp_R)
            # d/dlogits of -log pi(y) is pi - onehot(y); the buffer of pi becomes it.
            dlogits_RV = probs_RV.mul_(scale_R[:, None])
            dlogits_RV.scatter_add_(1, local_R[:, None], -(scale_R * here_R)[:, None])
            gradients.add(rows.audited_A[part], hidden_RH, dlogits_RV.to(hidden_RH.dtype))

        # Tensors: torch 2.11 cannot compile a kernel that takes a Python number (seen on an H100).
        forward_kl, reverse_kl = (
            torch.full((), weight, dtype=dtype, device=hidden_TH.device)
            for weight in (terms.forward_kl, terms.reverse_kl)
        )
        for part in _parts(len(rows.anchored_U), chunk):
            index_R = rows.anchored_U[part]
            hidden_RH = hidden_TH[index_R]
            ref_RV, ref_normalizer = reference_head.logits(reference_TH[index_R], reference_RV[: len(index_R)])
            logits_RV, normalizer = head.logits(hidden_RH, policy_RV[: len(index_R)])
            both = (logits_RV, ref_RV)
            if terms.reverse_kl:
                kl_U[part], reverse_kl_U[part] = head.summed(_divergences(both, normalizer, ref_normalizer))
                _, dlogits_RV = _into_mixed_gradient(
                    both, normalizer, ref_normalizer, reverse_kl_U[part], forward_kl, reverse_kl, dtype=hidden_RH.dtype
                )
            else:
                kl_R, dlogits_RV = _into_kl_gradient(
                    both, normalizer, ref_normalizer, forward_kl, dtype=hidden_RH.dtype
                )
                kl_U[part] = head.summed(kl_R)
            gradients.add(index_R, hidden_RH, dlogits_RV)

        chunk_loss = loss_A.sum()
        loss = chunk_loss + terms.forward_kl * kl_U.sum() + terms.reverse_kl * reverse_kl_U.sum()
        details = (chunk_loss, logp_A, entropy_A, ratio_A, clipped_A, kl_U, reverse_kl_U)
        ctx.gradients = gradients
        ctx.mark_non_differentiable(*details)
        return loss, *details

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        gradients: _Gradients | None = ctx.gradients
        if gradients is None:
            raise RuntimeError("the gradients of fused_loss were handed out already")
        ctx.gradients = None
        return (*gradients.hand_out(grad_outputs[0]), *[None] * 6)


def weighted(terms: LossTerms, weight_R: Tensor, ratio_R: Tensor, logp_R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first term of an objective for each row: f, minus its derivative by log pi(y), and whether it was clipped."""
    ratio = terms.ratio
    if isinstance(ratio, Clipped):
        kept_R = torch.where(weight_R > 0, ratio_R <= 1 + ratio.high, ratio_R >= 1 - ratio.low)
        bounded_R = ratio_R.clamp(1 - ratio.low, 1 + ratio.high)
        loss_R = -torch.minimum(weight_R * ratio_R, weight_R * bounded_R)
        return loss_R, weight_R * ratio_R * kept_R, ~kept_R & (weight_R != 0)
    rho_R = ratio_R.clamp(max=ratio.cap) if isinstance(ratio, Truncated) else torch.ones_like(ratio_R)
    scale_R = weight_R * rho_R
    return -scale_R * logp_R, scale_R, ratio_R > rho_R if ratio else torch.zeros_like(ratio_R, dtype=torch.bool)


class _Gradients:
    """Gradients of the hidden states and of the head, accumulated chunk by chunk."""

    def __init__(
        self, hidden_TH: Tensor, weight_VH: Tensor, dtype: torch.dtype, want_hidden: bool, want_weight: bool
    ) -> None:
        self.weight_VH = weight_VH
        self.hidden_TH = torch.zeros_like(hidden_TH) if want_hidden else None
        self.head_VH = torch.zeros_like(weight_VH, dtype=dtype) if want_weight else None

    def add(self, index_R: Tensor, hidden_RH: Tensor, dlogits_RV: Tensor) -> None:
        if self.hidden_TH is not None:
            self.hidden_TH[index_R] += dlogits_RV @ self.weight_VH  # a row may be weighted and anchored
        if self.head_VH is not None:
            _add_product(self.head_VH, dlogits_RV.t(), hidden_RH)

    def hand_out(self, scale: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Both gradients times the incoming one, in place and in the inputs' dtypes."""
        hidden_TH = None if self.hidden_TH is None else self.hidden_TH.mul_(scale)
        head_VH = None if self.head_VH is None else self.head_VH.mul_(scale).to(self.weight_VH.dtype)
        return hidden_TH, head_VH


@sums
def _sum_exp(logits_RC: Tensor, top_R: Tensor) -> Tensor:
    """This slice's share of the sum of exponentials, [R]."""
    return (logits_RC - top_R[:, None]).exp_().sum(-1)


@sums_and_matrix
def _into_probs(logits_RC: Tensor, normalizer: Normalizer) -> Tensor:
    """Turn logits into probabilities. Returns this slice's share of sum pi log pi, [R]."""
    logp_RC = normalizer.apply(logits_RC)
    probs_RC = logp_RC.exp()
    negentropy_R = logp_RC.mul_(probs_RC).sum(-1)
    logits_RC.copy_(probs_RC)
    return negentropy_R


@sums_and_matrix
def _into_kl_gradient(
    logits_RC: Tensor, ref_RC: Tensor, normalizer: Normalizer, ref_normalizer: Normalizer, weight: Tensor
) -> Tensor:
    """Turn logits into weight (pi - pi_ref), the gradient of KL(pi_ref || pi). Returns this slice's share of the KL."""
    logp_RC, ref_logp_RC = normalizer.apply(logits_RC), ref_normalizer.apply(ref_RC)
    probs_RC = ref_logp_RC.exp()
    kl_R = ref_logp_RC.sub_(logp_RC).mul_(probs_RC).sum(-1)
    logp_RC.exp_().sub_(probs_RC).mul_(weight)
    return kl_R


@sums
def _divergences(
    logits_RC: Tensor, ref_RC: Tensor, normalizer: Normalizer, ref_normalizer: Normalizer
) -> Tensor:  # fmt: skip
    """This slice's share of KL(pi_ref || pi) and of KL(pi || pi_ref), [2, R]."""
    logp_RC, ref_logp_RC = normalizer.apply(logits_RC.clone()), ref_normalizer.apply(ref_RC.clone())
    difference_RC = ref_logp_RC - logp_RC
    forward_R = (ref_logp_RC.exp() * difference_RC).sum(-1)
    return torch.stack([forward_R, -(logp_RC.exp() * difference_RC).sum(-1)])


@sums_and_matrix
def _into_mixed_gradient(
    logits_RC: Tensor,
    ref_RC: Tensor,
    normalizer: Normalizer,
    ref_normalizer: Normalizer,
    reverse_R: Tensor,
    forward_kl: Tensor,
    reverse_kl: Tensor,
) -> Tensor:
    """Turn logits into the gradient of both divergences by them. Returns nothing to add up, [R].

    d/dlogits of KL(pi || pi_ref) is pi (log pi - log pi_ref - KL(pi || pi_ref)).
    """
    logp_RC, ref_logp_RC = normalizer.apply(logits_RC), ref_normalizer.apply(ref_RC)
    probs_RC = logp_RC.exp()
    logp_RC.sub_(ref_logp_RC).sub_(reverse_R[:, None]).mul_(reverse_kl).add_(forward_kl)
    logp_RC.mul_(probs_RC).sub_(ref_logp_RC.exp_().mul_(forward_kl))
    return torch.zeros_like(reverse_R)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, in place, accumulated in the dtype of `total`."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif a.is_cuda:
        torch.addmm(total, a, b, total.dtype, out=total)
    else:
        for total_VH, part_VR in zip(total.split(LOSS_BLOCK), a.split(LOSS_BLOCK), strict=True):
            total_VH.add_(_product(part_VR, b, torch.empty_like(total_VH)))


def _product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """a @ b in the dtype and memory of `out`, without rounding the result to the inputs' dtype on the way."""
    if a.dtype == out.dtype:
        return torch.mm(a, b, out=out)
    if a.is_cuda:
        return torch.mm(a, b, out.dtype, out=out)
    return torch.mm(a.to(out.dtype), b.to(out.dtype), out=out)  # the CPU has no product of mixed precision


def _parts(rows: int, chunk: int) -> Iterator[slice]:
    for start in range(0, rows, chunk):
        yield slice(start, min(start + chunk, rows))
