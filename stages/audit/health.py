# pyright: strict
"""Is it the prompt or the teacher? When retrying cannot help, the stage ends instead of failing chunk after chunk."""

from collections.abc import Sequence

from ...store.errors import OmniopdError, StorageError, TeacherError
from ...store.storage import OPEN_FILES
from .client import Outcome

_REFUSED_BEFORE_GIVING_UP = 10
"""Chunks in a row, without a success between, that may be refused for good."""
_EXHAUSTED_BEFORE_GIVING_UP = 3
"""Chunks in a row, without a success between, that may run out of attempts: then it is the teacher, not the prompt."""


class TeacherHealth:
    """What the requests so far say about the teacher itself."""

    def __init__(self, base_urls: Sequence[str]) -> None:
        self._url = ", ".join(base_urls)
        self._succeeded = False
        self._refused_in_a_row = 0
        self._exhausted_in_a_row = 0

    def answered(self) -> None:
        self._succeeded = True
        self._refused_in_a_row = self._exhausted_in_a_row = 0

    def gave_up(self, outcome: Outcome) -> OmniopdError | None:
        """A chunk is given up with this last outcome: the error that ends the stage, or None where the others may still
        be answered."""
        if outcome.out_of_files:
            return StorageError(
                "No connection to the teacher can be opened: too many open files.",
                f"{OPEN_FILES}, then run the same command again.",
            )
        if outcome.from_elsewhere:
            return TeacherError(
                f"What is at {self._url} is no teacher: {outcome.problem}.",
                "Set teacher.base_url to the address of the API itself, or fix the proxy on the way.",
            )
        if outcome.about_account:
            return TeacherError(
                f"The teacher at {self._url} refuses the account: {outcome.problem}.",
                "Top up or fix the account, then run the same command again.",
            )
        if outcome.status in (401, 403, 404):
            return TeacherError(
                f"The teacher at {self._url} refuses: {outcome.problem}.",
                "Check the key, the URL and the model id, then run the same command again.",
            )
        if outcome.worth_retrying:
            self._exhausted_in_a_row += 1
            if self._exhausted_in_a_row < _EXHAUSTED_BEFORE_GIVING_UP:
                return None
            return TeacherError(
                f"The teacher at {self._url} has stopped answering ({outcome.problem}).",
                "Run the same command again once it is back.",
            )
        self._refused_in_a_row += 1
        if self._refused_in_a_row < _REFUSED_BEFORE_GIVING_UP:
            return None
        every = "has begun to refuse" if self._succeeded else "refuses"
        return TeacherError(
            f"The teacher at {self._url} {every} every request: {outcome.problem}.",
            "Fix [teacher] or the account, then run the same command again.",
        )
