"""What more than one stage needs to know of the student: its tokenizer, and where its responses end."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..store.config import Config
from ..store.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
"""One of these a tokenizer of transformers has."""

_MESSAGE = "message"


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model folder.

    Raises:
        InputError: there is none, or it has more tokens than the model.
    """
    from transformers import AutoConfig, AutoTokenizer

    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        # transformers would make an empty one.
        raise InputError(f"{folder} has no tokenizer.", "Save it there too: tokenizer.save_pretrained(folder).")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        vocab_size = AutoConfig.from_pretrained(folder).vocab_size
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{folder} is no usable model: {reason}", "Save model and tokenizer into that folder."
        ) from error
    if len(tokenizer) > vocab_size:
        raise InputError(
            f"The tokenizer of {folder} has {len(tokenizer)} tokens, and its model {vocab_size}.",
            "Use the tokenizer that belongs to the weights, or resize the embeddings.",
        )
    return tokenizer


def end_of_turn(folder: Path, tokenizer: "PreTrainedTokenizerBase", config: Config) -> int | None:
    """The one stop token that a response which was written by somebody else is ended with; None: the model has none.

    What the chat template writes behind an assistant's message, where it is used, else the tokenizer's end of sequence,
    else any.
    """
    stops = stop_ids(folder, tokenizer, config)
    if config.data.chat_template != "off" and tokenizer.chat_template:
        chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MESSAGE}]
        text = tokenizer.apply_chat_template(chat, tokenize=False)
        assert isinstance(text, str)
        after = tokenizer(text.rpartition(_MESSAGE)[2], add_special_tokens=False)["input_ids"]
        found = next((id_ for id_ in after if id_ in stops), None)  # pyright: ignore[reportGeneralTypeIssues]
        if found is not None:
            return int(found)  # pyright: ignore[reportArgumentType]
    if tokenizer.eos_token_id in stops:
        return int(tokenizer.eos_token_id)  # pyright: ignore[reportArgumentType]
    return min(stops, default=None)


def stop_ids(folder: Path, tokenizer: "PreTrainedTokenizerBase", config: Config) -> frozenset[int]:
    """Tokens that end a response: the generation config's, the tokenizer's and the user's."""
    from transformers import GenerationConfig

    ids = set(config.generate.stop_token_ids)
    if (folder / "generation_config.json").is_file():
        eos = GenerationConfig.from_pretrained(folder).eos_token_id
        ids |= set(eos) if isinstance(eos, list) else {eos}
    ids.add(tokenizer.eos_token_id)  # pyright: ignore[reportArgumentType]
    return frozenset(id_ for id_ in ids if id_ is not None)
