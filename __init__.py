"""omniopd: on-policy distillation from a teacher that returns only text (OmniOPD, arXiv 2606.01476)."""

__version__ = "0.1.0"
