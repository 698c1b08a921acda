# pyright: strict
"""What a mirror holds, as values: an index names every file of a run by the hash of its content, and says how much the
run may have spent. Pure."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from ..ledger import NANO, Budget

VERSION = 1
_SHA256 = re.compile("[0-9a-f]{64}")
INDEXES = "index/"
_SHARE = 50
"""A block is this part of a budget."""
_UNCAPPED_NUSD, _UNCAPPED_TOKENS = NANO, 1_000_000
"""A block where there is no budget, at least."""
_UNCAPPED_SHARE = 10


@dataclass(frozen=True)
class Blob:
    """The content of a file."""

    sha256: str
    size: int

    @classmethod
    def of(cls, content: bytes) -> "Blob":
        return cls(hashlib.sha256(content).hexdigest(), len(content))

    @property
    def name(self) -> str:
        """Where it is in a mirror."""
        return f"blobs/{self.sha256[:2]}/{self.sha256}"


@dataclass(frozen=True)
class Block:
    """How much a run may have spent when the next index is written, in all: reserved here before it is spent."""

    nusd: int = 0
    tokens: int = 0
    round: int = 0
    teacher: str = ""
    """Who spends it, on which round."""

    def covers(self, nusd: int, tokens: int) -> bool:
        return nusd <= self.nusd and tokens <= self.tokens

    def grown(self, nusd: int, tokens: int, budget: Budget, round_: int, teacher: str) -> "Block":
        """One that covers these amounts, with something to spare of what it did not cover, within the budget."""
        return Block(
            self.nusd if nusd <= self.nusd else _with_headroom(nusd, budget.nusd, _UNCAPPED_NUSD),
            self.tokens if tokens <= self.tokens else _with_headroom(tokens, budget.tokens, _UNCAPPED_TOKENS),
            round_,
            teacher,
        )


def _with_headroom(needed: int, cap: int | None, least: int) -> int:
    if cap is None:
        return needed + max(least, needed // _UNCAPPED_SHARE)
    return max(needed, min(cap, needed + cap // _SHARE))


@dataclass(frozen=True)
class Index:
    """All files of a run at one moment."""

    run: str
    """Of which run: drawn when it was first mirrored."""
    number: int
    nonce: str = ""
    """Drawn for each index, so that its writer knows it again."""
    host: str = ""
    """Where it was written."""
    files: Mapping[str, Blob] = field(default_factory=dict[str, Blob])
    """By their path in the run directory."""
    block: Block = Block()
    charged_nusd: int = 0
    charged_tokens: int = 0
    """What the ledger among the files says that was spent."""
    version: int = VERSION

    @property
    def name(self) -> str:
        return f"{INDEXES}{self.number:08d}.json"

    @property
    def blobs(self) -> set[Blob]:
        return set(self.files.values())

    def next(self, nonce: str, host: str, **changes: Any) -> "Index":
        return replace(self, number=self.number + 1, nonce=nonce, host=host, **changes)

    def to_json(self) -> bytes:
        return (json.dumps(asdict(self), sort_keys=True) + "\n").encode()

    @classmethod
    def of_json(cls, content: bytes) -> "Index":
        """
        Raises:
            ValueError: it is none, or one of a newer version; or it names a file outside of a run directory.
        """
        try:
            raw: dict[str, Any] = json.loads(content)
            if raw["version"] > VERSION:
                raise ValueError(f"it has version {raw['version']}, newer than {VERSION}: upgrade omniopd")
            files = {path: Blob(**blob) for path, blob in raw.pop("files").items()}
            index = cls(files=files, block=Block(**raw.pop("block")), **raw)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is damaged: {error}") from error
        for path, blob in index.files.items():
            if not _SHA256.fullmatch(blob.sha256):
                raise ValueError(f"it is damaged: {blob.sha256!r} is no hash")
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                raise ValueError(f"it names {path!r}, which is no file of a run directory")
        return index
