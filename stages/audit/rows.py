# pyright: strict
"""Rows of the rollouts table, and the end of a request in the ledger. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from ...store.ledger import NANO, Settlement
from ...store.usage import Usage
from .teacher import Answer, Rollout


@dataclass(frozen=True)
class Receipt:
    """What is known about a request beside its answer."""

    chunk_id: str
    request_id: str
    latency_s: float
    attempts: int
    continuation: str


_MOST_TOKENS = 1 << 31
"""More than any request can have, and than the rollouts table can hold."""


def believable(usage: Usage | None, rollouts: Sequence[Rollout]) -> Usage | None:
    """What a server says that it billed, or None where that cannot be true, which is as good as no word about it: a
    prompt of no tokens, a text of none, a total alone, negative numbers. Of the prompt, no more than all of it can have
    been read from the cache or written to it."""
    if usage is None:
        return None
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    if not (0 < prompt < _MOST_TOKENS and 0 <= completion < _MOST_TOKENS):
        return None
    if completion == 0 and any(rollout.text for rollout in rollouts):
        return None
    cached, written = usage.cached_tokens, usage.cache_write_tokens
    if cached >= 0 and written >= 0 and cached + written <= prompt:
        return usage
    cached = min(max(cached, 0), prompt)
    written = min(max(written, 0), prompt - cached)
    hour = min(usage.cache_write_1h_tokens, written)
    return replace(usage, cached_tokens=cached, cache_write_tokens=written, cache_write_1h_tokens=hour)


def billed(receipt: Receipt, answer: Answer, indices: Sequence[int], nusd: int) -> Settlement:
    """The end of an answered request. One without a believable usage cannot be settled: the worst case is charged, and
    the rows are kept."""
    state = "unknown" if answer.usage is None else "settled"
    rows = rollout_rows(receipt, answer, indices, nusd)
    return Settlement(receipt.request_id, state, answer.usage or Usage(), nusd, orjson.dumps(rows))


def unbilled(receipt: Receipt, known: bool, failed: Sequence[int] = (), problem: str = "") -> Settlement:
    """The end of a request without a usable answer.

    Args:
        known: Whether the server is known not to have done the work.
        failed: Rollouts that are given up.
    """
    rows = [_row(receipt, Rollout("failed", None, problem), index, None) for index in failed]
    return Settlement(
        receipt.request_id, "released" if known else "unknown", payload=orjson.dumps(rows) if rows else None
    )


def rollout_rows(receipt: Receipt, answer: Answer, indices: Sequence[int], nusd: int) -> list[dict[str, Any]]:
    """Rows of an answer; the request's tokens and price are shared out so that the rows add up to the bill. They are
    null where nobody knows the bill."""
    rows = [
        _row(receipt, rollout, index, answer.model) for index, rollout in zip(indices, answer.rollouts, strict=False)
    ]
    usage, n = answer.usage, len(indices)
    if usage is None:
        return rows
    return [
        row
        | {
            "prompt_tokens": _share(usage.prompt_tokens, n, i),
            "cached_tokens": _share(usage.cached_tokens, n, i),
            "cache_write_tokens": _share(usage.cache_write_tokens, n, i),
            "completion_tokens": _share(usage.completion_tokens, n, i),
            "cost_usd": _share(nusd, n, i) / NANO,
        }
        for i, row in enumerate(rows)
    ]


def _row(receipt: Receipt, rollout: Rollout, index: int, model: str | None) -> dict[str, Any]:
    return {
        "chunk_id": receipt.chunk_id,
        "rollout_index": index,
        "teacher": model,
        "text": rollout.text,
        "status": rollout.status,
        "finish_reason": rollout.finish_reason,
        "latency_s": receipt.latency_s,
        "attempts": receipt.attempts,
        "continuation": receipt.continuation,
        "request_id": receipt.request_id,
    }


def _share(total: int, n: int, i: int) -> int:
    return total // n + (i < total % n)
