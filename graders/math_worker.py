"""A process that asks math-verify, line by line. It may hang: who started it kills it then. See math_pool.py.

Started as a script, so it imports nothing of ours. Lines in: {"reference": ..., "response": ...}. Lines out:
{"correct": ..., "found": whether an answer was found, "extracted": ...}; the first says that it is ready.
"""

import ctypes
import json
import logging
import os
import resource
import signal
import sys
from typing import Any

_MEMORY = 4 << 30
_LONGEST_SHOWN = 200
_SET_PDEATHSIG = 1


def main() -> None:
    """Answer until standard input ends."""
    ctypes.CDLL(None).prctl(_SET_PDEATHSIG, signal.SIGKILL)
    # Its parsers print; only answers may reach the parent.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    import math_verify

    logging.disable(logging.CRITICAL)
    ceiling = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, ceiling))
    answers.write("{}\n")
    answers.flush()
    # Until here errors are told; from here on nobody reads them, and a full pipe would look like a hang.
    os.dup2(1, 2)
    for line in sys.stdin:
        task = json.loads(line)
        answers.write(json.dumps(_grade(math_verify, task["reference"], task["response"])) + "\n")
        answers.flush()


def _grade(math_verify: Any, reference: str, response: str) -> dict[str, Any]:
    # Without math-verify's own time limits: they are signals, which do not interrupt what takes longest.
    gold = math_verify.parse(reference, parsing_timeout=None)
    answer = math_verify.parse(response, parsing_timeout=None)
    correct = math_verify.verify(gold, answer, timeout_seconds=None)
    # The text as it was found; turning the expression into text can take for ever.
    shown = next((part for part in reversed(answer) if isinstance(part, str)), "")
    return {"correct": bool(correct), "found": bool(answer), "extracted": shown[:_LONGEST_SHOWN]}


if __name__ == "__main__":
    main()
