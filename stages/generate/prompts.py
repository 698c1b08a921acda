"""Prompts: read from a file or the hub, shuffled, cut into rounds, and rendered as the student reads them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...store.config import DataConfig
from ...store.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_READERS = {".jsonl": "scan_ndjson", ".parquet": "scan_parquet", ".csv": "scan_csv"}
"""Polars' reader for each kind of file."""


@dataclass(frozen=True)
class Prompt:
    """A prompt in the three forms that the pipeline needs."""

    prompt_id: str
    question: str
    """The user message: the template filled with the question."""
    text: str
    """What the student reads, chat template included."""
    ids: tuple[int, ...]
    """The same, in student tokens."""


def read_questions(data: DataConfig) -> list[str]:
    """The distinct questions of a data set, in its order.

    Raises:
        InputError: the file or data set is not there, has no such column, or holds no question.
    """
    path = Path(data.prompts)
    column = _read_file(path, data.field) if path.suffix in _READERS else _read_hub(data)
    questions = list(dict.fromkeys(str(value) for value in column if value is not None and str(value).strip()))
    if not questions:
        raise InputError(f"{data.prompts} holds no question in column {data.field!r}.", "Set data.prompts to another.")
    return questions


def _read_file(path: Path, field: str) -> list[object]:
    import polars as pl

    if not path.is_file():
        raise InputError(f"The prompt file {path} does not exist.", "Set data.prompts to a file that does.")
    if path.stat().st_size == 0:
        raise InputError(f"The prompt file {path} is empty.", f"Write one row a prompt, with a column {field!r}.")
    try:
        scan = getattr(pl, _READERS[path.suffix])(path)
        columns = scan.collect_schema().names()
        _require_column(str(path), field, columns)
        return scan.select(field).collect()[field].to_list()
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path} cannot be read as {path.suffix[1:]}: {reason}.", "Mend or replace the file."
        ) from error


def _read_hub(data: DataConfig) -> list[object]:
    import datasets

    try:
        rows = datasets.load_dataset(data.prompts, split=data.split)
    except (OSError, ValueError) as error:  # what `datasets` raises for unknown ids, splits and an unreachable hub
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{data.prompts!r} is no .jsonl, .parquet or .csv file, and the hub did not give it: {reason}.",
            "Check the id, data.split and HF_TOKEN, or point data.prompts to a file.",
        ) from error
    assert isinstance(rows, datasets.Dataset)
    _require_column(data.prompts, data.field, rows.column_names)
    return list(rows[data.field])


def _require_column(source: str, field: str, columns: Sequence[str]) -> None:
    if field not in columns:
        raise InputError(
            f"{source} has no column {field!r} (it has {', '.join(columns)}).",
            "Set data.field to the question's column.",
        )


def questions_of_round(questions: Sequence[str], data: DataConfig, index: int) -> list[str]:
    """The questions of one round: shuffled by seed, cut to the limit, dealt out in turn, round after round."""
    order = np.random.default_rng(data.seed).permutation(len(questions))[: data.limit]
    size = len(order) if data.per_round is None else min(data.per_round, len(order))
    first = index * size
    # Past the last question it starts over.
    return [questions[int(order[(first + i) % len(order)])] for i in range(size)]


def render(questions: Sequence[str], data: DataConfig, tokenizer: "PreTrainedTokenizerBase") -> list[Prompt]:
    """Fill the templates and tokenize.

    Raises:
        InputError: data.chat_template is on and the tokenizer has none.
    """
    if data.chat_template == "on" and not tokenizer.chat_template:
        raise InputError(
            "data.chat_template is on, and the student's tokenizer has no chat template.",
            'Set data.chat_template = "off" and put the whole prompt into data.template.',
        )
    chat = data.chat_template != "off" and bool(tokenizer.chat_template)
    prompts: list[Prompt] = []
    for question in questions:
        message = data.template.replace("{question}", question)
        text = _chat(message, tokenizer) if chat else message
        # A chat template writes its own special tokens.
        ids = tokenizer(text, add_special_tokens=not chat)["input_ids"]
        prompt_id = hashlib.blake2b(message.encode(), digest_size=8).hexdigest()
        prompts.append(Prompt(prompt_id, message, text, tuple(ids)))  # pyright: ignore[reportArgumentType]
    return prompts


def _chat(message: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
    )
    assert isinstance(text, str)
    return text
