"""Models on disk: where they are, the hash that names their weights, their tokenizer, and where their responses end."""

import hashlib
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .chat_template import render_chat
from .config import Config
from .errors import InputError, first_line
from .files import sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
"""One of these a tokenizer of transformers has."""

TOKENIZER_CLASSES = {
    ("llama", "GPT2Tokenizer"): "GPT2Tokenizer",
    ("llama", "LlamaTokenizer"): "LlamaTokenizer",
    ("llama", "PreTrainedTokenizer"): "PreTrainedTokenizerFast",
    ("llama", "TokenizersBackend"): "PreTrainedTokenizerFast",
    ("qwen2", "Qwen2Tokenizer"): "Qwen2Tokenizer",
    ("qwen3", "PreTrainedTokenizer"): "PreTrainedTokenizerFast",
    ("qwen3", "Qwen2Tokenizer"): "Qwen2Tokenizer",
    ("qwen3", "TokenizersBackend"): "PreTrainedTokenizerFast",
}
"""The class that AutoTokenizer takes for the models that the trainer takes, by config.json's model_type and
tokenizer_config.json's tokenizer_class without "Fast" at its end."""

_MESSAGE = "message"


def resolve_model(model: str, revision: str | None = None, *, only: str | None = None) -> Path:
    """Folder of a model: a local folder as it is, a hub id through the hub's cache.

    Args:
        model: folder or hub id.
        revision: commit of a hub id; None: the newest.
        only: the one file that has to be there; None: all that a model needs.

    Raises:
        InputError: neither a folder with a model nor one that the hub has or that can be reached.
    """
    folder = Path(model)
    if folder.is_dir():
        _refuse_what_is_no_model(folder)
        return folder
    if folder.is_file():
        raise InputError(
            f"The model {model} is a file.",
            "Set student.model to a folder with config.json, safetensors and a tokenizer, or to a hub id.",
        )
    if folder.is_absolute() or model.startswith(".") or model.count("/") != 1:
        raise InputError(f"The model folder {model} does not exist.", "Set student.model to a folder or a hub id.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        ignored = ["*.bin", "*.pth", "*.gguf", "original/*"]
        return Path(snapshot_download(model, revision=revision, allow_patterns=only, ignore_patterns=ignored))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"The model {model} is no folder here, and the hub did not give it ({type(error).__name__}).",
            "Check the id and HF_TOKEN, or download it and set student.model to the folder.",
        ) from error


def _refuse_what_is_no_model(folder: Path) -> None:
    if (folder / "config.json").is_file():
        return
    if (folder / "adapter_config.json").is_file():
        raise InputError(
            f"{folder} has an adapter, and not the model that it belongs to.",
            "Merge them (PEFT's merge_and_unload), and save model and tokenizer into a folder with `save_pretrained`.",
        )
    raise InputError(f"{folder} has no config.json.", "Save the model with `save_pretrained` into that folder.")


def read_facts(path: Path) -> dict[str, Any]:
    """What a JSON file of a model's folder says, such as config.json.

    Raises:
        InputError: it cannot be read, or is no JSON object.
    """
    save = "Save the model with `save_pretrained`."
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}.", save) from error
    if not isinstance(facts, dict):
        raise InputError(f"{path} cannot be read: it holds no JSON object.", save)
    return facts


def found_here(model: str, folder: Path) -> Path:
    """A model's folder on this machine, where another machine resolved it to `folder`.

    A snapshot of the hub is taken from this machine's cache, or downloaded to it, at the same commit.

    Raises:
        InputError: this machine does not have the folder, or does not get the snapshot.
    """
    if folder != Path(model):
        return resolve_model(model, revision=folder.name)
    if not folder.is_dir():
        raise InputError(
            f"The model folder {model} is on the first node, and {platform.node()} does not have it.",
            "Put it where all nodes see it under this path, or set student.model to a hub id.",
        )
    return folder


def weight_files(folder: Path) -> list[Path]:
    """The files of a model's weights, by name: what is sampled, hashed and trained from.

    A folder that was saved twice may hold two models. transformers would read one of them, vLLM the other.

    Raises:
        InputError: there are none as safetensors, one is missing, or there are two models.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    save = "Save the model there with `save_pretrained`, as safetensors."
    if not index.is_file():
        if not whole.is_file():
            old = sorted(path.name for path in folder.glob("*.bin"))
            raise InputError(f"{folder} has no model.safetensors{f', only {old[0]}' if old else ''}.", save)
        # Without an index, vLLM reads every file and transformers the whole one.
        if shards := sorted(path.name for path in folder.glob("model-*-of-*.safetensors")):
            raise InputError(
                f"{folder} holds two models: {whole.name}, and shards such as {shards[0]} without {index.name}.",
                f"Remove the shards if {whole.name} is the model, else save it again with `save_pretrained`.",
            )
        return [whole]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index} cannot be read: {error}.", save) from error
    if whole.is_file() and names != [whole.name]:
        raise InputError(
            f"{folder} holds two models: {whole.name}, and the {len(names)} shards that {index.name} names.",
            f"Remove {index.name} and its shards if {whole.name} is the model, else {whole.name}.",
        )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder} has no {missing[0]}, which {index.name} names.", save)
    return [folder / name for name in names]


def weights_hash(folder: Path) -> str:
    """Hash of a model's weights and shape, 16 hex digits: equal for equal content, wherever the folder is.

    Raises:
        InputError: the folder has no weights, or it is not clear which.
    """
    weights = weight_files(folder)
    _refuse_what_is_no_model(folder)
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


def bos_text(folder: Path) -> str:
    """Text of the token that begins a sequence; "" where the tokenizer has none. Loads no tokenizer."""
    path = folder / "tokenizer_config.json"
    token = json.loads(path.read_text(encoding="utf-8")).get("bos_token") if path.is_file() else None
    return str(token["content"] if isinstance(token, dict) else token or "")


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model folder, as AutoTokenizer makes it.

    Raises:
        InputError: there is none, it cannot be read, or it has more tokens than the model.
    """
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        # transformers would make an empty one.
        raise InputError(f"{folder} has no tokenizer.", "Save it there too: tokenizer.save_pretrained(folder).")
    try:
        tokenizer, vocab_size = _load_known(folder) or _load_auto(folder)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder} is no usable model: {first_line(error)}.", "Save model and tokenizer into that folder."
        ) from error
    if len(tokenizer) > vocab_size:
        raise InputError(
            f"The tokenizer of {folder} has {len(tokenizer)} tokens, and its model {vocab_size}.",
            "Use the tokenizer that belongs to the weights, or resize the embeddings.",
        )
    return tokenizer


def _load_known(folder: Path) -> "tuple[PreTrainedTokenizerBase, int] | None":
    """Tokenizer and vocabulary size of a usual folder of the models that the trainer takes; None of any other folder.

    AutoTokenizer would find the same class, and imports torch and scikit-learn to do so: 7 s of CPU.
    """
    paths = folder / "tokenizer.json", folder / "tokenizer_config.json", folder / "config.json"
    if not all(path.is_file() for path in paths):
        return None
    about, model = map(read_facts, paths[1:])
    key = str(model.get("model_type")), str(about.get("tokenizer_class")).removesuffix("Fast")
    if key not in TOKENIZER_CLASSES or "auto_map" in about or not isinstance(model.get("vocab_size"), int):
        return None
    import transformers

    return getattr(transformers, TOKENIZER_CLASSES[key]).from_pretrained(folder), model["vocab_size"]


def _load_auto(folder: Path) -> "tuple[PreTrainedTokenizerBase, int]":
    from transformers import AutoConfig, AutoTokenizer

    return AutoTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(folder).vocab_size


def end_of_turn(folder: Path, tokenizer: "PreTrainedTokenizerBase", config: Config) -> int | None:
    """The one stop token that a response which was written by somebody else is ended with; None: the model has none.

    What the chat template writes behind an assistant's message, where it is used, else the tokenizer's end of sequence,
    else any.
    """
    stops = stop_ids(folder, tokenizer, config)
    if config.data.chat_template != "off" and tokenizer.chat_template:
        found = next((id_ for id_ in _ids_behind_a_turn(tokenizer) if id_ in stops), None)
        if found is not None:
            return found
    if tokenizer.eos_token_id in stops:
        return int(tokenizer.eos_token_id)  # pyright: ignore[reportArgumentType]
    return min(stops, default=None)


def stop_ids(folder: Path, tokenizer: "PreTrainedTokenizerBase", config: Config) -> frozenset[int]:
    """Tokens that end a response: those of generation_config.json and config.json, the tokenizer's and the user's.

    Raises:
        InputError: one of the files cannot be read.
    """
    ids = set(config.generate.stop_token_ids)
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            eos = read_facts(folder / name).get("eos_token_id")
            ids |= set(eos) if isinstance(eos, list) else {eos}
    ids.add(tokenizer.eos_token_id)  # pyright: ignore[reportArgumentType]
    return frozenset(id_ for id_ in ids if id_ is not None)


def unheard_end_of_turn(tokenizer: "PreTrainedTokenizerBase", stops: frozenset[int]) -> tuple[str, int] | None:
    """The special token with which the chat template ends an assistant's turn, where it is no stop token: responses
    would run on. None where all is well, or where the template ends a turn with text."""
    after = _ids_behind_a_turn(tokenizer)
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    ends = [id_ for id_ in after if id_ in special]
    if not ends or stops & set(after):
        return None
    return str(tokenizer.convert_ids_to_tokens(ends[0])), ends[0]


def _ids_behind_a_turn(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """What the chat template writes behind an assistant's message, in tokens."""
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MESSAGE}]
    text = render_chat(tokenizer, chat).rpartition(_MESSAGE)[2]
    return list(map(int, tokenizer(text, add_special_tokens=False)["input_ids"]))  # pyright: ignore[reportArgumentType]
