"""omniopd: on-policy distillation from a teacher that returns only text (OmniOPD, arXiv 2606.01476)."""

# Fills the registry that every config is checked against, whichever part of the package is used first.
from .method.objectives import registry as _registry  # noqa: F401

__version__ = "0.1.0"
