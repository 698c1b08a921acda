# pyright: strict
"""Does the teacher answer at all? One that spends its tokens on thinking or on tools is billed and silent."""

from collections.abc import Iterable

from ...store.errors import TeacherError
from .teacher import Rollout
from .teachers.reply import THINKING

_IN_A_ROW = 20


class SilenceWatch:
    """Ends the stage when rollout after rollout is billed and has no text.

    Args:
        thinking_off: The hint that names the switch of this teacher.
    """

    def __init__(self, thinking_off: str) -> None:
        self._thinking_off = thinking_off
        self._silent = 0

    def saw(self, rollouts: Iterable[Rollout]) -> TeacherError | None:
        """Take in an answer: the error that ends the stage, or None."""
        for rollout in rollouts:
            if rollout.text is not None:
                self._silent = 0
            elif rollout.status == "failed":
                self._silent += 1
                if self._silent >= _IN_A_ROW:
                    return self._error(rollout.finish_reason or "no reason")
        return None

    def _error(self, reason: str) -> TeacherError:
        if reason.startswith(THINKING):
            return TeacherError(
                f"The teacher thinks and does not answer: {self._silent} rollouts in a row have no text ({reason}).",
                self._thinking_off,
            )
        return TeacherError(
            f"The teacher's answers have no text: {self._silent} rollouts in a row ({reason}).",
            "Look at them with `omniopd inspect`, and fix teacher.extra or teacher.max_tokens.",
        )
