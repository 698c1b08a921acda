"""Which files are a model's weights: one answer for whoever samples, hashes or trains."""

import json
import shutil

import pytest

from omniopd.store.errors import InputError
from omniopd.store.model import weight_files, weights_hash


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def write(folder, *names):
    for name in names:
        (folder / name).write_bytes(name.encode())


def write_index(folder, *names):
    weight_map = {f"weight{i}": name for i, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_one_file_or_the_shards_of_an_index(folder):
    write(folder, "model.safetensors", "adapter_model.safetensors")
    assert weight_files(folder) == [folder / "model.safetensors"]
    (folder / "model.safetensors").unlink()
    write(folder, "b.safetensors", "a.safetensors", "old.safetensors")
    write_index(folder, "b.safetensors", "a.safetensors", "b.safetensors")
    assert weight_files(folder) == [folder / "a.safetensors", folder / "b.safetensors"]


def test_an_index_of_the_one_file_is_no_second_model(folder):
    write(folder, "model.safetensors")
    write_index(folder, "model.safetensors")
    assert weight_files(folder) == [folder / "model.safetensors"]


@pytest.mark.parametrize("shards", [("a.safetensors",), ()])
def test_a_folder_that_was_saved_twice_is_refused(folder, shards):
    """transformers would read the one file, and another reader the shards."""
    write(folder, "model.safetensors", *shards)
    write_index(folder, "a.safetensors", "b.safetensors")
    with pytest.raises(
        InputError, match=r"holds two models: model.safetensors, and the 2 shards that .* names"
    ) as caught:
        weights_hash(folder)
    assert "Remove model.safetensors.index.json" in caught.value.hint


def test_shards_that_lost_their_index_beside_one_file_are_refused(folder):
    """vLLM would read all of them, transformers the one file."""
    write(folder, "model.safetensors", "model-00001-of-00002.safetensors")
    with pytest.raises(InputError, match=r"holds two models: .* such as model-00001-of-00002.safetensors without"):
        weight_files(folder)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda folder: None, "has no model.safetensors"),
        (lambda folder: write(folder, "pytorch_model.bin"), "has no model.safetensors, only pytorch_model.bin"),
        (
            lambda folder: write_index(folder, "a.safetensors"),
            "has no a.safetensors, which model.safetensors.index.json",
        ),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("["), "cannot be read"),
    ],
)
def test_a_folder_without_weights_is_one_line(folder, make, line):
    make(folder)
    with pytest.raises(InputError, match=line):
        weight_files(folder)


def test_the_hash_is_of_the_weights_alone(folder, tmp_path_factory):
    write(folder, "model.safetensors")
    before = weights_hash(folder)
    write(folder, "consolidated.safetensors")
    assert weights_hash(folder) == before
    copy = tmp_path_factory.mktemp("copy")
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    assert weights_hash(copy) == before
    (folder / "model.safetensors").write_bytes(b"other")
    assert weights_hash(folder) != before
