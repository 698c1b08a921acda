# pyright: strict
"""What a student is asked: one question, or the turns of a chat up to the one that it is to write.

Turns and tools are kept in OpenAI's form (https://platform.openai.com/docs/api-reference/chat), contents as text:
each dialect of teacher writes them its own way. docs/decisions/0029-conversations.md
"""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

Turn = Mapping[str, Any]


@dataclass(frozen=True)
class Conversation:
    """Turns of which the last is a user's or a tool's."""

    messages_json: str
    tools_json: str = ""
    """Tools that the assistant may call; "" for none."""

    @classmethod
    def of(cls, question: str) -> "Conversation":
        """A single question."""
        return cls.made([{"role": "user", "content": question}])

    @classmethod
    def made(cls, messages: Sequence[Turn], tools: Sequence[Mapping[str, Any]] = ()) -> "Conversation":
        return cls(_json(messages), _json(tools) if tools else "")

    @classmethod
    def read(cls, messages_json: str | None, tools_json: str | None, question: str) -> "Conversation":
        """As it stands in a table; tables of an older version have the question alone."""
        return cls.of(question) if messages_json is None else cls(messages_json, tools_json or "")

    @property
    def messages(self) -> list[dict[str, Any]]:
        return cast("list[dict[str, Any]]", json.loads(self.messages_json))

    @property
    def tools(self) -> list[dict[str, Any]]:
        return cast("list[dict[str, Any]]", json.loads(self.tools_json)) if self.tools_json else []

    @property
    def question(self) -> str:
        """The last user message; "" where there is none."""
        return next((str(turn["content"]) for turn in reversed(self.messages) if turn["role"] == "user"), "")

    @property
    def is_question(self) -> bool:
        """Whether it is one user message and nothing else."""
        return not self.tools_json and [turn["role"] for turn in self.messages] == ["user"]

    @functools.cached_property
    def identity(self) -> str:
        """Names it among others: the question alone, or all of its JSON."""
        return self.question if self.is_question else f"{self.messages_json}{self.tools_json}"

    @property
    def system(self) -> str:
        """The system prompt; "" for none."""
        first = self.messages[0]
        return str(first["content"]) if first["role"] == "system" else ""

    @property
    def turns(self) -> list[dict[str, Any]]:
        """The messages without the system prompt."""
        messages = self.messages
        return messages[1:] if messages[0]["role"] == "system" else messages

    def with_system(self, system: str) -> "Conversation":
        """With this system prompt in place of its own; "" takes it away."""
        first = [{"role": "system", "content": system}] if system else []
        return Conversation(_json([*first, *self.turns]), self.tools_json)

    def with_question(self, question: str) -> "Conversation":
        """With another text in its last user message."""
        messages = self.messages
        for turn in reversed(messages):
            if turn["role"] == "user":
                turn["content"] = question
                break
        return Conversation(_json(messages), self.tools_json)

    def without_tools(self) -> "Conversation":
        return Conversation(self.messages_json)

    def without_calls(self) -> "Conversation":
        """Without what the assistant called, results left as they are."""
        messages = [{name: part for name, part in turn.items() if name != "tool_calls"} for turn in self.messages]
        return Conversation(_json(messages), self.tools_json)

    def for_template(self) -> list[dict[str, Any]]:
        """The messages as chat templates take them: arguments of a call as an object, not as text."""
        messages = self.messages
        for turn in messages:
            for call in turn.get("tool_calls") or ():
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        return messages

    def __str__(self) -> str:
        """For a person: a question as it is, a chat one turn a line."""
        return self.question if self.is_question else "\n".join(map(_shown, self.messages))


def _shown(turn: Turn) -> str:
    calls = [f"{call['function']['name']}({call['function']['arguments']})" for call in turn.get("tool_calls") or ()]
    said = [str(turn["content"])] if turn.get("content") else []
    return f"{turn['role']}: {' '.join([*said, *calls])}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
