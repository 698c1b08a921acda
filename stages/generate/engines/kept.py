"""One engine for several shares of a round."""

import contextlib
from collections.abc import Callable

from ....store.config import Config
from ..engine import Engine
from .registry import make_engine


class KeptEngine:
    """Gives the engine that it made when it was first asked. The engine ends with its process."""

    def __init__(self) -> None:
        self._engine: Engine | None = None

    def __call__(
        self, folder: str, config: Config, longest_prompt: int, say: Callable[[str], None]
    ) -> contextlib.AbstractContextManager[Engine]:
        if self._engine is None:
            self._engine = make_engine(folder, config, longest_prompt, say=say)
        return contextlib.nullcontext(self._engine)
