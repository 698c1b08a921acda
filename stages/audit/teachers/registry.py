# pyright: strict
"""Which kinds of teacher there are: the built-in ones, and those that installed packages register.

A package registers `kind = "its.module:DIALECT"` under the entry point group `omniopd.teachers`: a `Dialect` of
teacher.py, or its function `find` alone, which makes one with the defaults.
"""

import importlib
from importlib.metadata import entry_points
from typing import cast

from ....store.errors import ConfigError
from ..teacher import Dialect, Find

GROUP = "omniopd.teachers"

BUILT_IN = {"openai": ".openai", "anthropic": ".anthropic", "gemini": ".gemini"}
"""Module of each kind; its `DIALECT` is the dialect."""


def check_kind(kind: str) -> None:
    """Refuse a kind that nobody provides.

    Raises:
        ConfigError: there is no such kind.
    """
    if kind in BUILT_IN:  # no need to look through all that is installed
        return
    known = {*BUILT_IN, *entry_points(group=GROUP).names}
    if kind not in known:
        raise ConfigError(
            f"There is no teacher.kind {kind!r} (known here: {', '.join(sorted(known))}).",
            f"Set one of these, or install the package that registers it under the entry point group {GROUP}.",
        )


def find_dialect(kind: str) -> Dialect:
    """The dialect of a kind.

    Raises:
        ConfigError: there is no such kind.
    """
    check_kind(kind)
    if kind in BUILT_IN:
        return cast("Dialect", importlib.import_module(BUILT_IN[kind], __package__).DIALECT)
    found = cast("Dialect | Find", entry_points(group=GROUP)[kind].load())
    return found if isinstance(found, Dialect) else Dialect(found)
