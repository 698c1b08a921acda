"""The fused loss against its terms written out in float64: Eq. 8, and those of the baselines."""

from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from omniopd.train import columns
from omniopd.train.loss import Head, LossRows, fused_loss
from omniopd.train.objective import Clipped, LossTerms, Truncated


class Case(NamedTuple):
    hidden_TH: Tensor
    weight_VH: Tensor
    reference_TH: Tensor
    reference_VH: Tensor
    rows: LossRows
    terms: LossTerms
    chunk: int
    block: int = 16384


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Random shapes, masks (empty ones and shared ones too), signed weights, chunk sizes that divide nothing."""
    tokens, vocabulary, hidden = draw(st.integers(1, 40)), draw(st.integers(2, 30)), draw(st.integers(1, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    kinds = torch.randint(0, draw(st.integers(1, 4)), (tokens,), generator=generator)
    audited_A, anchored_U = (kinds % 3 == 0).nonzero().squeeze(1), ((kinds == 1) | (kinds == 3)).nonzero().squeeze(1)
    rows = LossRows(
        audited_A,
        torch.randint(0, vocabulary, (len(audited_A),), generator=generator),
        normal(len(audited_A)),
        -2 + normal(len(audited_A)),
        anchored_U,
    )
    return Case(
        normal(tokens, hidden), normal(vocabulary, hidden), normal(tokens, hidden), normal(vocabulary, hidden), rows,
        terms=LossTerms(
            draw(st.sampled_from([None, Truncated(1.0), Truncated(2.0), Truncated(1e9), Clipped(0.2, 0.3)])),
            draw(st.sampled_from([0.0, 0.1, 3.0])),
            draw(st.sampled_from([0.0, 0.0, 0.5])),
        ),
        chunk=draw(st.integers(1, 50)),
        block=draw(st.integers(1, 40)),
    )  # fmt: skip


def written_out(case: Case) -> tuple[Tensor, dict[str, Tensor]]:
    """The terms from whole matrices of log-probs, differentiated by autograd."""
    logp_TV = (case.hidden_TH @ case.weight_VH.t()).log_softmax(-1)
    reference_TV = (case.reference_TH @ case.reference_VH.t()).log_softmax(-1)
    rows = case.rows
    logp_A = logp_TV[rows.audited_A, rows.target_A]
    ratio_A = (logp_A.detach() - rows.behaviour_A).exp()
    first_A, clipped_A = first_term(case.terms, rows.weight_A, (logp_A - rows.behaviour_A).exp(), logp_A)
    kl_U = (reference_TV.exp() * (reference_TV - logp_TV)).sum(-1)[rows.anchored_U]
    reverse_kl_U = (logp_TV.exp() * (logp_TV - reference_TV)).sum(-1)[rows.anchored_U]
    entropy_A = -(logp_TV.exp() * logp_TV).sum(-1)[rows.audited_A]
    loss = first_A.sum() + case.terms.forward_kl * kl_U.sum() + case.terms.reverse_kl * reverse_kl_U.sum()
    details = {
        "chunk_loss": first_A.sum(), "logp_A": logp_A, "ratio_A": ratio_A, "kl_U": kl_U, "entropy_A": entropy_A,
        "clipped_A": clipped_A, "reverse_kl_U": reverse_kl_U * bool(case.terms.reverse_kl),
    }  # fmt: skip
    return loss, details


def first_term(terms: LossTerms, weight_A: Tensor, ratio_A: Tensor, logp_A: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted term as the papers have it, and where the ratio was cut."""
    ratio = terms.ratio
    if isinstance(ratio, Clipped):
        bounded_A = ratio_A.clamp(1 - ratio.low, 1 + ratio.high)
        cut_A = (weight_A * bounded_A < weight_A * ratio_A).detach()
        return -torch.minimum(weight_A * ratio_A, weight_A * bounded_A), cut_A
    ratio_A = ratio_A.detach()
    if isinstance(ratio, Truncated):
        return -weight_A * ratio_A.clamp(max=ratio.cap) * logp_A, ratio_A > ratio.cap
    return -weight_A * logp_A, torch.zeros_like(ratio_A, dtype=torch.bool)


def fused(case: Case) -> Any:
    with mock.patch.object(columns, "LOSS_BLOCK", case.block):
        return fused_loss(
            case.hidden_TH, Head(case.weight_VH), case.rows, case.terms, reference_TH=case.reference_TH,
            reference_head=Head(case.reference_VH), chunk=case.chunk,
        )  # fmt: skip


def gradients(loss: Tensor, case: Case, scale: float = 0.37) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss * scale, (case.hidden_TH, case.weight_VH), materialize_grads=True)


@given(cases())
def test_loss_details_and_gradients_equal_the_terms_written_out(case: Case) -> None:
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
    return Case(*(tensor.to(dtype) for tensor in models), rows, LossTerms(Truncated(2.0), 0.5), 7)


def test_rows_without_weight_get_no_gradient_and_do_not_matter() -> None:
    case = example()
    nothing = torch.cat([torch.arange(20, 30), torch.arange(55, 60)])
    poisoned = case._replace(hidden_TH=case.hidden_TH.index_fill(0, nothing, torch.nan).requires_grad_())
    (gradient,) = torch.autograd.grad(fused(poisoned).loss, poisoned.hidden_TH)
    assert not gradient[nothing].any()
    assert fused(poisoned).loss == fused(case).loss


@pytest.mark.parametrize("reverse_kl", [0.0, 0.5])
def test_bfloat16_inputs_are_accumulated_in_float32(reverse_kl: float) -> None:
    case = example(torch.bfloat16)._replace(terms=LossTerms(Truncated(2.0), 0.5, reverse_kl))
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
        fused_loss(case.hidden_TH, Head(case.weight_VH), case.rows, LossTerms(forward_kl=0.1))
