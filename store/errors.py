# pyright: strict
"""One exception tree. Each member says what is wrong and what to do about it, and knows its exit code.

Exit codes: 2 usage (also what typer uses for a wrong flag), 3 bad input, 4 budget reached, 130 interrupted.
"""

import re

_CREDENTIALS = re.compile(r"(?<=://)[^/\s\"']*@")


def without_credentials(text: str) -> str:
    """A text whose URLs keep their hosts and lose their users and passwords."""
    return _CREDENTIALS.sub("***@", text)


_LONGEST = 500


def first_line(said: BaseException | str) -> str:
    """What an error of another library says, to be quoted in a sentence of ours: its first line that is not blank,
    without the full stop, at most 500 characters of it; of an error without words the name of its class."""
    line = next((line.strip() for line in str(said).splitlines() if line.strip()), "")
    if not line and isinstance(said, BaseException):
        line = type(said).__name__
    return line.rstrip(".") if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"


class OmniopdError(Exception):
    """Base of all errors that a user can fix; the command line prints them as one line, without a traceback."""

    exit_code = 3

    def __init__(self, problem: str, hint: str) -> None:
        self.problem = without_credentials(problem)
        self.hint = without_credentials(hint)
        super().__init__(f"{self.problem} {self.hint}")

    def __reduce__(self) -> tuple[type["OmniopdError"], tuple[str, str]]:
        # Errors travel between processes, and Exception would be made again of the whole line.
        return type(self), (self.problem, self.hint)


class UsageError(OmniopdError, ValueError):
    """The command line itself is wrong."""

    exit_code = 2


class ConfigError(OmniopdError, ValueError):
    """config.toml or --set does not describe a run."""


class ConfigChangedError(OmniopdError, ValueError):
    """A table was begun under other settings than the present ones."""


class InputError(OmniopdError, ValueError):
    """Prompts, model or rows given by the user cannot be used."""


class TableError(OmniopdError, ValueError):
    """A table in the run directory is missing, damaged, incomplete or newer than this version."""


class StorageError(OmniopdError, OSError):
    """The system refuses to store something: a full disk, a read-only file system, no permission, too few open files.
    What was stored before is whole."""


class MirrorError(StorageError):
    """The mirror of a run cannot be reached, or refuses: another run or another writer has it. The run itself is
    whole."""


class BusyError(OmniopdError, RuntimeError):
    """Another process is writing the same stage of the same round."""


class TeacherError(OmniopdError, ConnectionError):
    """The teacher cannot be reached or refuses every request."""


class BudgetReached(OmniopdError):
    """The budget does not cover another request. A normal end: all that was paid for is in the tables."""

    exit_code = 4


class Interrupted(OmniopdError):
    """Ctrl-C. What was done is kept."""

    exit_code = 130
