# pyright: strict
"""What a dialect of teacher API must do: write a request, read an answer. Pure; sending is client.py's part."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ...method.objectives.registry import objective_of
from ...store.config import Config
from ...store.conversation import Conversation
from ...store.sections import TeacherConfig
from ...store.usage import Usage

Continuation = Literal["completion", "prefill", "instruct"]


@dataclass(frozen=True)
class Ask:
    """Continue a prefix `n` times."""

    conversation: Conversation
    """What the student was asked."""
    prompt_text: str
    """The prompt as the student read it."""
    prefix: str
    """The student's response up to the chunk."""
    n: int
    max_tokens: int
    seed: int | None = None
    cuts: tuple[int, ...] = ()
    """Lengths, in characters and rising, of the shorter prefixes of the same response that are audited too."""
    holds_bos: bool = False
    """Whether `prompt_text` begins with the token that begins a sequence, so that the server must not add another."""


@dataclass(frozen=True)
class HttpRequest:
    """A POST with a JSON body."""

    path: str
    """Under the base URL."""
    body: Mapping[str, Any]


@dataclass(frozen=True)
class Rollout:
    """One continuation, or the typed reason why there is none."""

    status: Literal["ok", "refused", "filtered", "empty", "failed"]
    text: str | None
    finish_reason: str | None
    """As the server said. Of a teacher that thought and wrote nothing else: `thinking`, a colon, and what it said."""


@dataclass(frozen=True)
class Answer:
    """What came back for one Ask; there may be fewer rollouts than asked for."""

    model: str
    rollouts: list[Rollout]
    usage: Usage | None
    """None where the server said nothing usable about it."""


class Teacher(Protocol):
    """One dialect, for one model, with one way to continue a prefix. The form of its requests changes only in `adapt`,
    which learns from refusals what this server and model take."""

    why: str
    """Why it is continued so, for a person to read."""
    base_urls: tuple[str, ...]
    """Servers of the same model, without a slash at the end."""
    headers: Mapping[str, str]
    caches_after_first: bool
    """Whether a prompt can be read from a cache only once the first request with it was answered."""
    thinking_off: str
    """How to turn its thinking off, as a hint for a person: what to set."""

    @property
    def continuation(self) -> Continuation: ...

    @property
    def most_choices(self) -> int | None:
        """How many continuations one request may ask for; None where the API names no limit. A request for more than
        that asks for so many."""
        ...

    @property
    def form(self) -> int:
        """How often the form of the requests has changed: one that was refused in an earlier form is sent again."""
        ...

    def adapt(self, status: int, body: Any) -> str | None:
        """Learn from a refusal that names what is wrong with the form of a request, such as a parameter that the model
        does not take.

        Args:
            body: The decoded JSON of the refusal, or its text.

        Returns:
            What requests are like from now on, for a person to read; None where nothing has changed.
        """
        ...

    def request(self, ask: Ask) -> HttpRequest: ...

    def parse(self, body: Any, ask: Ask) -> Answer:
        """Read the decoded JSON of a 200 answer.

        Raises:
            ValueError: it is not of the dialect's form.
        """
        ...

    def worst_case(self, ask: Ask) -> Usage:
        """An upper bound of what a request can be billed for, in teacher tokens."""
        ...


@dataclass(frozen=True)
class Reply:
    """What a server says to a question that costs nothing."""

    status: int
    body: Any
    """Decoded JSON; None where the answer is not JSON."""


class Http(Protocol):
    """How a dialect looks at its server before the first request.

    Both raise TeacherError where nobody answers.
    """

    async def get(self, url: str, headers: Mapping[str, str]) -> Reply: ...

    async def post(self, url: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> Reply: ...


class Find(Protocol):
    """How a dialect finds a teacher."""

    async def __call__(self, config: TeacherConfig, http: Http) -> Teacher:
        """Check, without spending a token, that the teacher is there, and choose how it continues a prefix.

        Raises:
            TeacherError: nobody answers, the key is refused, the model is not there, or the config asks for what the
                API cannot do.
        """
        ...


def _no_limit(model: str) -> int | None:
    return None


@dataclass(frozen=True)
class Dialect:
    """One kind of teacher: what the registry holds. What it states beside `find` is known without asking a server, so
    that `plan` can tell what a round will cost; an installed package may leave it out, and the defaults hold:
    any continuation, any number of choices, and a price that goes by teacher.base_url."""

    find: Find
    continuations: tuple[Continuation, ...] = ("completion", "prefill", "instruct")
    """The ways in which teachers of this kind may be made to continue a prefix."""
    most_choices: Callable[[str], int | None] = _no_limit
    """How many continuations one request to a model may ask for; None where the API names no limit."""
    key: str = ""
    """Environment variable of its key; "" where it has none."""
    key_hosts: tuple[str, ...] | None = ()
    """Hosts that answer nobody without a key; None: all of them do not."""
    price_provider: str | None = None
    """Whose prices of the genai-prices table hold at the dialect's own address. None: it has no address of its own that
    costs money. Elsewhere teacher.base_url says who it is."""


def max_tokens_for(config: Config, chunk_tokens: int, paying: int | None = None) -> int:
    """Teacher tokens to ask for: tokenizers differ, so a chunk of C student tokens may be longer in the teacher's.
    What is too long is cut to the chunk's length when it is scored. A whole answer may be as long as a response, and so
    may a draft.

    Args:
        paying: Length of a draft that pays; None: nobody knows yet.
    """
    teacher, objective = config.teacher, objective_of(config)
    whole = config.generate.max_new_tokens
    if objective.weights_from == "drafts":
        wanted = min(paying or whole, whole) if teacher.draft_tokens == "adaptive" else teacher.draft_tokens
        return min(wanted, teacher.max_tokens or wanted)
    if objective.asks == "answers":
        return teacher.max_tokens or whole
    return teacher.max_tokens or chunk_tokens + chunk_tokens // 2 + 8
