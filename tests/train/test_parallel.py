"""The process group and the device of a rank. GPUs are pretended: what torch says of them is what is stood in for."""

import gc
import os
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from omniopd.stages.likelihood import has_bfloat16, precision_of
from omniopd.store.config import Config
from omniopd.store.errors import ConfigError
from omniopd.store.layout import RunDir
from omniopd.store.sections import TrainConfig
from omniopd.train import step
from omniopd.train.launch import launch
from omniopd.train.parallel import on_device, world
from support import training as kit

GPU = torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A GPU of that compute capability, as far as torch asks for it. All make bfloat16 tensors: old ones emulate."""

    def pretend(major: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: types.SimpleNamespace(major=major))
        monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda _: True)

    return pretend


def test_auto_is_float32_on_a_gpu_that_only_emulates_bfloat16(gpu: Callable[[int], None]) -> None:
    gpu(7)
    assert torch.cuda.is_bf16_supported(), "says torch of a T4"
    assert on_device(TrainConfig(), GPU).precision == "fp32"
    assert precision_of(Config()) == "fp32"
    assert not has_bfloat16()
    with pytest.raises(ConfigError, match=r"This GPU does not compute in bfloat16\. Set train\.precision = fp32\."):
        on_device(TrainConfig(precision="bf16"), GPU)


def test_auto_is_bfloat16_on_a_gpu_that_has_it(gpu: Callable[[int], None]) -> None:
    gpu(8)
    assert on_device(TrainConfig(), GPU).precision == "bf16"
    assert precision_of(Config()) == "bf16"
    assert has_bfloat16()


def test_a_rank_without_a_gpu_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setitem(os.environ, "LOCAL_RANK", "2")
    with (
        pytest.raises(ConfigError, match=r"Process 2 of this machine needs a GPU .*, and sees 2\. Start 2 at most"),
        world(),
    ):
        raise AssertionError


def test_an_error_does_not_wait_for_the_other_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    def waits(*_: Any) -> None:
        raise AssertionError("NCCL finishes what was begun before it destroys a group")

    with monkeypatch.context() as patch:
        patch.setattr(dist, "destroy_process_group", waits)
        with pytest.raises(ZeroDivisionError), world():
            raise ZeroDivisionError
    assert not dist.is_initialized()
    with world():
        assert dist.get_world_size() == 1, "and the next round has a group again"


def test_a_trained_round_leaves_the_gpu_to_the_next_engine(
    run: RunDir, students: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = kit.make_config(students("qwen3"))
    kit.write_round(run, 0, config, kit.shard_rows(4))
    parameters: list[weakref.ref[torch.Tensor]] = []
    make = step.Learner.__init__

    def remembering(self: step.Learner, *args: Any) -> None:
        make(self, *args)
        parameters.extend(weakref.ref(parameter) for parameter in self.policy.parameters())

    held: list[int] = []
    monkeypatch.setattr(step.Learner, "__init__", remembering)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: held.append(sum(ref() is not None for ref in parameters)))
    gc.disable()  # it would come by at some time; vLLM asks at once how much is free
    try:
        launch(run, 0, config)
    finally:
        gc.enable()
    assert parameters
    assert held[-1:] == [0], "the cache is emptied once nothing is in it"
