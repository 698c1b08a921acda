# pyright: strict
"""What several dialects share: the key, the addresses, whitespace at the cut, and the instruction to continue."""

import os
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any, cast

from ....store.errors import TeacherError
from ....store.sections import TeacherConfig
from ..teacher import Ask, Continuation, Rollout

_MOST_TOKENS = 1 << 40

TEMPLATE_TOKENS = 256
"""Room for what a chat template and special tokens add to a prompt."""

CONTINUE = (
    "Your last message was cut off. Go on writing it from exactly the character where it stops, in the same style and"
    " format. Write only the continuation: repeat nothing, and neither comment nor apologise."
)
"""The user message of the `instruct` continuation."""

_CUT_CHARACTER = "\ufffd"
"""What a server writes for a character of which it generated only the first bytes."""


def base_urls(config: TeacherConfig, default: str) -> tuple[str, ...]:
    """The configured servers, or the dialect's own address."""
    given = (config.base_url,) if isinstance(config.base_url, str) else config.base_url
    return tuple(url.rstrip("/") for url in given if url) or (default,)


def api_key(config: TeacherConfig, variable: str) -> str | None:
    """The key, from the key file or the environment; it goes into a header and nowhere else.

    Raises:
        TeacherError: the key file cannot be read.
    """
    if config.api_key_file:
        try:
            return Path(config.api_key_file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise TeacherError(
                f"teacher.api_key_file cannot be read ({type(error).__name__}).", "Put the key, and only it, there."
            ) from error
    return os.environ.get(config.api_key_env or variable)


def key_refused(url: str, status: int, variable: str) -> TeacherError:
    return TeacherError(
        f"The teacher at {url} refused the key ({status}).",
        f"Put a valid key into {variable}, into the variable that teacher.api_key_env names, or into"
        " teacher.api_key_file.",
    )


def no_model(url: str, model: str, has: str = "") -> TeacherError:
    return TeacherError(
        f"The server at {url} has no model {model!r}{f' (it has {has})' if has else ''}.",
        "Set teacher.model to one of its models.",
    )


def cannot(kind: str, what: str, hint: str) -> TeacherError:
    return TeacherError(f"teacher.kind {kind!r} cannot {what}.", hint)


def prompt_bytes(ask: Ask, continuation: Continuation) -> int:
    """Most tokens that a prompt can have: a tokenizer makes at most one token of a byte."""
    start = ask.prompt_text if continuation == "completion" else ask.question
    text = start + ask.prefix + (CONTINUE if continuation == "instruct" else "")
    return len(text.encode()) + TEMPLATE_TOKENS


def open_end(prefix: str) -> tuple[str, str]:
    """A prefix without the whitespace at its end, which some APIs refuse, and that whitespace."""
    head = prefix.rstrip()
    return head, prefix[len(head) :]


def rollout(text: Any, finish_reason: str | None, dropped: str = "") -> Rollout:
    """A continuation as the scorer wants to see it.

    Args:
        dropped: Whitespace of the student's that the teacher was not shown. If the teacher writes it again, it is no
            part of the continuation.

    Raises:
        ValueError: it is not text.
    """
    if text is not None and not isinstance(text, str):
        raise ValueError("a continuation is not a string")
    said = text or ""
    again = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(said, dropped, strict=False)))
    clean = said[again:].rstrip(_CUT_CHARACTER)
    return Rollout("ok" if clean else "empty", clean, finish_reason)


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


def count(usage: Mapping[str, Any], key: str) -> int:
    """A number of tokens; an absent one is zero.

    Raises:
        ValueError: it is no whole number that could be one.
    """
    value = usage.get(key) or 0
    if not isinstance(value, int) or not 0 <= value < _MOST_TOKENS:
        raise ValueError(f"{key} is {value!r}")
    return value


def text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None
