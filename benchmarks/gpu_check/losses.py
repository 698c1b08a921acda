"""The fused loss: its gradient against float64, its time and memory, and the same beside whole matrices and Liger."""

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from omniopd.train.loss import Head, LossRows, fused_loss
from omniopd.train.objective import LossTerms

from .sizes import Sizes
from .timing import DEVICE, error, peak, seconds

BETA = 0.1


class Inputs:
    """Hidden states and heads of a policy and a reference, bfloat16, an eighth of the rows audited."""

    def __init__(self, sizes: Sizes) -> None:
        generator = torch.Generator(DEVICE).manual_seed(0)
        self.tokens = tokens = sizes.rows

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, device=DEVICE, generator=generator)

        self.hidden_TH = (0.5 * normal(tokens, sizes.hidden)).bfloat16()
        self.weight_VH = (0.02 * normal(sizes.vocabulary, sizes.hidden)).bfloat16()
        self.reference_TH = self.hidden_TH + (0.05 * normal(tokens, sizes.hidden)).bfloat16()
        self.target_T = torch.randint(0, sizes.vocabulary, (tokens,), device=DEVICE, generator=generator)
        self.weight_T = torch.rand(tokens, device=DEVICE, generator=generator)
        self.row_T = torch.arange(tokens, device=DEVICE)

    def rows(self, kind: str) -> LossRows:
        """All rows audited, all anchored, or an eighth and the rest."""
        audited = {"audited": self.tokens, "anchored": 0, "both": self.tokens // 8}[kind]
        return LossRows(
            self.row_T[:audited], self.target_T[:audited], self.weight_T[:audited],
            -5 * self.weight_T[:audited], self.row_T[audited:],
        )  # fmt: skip

    def leaves(self) -> tuple[Tensor, Tensor]:
        """Fresh leaves of the hidden states and the head."""
        return self.hidden_TH.detach().requires_grad_(), self.weight_VH.detach().requires_grad_()

    def ours(self, kind: str, chunk: int) -> tuple[Tensor, Tensor]:
        """One forward and backward pass."""
        hidden_TH, weight_VH = self.leaves()
        fused_loss(
            hidden_TH, Head(weight_VH), self.rows(kind), LossTerms(forward_kl=BETA), reference_TH=self.reference_TH,
            reference_head=Head(self.weight_VH), chunk=chunk,
        ).loss.backward()  # fmt: skip
        return hidden_TH, weight_VH

    def naive(self) -> None:
        """The same with whole matrices of log-probs."""
        hidden_TH, weight_VH = self.leaves()
        logp_TV = (hidden_TH @ weight_VH.t()).float().log_softmax(-1)
        with torch.no_grad():
            reference_TV = (self.reference_TH @ self.weight_VH.t()).float().log_softmax(-1)
        rows = self.rows("both")
        n = len(rows.audited_A)
        kl = torch.nn.functional.kl_div(logp_TV[n:], reference_TV[n:], reduction="sum", log_target=True)
        (BETA * kl - (rows.weight_A * logp_TV[rows.audited_A, rows.target_A]).sum()).backward()

    def liger(self) -> dict[str, Callable[[], None]]:
        """Liger's nearest: cross-entropy for audited rows (without weights), and a divergence for anchored ones."""
        from liger_kernel.ops.fused_linear_cross_entropy import (  # pyright: ignore[reportMissingImports]
            LigerFusedLinearCrossEntropyFunction as CrossEntropy,
        )
        from liger_kernel.ops.fused_linear_jsd import (  # pyright: ignore[reportMissingImports]
            LigerFusedLinearJSDFunction as Divergence,
        )

        def audited() -> None:
            hidden_TH, weight_VH = self.leaves()
            rest = (None, None, -100, 0.0, 0.0, "sum", None, False, torch.float32)
            CrossEntropy.apply(hidden_TH, weight_VH, self.target_T, *rest)[0].backward()

        def anchored() -> None:
            hidden_TH, weight_VH = self.leaves()
            rest = (None, 0.0, -100, 1.0, torch.float32)
            Divergence.apply(hidden_TH, weight_VH, self.reference_TH, self.weight_VH, *rest).backward()

        return {"audited": audited, "anchored": anchored}


def check(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Accuracy first, then times by chunk."""
    inputs = Inputs(sizes)
    yield _accuracy(inputs)
    for kind in ("audited", "anchored", "both"):
        for chunk in sizes.chunks:
            yield _measured(lambda kind=kind, chunk=chunk: inputs.ours(kind, chunk), inputs, kind, loss_rows=chunk)
    try:
        yield _measured(inputs.naive, inputs, "both", by="whole matrices")
    except torch.OutOfMemoryError:
        yield {"rows": "both", "by": "whole matrices", "out_of_memory": True}
    if importlib.util.find_spec("liger_kernel") is not None:
        for kind, work in inputs.liger().items():
            yield _measured(work, inputs, kind, by="Liger, float32 sums")


def _measured(work: Callable[[], object], inputs: Inputs, kind: str, **about: Any) -> dict[str, Any]:
    taken = seconds(work)
    return {"rows": kind} | about | {"us_a_row": 1e6 * taken / inputs.tokens} | peak(work)


def _accuracy(inputs: Inputs) -> dict[str, Any]:
    """The gradient of some anchored rows against float64."""
    few = min(256, inputs.tokens // 2)
    with torch.no_grad():
        head_VH = inputs.weight_VH.double()
        probs_RV, ref_RV = (
            (states[-few:].double() @ head_VH.t()).softmax(-1) for states in (inputs.hidden_TH, inputs.reference_TH)
        )
        exact_RH = BETA * ((probs_RV - ref_RV) @ head_VH)
    hidden_TH, _ = inputs.ours("both", 256)
    assert hidden_TH.grad is not None
    off = error(hidden_TH.grad[-few:], exact_RH)
    return {"gradient_error": off, "ok": off < 5e-3}
