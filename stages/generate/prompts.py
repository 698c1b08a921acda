"""Prompts: read from a file or the hub, shuffled, cut into rounds, and rendered as the student reads them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...store.errors import InputError
from ...store.sections import DataConfig
from .dataset import Source, as_answer, as_question, as_tests, cell, collect, read_frame

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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


def read_problems(data: DataConfig) -> dict[str, str]:
    """The distinct questions of a data set, in its order, each with the answer of its first row: "" where that has none
    or data.answer is not set.

    Raises:
        InputError: the file or data set is not there, has no such column, or holds no question; the filter is no SQL.
    """
    problems: dict[str, str] = {}
    for value, answer in _rows(data):
        if text := as_question(value):
            problems.setdefault(text, as_tests(answer) if isinstance(answer, dict) else as_answer(answer))
    if not problems:
        kept = "" if data.filter is None else " after data.filter"
        raise InputError(
            f"{data.prompts} holds no question in column {data.field!r}{kept}.", "Set data.prompts to another."
        )
    return problems


def read_questions(data: DataConfig) -> list[str]:
    """The questions alone; see `read_problems`."""
    return list(read_problems(data.model_copy(update={"answer": None})))


def _rows(data: DataConfig) -> list[tuple[Any, Any]]:
    """Question and answer of the rows that the filter keeps."""
    import polars as pl

    source = Source(
        data.prompts, data.subset, data.split, "data.prompts", "prompt",
        "Check the id, data.subset, data.split and HF_TOKEN, or download it and point data.prompts to a file.",
    )  # fmt: skip
    frame = read_frame(source)
    columns = frame.collect_schema().names()
    _require_column(data.prompts, data.field, columns, "data.field", "question")
    answer = pl.lit(None)
    if data.answer is not None:
        outer = data.answer.partition(".")[0]
        _require_column(data.prompts, outer, columns, "data.answer", "answer")
        answer = cell(data.answer)
    wanted = pl.col(data.field).alias("question"), answer.alias("answer")
    if data.filter is not None:
        try:
            frame = frame.filter(pl.sql_expr(data.filter))
            frame.select(data.field).collect_schema()
        except pl.exceptions.PolarsError as error:
            raise InputError(
                f"data.filter is no condition over {data.prompts}: {str(error).splitlines()[0]}.",
                f"Write SQL over its columns: {', '.join(columns)}.",
            ) from error
    try:
        frame = frame.select(*wanted)
        frame.collect_schema()
    except pl.exceptions.PolarsError as error:
        raise InputError(
            f"{data.prompts} has no {data.answer!r}: {str(error).splitlines()[0]}.",
            "Set data.answer to the answer's column.",
        ) from error
    return collect(source, frame).rows()


def _require_column(source: str, field: str, columns: Sequence[str], setting: str, what: str) -> None:
    if field not in columns:
        raise InputError(
            f"{source} has no column {field!r} (it has {', '.join(columns)}).",
            f"Set {setting} to the {what}'s column.",
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


def user_message(question: str, data: DataConfig) -> str:
    """The template filled with a question."""
    return data.template.replace("{question}", question)


def _render(question: str, data: DataConfig, tokenizer: "PreTrainedTokenizerBase") -> Prompt:
    message = user_message(question, data)
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
