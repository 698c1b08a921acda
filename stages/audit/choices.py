# pyright: strict
"""How many continuations one request may ask for; some servers ignore `n`, or give fewer than they are asked for."""


class Choices:
    """One short answer may be chance: fewer are asked for at a time once two in a row bring the same smaller number.

    Args:
        most: As far as it is known beforehand.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._short: int | None = None
        """How many continuations the last answer had, if fewer than were asked for."""

    def limit(self, most: int) -> None:
        """Ask for no more than this from here on."""
        self.most = min(self.most, most)

    def saw(self, asked: int, came: int) -> None:
        """Take in an answer."""
        if came < asked:
            if came == self._short:
                self.limit(came)
            self._short = came
        elif self._short is not None and asked > self._short:
            self._short = None
