# pyright: strict
"""The terms of docs/glossary.md, for whoever reads a report and nothing else."""

import re
from pathlib import Path

_GLOSSARY = Path(__file__).parents[2] / "docs" / "glossary.md"
"""The wheel has it too."""

_MARKUP = re.compile(r"\[([^\]]*)\]\([^)]*\)|`([^`]*)`|(?<!\\)\*([^*]+)(?<!\\)\*")


def terms() -> list[tuple[str, str]]:
    """Each term or symbol with its meaning, as plain text, in the order of the document."""
    lines = _GLOSSARY.read_text(encoding="utf-8").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return [(_plain(row[0]), _plain(row[1])) for row in rows if row[0] != "term"]


def _plain(text: str) -> str:
    """Markdown without its marks."""
    return _MARKUP.sub(lambda match: match[1] or match[2] or match[3], text).replace("\\*", "*")
