"""The baselines' losses against TRL's and transformers' own, and the trainer doing what each objective says."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor

from omniopd.store.errors import InputError
from omniopd.store.layout import RunDir
from omniopd.store.sections import TrainConfig
from omniopd.train.loss import Head, LossOutput, LossRows, fused_loss
from omniopd.train.metrics import MetricsLog
from omniopd.train.objective import loss_terms
from omniopd.train.trainer import train_round
from omniopd.train.weights import BatchFacts, batch_facts
from support import training as kit

NO_FACTS = BatchFacts(0, 0, 0, 0.0, 0.0, 1)

B, S, H, V = 3, 11, 12, 40
PROMPT = 4


class Models:
    """Hidden states and heads of a policy and a frozen model, for B sequences of S tokens, float64."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(4)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.hidden_BSH, self.weight_VH = normal(B, S, H).requires_grad_(), (0.7 * normal(V, H)).requires_grad_()
        self.frozen_BSH, self.frozen_VH = normal(B, S, 2 * H), 0.5 * normal(V, 2 * H)
        self.ids_BS = torch.randint(0, V, (B, S), generator=generator)
        # The sequences differ in length: what is past the end is padding.
        self.mask_BS = torch.arange(S) < torch.tensor([[S], [S - 2], [S - 5]])
        self.advantage_B = torch.tensor([0.9, -1.3, 0.4], dtype=torch.float64)
        self.behaviour_BS = self.logp_BS().detach() + 0.3 * normal(B, S)

    def logits(self) -> Tensor:
        return self.hidden_BSH @ self.weight_VH.t()

    def logp_BS(self) -> Tensor:
        """log pi of each token, by the position before it; 0 for the first."""
        logp = self.logits().log_softmax(-1)[:, :-1].gather(2, self.ids_BS[:, 1:, None]).squeeze(2)
        return torch.nn.functional.pad(logp, (1, 0))

    def rows(self, weight_B: Tensor, *, anchored: bool = False, weighted: bool = True) -> LossRows:
        at_B, at_S = (self.mask_BS & (torch.arange(S) >= PROMPT)).nonzero(as_tuple=True)
        predicted_by, none = at_B * S + at_S - 1, torch.zeros(0, dtype=torch.long)
        kept = slice(None) if weighted else slice(0)
        return LossRows(
            predicted_by[kept], self.ids_BS[at_B, at_S][kept], weight_B[at_B][kept],
            self.behaviour_BS[at_B, at_S][kept], predicted_by if anchored else none,
        )  # fmt: skip

    def fused(self, rows: LossRows, **train: Any) -> LossOutput:
        return fused_loss(
            self.hidden_BSH.flatten(0, 1), Head(self.weight_VH), rows,
            loss_terms(TrainConfig(**train), NO_FACTS, on_policy=False), reference_TH=self.frozen_BSH.flatten(0, 1),
            reference_head=Head(self.frozen_VH), chunk=5,
        )  # fmt: skip

    def assert_equal(self, ours: Tensor, theirs: Tensor) -> None:
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
        wanted = (self.hidden_BSH, self.weight_VH)
        for mine, other in zip(torch.autograd.grad(ours, wanted), torch.autograd.grad(theirs, wanted), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)


@pytest.fixture
def models() -> Models:
    return Models()


def test_sft_is_the_cross_entropy_that_transformers_trains_with(models: Models) -> None:
    from transformers.loss.loss_utils import ForCausalLMLoss

    rows = models.rows(torch.ones(B, dtype=torch.float64))
    labels = models.ids_BS.where(models.mask_BS & (torch.arange(S) >= PROMPT), -100)
    # It converts logits to float32 on its way.
    theirs = ForCausalLMLoss(models.logits(), labels, V)
    torch.testing.assert_close(models.fused(rows, objective="sft").loss.float() / len(rows.target_A), theirs.float())
    exact = torch.nn.functional.cross_entropy(models.logits()[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    models.assert_equal(models.fused(rows, objective="sft").loss / len(rows.target_A), exact)


@pytest.mark.parametrize("forward_kl", [0.0, 0.5, 1.0])
def test_opd_is_the_mixture_of_the_two_divergences_of_trl(models: Models, forward_kl: float) -> None:
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    rows = models.rows(torch.zeros(B), anchored=True, weighted=False)
    labels = models.ids_BS.where(models.mask_BS & (torch.arange(S) >= PROMPT), -100)[:, 1:]
    teacher = (models.frozen_BSH @ models.frozen_VH.t())[:, :-1]
    forward, reverse = (
        GKDTrainer.generalized_jsd_loss(models.logits()[:, :-1], teacher, labels, beta=beta, reduction="sum")
        for beta in (0, 1)
    )
    ours = models.fused(rows, objective="opd", forward_kl=forward_kl)
    models.assert_equal(ours.loss, forward_kl * forward + (1 - forward_kl) * reverse)


def trl_grpo(models: Models, clip_low: float, clip_high: float) -> Tensor:
    """What TRL's own trainer computes, normalised by the tokens of the batch."""
    from trl import GRPOTrainer

    logp_BS = models.logp_BS()[:, PROMPT:]
    trainer = MagicMock(
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, importance_sampling_level="token", beta=0.0,
        loss_type="bnpo", epsilon_low=clip_low, epsilon_high=clip_high, use_vllm=False, aux_loss_enabled=False,
        _entropy_bonus_enabled=False, args=SimpleNamespace(delta=None), current_gradient_accumulation_steps=1,
    )  # fmt: skip
    trainer._get_per_token_logps_and_entropies.return_value = (logp_BS, torch.zeros_like(logp_BS), None)
    trainer.accelerator.reduce.side_effect = lambda value, reduction: value
    trainer.accelerator.gather.side_effect = lambda value: value
    ids, mask = models.ids_BS, models.mask_BS.long()
    inputs = {
        "prompt_ids": ids[:, :PROMPT], "prompt_mask": mask[:, :PROMPT], "completion_ids": ids[:, PROMPT:],
        "completion_mask": mask[:, PROMPT:], "advantages": models.advantage_B,
        "old_per_token_logps": models.behaviour_BS[:, PROMPT:],
    }  # fmt: skip
    return GRPOTrainer._compute_loss(trainer, MagicMock(), inputs)


def test_grpo_is_the_clipped_surrogate_of_trl(models: Models) -> None:
    rows = models.rows(models.advantage_B)
    ours = models.fused(rows, objective="grpo", beta=0.0, clip_low=0.1, clip_high=0.2)
    assert 0 < ours.clipped_A.sum() < len(rows.target_A)
    models.assert_equal(ours.loss / len(rows.target_A), trl_grpo(models, 0.1, 0.2))


def test_grpo_adds_the_exact_divergence_to_the_initial_student_on_every_token_of_the_response(models: Models) -> None:
    rows = models.rows(models.advantage_B, anchored=True)
    ours = models.fused(rows, objective="grpo", beta=0.3, clip_low=0.1, clip_high=0.2)
    logp = models.logits().log_softmax(-1).flatten(0, 1)[rows.anchored_U]
    frozen = (models.frozen_BSH @ models.frozen_VH.t()).log_softmax(-1).flatten(0, 1)[rows.anchored_U]
    count = len(rows.target_A)
    theirs = trl_grpo(models, 0.1, 0.2) * count + 0.3 * (frozen.exp() * (frozen - logp)).sum()
    models.assert_equal(ours.loss / count, theirs / count)


# -- the trainer


def response_rows(weight: Callable[[int], float], *, audited: bool) -> list[dict[str, Any]]:
    rows = kit.shard_rows(6)
    for n, row in enumerate(rows):
        row["audited"] = [audited and inside for inside in row["response_mask"]]
        row["loss_weight"] = [weight(n) * inside for inside in row["audited"]]
    return rows


def test_sft_raises_the_likelihood_of_the_answers_without_a_frozen_model(
    run: RunDir, students: Callable[[str], Path]
) -> None:
    rows = response_rows(lambda n: 1.0, audited=True)
    for row in rows:
        row["behaviour_logprobs"] = [0.0] * len(row["input_ids"])
    # Centring would take away a constant weight, so it is for Eq. 8 alone.
    config = kit.make_config(students("qwen3"), objective="sft", global_batch=6, epochs=8, centre="batch_mean")
    kit.write_round(run, 0, config, rows)
    train_round(run, 0, config)
    steps = MetricsLog(run, 0).rows()
    assert steps[-1]["audited_nll"] < steps[0]["audited_nll"] - 0.5
    assert all(step["loss"] == pytest.approx(step["audited_nll"]) for step in steps)
    assert all(step["kl_mean"] is step["behaviour_gap"] is None for step in steps)


def test_opd_draws_the_student_to_a_teacher_of_another_size(
    run: RunDir, students: Callable[[str], Path], tmp_path: Path
) -> None:
    teacher = kit.save_student(tmp_path / "teacher", "llama", seed=5, hidden_size=64, num_hidden_layers=3)
    config = kit.make_config(
        students("qwen3"), objective="opd", teacher=str(teacher), forward_kl=0.25, global_batch=6, epochs=8
    )
    rows = response_rows(lambda n: 0.0, audited=False)
    kit.write_round(run, 0, config, rows)
    train_round(run, 0, config)
    steps = MetricsLog(run, 0).rows()
    tokens = sum(sum(row["response_mask"]) for row in rows)
    for step in steps:
        assert step["loss"] == pytest.approx(0.25 * step["kl_mean"] + 0.75 * step["reverse_kl_mean"])
        assert step["kl_sum"] == pytest.approx(step["kl_mean"] * tokens)
    assert steps[-1]["loss"] < 0.8 * steps[0]["loss"]


def test_grpo_weighs_and_anchors_every_token_of_the_response_and_reports_the_reward(
    run: RunDir, students: Callable[[str], Path]
) -> None:
    config = kit.make_config(students("qwen3"), objective="grpo", beta=0.05, global_batch=6, epochs=4)
    rows = response_rows(lambda n: (-1) ** n, audited=True)
    kit.write_round(run, 0, config, rows)
    round_ = run.round(0)
    round_.rewards.begin({})
    round_.rewards.append([{"trajectory_id": row["trajectory_id"], "reward": n % 2} for n, row in enumerate(rows)])
    round_.rewards.finish()
    train_round(run, 0, config)
    steps = MetricsLog(run, 0).rows()
    assert abs(steps[0]["kl_mean"]) < 1e-6 < steps[-1]["kl_mean"]
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert steps[0]["reward"] == 0.5
    assert steps[0]["phi"] is None
    for step in steps:
        # Every token of the response is weighted and held to the initial student.
        assert step["loss"] == pytest.approx(step["chunk_loss"] + 0.05 * step["kl_sum"] / step["audited_tokens"])
        assert step["kl_mean"] == pytest.approx(step["kl_sum"] / step["audited_tokens"])


def test_a_white_box_teacher_that_does_not_fit_is_refused(
    run: RunDir, students: Callable[[str], Path], tmp_path: Path
) -> None:
    student = students("qwen3")
    rows = response_rows(lambda n: 0.0, audited=False)
    wide = kit.save_student(tmp_path / "wide", "qwen3", vocab_size=128)
    other = kit.save_student(tmp_path / "other", "qwen3")
    kit.save_tokenizer(other, 90)
    mixture = kit.save_student(tmp_path / "mixture", "qwen3")
    config = json.loads((mixture / "config.json").read_text())
    (mixture / "config.json").write_text(json.dumps(config | {"model_type": "qwen3_moe"}))
    kit.write_round(run, 0, kit.make_config(student), rows)
    for teacher, message in (
        (wide, "128 rows in its head, and the student 97"),
        (other, "'w90' is 90 to the student"),
        (mixture, "architecture qwen3_moe. Use a teacher of type"),
    ):
        with pytest.raises(InputError, match=message):
            train_round(run, 0, kit.make_config(student, objective="opd", teacher=str(teacher)))


def test_draft_is_the_mean_likelihood_by_consensus_and_a_divergence_over_the_tokens_before_the_fork(
    models: Models,
) -> None:
    """Written out token by token in float64: each of the two sums has its own divisor."""
    fork, beta = PROMPT + 2, 0.7
    weight_B = torch.linspace(0.2, 1.0, B, dtype=torch.float64)
    at_BS = torch.arange(S).expand(B, S)
    accepted_BS, before_BS = models.mask_BS & (at_BS >= fork), models.mask_BS & (at_BS >= PROMPT) & (at_BS < fork)
    facts = batch_facts(
        (weight_B[:, None] * accepted_BS).flatten().numpy(), accepted_BS.flatten().numpy(),
        (accepted_BS | before_BS).flatten().numpy(), centre="none", normalise="audited_tokens", divided_by="weights",
    )  # fmt: skip
    assert (facts.audited_tokens, facts.anchored_tokens) == (int(accepted_BS.sum()), int(before_BS.sum()))

    (b_A, s_A), (b_U, s_U) = (mask.nonzero(as_tuple=True) for mask in (accepted_BS, before_BS))
    rows = LossRows(
        b_A * S + s_A - 1, models.ids_BS[accepted_BS], weight_B[b_A], models.behaviour_BS[accepted_BS],
        b_U * S + s_U - 1,
    )  # fmt: skip
    terms = loss_terms(TrainConfig(objective="draft", beta=beta), facts, on_policy=False)
    ours = fused_loss(
        models.hidden_BSH.flatten(0, 1), Head(models.weight_VH), rows, terms,
        reference_TH=models.frozen_BSH.flatten(0, 1), reference_head=Head(models.frozen_VH), chunk=5,
    )  # fmt: skip

    log_p = torch.log_softmax(models.logits(), -1)
    log_q = torch.log_softmax(models.frozen_BSH @ models.frozen_VH.T, -1)
    likelihood, divergence = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for b, s in zip(b_A.tolist(), s_A.tolist(), strict=True):
        likelihood = likelihood + weight_B[b] * log_p[b, s - 1, models.ids_BS[b, s]]
    for b, s in zip(b_U.tolist(), s_U.tolist(), strict=True):
        divergence = divergence + (log_q[b, s - 1].exp() * (log_q[b, s - 1] - log_p[b, s - 1])).sum()
    theirs = -likelihood / sum(weight_B[b] for b in b_A.tolist()) + beta * divergence / len(b_U)
    models.assert_equal(ours.loss / facts.normaliser, theirs)


def test_a_policy_of_one_objective_is_not_gone_on_with_under_another(
    run: RunDir, students: Callable[[str], Path]
) -> None:
    from omniopd.store.config import made_with

    student = students("qwen3")
    configs = [kit.make_config(student, objective=name) for name in ("omniopd", "sft", "opd", "grpo", "draft")]
    assert len({str(made_with(config, "policy")) for config in configs}) == 5
    assert len({str(made_with(config, "shards")) for config in configs}) == 5
