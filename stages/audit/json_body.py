# pyright: strict
"""JSON as servers send it, which is not always the JSON that orjson takes."""

import json
import re
from typing import Any

import orjson

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def read_json(raw: bytes) -> Any:
    """Decode an answer. Half of a surrogate pair, or bytes that are no UTF-8, become U+FFFD: a broken character of a
    text that was paid for.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        try:
            text = json.dumps(json.loads(raw.decode(errors="replace")), ensure_ascii=False)
        except RecursionError as error:
            raise ValueError("it is nested too deep") from error
        return orjson.loads(_LONE_SURROGATE.sub("\ufffd", text))
