"""Hugging Face folders in and out of Megatron: bit for bit, or a clear refusal."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from omniopd.store.architecture import (
    Architecture,
    check_layout,
    check_student,
    check_tokenizer,
    read_architecture,
    weight_shapes,
)
from omniopd.store.errors import ConfigError, InputError
from omniopd.store.model import load_tokenizer
from omniopd.store.sections import TrainConfig
from omniopd.train import hf_model
from omniopd.train.hf_model import load_weights, write_weights
from omniopd.train.hf_weights import WeightFiles, fuse, hf_names, shard, unfuse, unshard
from omniopd.train.model import Student, build
from omniopd.train.parallel import model_parallel, world
from support import training as kit

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}


def load(folder: Path) -> Student:
    model = build(read_architecture(folder), TrainConfig().on(cuda=False), torch.device("cpu"))
    with WeightFiles(folder) as weights:
        load_weights(model, weights)
    return model


def logits(model: Student, ids: Tensor) -> Tensor:
    """[B, S, V]"""
    hidden_SBH = model(ids, None, None)
    return (model.rows(hidden_SBH) @ model.head().weight_VH.t()).view(ids.shape[1], ids.shape[0], -1).transpose(0, 1)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("qwen3", {}),
        ("qwen3", {"tie_word_embeddings": False, "dtype": torch.bfloat16}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("llama", {}),
        ("llama", {"rope_parameters": LLAMA3, "max_position_embeddings": 16384}),
        ("llama", {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 16, "factor": 4.0}}),
        ("llama", {"rope_parameters": YARN}),
        ("qwen3", {"rope_parameters": YARN | {"beta_fast": 16, "attention_factor": 0.7}}),
        ("qwen2", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
        ("mistral", {"sliding_window": None}),
        ("mistral", {"sliding_window": 4096, "head_dim": 24}),
    ],
    ids=["qwen3 tied", "qwen3 untied bf16", "qwen2 tied", "llama untied", "llama 3 rope",
         "llama 3 rope, other constants", "llama yarn", "qwen3 yarn", "qwen2 linear rope", "mistral",
         "mistral, a window longer than its context"],
)  # fmt: skip
def test_a_student_goes_through_megatron_bit_for_bit_and_gives_the_logits_of_transformers(
    tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    student = kit.save_student(tmp_path / "student", kind, **changes)
    ids = torch.randint(0, kit.VOCABULARY, (3, 40), generator=torch.Generator().manual_seed(0))
    out = tmp_path / "out"
    out.mkdir()
    with world(), model_parallel(TrainConfig().on(cuda=False)), torch.no_grad():
        model = load(student)
        mine = logits(model, ids)
        write_weights(model, out)
    before, after = load_file(student / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == torch.float32, "the precision it was trained in"
        assert torch.equal(tensor.float(), after[name]), name
    shutil.copy(student / "config.json", out)
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        torch.testing.assert_close(mine, theirs(ids).logits, rtol=0, atol=1e-5)


def test_a_policy_is_written_a_file_at_a_time(
    students: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 30_000
    monkeypatch.setattr(hf_model, "FILE_BYTES", limit)
    written: list[int] = []
    save = safetensors.torch.save_file

    def spy(tensors: dict[str, Tensor], path: Path, **options: Any) -> None:
        written.append(sum(tensor.nbytes for tensor in tensors.values()))
        save(tensors, path, **options)

    monkeypatch.setattr(safetensors.torch, "save_file", spy)
    student = students("qwen3")
    with world(), model_parallel(TrainConfig().on(cuda=False)):
        write_weights(load(student), tmp_path)
    assert len(written) > 2
    assert max(written) <= limit
    shutil.copy(student / "config.json", tmp_path)
    before, after = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (student, tmp_path))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_weights_in_several_files_are_read_through_their_index(students: Callable[[str], Path], tmp_path: Path) -> None:
    student = students("llama")
    AutoModelForCausalLM.from_pretrained(student).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    whole = load_file(student / "model.safetensors")
    with WeightFiles(tmp_path) as weights:
        assert weight_shapes(tmp_path) == {name: tuple(tensor.shape) for name, tensor in whole.items()}
        assert all(torch.equal(weights.tensor(name), tensor) for name, tensor in whole.items())
    next(tmp_path.glob("*.safetensors")).unlink()
    with pytest.raises(InputError, match="has no model-0"):
        WeightFiles(tmp_path)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "llama"])
def test_fusing_and_splitting_are_undone_exactly(students: Callable[[str], Path], kind: str, ranks: int) -> None:
    arch = read_architecture(students(kind))
    with WeightFiles(students(kind)) as weights:
        names = [
            "embedding.word_embeddings.weight",
            "decoder.layers.1.self_attention.linear_qkv.weight",
            "decoder.layers.1.self_attention.linear_proj.weight",
            "decoder.layers.1.mlp.linear_fc1.weight",
            "decoder.layers.1.mlp.linear_fc2.weight",
            "decoder.final_layernorm.weight",
        ]
        if arch.qkv_bias:
            names.append("decoder.layers.1.self_attention.linear_qkv.bias")
        for name in names:
            parts = [weights.tensor(source) for source in hf_names(name, 0, arch.tied)]
            whole = fuse(name, parts, arch)
            slices = [shard(name, whole, arch, rank, ranks) for rank in range(ranks)]
            assert len({piece.shape for piece in slices}) == 1
            back = unfuse(name, unshard(name, slices, arch), arch)
            assert all(torch.equal(a, b) for a, b in zip(back, parts, strict=True)), name


def test_a_later_pipeline_stage_counts_its_layers_from_its_first() -> None:
    assert hf_names("decoder.layers.1.mlp.linear_fc2.weight", 6, True) == ["model.layers.7.mlp.down_proj.weight"]


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def broken(students: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a student, to be broken."""
    return shutil.copytree(students("qwen3"), tmp_path / "broken")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "does not support the architecture gpt2"),
        ({"model_type": "no_such_model"}, "config.json cannot be read"),
        ({"use_sliding_window": True, "sliding_window": 16}, "does not support use_sliding_window"),
        ({"attention_bias": True}, "does not support attention_bias"),
        ({"num_hidden_layers": 3}, "config.json cannot be read: `num_hidden_layers`"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "rope_parameters"),
    ],
)
def test_an_architecture_that_is_not_supported_is_refused(broken: Path, changes: dict[str, Any], message: str) -> None:
    change_config(broken, **changes)
    with pytest.raises(InputError, match=message):
        read_architecture(broken)


def test_a_mistral_with_a_sliding_window_is_refused(tmp_path: Path) -> None:
    kit.save_student(tmp_path, "mistral", sliding_window=16)
    with pytest.raises(InputError, match="does not support sliding_window = 16"):
        read_architecture(tmp_path)


def check(folder: Path) -> Architecture:
    arch = check_student(folder)
    check_tokenizer(arch, load_tokenizer(folder), folder)
    return arch


def test_weights_that_disagree_with_config_json_are_refused(broken: Path) -> None:
    check(broken)
    change_config(broken, vocab_size=128)
    with pytest.raises(InputError, match=r"embed_tokens.weight \[128, 32\], and its weights have \[97, 32\]"):
        check(broken)
    change_config(broken, vocab_size=97, num_hidden_layers=3, layer_types=["full_attention"] * 3)
    with pytest.raises(InputError, match=r"has no weight model.layers.2.input_layernorm.weight"):
        check(broken)
    change_config(broken, num_hidden_layers=1, layer_types=["full_attention"])
    with pytest.raises(InputError, match=r"has a weight model.layers.1"):
        check(broken)


def test_a_head_stored_beside_its_tied_embedding_is_no_error(broken: Path) -> None:
    tensors = load_file(broken / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    check(broken)


def test_a_tokenizer_with_ids_beyond_the_embedding_is_refused(broken: Path) -> None:
    kit.save_tokenizer(broken, kit.VOCABULARY + 1)
    with pytest.raises(InputError, match="has 98 tokens, and its model 97"):
        check(broken)
    for path in broken.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(InputError, match="has no tokenizer"):
        check(broken)


@pytest.mark.parametrize(
    ("train", "processes", "message"),
    [
        ({"tensor_parallel": 2}, 1, "1 trainer process cannot be split"),
        ({"context_parallel": 2}, 3, "context_parallel = 1 x 1 x 2. Set train.processes to a multiple of 2"),
        ({"tensor_parallel": 2, "pipeline_parallel": 2}, 6, "6 trainer processes cannot be split"),
        ({"tensor_parallel": 4}, 4, "does not divide the student's 2 key-value heads"),
        ({"pipeline_parallel": 3}, 3, "does not divide the student's 2 layers"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(
    students: Callable[[str], Path], train: dict[str, Any], processes: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_layout(read_architecture(students("qwen3")), TrainConfig.model_validate(train), processes)


def test_no_rank_of_tensor_parallelism_is_left_with_padding_alone(students: Callable[[str], Path]) -> None:
    arch = replace(read_architecture(students("qwen3")), heads=8, groups=4)
    train = TrainConfig(tensor_parallel=4)
    check_layout(replace(arch, vocabulary=7), train, 4)  # 2, 2, 2 and 1
    with pytest.raises(ConfigError, match="leaves a rank without one of the student's 5 tokens"):
        check_layout(replace(arch, vocabulary=5), train, 4)  # 2, 2, 1 and none
