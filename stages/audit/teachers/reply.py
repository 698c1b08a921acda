# pyright: strict
"""From what an API says to a rollout and a bill: text in several forms, thinking that is no part of it, and numbers.

Only what a teacher wrote where its answer belongs is evidence about the student. Silence counts as an answer, the
teacher would have stopped, but not where it has another reason: a teacher that spent its tokens on thinking, or that
called a tool.
"""

import re
from collections.abc import Callable, Mapping
from itertools import takewhile
from typing import Any, cast

from ....store.usage import Usage
from ..teacher import Rollout

_MOST_TOKENS = 1 << 40

_CUT_CHARACTER = "\ufffd"
"""What a server writes for a character of which it generated only the first bytes."""

_CUT_OFF = {"length", "max_tokens", "model_length", "model_context_window_exceeded"}
"""Finish reasons, in lower case, of an answer that ran out of tokens."""

_OPENING = re.compile(r"<think(?:ing)?>|\[THINK\]")
_CLOSING = re.compile(r"</think(?:ing)?>|\[/THINK\]")

THINKING = "thinking"
"""How the finish reason begins of a rollout in which the teacher thought and wrote nothing else."""


def rollout(
    text: Any, finish_reason: str | None, dropped: str = "", *, chat_after: str | None = None, thought: bool = False
) -> Rollout:
    """A continuation as the scorer wants to see it.

    Args:
        text: A string, a list of parts, or None.
        dropped: Whitespace of the student's that the teacher was not shown. If the teacher writes it again, it is no
            part of the continuation.
        chat_after: In a chat: the prefix. Its messages may begin with thinking; a raw completion is all continuation.
        thought: Whether the API says that the teacher thought.

    Raises:
        ValueError: it is not text.
    """
    said = joined(text)
    answer = said if chat_after is None else without_thinking(said, chat_after)
    if answer is None:
        return thinking(finish_reason)
    again = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(answer, dropped, strict=False)))
    clean = answer[again:].rstrip(_CUT_CHARACTER)
    if clean:
        return Rollout("ok", clean, finish_reason)
    cut_off = (finish_reason or "").lower() in _CUT_OFF
    if thought or answer != said or (cut_off and chat_after is not None):
        return thinking(finish_reason)
    if cut_off:
        return Rollout("failed", None, f"no text: {finish_reason}")
    return Rollout("empty", "", finish_reason)


def thinking(finish_reason: str | None) -> Rollout:
    """A rollout in which the teacher did not get beyond its thinking."""
    return Rollout("failed", None, f"{THINKING}: {finish_reason or 'no reason'}")


def joined(text: Any) -> str:
    """A text, or the text parts of a list without those of its thinking.

    Raises:
        ValueError: it is neither.
    """
    if text is None or isinstance(text, str):
        return text or ""
    texts: list[str] = []
    for part in listing(text):
        if isinstance(part, str):
            texts.append(part)
        elif mapping(part).get("type", "text") in ("text", "output_text"):
            texts.append(required_text(part))
    return "".join(texts)


def without_thinking(said: str, prefix: str) -> str | None:
    """What follows the thinking at the start of a message; None where the thinking never ends.

    The opening tag may be missing, since some templates put it into the prompt. Where the student is in its own
    thinking, the continuation is too.
    """
    if len(_OPENING.findall(prefix)) > len(_CLOSING.findall(prefix)):
        return said
    opening, closing = _OPENING.search(said), _CLOSING.search(said)
    begins = opening is not None and not said[: opening.start()].strip()
    if closing is not None and (begins or opening is None or opening.start() > closing.start()):
        return said[closing.end() :].lstrip("\n")
    return None if begins else said


def required_text(part: Any) -> str:
    """The text of a part.

    Raises:
        ValueError: it has none.
    """
    text = mapping(part).get("text")
    if not isinstance(text, str):
        raise ValueError("a part has no text")
    return text


def mapping(value: Any) -> Mapping[str, Any]:
    """A JSON object.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {type(value).__name__}")
    return cast("dict[str, Any]", value)


def listing(value: Any) -> list[Any]:
    """A JSON array.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, list):
        raise ValueError(f"expected a list, got {type(value).__name__}")
    return cast("list[Any]", value)


def text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def usage_or_none(value: Any, read: Callable[[Mapping[str, Any]], Usage]) -> Usage | None:
    """What an answer says that it costs; None where it says nothing usable. Its texts are good all the same."""
    try:
        return read(mapping(value))
    except ValueError:
        return None


def count(usage: Mapping[str, Any], key: str) -> int:
    """A number of tokens, also as 20.0 or "20"; an absent one is zero.

    Raises:
        ValueError: it is no whole number that could be one.
    """
    value = usage.get(key)
    if type(value) is int and 0 <= value < _MOST_TOKENS:  # nearly always
        return value
    if value is None:
        return 0
    number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else -1.0
    if not (0 <= number < _MOST_TOKENS and number.is_integer()):
        raise ValueError(f"{key} is {value!r}")
    return int(number)
