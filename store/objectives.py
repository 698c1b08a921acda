# pyright: strict
"""What the config and the tables have to know of a training objective, as data.

The objectives themselves are in method/objectives, above this package, and register there. Importing `omniopd` fills
REGISTERED, so whoever reads a config finds them all: docs/decisions/0022-objectives-are-records.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Refusal:
    """A value that an objective gives no meaning."""

    key: str
    """Such as "teacher.rollouts"."""
    value: Any
    problem: str
    hint: str


@dataclass(frozen=True, kw_only=True)
class ObjectiveRules:
    """One objective, as far as the store goes."""

    name: str
    """Value of train.objective."""
    required: tuple[str, ...] = ()
    """Config keys without which a run cannot begin, beside those that every run needs."""
    refused: tuple[Refusal, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Its own defaults of config keys, such as {"teacher.rollouts": 1}, for those that the user does not set."""
    own_tables: tuple[str, ...] = ()
    """Tables that hold something else than omniopd's under the same settings, beside the shards, which always do. All
    others may be shared by the arms of a study."""


REGISTERED: dict[str, ObjectiveRules] = {}
