# pyright: strict
"""Which objectives there are.

Another one is a file beside this one with its record, a line in `_BUILT_IN`, and its loss terms in train/objective.py.
"""

from typing import TYPE_CHECKING

from ...store.objectives import REGISTERED
from .draft import DRAFT
from .grpo import GRPO
from .omniopd import OMNIOPD
from .opd import OPD
from .record import Objective
from .sft import SFT

if TYPE_CHECKING:
    from ...store.config import Config

_BUILT_IN = (OMNIOPD, SFT, OPD, GRPO, DRAFT)


def register(objective: Objective) -> None:
    """Make an objective known under its name, to the config too."""
    REGISTERED[objective.name] = objective


def get(name: str) -> Objective:
    """The objective of a name; a config has only names that are registered."""
    objective = REGISTERED[name]
    assert isinstance(objective, Objective)
    return objective


def names() -> tuple[str, ...]:
    """All registered objectives."""
    return tuple(REGISTERED)


def objective_of(config: "Config") -> Objective:
    """The objective of a run."""
    return get(config.train.objective)


for _objective in _BUILT_IN:
    register(_objective)
