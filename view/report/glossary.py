# pyright: strict
"""The terms of docs/glossary.md, for whoever reads a report and nothing else."""

import functools
import re
from pathlib import Path

_GLOSSARY = Path(__file__).parents[2] / "docs" / "glossary.md"
"""The wheel has it too."""

_MARKUP = re.compile(r"\[([^\]]*)\]\([^)]*\)|`([^`]*)`|(?<!\\)\*([^*]+)(?<!\\)\*")


OF_CHARTS = {
    "accuracy": "Pass@1", "chunk-loss": "OmniOPD", "kl": "trust-region anchor", "nll": "audited",
    "entropy-steps": "entropy", "entropy-rounds": "entropy", "weight-steps": "pi_teacher (π̂_teacher)",
    "weight-rounds": "pi_teacher (π̂_teacher)", "weight": "pi_teacher (π̂_teacher)", "phi-rounds": "phi (φ)",
    "phi": "phi (φ)", "prior": "prior (π̄)", "anchor_entropy": "anchor (of a chunk)", "accepted-rounds": "draft",
    "repetition-rounds": "repetition", "repetition": "repetition", "length-rounds": "trajectory",
    "length": "trajectory", "reward-rounds": "GRPO", "signal-rounds": "GRPO",
}  # fmt: skip
"""The term that explains a chart, by the chart's name."""


@functools.cache
def terms() -> list[tuple[str, str]]:
    """Each term or symbol with its meaning, as plain text, in the order of the document."""
    lines = _GLOSSARY.read_text(encoding="utf-8").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return [(_plain(row[0]), _plain(row[1])) for row in rows if row[0] != "term"]


def meaning(term: str) -> str:
    """What the glossary says of a term, by the name that it has there."""
    return dict(terms())[term]


def _plain(text: str) -> str:
    """Markdown without its marks."""
    return _MARKUP.sub(lambda match: match[1] or match[2] or match[3], text).replace("\\*", "*")
