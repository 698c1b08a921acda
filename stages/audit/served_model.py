# pyright: strict
"""Which model answers."""

import re
import sys


def same_model(asked: str, answered: str) -> bool:
    """Whether an answer's model id is the one asked for, or a dated version of it."""
    return re.fullmatch(re.escape(asked) + r"([-@:](\d[\w.-]*|latest))?", answered) is not None


class ModelWatch:
    """Says so, once, when another model answers; its id is in each row."""

    def __init__(self, asked: str) -> None:
        self._asked = asked
        self._warned = False

    def saw(self, answered: str) -> None:
        if not self._warned and answered and not same_model(self._asked, answered):
            self._warned = True
            sys.stderr.write(
                f"asked for {self._asked}, and {answered} answers; the rollouts' column `teacher` tells which\n"
            )
