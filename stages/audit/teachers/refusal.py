# pyright: strict
"""What a refusal (400, 422) says about the form of a request, and what the next requests leave out for it. Pure.

Providers word this in their own ways and have no codes for it in common, so words decide: the name of a field, and that
it is not wanted. What is learned can only take something away, and each thing once, so it comes to an end.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

from ..teacher import Continuation

_ABOUT_THE_REQUEST = {400, 404, 405, 422}
"""404 and 405 too: so an endpoint says that it does not take this model."""

_ECHOES = {"input", "ctx", "body", "request", "url", "user_id", "request_id"}
"""Parts of an error body that repeat the request, or say nothing in words."""

_MOST_CHARACTERS = 8000

_NOT_WANTED = re.compile(
    r"unsupported|not (be )?support|n't support|deprecated|not permitted|extra_forbidden|unrecognized|unknown"
    r"|unexpected|not allowed|no longer|only the default|may only|not available|not enabled|cannot be used"
    r"|can't be used|cannot find field|incompatible",
    re.IGNORECASE,
)
_SEVERAL = re.compile(
    r"['\"`]n['\"`]|^n$|(?<![\w'])n *(=|>|<|must|should|has to|can only|cannot|is not|greater|larger)"
    r"|multiple (candidates|choices|completions)|(one|single) (candidate|choice|completion)|candidate_?count",
    re.IGNORECASE | re.MULTILINE,
)
_AT_MOST = re.compile(
    r"(?:at most|<=|up to|maximum(?: value)?(?: of| is|:)?|less than or equal to|between 1 and|from 1 to) *(\d+)",
    re.IGNORECASE,
)
NO_PREFILL = re.compile(
    r"prefill|(end|ends) with a user|last (message|turn|role)|last message.{0,40}role|continue_final_message"
    r"|add_generation_prompt",
    re.IGNORECASE,
)
"""How servers say that the last message may not be the assistant's, or may not be left open."""


def words(status: int, body: Any) -> str:
    """All that a refusal says, a statement a line; "" where it is not about the form of the request."""
    if status not in _ABOUT_THE_REQUEST:
        return ""
    text = "\n".join(_strings(body))[:_MOST_CHARACTERS]
    # Gateways pass on what the provider said as JSON in a string. A suggestion is no complaint.
    return re.sub(r",? *did you mean[^\n]*", "", text.replace("\\", ""), flags=re.IGNORECASE)


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, part in cast("dict[str, Any]", value).items():
            if key not in _ECHOES:
                yield from _strings(part)
    elif isinstance(value, list):
        for part in cast("list[Any]", value):
            yield from _strings(part)


def names(said: str, field: str) -> bool:
    """Whether a field of the request is named."""
    return re.search(rf"(?<![A-Za-z0-9_-]){re.escape(field)}(?![A-Za-z0-9_-])", said) is not None


class Learned:
    """What the refusals so far have taught about parameters that all dialects have.

    Args:
        model: Named in what is said.
        most_choices: Continuations that one request may ask for, as far as it is known beforehand.
        optional: Fields that a request can do without, and what follows when they are left out.
    """

    def __init__(self, model: str, most_choices: int | None, optional: Mapping[str, str]) -> None:
        self.most_choices = most_choices
        self.form = 0
        self.left_out: set[str] = set()
        """Fields that are sent no more."""
        self._model = model
        self._optional = optional

    def changed(self, line: str) -> str:
        """Count a change of the form. Returns the line that says so."""
        self.form += 1
        return f"{self._model}: {line}"

    def fewer_choices(self, said: str) -> str | None:
        """Ask for fewer continuations at a time if that is what is refused."""
        if self.most_choices == 1 or not _SEVERAL.search(said):
            return None
        named = _AT_MOST.search(said)
        limit = max(int(named[1]), 1) if named else 1
        self.most_choices = limit if self.most_choices is None or limit < self.most_choices else 1
        return self.changed(f"takes at most n = {self.most_choices}, so there are more requests, of fewer each")

    def without_field(self, said: str) -> str | None:
        """Leave out an optional field that is not wanted."""
        if not _NOT_WANTED.search(said):
            return None
        for field, consequence in self._optional.items():
            if field not in self.left_out and names(said, field):
                self.left_out.add(field)
                return self.changed(f"does not take {field}, which is left out{consequence}")
        return None

    def choices(self, n: int) -> int:
        """How many of `n` continuations a request asks for."""
        return n if self.most_choices is None else min(n, self.most_choices)


class Adapting:
    """A teacher's part that changes with what its server refuses."""

    _continuation: Continuation
    _learned: Learned

    @property
    def continuation(self) -> Continuation:
        return self._continuation

    @property
    def most_choices(self) -> int | None:
        return self._learned.most_choices

    @property
    def form(self) -> int:
        return self._learned.form
