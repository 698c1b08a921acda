"""The process group and the device of a rank. GPUs are pretended: what torch says of them is what is stood in for."""

import gc
import os
import signal
import subprocess
import sys
import time
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist

from omniopd.stages.likelihood import has_bfloat16, precision_of
from omniopd.store.config import Config
from omniopd.store.errors import ConfigError, InputError
from omniopd.store.layout import RunDir
from omniopd.store.sections import TrainConfig
from omniopd.train import step
from omniopd.train.launch import _end, launch
from omniopd.train.metrics import MetricsLog
from omniopd.train.parallel import on_device, world
from support import training as kit
from support.processes import Command

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


def test_a_step_that_finds_no_memory_is_one_line(
    run: RunDir, students: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = kit.make_config(students("qwen3"))
    kit.write_round(run, 0, config, kit.shard_rows(4))

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 1.16 GiB. GPU 0 has a total capacity of 79.11 GiB of which"
            " 500.00 MiB is free. If reserved but unallocated memory is large try setting PYTORCH_ALLOC_CONF"
        )

    monkeypatch.setattr(step.Learner, "gradients", full)
    with pytest.raises(
        InputError, match=r"^Rank 0 has no GPU memory left: CUDA out .* 500.00 MiB is free\. Set train\."
    ):
        launch(run, 0, config)


def test_kernels_that_repeat_themselves_are_asked_for_in_a_process_that_has_used_no_gpu_yet(
    run: RunDir, students: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = kit.make_config(students("qwen3"), deterministic=True)
    kit.write_toml(run, config)
    kit.write_round(run, 0, config, kit.shard_rows(4))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)  # the student was sampled here
    steps: list[int] = []
    result = launch(run, 0, config, progress=lambda done, *_: steps.append(done))
    assert (result.trained, steps) == (True, [1])
    assert "1 steps, 0 skipped" in run.train_log(0).read_text(), "another process has said so"


def test_a_job_of_several_machines_may_have_more_ranks_than_this_one_has_gpus(
    run: RunDir, students: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = kit.make_config(students("qwen3"), processes=32)
    kit.write_round(run, 0, config, kit.shard_rows(4))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    with pytest.raises(ConfigError, match="this machine has 8 GPUs"):
        launch(run, 0, config)
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "1")  # torchrun decides
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setitem(os.environ, name, value)
    assert launch(run, 0, config).trained
    monkeypatch.delitem(os.environ, "WORLD_SIZE")
    assert not launch(run, 0, config).trained, "nor does it matter where there is nothing to train"


@pytest.mark.slow
def test_ranks_that_are_told_to_stop_may_finish_their_step(run: RunDir, students: Callable[[str], Path]) -> None:
    config = kit.make_config(students("qwen3"), epochs=200, processes=2, checkpoint_every=10_000)
    kit.write_toml(run, config)
    kit.write_round(run, 0, config, kit.shard_rows(10))
    # torchrun's patience, which ends before a step of a GPU, ends at once here.
    command = Command("train", run.path, env={"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "0"})
    metrics = MetricsLog(run, 0)
    while len(metrics.rows()) < 2:
        assert command.running
        time.sleep(0.01)
    command.send_signal(signal.SIGTERM)
    ended = command.wait()
    done = len(metrics.rows())
    assert (ended.returncode, f"stopped after step {done} of 600, with a checkpoint" in ended.stderr) == (130, True)
    assert (run.round(0).checkpoint / "latest").read_text() == f"step={done:06d}\n"


def test_after_ctrl_c_ranks_that_cannot_stop_are_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    deaf = "import signal, sys, subprocess, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    rank = f"{deaf} print('deaf', flush=True); time.sleep(1000)"
    torchrun = f"{deaf} rank = subprocess.Popen([sys.executable, '-c', {rank!r}]); rank.wait()"
    monkeypatch.setattr("omniopd.train.launch._GRACE_S", 0.1)
    with subprocess.Popen([sys.executable, "-c", torchrun], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (child,) = psutil.Process(process.pid).children()
        _end(process)
        assert not child.is_running()
    assert process.returncode == 0
