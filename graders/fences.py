# pyright: strict
"""The program in a response: which of its fenced code blocks, and what the block holds. Pure."""

import re
import textwrap
from collections.abc import Iterator

_OPEN = re.compile(r"(?P<before>(?:(?!```|~~~).)*)(?P<fence>`{3,}|~{3,})[ \t]*[{.]*(?P<tag>[\w+#.-]*)[^`]*")
_ITEM = re.compile(r"[ \t]*([-*+]|\d+[.)])?[ \t]*")
"""What may stand before the fence of a block that is indented as far: nothing, or the mark of a list item."""
_PYTHON = re.compile(r"(py|python|pypy)[23]?(\.\d+)*", re.IGNORECASE)
_CODE_INDENT = 4
"""A fence indented this far in its block is part of the code, say of a docstring (CommonMark 4.5)."""


def extract_program(response: str) -> str | None:
    """The last block that is tagged as Python, else the last block without a tag; after the thoughts of a response,
    where they are marked. None where there is neither.

    A block without its closing fence is none: the response was cut off.
    """
    blocks = list(_blocks(response.rpartition("</think>")[2].replace("\r\n", "\n").split("\n")))
    tagged = [code for tag, code in blocks if _PYTHON.fullmatch(tag)]
    untagged = [code for tag, code in blocks if not tag]
    return next(iter([*tagged[::-1], *untagged[::-1]]), None)


def _blocks(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Tag and code of each block. A fence may begin behind text in its line, and end behind the last line of code."""
    rest = iter(lines)
    for line in rest:
        opening = _OPEN.fullmatch(line)
        if opening is None:
            continue
        fence, before = opening["fence"], opening["before"]
        indent = len(before) if _ITEM.fullmatch(before) else 0
        code: list[str] = []
        for inner in rest:
            last, fences, after = inner.partition(fence)
            closes = bool(fences) and not after.strip(fence[0]).strip()
            if closes and (last.strip() or len(last) < indent + _CODE_INDENT):
                yield opening["tag"], _unindented([*code, last], indent)
                break
            code.append(inner)


def _unindented(code: list[str], indent: int) -> str:
    lines = [re.sub(rf"^[ \t]{{0,{indent}}}", "", line) for line in code]
    return textwrap.dedent("\n".join(lines))
