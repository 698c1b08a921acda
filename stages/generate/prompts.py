"""Prompts: read from a file or the hub, shuffled, cut into rounds, and rendered as the student reads them."""

import functools
import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...store.chat_template import render_chat
from ...store.conversation import Conversation
from ...store.errors import InputError
from ...store.sections import DataConfig
from ...store.tokens import prompt_ids
from .conversations import conversation_of
from .dataset import Source, answer_of, open_dataset
from .files import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prompt:
    """A prompt in the three forms that the pipeline needs."""

    prompt_id: str
    conversation: Conversation
    """What is asked, the template filled."""
    text: str
    """What the student reads, chat template included."""
    ids: tuple[int, ...]
    """The same, in student tokens."""

    @property
    def question(self) -> str:
        """The last user message."""
        return self.conversation.question


@functools.cache
def say_once(line: str) -> None:
    """Write a line to stderr, unless this process has done so before: every round reads the same data."""
    sys.stderr.write(f"{line}\n")


def read_problems(
    data: DataConfig, run_folder: Path = Path(), say: Callable[[str], None] = say_once
) -> dict[Conversation, str]:
    """The distinct questions of a data set, in its order, each with the answer of its first row: "" where that has none
    or data.answer is not set.

    Args:
        run_folder: Where relative paths are looked for after the current folder.
        say: Is told of rows that are left out, and of rounds that want more than there is.

    Raises:
        InputError: the file or data set is not there, has a damaged line or no such column, or holds no question; the
            filter is no SQL.
    """
    source = _source(data, run_folder)
    needs = {data.field: ("data.field", "question")}
    if data.answer is not None:
        needs.setdefault(data.answer, ("data.answer", "answer"))
    problems: dict[Conversation, str] = {}
    left_out = _LeftOut()
    for row in open_dataset(source).rows(needs, data.filter, () if data.tools is None else (data.tools,)):
        question = conversation_of(row, data.field, data.tools)
        answer = "" if data.answer is None else answer_of(row, data.answer)
        if question is None:
            left_out.add("no question", row)
        elif question not in problems:
            problems[question] = answer
        elif problems[question] == answer:
            left_out.add("a question that an earlier row has", row)
        else:
            left_out.add("a question that an earlier row has with another answer", row)
    if not problems:
        kept = "" if data.filter is None else " after data.filter"
        raise InputError(
            f"{source.label} holds no question in column {data.field!r}{kept}.", "Set data.prompts to another."
        )
    left_out.tell(say)
    available = min(len(problems), data.limit or len(problems))
    if data.per_round is not None and data.per_round > available:
        say(f"data.per_round is {data.per_round}, and there are {available} questions: every round takes all of them")
    return problems


def read_questions(data: DataConfig, run_folder: Path = Path()) -> list[Conversation]:
    """The questions alone; see `read_problems`."""
    return list(read_problems(data.model_copy(update={"answer": None}), run_folder))


def _source(data: DataConfig, run_folder: Path) -> Source:
    names = (data.prompts,) if isinstance(data.prompts, str) else data.prompts
    hint = "Check the id, data.subset, data.split and HF_TOKEN, or download it and point data.prompts to a file."
    return Source(names, data.subset, data.split, "data.prompts", "prompt", hint, run_folder)


class _LeftOut:
    """Counts rows that are left out, by reason."""

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, reason: str, row: Row) -> None:
        self._count[reason] += 1
        if reason not in self._first:
            self._first[reason] = row.where

    def tell(self, say: Callable[[str], None]) -> None:
        for reason, count in self._count.items():
            rows = "row left out, which has" if count == 1 else "rows left out, which have"
            say(f"{count} {rows} {reason}: {'' if count == 1 else 'the first is '}{self._first[reason]}")


def questions_of_round(questions: Sequence[Conversation], data: DataConfig, index: int) -> list[Conversation]:
    """The questions of one round: shuffled by seed, cut to the limit, dealt out in turn, round after round."""
    order = np.random.default_rng(data.seed).permutation(len(questions))[: data.limit]
    size = len(order) if data.per_round is None else min(data.per_round, len(order))
    first = index * size
    # Past the last question it starts over.
    return [questions[int(order[(first + i) % len(order)])] for i in range(size)]


def render(questions: Sequence[Conversation], data: DataConfig, tokenizer: "PreTrainedTokenizerBase") -> list[Prompt]:
    """Fill the templates and tokenize; prompts longer than data.max_prompt_tokens are dropped.

    Raises:
        InputError: data.chat_template is on and the tokenizer has none; a chat cannot be rendered; or no prompt is
            short enough.
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


def asked(question: Conversation, data: DataConfig) -> Conversation:
    """What the student is asked: its last user message in the template, with the system prompt that is set."""
    filled = question.with_question(data.template.replace("{question}", question.question))
    return filled if data.system is None else filled.with_system(data.system)


def _render(question: Conversation, data: DataConfig, tokenizer: "PreTrainedTokenizerBase") -> Prompt:
    conversation = asked(question, data)
    chat = data.chat_template != "off" and bool(tokenizer.chat_template)
    if not chat and not conversation.is_question:
        raise InputError(
            "A chat has more than a question in it, and the student has no chat template to write it with.",
            'Choose a student with one, or put the whole prompt into data.template (data.system = "" drops a system'
            " prompt).",
        )
    text = _chat(conversation, data.enable_thinking, tokenizer) if chat else conversation.question
    ids = prompt_ids(tokenizer, text, templated=chat)
    prompt_id = hashlib.blake2b(conversation.identity.encode(), digest_size=8).hexdigest()
    return Prompt(prompt_id, conversation, text, tuple(ids))


def _chat(conversation: Conversation, enable_thinking: bool | None, tokenizer: "PreTrainedTokenizerBase") -> str:
    switches: dict[str, Any] = {} if enable_thinking is None else {"enable_thinking": enable_thinking}

    def rendered(of: Conversation) -> str:
        options = switches | ({"tools": of.tools} if of.tools else {})
        return render_chat(tokenizer, of.for_template(), add_generation_prompt=True, **options)

    text = rendered(conversation)
    for what, bare in (("tools", conversation.without_tools()), ("tool calls", conversation.without_calls())):
        if bare != conversation and rendered(bare) == text:
            say_once(
                f"the student's chat template writes no {what}: the student does not see those of its conversations"
            )
    return text
