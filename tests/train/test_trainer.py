"""Whole rounds: what comes out, what a crash leaves behind, what is refused."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from omniopd.store.config import Config
from omniopd.store.errors import BusyError, ConfigChangedError, ConfigError, InputError, TableError
from omniopd.store.layout import RunDir
from omniopd.store.sections import TrainConfig
from omniopd.train.checkpoint import Checkpoints
from omniopd.train.launch import launch
from omniopd.train.metrics import MetricsLog
from omniopd.train.trainer import train_round
from support import training as kit
from support.processes import Command


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def same(a: Path, b: Path) -> bool:
    one, two = weights(a), weights(b)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


class Killed(Exception):
    """Stands for the death of the process, where only what is on disk matters."""


def die_after(steps: int) -> Callable[[int, int, dict[str, Any]], None]:
    def progress(done: int, total: int, metrics: dict[str, Any]) -> None:
        if done == steps:
            raise Killed

    return progress


@pytest.fixture
def config(students: Callable[[str], Path]) -> Config:
    return kit.make_config(students("qwen3"), epochs=2)


def test_two_rounds_in_one_process_train_and_then_stay_as_they_are(
    run: RunDir, config: Config, students: Callable[[str], Path]
) -> None:
    threads = torch.get_num_threads()
    seen: list[tuple[int, int]] = []
    for index in (0, 1):
        kit.write_round(run, index, config, kit.shard_rows(10, seed=index))
        result = train_round(run, index, config, lambda done, total, _: seen.append((done, total)))
        assert (result.steps, result.skipped, result.trained) == (6, 0, True)
        assert result.policy == run.round(index).policy
    assert not run.round(0).checkpoint.exists(), "its optimizer state has been carried on"
    assert [path.name for path in run.round(1).checkpoint.glob("step=*")] != []
    assert seen == [(step, 6) for step in range(1, 7)] * 2
    student, first, second = students("qwen3"), run.round(0).policy, run.round(1).policy
    assert not same(student, first)
    assert not same(first, second)
    beside = {path.name for path in student.iterdir()} - {"model.safetensors"}
    assert {path.name for path in second.iterdir()} - {"model.safetensors"} == beside
    beside.remove("config.json")  # says the precision
    assert all((student / name).read_bytes() == (second / name).read_bytes() for name in beside)
    # Round 1 starts at the policy of round 0 and is anchored to the initial student.
    assert MetricsLog(run, 0).rows()[0]["kl_mean"] == pytest.approx(0, abs=1e-6)
    assert MetricsLog(run, 1).rows()[0]["kl_mean"] > 1e-3

    again = train_round(run, 0, config)
    assert (again.policy, again.steps, again.trained) == (first, 6, False)
    assert torch.get_num_threads() == threads
    assert not torch.distributed.is_initialized()
    if not torch.cuda.is_available():
        with pytest.raises((AssertionError, RuntimeError)):
            torch.cuda.current_device()  # the stand-ins are gone


def test_metrics_say_what_each_step_did(run: RunDir, config: Config) -> None:
    rows = kit.shard_rows(10)
    kit.write_round(run, 0, config, rows)
    train_round(run, 0, kit.make_config(config.student.model, epochs=2, warmup_steps=4, beta=0.2))
    log = MetricsLog(run, 0)
    lines = log.rows()
    assert log.table.read().to_pylist() == lines
    assert [row["step"] for row in lines] == list(range(6))
    assert [row["lr"] for row in lines] == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-3])
    assert sum(row["audited_tokens"] for row in lines[:3]) == sum(sum(row["audited"]) for row in rows)
    for row in lines:
        assert row["loss"] == pytest.approx(row["chunk_loss"] + 0.2 * row["kl_sum"] / row["audited_tokens"])
        assert row["kl_mean"] == pytest.approx(row["kl_sum"] / row["unaudited_tokens"])
        assert row["chunk_loss"] == pytest.approx(row["chunk_loss_sum"] / row["audited_tokens"])
        assert not row["skipped"]
    assert lines[0]["clipped_share"] == 0 < lines[1]["clipped_share"]


def test_without_an_anchor_no_divergence_is_computed(run: RunDir, config: Config) -> None:
    kit.write_round(run, 0, config, kit.shard_rows(4))
    train_round(run, 0, kit.make_config(config.student.model, beta=0.0))
    (row,) = MetricsLog(run, 0).rows()
    assert row["kl_sum"] is row["kl_mean"] is None
    assert row["loss"] == row["chunk_loss"]


def test_equal_weights_centre_to_a_gradient_of_the_anchor_alone(run: RunDir, config: Config) -> None:
    rows = kit.shard_rows(4)
    for row in rows:
        row["loss_weight"] = [0.5 * audited for audited in row["audited"]]
    kit.write_round(run, 0, config, rows)
    train_round(run, 0, kit.make_config(config.student.model, centre="batch_mean"))
    (row,) = MetricsLog(run, 0).rows()
    assert row["mean_weight"] == 0.5
    assert row["chunk_loss"] == 0
    assert row["audited_nll"] > 1  # measured all the same
    assert row["grad_norm"] < 1e-5  # policy and reference are equal in the first step


def test_rounds_with_a_carried_optimizer_are_one_long_training(tmp_path: Path, students: Callable[[str], Path]) -> None:
    """Two rounds of one step on the same sequences, beside one round of two steps."""
    rows = kit.shard_rows(8)

    def train(name: str, rounds: int, **changes: Any) -> dict[str, torch.Tensor]:
        config = kit.make_config(students("qwen3"), global_batch=8, off_policy=True, **changes)
        run = RunDir(tmp_path / name)
        for index in range(rounds):
            kit.write_round(run, index, config, rows)
            train_round(run, index, config)
        return weights(run.round(rounds - 1).policy)

    once = train("once", 1, epochs=2)
    carried = train("carried", 2)
    fresh = train("fresh", 2, carry_optimizer=False)
    gaps = [max(float((once[k] - other[k]).abs().max()) for k in once) for other in (carried, fresh)]
    assert gaps[0] < 1e-6
    assert gaps[1] > 1e-4


def train_rounds(run: RunDir, student: Path, *sections: dict[str, Any]) -> None:
    for index, section in enumerate(sections):
        config = kit.make_config(student, **section)
        kit.write_round(run, index, config, kit.shard_rows(4, seed=index))
        assert train_round(run, index, config).trained


def test_float32_goes_on_without_the_optimizer_s_state_and_says_so(
    run: RunDir, students: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    train_rounds(run, students("qwen3"), {"precision": "bf16"}, {"precision": "fp32"})
    assert "The last checkpoint of round 0 was made with another train.precision" in capsys.readouterr().err


def test_bfloat16_does_not_go_on_without_the_float32_weights_of_the_round_before(
    run: RunDir, students: Callable[[str], Path]
) -> None:
    sections = {"precision": "bf16"}, {"precision": "bf16", "distributed_optimizer": True}
    with pytest.raises(InputError, match="its float32 weights with it"):
        train_rounds(run, students("qwen3"), *sections)
    shutil.rmtree(run.round(0).checkpoint)
    config = kit.make_config(students("qwen3"), precision="bf16")
    with pytest.raises(InputError, match="The last checkpoint of round 0 is gone"):
        train_round(run, 1, config)
    assert not run.round(1).checkpoint.exists()
    assert train_round(run, 1, kit.make_config(students("qwen3"), precision="bf16", carry_optimizer=False)).trained


def test_a_disk_that_does_not_hold_the_checkpoints_is_refused_before_the_first_step(
    run: RunDir, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit.write_round(run, 0, config, kit.shard_rows(4))
    full = shutil.disk_usage(run.path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(InputError, match=r"checkpoints and policy take .* free"):
        train_round(run, 0, config)
    assert not run.round(0).checkpoint.exists()


def test_more_processes_than_gpus_are_refused_before_they_start(
    run: RunDir, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit.write_round(run, 0, config, kit.shard_rows(4))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    many = config.model_copy(update={"train": config.train.model_copy(update={"processes": 4})})
    with pytest.raises(ConfigError, match=r"train\.processes is 4, and this machine has 2 GPUs"):
        launch(run, 0, many)


def test_what_is_left_to_the_device_is_bf16_and_large_products_on_a_gpu() -> None:
    train = TrainConfig()
    gpu, old, cpu = train.on(cuda=True), train.on(cuda=True, bf16=False), train.on(cuda=False)
    assert [(t.precision, t.loss_rows) for t in (gpu, old, cpu)] == [("bf16", 2048), ("fp32", 2048), ("fp32", 256)]
    told = TrainConfig(precision="fp32", loss_rows=7)
    assert told.on(cuda=True) == told
    with pytest.raises(ConfigError, match="does not compute in bfloat16"):
        TrainConfig(precision="bf16").on(cuda=True, bf16=False)


def test_bf16_with_recomputation_trains(run: RunDir, students: Callable[[str], Path]) -> None:
    config = kit.make_config(students("qwen3"), precision="bf16", recompute=True, lr=1e-2)
    kit.write_round(run, 0, config, kit.shard_rows(8))
    result = train_round(run, 0, config)
    assert (result.steps, result.skipped) == (2, 0)
    assert all(tensor.dtype == torch.bfloat16 for tensor in weights(result.policy).values())
    assert json.loads((result.policy / "config.json").read_text())["dtype"] == "bfloat16"
    assert not same(result.policy, students("qwen3"))


def test_a_step_that_is_not_finite_leaves_the_weights_alone_and_is_counted(
    run: RunDir, config: Config, students: Callable[[str], Path]
) -> None:
    rows = kit.shard_rows(4)
    for row in rows:
        row["loss_weight"] = [3e38 * audited for audited in row["audited"]]
    kit.write_round(run, 0, config, rows)
    result = train_round(run, 0, kit.make_config(config.student.model))
    assert (result.steps, result.skipped) == (1, 1)
    assert same(result.policy, students("qwen3"))
    (row,) = MetricsLog(run, 0).rows()
    assert row["skipped"]
    assert row["loss"] is None


@pytest.mark.slow
def test_a_trainer_killed_and_stopped_ends_with_the_bits_of_one_that_was_not(
    tmp_path: Path, students: Callable[[str], Path]
) -> None:
    config = kit.make_config(students("qwen3"), epochs=15, checkpoint_every=4, warmup_steps=10, keep_checkpoints=1)
    runs = [RunDir(tmp_path / "whole"), RunDir(tmp_path / "killed")]
    for run in runs:
        kit.write_toml(run, config)
        kit.write_round(run, 0, config, kit.shard_rows(10))
    whole, killed = runs
    train_round(whole, 0, config)
    metrics = MetricsLog(killed, 0)
    for steps, number in ((10, signal.SIGKILL), (23, signal.SIGTERM), (33, signal.SIGKILL)):
        process = Command(killed.path, "--round", 0, module="omniopd.train")
        while len(metrics.rows()) < steps:
            assert process.running, "the trainer ended before it was killed"
            time.sleep(0.002)
        process.send_signal(number)
        ended = process.wait()
        if number == signal.SIGTERM:
            done = len(metrics.rows())
            assert ended.returncode == 130
            assert f"SIGTERM: stopped after step {done} of 45, with a checkpoint." in ended.stderr.splitlines()[-1]
            assert (killed.round(0).checkpoint / "latest").read_text() == f"step={done:06d}\n"
        else:
            assert ended.returncode == -signal.SIGKILL
        assert (killed.round(0).checkpoint / "latest").is_file()
        assert not killed.round(0).policy.exists()
    assert len(list(killed.round(0).checkpoint.glob("step=*"))) <= 3
    train_round(killed, 0, config)
    assert same(whole.round(0).policy, killed.round(0).policy)
    timing = {"seconds", "tokens_per_s"}
    lines = [[{k: v for k, v in row.items() if k not in timing} for row in MetricsLog(run, 0).rows()] for run in runs]
    assert lines[0] == lines[1]
    assert len(lines[0]) == 45


def test_a_checkpoint_cut_short_and_old_ones_are_cleared_away(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoint")
    assert checkpoints.begin({"a": 1}) is None
    for step in (2, 4, 6, 8):
        (checkpoints.folder / f"step={step:06d}").mkdir()
    (checkpoints.folder / "latest").write_text("step=000006\n")  # the process died while it wrote step 8
    assert checkpoints.begin({"a": 1}) == "step=000006"
    assert sorted(path.name for path in checkpoints.folder.glob("step=*")) == ["step=000004", "step=000006"]
    (checkpoints.folder / "step=000006").rmdir()
    with pytest.raises(InputError, match="names step=000006, which is missing"):
        checkpoints.begin({"a": 1})


def test_a_config_or_input_changed_under_a_half_finished_round_is_refused(run: RunDir, config: Config) -> None:
    rows = kit.shard_rows(10)
    kit.write_round(run, 0, config, rows)
    with pytest.raises(Killed):
        train_round(run, 0, config, die_after(5))
    changed = kit.make_config(config.student.model, epochs=2, lr=5e-4, beta=0.5)
    with pytest.raises(ConfigChangedError, match=r"train.beta from 0.1 to 0.5, train.lr from 0.001 to 0.0005"):
        train_round(run, 0, changed)
    run.round(0).shards.replace([run.round(0).shards.read().slice(1)], {})
    with pytest.raises(ConfigChangedError, match="shards from"):
        train_round(run, 0, config)
    other = kit.make_config(kit.save_student(run.path / "other", "qwen3", seed=1), epochs=2, off_policy=True)
    with pytest.raises(ConfigChangedError, match=r"policy from '\w+' to '\w+', reference from '\w+' to '\w+'"):
        train_round(run, 0, other)
    # How the work is cut up and split does not matter.
    run.round(0).checkpoint.joinpath("latest").unlink()
    with pytest.raises(Killed):
        train_round(run, 0, config, die_after(3))
    result = train_round(run, 0, kit.make_config(config.student.model, epochs=2, micro_batch=3, loss_rows=5))
    assert result.steps == 6


def test_trajectories_of_another_policy_are_refused(
    run: RunDir, config: Config, students: Callable[[str], Path]
) -> None:
    kit.write_round(run, 0, config, kit.shard_rows(4))
    with pytest.raises(InputError, match="were sampled by the weights"):
        train_round(run, 0, kit.make_config(students("other")))


def test_shards_that_are_missing_unfinished_empty_or_of_another_vocabulary_are_refused(
    run: RunDir, config: Config
) -> None:
    round_ = run.round(0)
    with pytest.raises(TableError, match=r"is empty\. Run `omniopd score"):
        train_round(run, 0, config)
    kit.write_round(run, 0, config, [])
    with pytest.raises(InputError, match="nothing to train on"):
        train_round(run, 0, config)
    round_.shards.append(kit.shard_rows(4, vocabulary=500))
    with pytest.raises(InputError, match="outside the student's vocabulary of 97"):
        train_round(run, 0, config)


def test_a_round_without_the_policy_of_the_round_before_is_refused(run: RunDir, config: Config) -> None:
    kit.write_round(run, 0, config, kit.shard_rows(4))
    run.round(1).shards.begin({})
    run.round(1).shards.append(kit.shard_rows(4))
    run.round(1).shards.finish()
    with pytest.raises(InputError, match="Round 0 has no policy yet"):
        train_round(run, 1, config)


def test_a_second_trainer_of_the_same_round_is_refused(run: RunDir, config: Config) -> None:
    kit.write_round(run, 0, config, kit.shard_rows(4))
    with run.round(0).lock("train"), pytest.raises(BusyError):
        train_round(run, 0, config)


def test_one_process_cannot_be_split(run: RunDir, config: Config) -> None:
    kit.write_round(run, 0, config, kit.shard_rows(4))
    with pytest.raises(ConfigError, match="1 trainer process cannot be split"):
        launch(run, 0, kit.make_config(config.student.model, tensor_parallel=2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "distributed"),
    [
        ("tensor_parallel", False), ("pipeline_parallel", False), ("context_parallel", True), ("tensor_parallel", True),
        ("pipeline_parallel", True), (None, True),
    ],
)  # fmt: skip
def test_a_round_begun_by_one_process_is_ended_by_two_as_one_would_have(
    tmp_path: Path, students: Callable[[str], Path], layout: str | None, distributed: bool
) -> None:
    config = kit.make_config(students("qwen3"), epochs=2, distributed_optimizer=distributed)
    runs = [RunDir(tmp_path / "one"), RunDir(tmp_path / "two")]
    for run in runs:
        kit.write_toml(run, config)
        kit.write_round(run, 0, config, kit.shard_rows(10))
    train_round(runs[0], 0, config)
    with pytest.raises(Killed):
        train_round(runs[1], 0, config, die_after(3))
    overrides = ["train.processes=2", *([f"train.{layout}=2"] if layout else [])]
    seen: list[tuple[int, int]] = []
    result = launch(
        runs[1], 0, runs[1].config(tuple(overrides)), overrides, lambda done, total, _: seen.append((done, total))
    )
    assert (result.steps, result.trained) == (6, True)
    assert seen[-2:] == [(5, 6), (6, 6)]
    one, two = (weights(run.round(0).policy) for run in runs)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=2e-5)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(result.policy)
    name, parameter = next(iter(model.named_parameters()))
    assert torch.equal(parameter, two[name])


@pytest.mark.slow
def test_an_error_of_launched_processes_comes_back_as_it_was(run: RunDir, config: Config) -> None:
    kit.write_toml(run, config)
    kit.write_round(run, 0, config, [])
    overrides = ["train.processes=2"]
    with pytest.raises(InputError, match="nothing to train on"):
        launch(run, 0, run.config(tuple(overrides)), overrides)


@pytest.mark.slow
def test_a_launched_process_that_dies_is_one_line_and_names_the_log(
    run: RunDir, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit.write_toml(run, config)
    kit.write_round(run, 0, config, kit.shard_rows(4))
    monkeypatch.setenv("PYTHONPATH", str(run.path))
    (run.path / "megatron.py").write_text("raise RuntimeError('broken installation')\n")
    overrides = ["train.processes=2"]
    with pytest.raises(Exception, match=r"ended with exit code 1\. Read .*train-round=000\.log") as caught:
        launch(run, 0, run.config(tuple(overrides)), overrides)
    assert caught.value.exit_code == 3
    assert "broken installation" in (run.logs / "train-round=000.log").read_text()


def test_the_module_says_in_one_line_what_is_wrong(run: RunDir, config: Config) -> None:
    kit.write_toml(run, config)
    done = Command(run.path, "--round", 0, "--set", "train.epochs=1", module="omniopd.train").wait()
    assert done.returncode == 3
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "is empty. Run `omniopd score" in done.stderr


def test_loading_the_package_and_the_launcher_loads_no_torch() -> None:
    code = "import sys, omniopd.train.launch; sys.exit('torch' in sys.modules or 'megatron' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_machine_without_megatron_is_told_what_to_install(
    run: RunDir, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs megatron, psutil, tensorboard.*pip install 'omniopd\[train\]'"):
        launch(run, 0, config)
