"""A cell of a data set as a conversation: a text, or a chat in OpenAI's form.

https://platform.openai.com/docs/api-reference/chat/create
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...store.conversation import Conversation
from ...store.errors import InputError
from .dataset import reach, text_of
from .files import Row, kind_of

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
"""Roles, by the names that data sets give them."""

_JSON_CHAT = re.compile(r"\s*\[\s*\{")
"""How the JSON of a list of objects begins."""


def conversation_of(row: Row, path: str, tools: str | None = None) -> Conversation | None:
    """What a row asks; None where it asks nothing. An answer at the end of a chat is left out: the student is to write
    its own.

    Args:
        path: Column of the question or the chat.
        tools: Column of the tools, where the data set has one.

    Raises:
        InputError: it is no text and no chat of texts, and the message names row and column.
    """
    value = _chat_in(reach(row.values, path))
    if not isinstance(value, list):
        question = text_of(row, path)
        return Conversation.of(question) if question else None
    chat = _Chat(row, path)
    messages = chat.messages(value)
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not any(turn["role"] == "user" and turn["content"].strip() for turn in messages):
        return None
    return Conversation.made(messages, _tools(row, tools))


def _chat_in(value: Any) -> Any:
    """A cell, or the chat that it holds as JSON: tables whose columns have one type each keep chats so."""
    if not isinstance(value, str) or not _JSON_CHAT.match(value):
        return value
    try:
        messages = json.loads(value)
    except ValueError:
        return value
    return messages if all(isinstance(message, dict) and "role" in message for message in messages) else value


def last_question_of(row: Row, path: str) -> str:
    """A question's text; of a chat, its last user message; "" where there is none.

    Raises:
        InputError: see `conversation_of`.
    """
    conversation = conversation_of(row, path)
    return "" if conversation is None else conversation.question


class _Chat:
    """Reads the messages of one cell."""

    def __init__(self, row: Row, path: str) -> None:
        self._row = row
        self._path = path
        self._calls: list[str] = []
        """Ids of the calls that have no result so far."""
        self._seen = 0

    def messages(self, value: Sequence[Any]) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        for message in value:
            if not isinstance(message, Mapping):
                raise self._wrong(f"a list with {kind_of(message)}", "messages")
            turn = self._turn(message)
            if turn["role"] != "system" or not messages:
                messages.append(turn)
            elif [earlier["role"] for earlier in messages] == ["system"]:
                messages[0]["content"] += f"\n\n{turn['content']}"
            else:
                raise self._wrong("a system message behind another turn", "the system prompt first")
        return messages

    def _turn(self, message: Mapping[str, Any]) -> dict[str, Any]:
        role = _ROLES.get(str(message.get("role")))
        if role is None:
            raise self._wrong(f"a message of role {message.get('role')!r}", f"one of {', '.join(_ROLES)}")
        turn: dict[str, Any] = {"role": role, "content": self._content(message.get("content"), role)}
        if role == "assistant" and message.get("tool_calls"):
            turn["tool_calls"] = [self._call(call) for call in message["tool_calls"]]
        if role == "tool":
            turn["tool_call_id"] = self._answered(message.get("tool_call_id"))
        return turn

    def _content(self, content: Any, role: str) -> str:
        """The text of a message: a text, or parts that are texts."""
        if isinstance(content, str):
            return content
        if content is None and role == "assistant":
            return ""  # it calls a tool and says nothing
        if not isinstance(content, list):
            raise self._wrong(f"a {role} message whose content is {kind_of(content)}", "a text")
        texts: list[str] = []
        for part in content:
            kind = part.get("type") if isinstance(part, Mapping) else kind_of(part)
            if kind != "text" or not isinstance(part.get("text"), str):
                raise self._wrong(
                    f"a {role} message with a part of type {kind!r}, which is no text", "text parts alone"
                )
            texts.append(part["text"])
        return "".join(texts)

    def _call(self, call: Any) -> dict[str, Any]:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise self._wrong("a tool call without a function's name", '{"function": {"name": ..., "arguments": ...}}')
        arguments = function.get("arguments") or {}
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError as error:
                raise self._wrong("a tool call whose arguments are no JSON", "a JSON object") from error
        if not isinstance(arguments, Mapping):
            raise self._wrong("a tool call whose arguments are no object", "a JSON object")
        self._seen += 1
        id_ = str(call.get("id") or f"call_{self._seen}")
        self._calls.append(id_)
        text = json.dumps(_without_nulls(arguments), ensure_ascii=False)
        return {"id": id_, "type": "function", "function": {"name": function["name"], "arguments": text}}

    def _answered(self, id_: Any) -> str:
        """The call that a tool's result answers: the one of its id, or the oldest where results have none."""
        wanted = str(id_) if id_ else (self._calls[0] if self._calls else None)
        if wanted not in self._calls:
            raise self._wrong(
                "a tool's result without the call that it answers", "the assistant's tool_calls before it"
            )
        self._calls.remove(wanted)
        return wanted

    def _wrong(self, found: str, wanted: str) -> InputError:
        return InputError(
            f"{self._row.where}, column {self._path!r}: {found}.", f"Write {wanted} there, or leave the row out."
        )


def _tools(row: Row, path: str | None) -> list[dict[str, Any]]:
    """The tools of a row: a list of OpenAI's tools or of bare functions, or its JSON."""
    value = None if path is None else reach(row.values, path)
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError:
            value = path  # said below
    if not value:
        return []
    tools: list[dict[str, Any]] = []
    for tool in value if isinstance(value, list) else [value]:
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise InputError(
                f"{row.where}, column {path!r}: a tool without a function's name.",
                "Write OpenAI's tools there, or set data.tools to another column.",
            )
        tools.append({"type": "function", "function": _without_nulls(function)})
    return tools


def _without_nulls(value: Any) -> Any:
    """Parquet fills the missing fields of a struct with null."""
    if isinstance(value, Mapping):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value
