"""What a rank needs, and what is said where it is not there."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from omniopd.store.architecture import Architecture
from omniopd.store.errors import InputError
from omniopd.store.layout import RunDir
from omniopd.store.sections import TrainConfig
from omniopd.train import trainer
from omniopd.train.memory import Need, check_memory, loss_bytes, training_need
from support import training as kit

QWEN3_8B = Architecture("qwen3", 36, 4096, 12288, 32, 8, 128, 151936, 40960, False, 1e-6, 1e6, None)


def need(processes: int = 8, longest: int = 16384, frozen: Architecture | None = QWEN3_8B, **train: Any) -> Need:
    config = TrainConfig.model_validate({"precision": "bf16", "loss_rows": 2048} | train)
    return training_need(QWEN3_8B, config, processes=processes, longest=longest, frozen=frozen)


def test_weights_gradients_and_optimizer_follow_from_the_count_of_parameters() -> None:
    count = 8_190_735_360  # of Qwen3-8B; the norms of queries and keys and of the end are not among what is split
    whole = need(1)
    assert whole.weights == pytest.approx(2 * 2 * count, rel=1e-4)
    assert whole.gradients == pytest.approx(4 * count, rel=1e-4)
    assert whole.optimizer == pytest.approx(12 * count, rel=1e-4)
    assert need(1, frozen=None).weights == whole.weights // 2
    twice = replace(QWEN3_8B, layers=72)
    assert need(1, frozen=twice).weights > 1.4 * whole.weights, "a teacher counts with its own size"


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("activations", {"micro_batch": 1}),
        ("activations", {"recompute": True}),
        ("activations", {"micro_tokens": 16384}),
        ("activations", {"context_parallel": 2}),
        ("loss", {"loss_rows": 64}),
        ("loss", {"tensor_parallel": 2}),
        ("optimizer", {"distributed_optimizer": True}),
        ("weights", {"tensor_parallel": 2}),
        ("gradients", {"pipeline_parallel": 2}),
    ],
)
def test_what_the_error_advises_helps(part: str, change: dict[str, Any]) -> None:
    assert getattr(need(**change), part) < getattr(need(), part)
    assert need(**change).total < need().total


def test_a_budget_of_tokens_counts_as_many_of_the_longest_sequences_as_it_holds() -> None:
    assert need(micro_tokens=3 * 16384 + 5).activations == need(micro_batch=3).activations
    assert need(micro_tokens=100).activations == need(micro_batch=1).activations, "a longer one is alone"
    assert need(micro_tokens=10**9, global_batch=32).activations == need(micro_batch=4).activations, "of 8 ranks"


def test_the_loss_does_not_grow_with_the_tokens_but_for_the_hidden_states() -> None:
    short, long = (loss_bytes(t, 151936, 4096, rows=256, parameter_bytes=2) for t in (1024, 20480))
    assert long - short == 2 * 4096 * (20480 - 1024)


def test_a_step_that_cannot_fit_is_refused_before_it_is_begun(
    run: RunDir, students: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_memory(need(), need().total)
    with pytest.raises(
        InputError, match=r"at least 392 GB on each rank .* there are 80\. Set train.micro_batch = 1 \(or"
    ):
        check_memory(need(), 80 * 10**9)
    config = kit.make_config(students("qwen3"))
    kit.write_round(run, 0, config, kit.shard_rows(4))
    monkeypatch.setattr(trainer, "least_memory", lambda device: 100_000)
    with pytest.raises(InputError, match="on each rank"):
        trainer.train_round(run, 0, config)
    assert not run.round(0).checkpoint.exists()
