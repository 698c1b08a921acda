"""What a provider really bills, beside what the ledger charges and the cap, for each way in which the two may differ.

    python benchmarks/experiments/bills.py

The scripted teacher of the tests keeps a bill of its own. Each kind is a run of its own: `audit` until it ends, and the
same command once more. Prints a table in Markdown; a bill above its cap exits with 1.
"""

import contextlib
import io
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from aiohttp import web

from omniopd.stages.audit.stage import audit
from omniopd.store.errors import BudgetReached, OmniopdError
from omniopd.store.ledger_read import read_totals

sys.path.append(str(Path(__file__).parents[2] / "tests"))

from support.runs import GeneratedRounds, write_run
from support.scripted_teacher import ScriptedTeacher

CAP_TOKENS = 3000
PAUSE = "omniopd.stages.audit.sender.pause_s"

Usage = Callable[[dict[str, Any]], Any]


@dataclass(frozen=True)
class Kind:
    """A way in which a provider bills."""

    name: str
    says: Usage = lambda usage: usage
    """What it says that it bills, given the honest usage."""
    bills: Callable[[dict[str, Any]], int] = lambda usage: usage["prompt_tokens"] + usage["completion_tokens"]
    """Tokens that it bills for an answer."""
    status: int = 200
    """Of every other request; 0: the connection is closed."""
    worked: bool = True
    """Whether a request without a 200 is billed too."""


def ten_times(usage: dict[str, Any]) -> dict[str, Any]:
    return usage | {"completion_tokens": 10 * usage["completion_tokens"]}


def long(usage: dict[str, Any]) -> dict[str, Any]:
    return usage | {"prompt_tokens": 1000 + usage["prompt_tokens"]}


def total(usage: dict[str, Any]) -> int:
    return usage["prompt_tokens"] + usage["completion_tokens"]


KINDS = [
    Kind("honest"),
    Kind("ten times the completion (thinking)", ten_times, lambda usage: total(ten_times(usage))),
    Kind("1,000 prompt tokens more than bytes", long, lambda usage: total(long(usage))),
    Kind("no usage", lambda usage: None),
    Kind("`{}`", lambda usage: {}),
    Kind("zeros", lambda usage: {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}),
    Kind("nulls", lambda usage: {"prompt_tokens": None, "completion_tokens": None}),
    Kind("a total alone", lambda usage: {"total_tokens": total(usage)}),
    Kind("no prompt tokens", lambda usage: usage | {"prompt_tokens": 0}),
    Kind("no completion tokens beside a text", lambda usage: usage | {"completion_tokens": 0}),
    Kind("strings", lambda usage: {k: str(usage[k]) for k in ("prompt_tokens", "completion_tokens")}),
    Kind("floats", lambda usage: {k: float(usage[k]) for k in ("prompt_tokens", "completion_tokens")}),
    Kind("garbage", lambda usage: {"prompt_tokens": "many", "completion_tokens": -5}),
    Kind("cached above prompt", lambda usage: usage | {"prompt_tokens_details": {"cached_tokens": 10_000_000}}),
    *(Kind(f"{status}, billed", status=status) for status in (408, 502, 504, 524)),
    Kind("closed after sending, billed", status=0),
    *(Kind(f"{status}, free", status=status, worked=False) for status in (429, 500, 503, 529)),
]


@dataclass
class Result:
    """What a kind came to, in tokens."""

    billed: int = 0
    charged: int = 0
    rows: int = 0
    end: str = ""


def measure(kind: Kind, folder: Path, generated: GeneratedRounds) -> Result:
    """Audit a round at such a provider, twice."""
    teacher, result = ScriptedTeacher(), Result()
    honest = teacher.answer

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        out = honest(body)
        result.billed += kind.bills(out["usage"])
        return out | {"usage": kind.says(out["usage"])}

    def behave(body: dict[str, Any], number: int) -> Any:
        if kind.status == 200 or number % 2:
            return None
        if kind.worked:
            result.billed += kind.bills(honest(body)["usage"])
        return web.json_response({"error": "no"}, status=kind.status) if kind.status else "hang up"

    teacher.answer, teacher.behave = answer, behave
    run = write_run(folder, teacher={"base_url": teacher.base_url, "max_concurrency": 1, "budget_tokens": CAP_TOKENS})
    generated(run)
    try:
        for _ in range(2):
            try:
                audit(run, 0, run.config())
                result.end = "all asked"
            except BudgetReached:
                result.end = "budget reached"
            except OmniopdError as error:
                result.end = type(error).__name__
    finally:
        teacher.stop()
    result.charged, result.rows = read_totals(run.ledger).charged_tokens, run.round(0).rollouts.manifest.rows
    return result


def main() -> int:
    worst = 0
    print(f"| provider | true bill | ledger | cap | over the cap | rollouts | end |\n|{'---|' * 7}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "generated").mkdir()
        generated = GeneratedRounds(folder / "generated")
        for place, kind in enumerate(KINDS):
            with contextlib.redirect_stderr(io.StringIO()), patch(PAUSE, lambda attempt, asked: 0.0):
                result = measure(kind, folder / f"run{place}", generated)
            over = max(0, result.billed - CAP_TOKENS)
            worst = max(worst, over)
            print(
                f"| {kind.name} | {result.billed:,} | {result.charged:,} | {CAP_TOKENS:,} | {over:,} | {result.rows} |"
                f" {result.end} |",
                flush=True,
            )
    return int(worst > 0)


if __name__ == "__main__":
    sys.exit(main())
