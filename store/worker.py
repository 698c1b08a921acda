# pyright: strict
"""Which share of a table a worker writes, when several fill it without talking to each other."""

import re
from dataclasses import dataclass

from .errors import UsageError


@dataclass(frozen=True)
class Worker:
    """Worker `index` of `count`. The only worker, unless told otherwise."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UsageError(
                f"Shard {self.index}/{self.count} does not exist.",
                "Shards count from 0: --shard 0/4 to --shard 3/4.",
            )

    @classmethod
    def parse(cls, text: str) -> "Worker":
        """From `i/n`.

        Raises:
            UsageError: not of that form, or no such worker.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if match is None:
            raise UsageError(f"--shard {text} is not of the form i/n.", "Example: --shard 0/4.")
        return cls(int(match[1]), int(match[2]))

    @property
    def suffix(self) -> str:
        """What tells this worker's files from another's; empty for the only worker."""
        return "" if self.count == 1 else f".shard-{self.index:04d}-of-{self.count:04d}"

    @property
    def siblings(self) -> tuple["Worker", ...]:
        """All workers of the same table, this one included."""
        return tuple(Worker(index, self.count) for index in range(self.count))

    @classmethod
    def of_file(cls, name: str) -> "Worker":
        """The worker that wrote a file, from the file's name."""
        match = re.search(r"\.shard-(\d+)-of-(\d+)", name)
        return cls() if match is None else cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


ALONE = Worker()
"""The only worker."""
