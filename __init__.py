"""omniopd: on-policy distillation from a teacher that returns only text (OmniOPD, arXiv 2606.01476)."""

from typing import TYPE_CHECKING, Any

# Fills the registry that every config is checked against, whichever part of the package is used first.
from .method.objectives import registry as _registry  # noqa: F401

if TYPE_CHECKING:
    from .run import Run

__version__ = "0.1.0"
__all__ = ["Run"]


def __getattr__(name: str) -> Any:
    # Not at import: the config's models take a quarter of a second, which `--help` and the workers do without.
    if name == "Run":
        from .run import Run

        return Run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
