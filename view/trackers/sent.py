# pyright: strict
"""What a tracker was told already: metrics/trackers/NAME.json. A value that changes (a round that is scored again) is
told again, and nothing else twice."""

import json
import uuid
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from ...store import files
from .points import ChunkTable, Point


@dataclass
class Sent:
    """The state of one tracker's run."""

    path: Path
    place: str
    """Which server and project; at another one everything is told afresh."""
    id: str = ""
    """The tracker's name for the run. It moves with the run directory."""
    digests: dict[str, int] = field(default_factory=dict[str, int])

    @classmethod
    def load(cls, path: Path, place: str) -> "Sent":
        """What was told at a place, or nothing yet. A new run has an id that is free."""
        if path.is_file():
            known = json.loads(path.read_text(encoding="utf-8"))
            if known["place"] == place:
                return cls(path, place, known["id"], known["digests"])
        return cls(path, place, uuid.uuid4().hex[:16])

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(
            self.path, json.dumps({"place": self.place, "id": self.id, "digests": self.digests}, sort_keys=True)
        )

    def news(self, points: list[Point]) -> list[Point]:
        """Those that were not told as they are now."""
        return [point for point in points if self.digests.get(_name(point)) != _digest(point.values)]

    def new_tables(self, tables: list[ChunkTable]) -> list[ChunkTable]:
        """As `news`."""
        return [table for table in tables if self.digests.get(_name(table)) != _digest(table.rows)]

    def told(self, item: Point | ChunkTable) -> None:
        """Remember it; `save` keeps it."""
        self.digests[_name(item)] = _digest(item.values if isinstance(item, Point) else item.rows)


def _name(item: Point | ChunkTable) -> str:
    return f"{item.group}/{item.at}" if isinstance(item, Point) else f"chunks/{item.round}"


def _digest(content: object) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
