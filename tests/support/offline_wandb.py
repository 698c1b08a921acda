"""What Weights & Biases has stored offline, read as `wandb sync` would: its own records out of its own log format.

The file is a LevelDB log behind a header of seven bytes: blocks of 32 KiB, in which a record (or a piece of it) follows
seven bytes that hold its checksum, its length and which piece it is.
"""

import json
import struct
import time
from pathlib import Path
from typing import Any

_HEADER, _BLOCK = 7, 32768
_WHOLE, _LAST = 1, 4


def records(folder: Path) -> list[Any]:
    """The records of all offline runs below metrics/wandb, in the order in which they were written."""
    return [record for path in sorted(folder.glob("offline-run-*/*.wandb")) for record in _records(path)]


def _records(path: Path) -> list[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    deadline = time.monotonic() + 20
    # The package's own process writes the end a moment after `finish` has returned.
    while True:
        pieces, whole = _pieces(path.read_bytes())
        if whole and pieces:
            found = [Record.FromString(piece) for piece in pieces]
            if found[-1].WhichOneof("record_type") == "exit":
                return found
        assert time.monotonic() < deadline, f"{path} has no end"
        time.sleep(0.05)


def history(folder: Path) -> list[dict[str, Any]]:
    """The rows that were logged; what a value consists of stands below its name."""
    rows = []
    for record in records(folder):
        if record.WhichOneof("record_type") == "history":
            row: dict[str, Any] = {}
            for item in record.history.item:
                *above, name = item.nested_key or [item.key]
                within = row
                for key in above:
                    within = within.setdefault(key, {})
                within[name] = json.loads(item.value_json)
            rows.append(row)
    return rows


def tables(folder: Path) -> dict[str, dict[str, Any]]:
    """The tables that were logged, by name."""
    found = {}
    for row in history(folder):
        for name, value in row.items():
            if isinstance(value, dict) and value.get("_type") == "table-file":
                found[name] = json.loads(next(folder.glob(f"offline-run-*/files/{value['path']}")).read_text())
    return found


def _pieces(content: bytes) -> tuple[list[bytes], bool]:
    """The records, and whether the last one is whole."""
    out, record, at = [], b"", _HEADER
    while at + 7 <= len(content):
        if _BLOCK - at % _BLOCK < 7:
            at += _BLOCK - at % _BLOCK
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (_WHOLE, _LAST):
            out.append(record)
            record = b""
    return out, at == len(content)
