# pyright: strict
"""What several dialects share: the key, the addresses, the user's own fields, and what a size of prompt can cost."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import orjson

from ....store.errors import TeacherError
from ....store.sections import TeacherConfig
from ..teacher import Ask, Continuation
from .reply import mapping

TEMPLATE_TOKENS = 256
"""Room for what a chat template and special tokens add to a prompt."""

TOOL_TOKENS = 1024
"""Room for what an API tells its model about tools as such: Anthropic's, at most 804 tokens, is the longest known."""


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
    # Read from a file by a shell, a key may have brought the end of its line.
    return os.environ.get(config.api_key_env or variable, "").strip() or None


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


def checked_extra(config: TeacherConfig, set_by: Mapping[str, str]) -> Mapping[str, Any]:
    """teacher.extra, none of whose fields are those that other keys set.

    Args:
        set_by: Key of [teacher] that sets a field, by field; a dot reaches into a table.

    Raises:
        TeacherError: it sets one of them, behind the back of what is reserved and recorded.
    """
    for field, key in set_by.items():
        table: Any = config.extra
        *parents, name = field.split(".")
        for parent in parents:
            table = cast("dict[str, Any]", table).get(parent, {}) if isinstance(table, dict) else {}
        if isinstance(table, dict) and name in table:
            raise TeacherError(f"teacher.extra sets {field}, which is not its part.", f"Leave it out there; see {key}.")
    return config.extra


def merged(body: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """A request's body with the user's fields on top, tables inside it merged too."""
    out = dict(body)
    for name, value in extra.items():
        ours = out.get(name)
        both = isinstance(ours, dict) and isinstance(value, dict)
        out[name] = merged(mapping(ours), mapping(value)) if both else value
    return out


def prompt_bytes(ask: Ask, continuation: Continuation, config: TeacherConfig) -> int:
    """Most tokens that a prompt can have: a tokenizer makes at most one token of a byte."""
    # The JSON of a chat is longer than what any template makes of it: its own characters outweigh the marks of a turn.
    start = ask.prompt_text if continuation == "completion" else ask.conversation.identity
    text = start + ask.prefix + config.system + (config.instruction if continuation == "instruct" else "")
    # Tools, a schema, arguments of a chat template: what the user adds may be a part of the prompt.
    tools = TOOL_TOKENS if ask.conversation.tools_json else 0
    return len(text.encode()) + len(orjson.dumps(config.extra)) + TEMPLATE_TOKENS + tools


def prefill_or_instruct(config: TeacherConfig, prefills: re.Pattern[str], role: str) -> tuple[Continuation, str]:
    """How a teacher without raw completion is made to continue, and why.

    Args:
        prefills: Models that are known to go on with an open turn.
        role: Whose turn that is, as the provider calls it.
    """
    if config.continuation != "auto":
        return "instruct" if config.continuation == "instruct" else "prefill", "as configured"
    if prefills.match(config.model):
        return "prefill", f"{config.model} takes an open {role} turn"
    return "instruct", f"{config.model} is not known to take an open {role} turn"


def system_of(ask: Ask, config: TeacherConfig) -> str:
    """The teacher's own system prompt, then that of the conversation."""
    return "\n\n".join(text for text in (config.system, ask.conversation.system) if text)


def open_end(prefix: str) -> tuple[str, str]:
    """A prefix without the whitespace at its end, which some APIs refuse, and that whitespace."""
    head = prefix.rstrip()
    return head, prefix[len(head) :]
