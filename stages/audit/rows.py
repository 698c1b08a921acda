# pyright: strict
"""Rows of the rollouts table, and the end of a request in the ledger. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from ...store.ledger import NANO, Settlement, Usage
from .teacher import Answer, Rollout


@dataclass(frozen=True)
class Receipt:
    """What is known about a request beside its answer."""

    chunk_id: str
    request_id: str
    latency_s: float
    attempts: int
    continuation: str


def billed(receipt: Receipt, answer: Answer, indices: Sequence[int], nusd: int) -> Settlement:
    """The end of an answered request. A server that reports no usage cannot be settled; the worst case stands."""
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
    """Rows of an answer; the request's tokens and price are shared out so that the rows add up to the bill."""
    usage, n = answer.usage or Usage(), len(indices)
    return [
        _row(receipt, rollout, index, answer.model)
        | {
            "prompt_tokens": _share(usage.prompt_tokens, n, i),
            "cached_tokens": _share(usage.cached_tokens, n, i),
            "cache_write_tokens": _share(usage.cache_write_tokens, n, i),
            "completion_tokens": _share(usage.completion_tokens, n, i),
            "cost_usd": _share(nusd, n, i) / NANO,
        }
        for i, (index, rollout) in enumerate(zip(indices, answer.rollouts, strict=False))
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
