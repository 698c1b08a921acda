# pyright: strict
"""Tokens that a request is billed for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Usage:
    """What the server billed, in tokens of the teacher."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cache_write_tokens: int = 0
    """Of the prompt tokens: written to the cache, which some providers charge extra."""

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


NOTHING = Usage()
