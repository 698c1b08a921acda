"""Models on disk: where they are, and the hash that names their weights."""

import hashlib
import json
from pathlib import Path

from .errors import InputError
from .files import sha256


def resolve_model(model: str) -> Path:
    """Folder of a model: a local folder as it is, a hub id through the hub's cache.

    Raises:
        InputError: neither a folder nor a model that the hub has or that can be reached.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder
    if folder.is_absolute() or model.startswith(".") or model.count("/") != 1:
        raise InputError(f"The model folder {model} does not exist.", "Set student.model to a folder or a hub id.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, ignore_patterns=["*.bin", "*.pth", "*.gguf", "original/*"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"The model {model} is no folder here, and the hub did not give it ({type(error).__name__}).",
            "Check the id and HF_TOKEN, or download it and set student.model to the folder.",
        ) from error


def weights_hash(folder: Path) -> str:
    """Hash of a model's weights and shape, 16 hex digits: equal for equal content, wherever the folder is.

    Raises:
        InputError: the folder has no safetensors.
    """
    weights = sorted(folder.glob("*.safetensors"))
    if not weights or not (folder / "config.json").is_file():
        raise InputError(
            f"{folder} has no config.json with *.safetensors.",
            "Save the model with `save_pretrained` into that folder.",
        )
    digest = hashlib.sha256()
    for path in weights:
        digest.update(f"{path.name}:{sha256(path)}\n".encode())
    return digest.hexdigest()[:16]


def say_precision(config_json: Path, dtype: str) -> None:
    """Put the precision of the weights into config.json, where transformers looks for it."""
    raw = json.loads(config_json.read_text(encoding="utf-8"))
    raw.pop("torch_dtype", None)  # its name before transformers 5
    raw["dtype"] = dtype
    config_json.write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
