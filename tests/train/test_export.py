"""`omniopd export`: the policy that was trained, in a folder and precision of one's own."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from omniopd.store.errors import InputError, UsageError
from omniopd.train.export import export


@pytest.fixture
def trained(make_run, student):
    """A run whose round 0 ended with the shipped student as its policy."""
    run = make_run()
    shutil.copytree(student, run.round(0).policy)
    return run


def test_the_weights_are_rounded_and_transformers_reads_them_in_that_precision(trained, tmp_path, student):
    line = export(trained, None, tmp_path / "out", "bfloat16")
    assert "after 1 rounds, bfloat16" in line
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    before, after = (load_file(folder / "model.safetensors") for folder in (student, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor.to(torch.bfloat16)) for name, tensor in before.items())
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (student / "tokenizer.json").read_bytes()


def test_kept_as_trained_it_is_a_copy(trained, tmp_path, student):
    export(trained, 1, tmp_path / "out", "keep")
    for path in student.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_a_policy_that_is_not_there_and_a_folder_that_is_are_one_line_each(trained, make_run, tmp_path):
    with pytest.raises(InputError, match=r"no policy after 2 rounds. There is one after 1"):
        export(trained, 2, tmp_path / "out", "keep")
    with pytest.raises(InputError, match="no trained policy yet"):
        export(make_run(name="new"), None, tmp_path / "out", "keep")
    with pytest.raises(UsageError, match="exists"):
        export(trained, 1, tmp_path, "keep")
