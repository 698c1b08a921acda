"""The folder that a round's training leaves: weights, and what transformers and vLLM need beside them."""

import shutil
from pathlib import Path

from ..store import files
from ..store.model import say_precision
from ..store.sections import TrainConfig
from .export import ADAPTERS
from .hf_model import write_weights
from .lora import merge, write_adapters
from .model import Student
from .parallel import on_first_rank, wait_for_all

_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".lock"}

_TEMPLATES = "additional_chat_templates"
"""Where transformers keeps the chat templates of a tokenizer that has several."""


def _unpublished(policy: Path) -> Path:
    return policy.with_name(f".{policy.name}.tmp")


def write_policy(model: Student, train: TrainConfig, student: Path, policy: Path) -> None:
    """Write the whole Hugging Face folder under a temporary name. Collective.

    Args:
        model: this rank's part of it. With adapters it is their base afterwards no more: they are merged.
        train: the [train] section.
        student: the initial student's folder, whose tokenizer, generation config and chat templates travel along.
        policy: where it will be published.
    """
    folder = _unpublished(policy)

    def prepare() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for path in student.iterdir():
            keep = path.suffix not in _WEIGHTS and not path.name.endswith(".index.json") and path.name[0] != "."
            if path.is_file() and keep:
                shutil.copyfile(path, folder / path.name)
        if (student / _TEMPLATES).is_dir():
            shutil.copytree(student / _TEMPLATES, folder / _TEMPLATES)
        say_precision(folder / "config.json", str(model.config.params_dtype).removeprefix("torch."))

    on_first_rank(prepare)
    if train.lora is not None:
        write_adapters(model, train.lora, student, folder / ADAPTERS)
        merge(model)
    write_weights(model, folder)
    wait_for_all()


def publish(policy: Path) -> None:
    """Give the folder its name: the promise that it is whole."""
    folder = _unpublished(policy)
    files.sync_files(folder)
    folder.rename(policy)
    files.sync_folder(policy.parent)
