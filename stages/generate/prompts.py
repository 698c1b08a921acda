"""Prompts: read from a file or the hub, shuffled, cut into rounds, and rendered as the student reads them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...store.errors import InputError
from ...store.sections import DataConfig

if TYPE_CHECKING:
    import polars as pl
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
        InputError: the file or data set is not there, has no such column, or holds no question; the filter is no SQL.
    """
    path = Path(data.prompts)
    column = _read_file(path, data) if path.suffix in _READERS else _read_hub(data)
    questions = list(dict.fromkeys(text for value in column if (text := _question(value))))
    if not questions:
        kept = "" if data.filter is None else " after data.filter"
        raise InputError(
            f"{data.prompts} holds no question in column {data.field!r}{kept}.", "Set data.prompts to another."
        )
    return questions


def _question(value: Any) -> str:
    """Text of a cell; of a chat, the last user message."""
    if isinstance(value, list):
        user = [message["content"] for message in value if message.get("role") == "user"]
        value = user[-1] if user else None
    return "" if value is None or not str(value).strip() else str(value)


def _read_file(path: Path, data: DataConfig) -> list[Any]:
    import polars as pl

    if not path.is_file():
        raise InputError(f"The prompt file {path} does not exist.", "Set data.prompts to a file that does.")
    if path.stat().st_size == 0:
        raise InputError(f"The prompt file {path} is empty.", f"Write one row a prompt, with a column {data.field!r}.")
    try:
        frame = getattr(pl, _READERS[path.suffix])(path)
        columns = frame.collect_schema().names()
    except pl.exceptions.PolarsError as error:
        raise _unreadable(path, error) from error
    try:
        return _column(str(path), frame, columns, data)
    except pl.exceptions.ComputeError as error:  # a line further down
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = str(error).splitlines()[0]
    return InputError(f"{path} cannot be read as {path.suffix[1:]}: {reason}.", "Mend or replace the file.")


def _read_hub(data: DataConfig) -> list[Any]:
    import datasets
    import polars as pl

    try:
        rows = datasets.load_dataset(data.prompts, data.subset, split=data.split)
    except (OSError, ValueError, RuntimeError) as error:  # for unknown ids, subsets, splits and an unreachable hub
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(
            f"{data.prompts!r} is no .jsonl, .parquet or .csv file, and the hub did not give it: {reason}.",
            "Check the id, data.subset, data.split and HF_TOKEN, or download it and point data.prompts to a file.",
        ) from error
    assert isinstance(rows, datasets.Dataset)
    frame = rows.to_polars()
    assert isinstance(frame, pl.DataFrame)
    return _column(data.prompts, frame.lazy(), rows.column_names, data)


def _column(source: str, frame: "pl.LazyFrame", columns: Sequence[str], data: DataConfig) -> list[Any]:
    """The questions' column of the rows that the filter keeps."""
    import polars as pl

    _require_column(source, data.field, columns)
    if data.filter is None:
        return frame.select(data.field).collect()[data.field].to_list()
    try:
        kept = frame.filter(pl.sql_expr(data.filter)).select(data.field)
        kept.collect_schema()
    except pl.exceptions.PolarsError as error:
        raise InputError(
            f"data.filter is no condition over {source}: {str(error).splitlines()[0]}.",
            f"Write SQL over its columns: {', '.join(columns)}.",
        ) from error
    return kept.collect()[data.field].to_list()


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
    """Fill the templates and tokenize; prompts longer than data.max_prompt_tokens are dropped.

    Raises:
        InputError: data.chat_template is on and the tokenizer has none; or no prompt is short enough.
    """
    if data.chat_template == "on" and not tokenizer.chat_template:
        raise InputError(
            "data.chat_template is on, and the student's tokenizer has no chat template.",
            'Set data.chat_template = "off" and put the whole prompt into data.template.',
        )
    prompts = [_render(question, data, tokenizer) for question in questions]
    most = data.max_prompt_tokens
    kept = [prompt for prompt in prompts if most is None or len(prompt.ids) <= most]
    if not kept:
        raise InputError(f"No prompt has at most {most} tokens.", "Raise data.max_prompt_tokens.")
    return kept


def _render(question: str, data: DataConfig, tokenizer: "PreTrainedTokenizerBase") -> Prompt:
    message = data.template.replace("{question}", question)
    chat = data.chat_template != "off" and bool(tokenizer.chat_template)
    text = _chat(message, data.enable_thinking, tokenizer) if chat else message
    # A chat template writes its own special tokens. The engine says which prompt is too long, so verbose is off.
    ids = tokenizer(text, add_special_tokens=not chat, verbose=False)["input_ids"]
    prompt_id = hashlib.blake2b(message.encode(), digest_size=8).hexdigest()
    return Prompt(prompt_id, message, text, tuple(ids))  # pyright: ignore[reportArgumentType]


def _chat(message: str, enable_thinking: bool | None, tokenizer: "PreTrainedTokenizerBase") -> str:
    # Templates that do not know the switch ignore it.
    switches: dict[str, Any] = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True, **switches
    )
    assert isinstance(text, str)
    return text
