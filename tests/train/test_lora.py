"""Rounds with LoRA: what is written, what is carried over, what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from omniopd.store.architecture import read_architecture
from omniopd.store.config import Config, config_of
from omniopd.store.errors import ConfigError, InputError
from omniopd.store.layout import RunDir
from omniopd.store.sections import TrainConfig
from omniopd.train.export import export
from omniopd.train.memory import training_need
from omniopd.train.trainer import train_round
from support import training as kit

LORA = {"rank": 4, "alpha": 8}
TOKENS = torch.arange(2, 40)[None]


def lora_config(student: Path, **train: Any) -> Config:
    return kit.make_config(student, **{"lora": LORA, "lr": 1e-2, "global_batch": 4} | train)


def train(run: RunDir, index: int, config: Config, progress: Any = None) -> Path:
    if not run.round(index).shards.manifest.rows:
        kit.write_round(run, index, config, kit.shard_rows(12, seed=index))
    return train_round(run, index, config, progress).policy


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def adapters(policy: Path) -> dict[str, torch.Tensor]:
    return load_file(policy / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_the_adapters_loaded_by_peft_give_the_logits_of_the_merged_policy(
    run: RunDir, students: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    student = students(kind)
    for index in range(2):
        policy = train(run, index, lora_config(student))
    exported = tmp_path / "exported"
    assert "the adapters after 2 rounds" in export(run, None, exported, "keep", adapter=True)
    base = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    before = logits(base)
    adapted = logits(peft.PeftModel.from_pretrained(base, exported))
    merged = logits(AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32))
    assert (adapted - before).abs().max() > 0.01, "something was learned"
    torch.testing.assert_close(adapted, merged, rtol=0, atol=1e-4)


def test_an_exported_policy_is_whole_and_has_no_adapters_beside_it(
    run: RunDir, students: Callable[[str], Path], tmp_path: Path
) -> None:
    policy = train(run, 0, lora_config(students("qwen3")))
    export(run, None, tmp_path / "whole", "keep")
    export(run, None, tmp_path / "rounded", "bfloat16")
    for folder in (tmp_path / "whole", tmp_path / "rounded"):
        assert not (folder / "adapter").exists()
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (policy / "model.safetensors").read_bytes()


def test_a_round_with_dropout_that_was_killed_ends_with_the_bits_of_one_that_was_not(
    run: RunDir, students: Callable[[str], Path], tmp_path: Path
) -> None:
    config = lora_config(students("qwen3"), lora=LORA | {"dropout": 0.3}, checkpoint_every=1, recompute=True)
    whole = train(run, 0, config)
    broken = RunDir(tmp_path / "broken")

    class Killed(Exception):
        pass

    def die(step: int, total: int, metrics: dict[str, Any]) -> None:
        if step == 2:
            raise Killed

    with pytest.raises(Killed):
        train(broken, 0, config, die)
    assert (broken.round(0).checkpoint / "latest").is_file()
    resumed = train(broken, 0, config)
    assert all(torch.equal(tensor, adapters(resumed)[name]) for name, tensor in adapters(whole).items())


def test_a_checkpoint_holds_the_adapters_alone(run: RunDir, students: Callable[[str], Path]) -> None:
    train(run, 0, kit.make_config(students("qwen3")))
    whole = sum(path.stat().st_size for path in run.round(0).checkpoint.rglob("*.distcp"))
    shutil.rmtree(run.round(0).path)
    train(run, 0, lora_config(students("qwen3"), lora=LORA | {"targets": ["q_proj"]}))
    small = sum(path.stat().st_size for path in run.round(0).checkpoint.rglob("*.distcp"))
    assert small < whole / 3


def test_the_second_round_goes_on_from_the_adapters_and_the_reference_stays_the_initial_student(
    run: RunDir, students: Callable[[str], Path]
) -> None:
    config = lora_config(students("qwen3"), lr=1e-8)
    first = adapters(train(run, 0, lora_config(students("qwen3"))))
    second = adapters(train(run, 1, config))
    assert all((tensor - first[name]).abs().max() < 1e-5 for name, tensor in second.items())
    metrics = [json.loads(line) for line in (run.path / "metrics/train-round=001.jsonl").read_text().splitlines()]
    assert metrics[0]["kl_mean"] > 0, "the policy is away from the initial student from its first step on"


def test_what_cannot_be_adapted_is_one_line_before_the_first_step(run: RunDir, students: Callable[[str], Path]) -> None:
    def section(lora: dict[str, Any]) -> dict[str, dict[str, Any]]:
        return {"train": {"lora": lora}}

    with pytest.raises(ConfigError, match=r"train\.lora\.rank: Input should be greater than 0"):
        config_of(section({"rank": 0}), "")
    with pytest.raises(ConfigError, match=r"train\.lora\.targets\.0: Input should be 'q_proj', "):
        config_of(section({"targets": ["c_attn"]}), "")
    student = students("qwen3")
    opd = lora_config(student, objective="opd", teacher=str(student))
    with pytest.raises(ConfigError, match=r"train\.lora to its own without the adapters"):
        train(run, 0, opd)


def test_adapters_of_another_base_or_shape_or_none_are_refused(
    run: RunDir, students: Callable[[str], Path], tmp_path: Path
) -> None:
    student = students("qwen3")
    policy = train(run, 0, lora_config(student))
    kit.write_round(run, 1, lora_config(student), kit.shard_rows(4))
    with pytest.raises(InputError, match=r"have r = 4, and train\.lora says otherwise"):
        train(run, 1, lora_config(student, lora=LORA | {"rank": 2}))
    other = kit.save_student(tmp_path / "other", "qwen3", seed=9)
    with pytest.raises(InputError, match="belong to another model"):
        train(run, 1, lora_config(other))
    shutil.rmtree(policy / "adapter")
    with pytest.raises(InputError, match="has no adapters"):
        train(run, 1, lora_config(student))
    with pytest.raises(InputError, match=r"was trained without train\.lora"):
        export(run, None, tmp_path / "out", "keep", adapter=True)


def test_one_model_is_in_memory_and_its_adapters_alone_have_an_optimizer(students: Callable[[str], Path]) -> None:
    arch = read_architecture(students("qwen3"))

    def need(**section: Any) -> Any:
        on = TrainConfig.model_validate({"precision": "bf16"} | section).on(cuda=True)
        return training_need(arch, on, processes=1, longest=64, frozen=arch)

    full, small = need(), need(lora={"rank": 2, "targets": ["q_proj", "o_proj"]})
    trained = arch.layers * 2 * 2 * (arch.hidden + arch.heads * arch.head_dim)
    assert small.weights == full.weights // 2
    assert (small.gradients, small.optimizer) == (4 * trained, 12 * trained)
    assert small.loss < full.loss, "the head has no gradient"
