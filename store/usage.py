# pyright: strict
"""Tokens of a request, as a provider counts them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Usage:
    """What the server billed, in tokens of the teacher."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cache_write_tokens: int = 0
    """Of the prompt tokens: written to the cache, which some providers charge extra."""
    cache_write_1h_tokens: int = 0
    """Of those, kept for an hour instead of some minutes."""

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


NO_USAGE = Usage()
"""No tokens."""
