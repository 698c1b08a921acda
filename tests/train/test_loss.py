"""The fused loss against Eq. 8 written out in float64."""

from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from omniopd.train import loss as loss_module
from omniopd.train.loss import Head, LossRows, omniopd_loss


class Case(NamedTuple):
    hidden_TH: Tensor
    weight_VH: Tensor
    reference_TH: Tensor
    reference_VH: Tensor
    rows: LossRows
    beta: float
    cap: float | None
    chunk: int
    block: int = 16384


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Random shapes, masks (empty ones too), signed weights, chunk sizes that divide nothing."""
    tokens, vocabulary, hidden = draw(st.integers(1, 40)), draw(st.integers(2, 30)), draw(st.integers(1, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    kinds = torch.randint(0, draw(st.integers(1, 3)), (tokens,), generator=generator)
    audited_A, anchored_U = (kinds == 0).nonzero().squeeze(1), (kinds == 1).nonzero().squeeze(1)
    rows = LossRows(
        audited_A,
        torch.randint(0, vocabulary, (len(audited_A),), generator=generator),
        normal(len(audited_A)),
        -2 + normal(len(audited_A)),
        anchored_U,
    )
    return Case(
        normal(tokens, hidden), normal(vocabulary, hidden), normal(tokens, hidden), normal(vocabulary, hidden), rows,
        beta=draw(st.sampled_from([0.0, 0.1, 3.0])),
        cap=draw(st.sampled_from([None, 1.0, 2.0, 1e9])),
        chunk=draw(st.integers(1, 50)),
        block=draw(st.integers(1, 40)),
    )  # fmt: skip


def written_out(case: Case) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 8 from whole matrices of log-probs."""
    logp_TV = (case.hidden_TH @ case.weight_VH.t()).log_softmax(-1)
    reference_TV = (case.reference_TH @ case.reference_VH.t()).log_softmax(-1)
    rows = case.rows
    logp_A = logp_TV[rows.audited_A, rows.target_A]
    ratio_A = (logp_A.detach() - rows.behaviour_A).exp()
    rho_A = torch.ones_like(ratio_A) if case.cap is None else ratio_A.clamp(max=case.cap)
    kl_U = (reference_TV.exp() * (reference_TV - logp_TV)).sum(-1)[rows.anchored_U]
    entropy_A = -(logp_TV.exp() * logp_TV).sum(-1)[rows.audited_A]
    chunk_loss = -(rows.weight_A * rho_A * logp_A).sum()
    details = {"chunk_loss": chunk_loss, "logp_A": logp_A, "ratio_A": ratio_A, "kl_U": kl_U, "entropy_A": entropy_A}
    return chunk_loss + case.beta * kl_U.sum(), details


def fused(case: Case) -> Any:
    with mock.patch.object(loss_module, "LOSS_BLOCK", case.block):
        return omniopd_loss(
            case.hidden_TH, Head(case.weight_VH), case.rows, beta=case.beta, reference_TH=case.reference_TH,
            reference_head=Head(case.reference_VH), importance_cap=case.cap, chunk=case.chunk,
        )  # fmt: skip


def gradients(loss: Tensor, case: Case, scale: float = 0.37) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss * scale, (case.hidden_TH, case.weight_VH), materialize_grads=True)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_loss_details_and_gradients_equal_equation_8_written_out(case: Case) -> None:
    case.hidden_TH.requires_grad_()
    case.weight_VH.requires_grad_()
    loss, details = written_out(case)
    out = fused(case)
    torch.testing.assert_close(out.loss, loss, rtol=1e-11, atol=1e-11)
    for name, value in details.items():
        torch.testing.assert_close(getattr(out, name), value.detach(), rtol=1e-10, atol=1e-11)
    for mine, theirs in zip(gradients(out.loss, case), gradients(loss, case), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-11)


def example(dtype: torch.dtype = torch.float64) -> Case:
    generator = torch.Generator().manual_seed(5)
    tokens, vocabulary, hidden = 60, 80, 16

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows = LossRows(
        torch.arange(0, 20),
        torch.randint(0, vocabulary, (20,), generator=generator),
        normal(20).float(),
        (-4 + normal(20)).float(),
        torch.arange(30, 55),
    )
    models = [0.3 * normal(*shape) for shape in ((tokens, hidden), (vocabulary, hidden)) * 2]
    return Case(*(tensor.to(dtype) for tensor in models), rows, 0.5, 2.0, 7)


def test_rows_without_weight_get_no_gradient_and_do_not_matter() -> None:
    case = example()
    nothing = torch.cat([torch.arange(20, 30), torch.arange(55, 60)])
    poisoned = case._replace(hidden_TH=case.hidden_TH.index_fill(0, nothing, torch.nan).requires_grad_())
    (gradient,) = torch.autograd.grad(fused(poisoned).loss, poisoned.hidden_TH)
    assert not gradient[nothing].any()
    assert fused(poisoned).loss == fused(case).loss


def test_bfloat16_inputs_are_accumulated_in_float32() -> None:
    case = example(torch.bfloat16)
    exact = case._replace(**{name: getattr(case, name).double() for name in case._fields[:4]})
    for each in (case, exact):
        each.hidden_TH.requires_grad_()
        each.weight_VH.requires_grad_()
    out, theirs = fused(case), fused(exact)
    assert out.loss.dtype == out.logp_A.dtype == torch.float32
    torch.testing.assert_close(out.logp_A.double(), theirs.logp_A, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.kl_U.double(), theirs.kl_U, rtol=1e-5, atol=1e-5)
    for mine, exactly in zip(gradients(out.loss, case), gradients(theirs.loss, exact), strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine.double() - exactly).norm() < 0.01 * exactly.norm()


def test_a_second_backward_pass_is_refused() -> None:
    case = example()
    case.hidden_TH.requires_grad_()
    loss = fused(case).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="handed out already"):
        loss.backward()


def test_anchored_rows_without_a_reference_are_refused() -> None:
    case = example()
    with pytest.raises(ValueError, match="need the reference"):
        omniopd_loss(case.hidden_TH, Head(case.weight_VH), case.rows, beta=0.1)
