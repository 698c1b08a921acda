"""What `plan` says of a GPU's memory, beside the trainer's own estimate and for students of real size."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM
from typer.testing import CliRunner

from omniopd.cli import app
from omniopd.stages.generate.stage import generate
from omniopd.store.architecture import Architecture, read_architecture
from omniopd.store.config import Config
from omniopd.store.errors import ConfigError
from omniopd.store.recipes import recipe, recipe_rows
from omniopd.train.memory import training_need
from omniopd.view.plan import plan
from omniopd.view.plan_memory import memory_of

SIZES = {
    # layers, hidden, feed-forward, heads, key-value groups, head size, vocabulary; tied
    "Qwen/Qwen3-1.7B": ((28, 2048, 6144, 16, 8, 128, 151_936), True),
    "Qwen/Qwen3-4B": ((36, 2560, 9728, 32, 8, 128, 151_936), True),
    "Qwen/Qwen3-32B": ((64, 5120, 25_600, 64, 8, 128, 151_936), False),
}


def arch(model: str) -> Architecture:
    sizes, tied = SIZES[model]
    return Architecture("qwen3", *sizes, 40_960, tied, 1e-6, 1e6)


def transformers_config(model: str) -> Qwen3Config:
    (layers, hidden, ffn, heads, groups, head_dim, vocabulary), tied = SIZES[model]
    return Qwen3Config(
        num_hidden_layers=layers, hidden_size=hidden, intermediate_size=ffn, num_attention_heads=heads,
        num_key_value_heads=groups, head_dim=head_dim, vocab_size=vocabulary, tie_word_embeddings=tied,
        max_position_embeddings=40_960,
    )  # fmt: skip


def config(**train) -> Config:
    return Config.model_validate({"train": {"recompute": True, "micro_batch": 1, "teacher": "t"} | train})


def fits(model: str, tokens: int, **train) -> list[tuple[dict, int | None]]:
    return [(one.set, one.card_gb) for one in memory_of(config(**train), arch(model), tokens).choices]


def test_qwen3_4b_at_20k_fits_80_gb_by_adapters_or_by_eight_gpus_and_not_as_it_is():
    (as_it_is, whole), (eight, split), (adapters, little) = fits("Qwen/Qwen3-4B", 20_480)
    assert (as_it_is, whole) == ({}, 141)
    assert (eight, split) == ({"processes": 8, "distributed_optimizer": True}, 80)
    assert (list(adapters), little) == (["lora"], 24)


def test_what_has_no_cost_comes_first_and_stays():
    choices = fits("Qwen/Qwen3-1.7B", 20_480, micro_batch=4, recompute=False)
    assert choices[0] == ({}, None)
    assert [list(one) for one, _ in choices[1:3]] == [["micro_batch"], ["micro_batch", "recompute"]]
    assert all(one["micro_batch"] == 1 and one["recompute"] for one, _ in choices[2:])


def test_a_budget_of_tokens_is_lowered_to_the_longest_sequence():
    assert fits("Qwen/Qwen3-4B", 20_480, micro_tokens=81_920)[1][0] == {"micro_tokens": 20_480}


def test_nothing_is_proposed_where_a_small_card_will_do():
    assert fits("Qwen/Qwen3-4B", 4096, lora={"rank": 16}) == [({}, 16)]


def test_adapters_are_not_proposed_for_opd_whose_frozen_model_is_a_teacher(tmp_path):
    transformers_config("Qwen/Qwen3-32B").save_pretrained(tmp_path)
    found = memory_of(config(objective="opd", teacher=str(tmp_path)), arch("Qwen/Qwen3-4B"), 20_480)
    assert found.choices[0].need.weights == pytest.approx(2 * (4.02e9 + 32.76e9), rel=0.01), "config.json was enough"
    assert all("lora" not in one.set for one in found.choices)


def test_a_teacher_that_is_nowhere_leaves_memory_unknown(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert memory_of(config(objective="opd", teacher="no/teacher"), arch("Qwen/Qwen3-4B"), 20_480) is None


@pytest.mark.parametrize("name", [name for name, layers in recipe_rows().items() if "8-gpu" in layers])
def test_a_recipe_for_a_node_of_80_gb_fits_it(name):
    values = Config.model_validate(recipe(name))
    twin = None
    if values.train.objective == "opd":
        twin = arch("Qwen/Qwen3-32B")  # the 30B-A3B is refused, and is as large
    elif values.train.objective not in ("sft",):
        twin = arch(values.student.model)
    train = values.train.on(cuda=True)
    need = training_need(arch(values.student.model), train, processes=8, longest=20_480, frozen=twin, fused=True)
    assert need.total < 0.85 * 80e9
    assert (train.tensor_parallel > 1) == (values.train.objective == "opd")


def real_size(folder: Path) -> Path:
    """A student of Qwen3-4B's shape: transformers' config.json, and a file of weights that is all hole."""
    settings = transformers_config("Qwen/Qwen3-4B")
    settings.save_pretrained(folder)
    with torch.device("meta"):
        weights = Qwen3ForCausalLM(settings).state_dict()
    del weights["lm_head.weight"]
    header, at = {}, 0
    for name, weight in weights.items():
        size = 2 * weight.numel()
        header[name] = {"dtype": "BF16", "shape": list(weight.shape), "data_offsets": [at, at + size]}
        at += size
    written = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(written).to_bytes(8, "little") + written)
        file.truncate(8 + len(written) + at)
    return folder


def test_plan_says_what_a_student_of_real_size_fits_and_what_to_set(make_run, student, tmp_path):
    folder = real_size(tmp_path / "qwen3-4b")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((student / name).read_bytes())
    run = make_run(student={"model": str(folder)}, generate={"max_new_tokens": 20_000}, train={"micro_batch": 2})
    result = CliRunner().invoke(app, ["plan", str(run.path), "--json"])
    memory = json.loads(result.stdout)["plans"][0]["plan"]["memory"]
    assert [one["card_gb"] for one in memory["choices"]] == [None, None, 141, 80, 24]
    printed = CliRunner().invoke(app, ["plan", str(run.path)]).stdout.splitlines()
    proposals = [re.search(r"([\d.]+) GB, .*?: (--set .*)", line) for line in printed if "--set" in line]
    assert len(proposals) == 4
    for said in proposals:
        assignments = [word for word in shlex.split(said[2]) if word != "--set"]
        train = run.config(tuple(assignments)).train.on(cuda=True)
        need = training_need(
            read_architecture(folder), train, processes=train.processes, longest=memory["tokens"],
            frozen=read_architecture(folder), fused=True,
        )  # fmt: skip
        assert float(said[1]) == pytest.approx(need.total / 1e9, rel=0.01), (
            "what is proposed can be set, and takes that"
        )


def test_a_student_that_cannot_be_split_is_refused_before_anything_is_sampled_or_paid(make_run):
    run = make_run()
    wrong = run.config(("train.tensor_parallel=3",))
    with pytest.raises(ConfigError, match="does not divide the student's 4 attention heads"):
        plan(run, wrong)
    with pytest.raises(ConfigError, match="does not divide the student's 4 attention heads"):
        generate(run, 0, wrong)
    assert not run.round(0).trajectories.complete


def test_processes_that_torchrun_will_start_are_not_asked_of_the_config(make_run):
    run = make_run()
    assert plan(run, run.config(("train.tensor_parallel=2",))).memory.processes == 2
    with pytest.raises(ConfigError, match="3 trainer processes cannot be split"):
        plan(run, run.config(("train.tensor_parallel=2", "train.processes=3")))
