# pyright: strict
"""The rule of DAPO: the text after the last `Answer:`, normalised, must be the reference, normalised. Pure.

What the normalisation does follows Minerva (Lewkowycz et al. 2022, appendix D) as DAPO uses it (arXiv 2503.14476; verl,
reward_score/math_dapo.py), its oddities included, so that figures can be compared: it is a comparison of texts, and
takes 1/2 for another answer than 0.5. DAPO looks at the last 300 characters only, to be fast; so does this.
"""

import re
from collections.abc import Mapping
from typing import Any

from .verdict import Verdict

_TAIL = 300
_ANSWER = re.compile(r"(?i)Answer\s*:\s*([^\n]+)")

_REPLACED = (
    ("an ", ""), ("a ", ""), (".$", "$"), ("\\$", ""), ("\\ ", ""), (" ", ""), ("mbox", "text"), (",\\text{and}", ","),
    ("\\text{and}", ","), ("\\text{m}", "\\text{}"),
)  # fmt: skip
_REMOVED = (
    "square", "ways", "integers", "dollars", "mph", "inches", "hours", "km", "units", "\\ldots", "sue", "points",
    "feet", "minutes", "digits", "cents", "degrees", "cm", "gm", "pounds", "meters", "meals", "edges", "students",
    "childrentickets", "multiples", "\\text{s}", "\\text{.}", "\\text{\ns}", "\\text{}^2", "\\text{}^3",
    "\\text{\n}", "\\text{}", "\\mathrm{th}", "^\\circ", "^{\\circ}", "\\;", ",\\!", "{,}", '"', "\\dots",
)  # fmt: skip
_REWRITTEN = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(.*?)(\$)(.*?)(\$)(.*)", r"$\3$"),  # what stands between dollars is the answer
        (r"(\\text\{)(.*?)(\})", r"\2"),
        (r"(\\textbf\{)(.*?)(\})", r"\2"),
        (r"(\\overline\{)(.*?)(\})", r"\2"),
        (r"(\\boxed\{)(.*)(\})", r"\2"),
        (r"(frac)([^{])(.)", r"frac{\2}{\3}"),  # \frac12
        (r"(sqrt)([^{])", r"sqrt{\2}"),
    )
)


class DapoRegex:
    """Grades by the text of the final answer."""

    name = "dapo_regex"
    settings: Mapping[str, Any] = {"version": 1}

    def grade(self, response: str, reference: str) -> Verdict:
        """Whether the response's final answer is the reference."""
        found = _ANSWER.findall(response[-_TAIL:])
        if not found:
            return Verdict(False, "no_answer")
        answer = normalise(found[-1])
        right = answer == normalise(reference)
        return Verdict(right, "right" if right else "wrong", answer)

    def close(self) -> None:
        """It holds nothing."""


def normalise(answer: str) -> str:
    """A final answer without units, spaces, dollars and other ways of writing the same."""
    answer = answer.rpartition("=")[2]
    for before, after in _REPLACED:
        answer = answer.replace(before, after)
    for removed in _REMOVED:
        answer = answer.replace(removed, "")
    for pattern, replacement in _REWRITTEN:
        answer = pattern.sub(replacement, answer)
    answer = answer.replace("$", "")
    if answer.replace(",", "").isdigit():
        answer = answer.replace(",", "")
    return answer.strip()
