# pyright: strict
"""Text that a model wrote, made safe to print on a terminal. Pure."""

import re

_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Control characters but newline and tab, marks that turn the writing direction or cannot be seen, lone surrogates.
The joiners U+200C and U+200D stay: several scripts need them."""
_DELETE = 0x7F


def printable(text: str) -> str:
    """The text with every character that could act on a terminal shown as a picture of itself: ESC as `␛`."""
    return _UNSAFE.sub(lambda match: _picture(ord(match[0])), text)


def one_line(text: str) -> str:
    """The same, and line ends as `⏎`."""
    return printable(text).replace("\n", "⏎").replace("\t", "⇥")


def _picture(point: int) -> str:
    if point < 0x20:
        return chr(0x2400 + point)
    return "␡" if point == _DELETE else f"‹U+{point:04X}›"
