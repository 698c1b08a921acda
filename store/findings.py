# pyright: strict
"""What a check found out about one thing: is it as a run needs it, and if not, what to do."""

from dataclasses import dataclass
from typing import Literal

from .errors import OmniopdError, without_credentials

Verdict = Literal["ok", "warn", "fail"]
"""fail: the run cannot work like this. warn: it can, and somebody should know."""


@dataclass(frozen=True)
class Finding:
    """One line of `omniopd check`."""

    name: str
    """Of what was looked at, in a word or two."""
    verdict: Verdict
    value: str
    """What it is like, in a sentence without its full stop."""
    hint: str = ""
    """What to do, in a sentence; "" where there is nothing to do."""

    def __str__(self) -> str:
        line = f"{self.verdict:<5} {self.name:<12} {self.value}{f'. {self.hint}' if self.hint else ''}"
        return without_credentials(line)


def of_error(name: str, error: OmniopdError) -> Finding:
    """The finding of a check that raised an error which a user can fix."""
    return Finding(name, "fail", error.problem.rstrip("."), error.hint)
