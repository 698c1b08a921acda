"""A data set's questions as plain texts, for tests whose data have no chats."""

from pathlib import Path
from typing import Any

from omniopd.stages.generate import prompts
from omniopd.store.conversation import Conversation
from omniopd.store.sections import DataConfig


def read_questions(data: DataConfig, run_folder: Path = Path()) -> list[str]:
    return [_text(question) for question in prompts.read_questions(data, run_folder)]


def read_problems(data: DataConfig, **options: Any) -> dict[str, str]:
    return {_text(question): answer for question, answer in prompts.read_problems(data, **options).items()}


def _text(question: Conversation) -> str:
    assert question.is_question
    return question.question
