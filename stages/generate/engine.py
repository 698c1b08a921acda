"""What an engine must do."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...store.errors import InputError


@dataclass(frozen=True)
class Request:
    """One response to sample."""

    trajectory_id: str
    """Names the response and seeds its random stream."""
    prompt_ids: tuple[int, ...]


@dataclass(frozen=True)
class Sampling:
    """How to sample."""

    max_new_tokens: int
    temperature: float
    top_p: float
    stop_ids: frozenset[int]


@dataclass(frozen=True)
class Response:
    """One sampled response of T tokens. The stop token, if there is one, is its last token."""

    trajectory_id: str
    ids_T: NDArray[np.int32]
    logprobs_T: NDArray[np.float32]
    """Log-prob of each token under the raw distribution at temperature 1, nats."""
    entropies_T: NDArray[np.float32]
    """Entropy over the full vocabulary at each token (Eq. 6), nats."""
    finish_reason: str
    """stop | length"""


Pulse = Callable[[int, int], None]
"""Told while responses grow: how many are in work, and how many tokens they grew by since it was told last."""


def unheard(running: int, tokens: int) -> None:
    """Nobody listens."""


class Engine(Protocol):
    """Samples responses. Responses come in any order, each as soon as the engine can give it."""

    @property
    def name(self) -> str:
        """Engine, version and precision."""
        ...

    @property
    def entropy_source(self) -> str:
        """The name, and which way the entropies came. Recorded with every trajectory."""
        ...

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, pulse: Pulse = unheard
    ) -> Iterator[Response]: ...

    def close(self) -> None:
        """Give the device back: the trainer may want it next."""
        ...


def check_fits(requests: Sequence[Request], context: int) -> None:
    """Refuse a prompt that leaves no room for a response.

    Raises:
        InputError: a prompt is as long as the context or longer.
    """
    longest = max(requests, key=lambda request: len(request.prompt_ids))
    if len(longest.prompt_ids) >= context:
        raise InputError(
            f"A prompt has {len(longest.prompt_ids)} tokens, and the student's context is {context}.",
            f"Drop the longest ones with data.max_prompt_tokens (below {context}), or shorten data.template.",
        )
