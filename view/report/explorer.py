"""The trajectories of a report as one compressed block, small enough that a thousand of them fit into a page.

All text of models reaches the page in this block or through the escaping template, never as HTML.
"""

import base64
import hashlib
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import duckdb
import orjson

from ...store.conversation import Conversation
from ...store.tokens import Decode
from ..agreement import agreement, share
from ..render import is_whole
from ..token_texts import pieces
from .figures import Row, rows

HEAT = (0.1, 0.5, 1.0, 2.0)
"""A token's level is how many of these its entropy reaches, nats."""

_MOST_BYTES = 3_600_000
"""Of the block, in base64."""
_DETAILS = ((60_000, 6), (20_000, 6), (8_000, 4), (3_000, 3), (1_500, 2), (1_000, 1), (500, 0))
"""Characters of a response and distinct rollouts of a chunk that are kept, tried in turn until the block is small
enough."""
_TRIED_ON = 20
"""Every how many trajectories are measured to predict the size of a block."""
_AT_A_TIME = 200


@dataclass(frozen=True)
class Block:
    """The block, and how much of the run is in it."""

    data: str
    """base64 of raw deflate of JSON: a list of trajectories as `_Written.entry` makes them."""
    shown: int
    total: int
    rounds: list[int]
    finishes: list[str]


def block(db: duckdb.DuckDBPyConnection, most: int, decode: Decode | None) -> Block:
    """At most `most` trajectories, drawn evenly from all rounds, the same ones every time."""
    ((total,),) = db.execute("SELECT count(*) FROM trajectories").fetchall()
    drawn = rows(
        db,
        """
        SELECT trajectory_id, round, finish_reason FROM (
            SELECT trajectory_id, round, finish_reason,
                row_number() OVER (PARTITION BY round ORDER BY md5(trajectory_id)) AS place
            FROM trajectories
        ) ORDER BY place, round LIMIT ?
        """,
        [most],
    )
    drawn.sort(key=lambda row: (row["round"], row["trajectory_id"]))
    ids = [row["trajectory_id"] for row in drawn]
    texts = [
        _Written(row, chunks, answers, decode)
        for first in range(0, len(ids), _AT_A_TIME)
        for row, chunks, answers in _read(db, ids[first : first + _AT_A_TIME], decode)
    ]
    detail = next((d for d in _DETAILS if _estimate(texts, *d) <= _MOST_BYTES), _DETAILS[-1])
    data = ""
    for characters, answers in _DETAILS[_DETAILS.index(detail) :]:
        data = _packed([text.entry(characters, answers) for text in texts])
        if len(data) <= _MOST_BYTES:
            break
    while len(data) > _MOST_BYTES:
        # Not even so little of each: fewer of them.
        texts = texts[::2]
        data = _packed([text.entry(*_DETAILS[-1]) for text in texts])
    rounds, finishes = (sorted({row[name] for row in drawn}) for name in ("round", "finish_reason"))
    return Block(data, len(texts), total, rounds, finishes)


def _estimate(texts: "Sequence[_Written]", characters: int, answers: int) -> float:
    tried = texts[::_TRIED_ON]
    return len(_packed([text.entry(characters, answers) for text in tried])) * len(texts) / max(len(tried), 1)


def _packed(entries: list[Row]) -> str:
    compressor = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    return base64.b64encode(compressor.compress(orjson.dumps(entries)) + compressor.flush()).decode()


def _read(
    db: duckdb.DuckDBPyConnection, ids: list[str], decode: Decode | None
) -> list[tuple[Row, list[Row], dict[str, list[Row]]]]:
    """Trajectories with their chunks, and the distinct rollouts of these."""
    found = rows(
        db,
        "SELECT trajectory_id, round, sample_index, question, messages, tools, response_text, response_ids, entropies,"
        " finish_reason, repetition, tokens, mean_entropy, mean_weight, min_weight FROM trajectories_scored"
        " WHERE list_contains(?, trajectory_id)",
        [ids],
    )
    chunks: dict[str, list[Row]] = defaultdict(list)
    query = "SELECT * FROM chunks_scored WHERE list_contains(?, trajectory_id) ORDER BY start"
    for chunk in rows(db, query, [ids]):
        chunks[chunk["trajectory_id"]].append(chunk)
    answers = rollouts_of(db, [chunk["chunk_id"] for own in chunks.values() for chunk in own], decode)
    by_id = {row["trajectory_id"]: row for row in found}
    return [(by_id[id_], chunks[id_], answers) for id_ in ids]


def rollouts_of(db: duckdb.DuckDBPyConnection, chunk_ids: list[str], decode: Decode | None) -> dict[str, list[Row]]:
    """Distinct rollouts of each chunk with how often they came, the most frequent first; of a draft, how many of its
    characters were accepted."""
    query = (
        "SELECT chunk_id, text, status, ids, accepted, count(*) AS times"
        " FROM rollouts LEFT JOIN drafts USING (chunk_id, rollout_index)"
        " WHERE list_contains(?, chunk_id) GROUP BY ALL"
    )
    out: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows(db, query, [chunk_ids]), key=lambda r: (r["text"] is None, -r["times"], r["text"] or "")):
        out[row["chunk_id"]].append(row)
        if row["accepted"] is not None and decode is not None:
            row["kept"] = len(decode(row["ids"][: row["accepted"]]))
    return out


def marked(chunk: Row, rollout: Row) -> Row:
    """A rollout for the page: times, share that agrees, and its pieces (text, kind), or its status without a text. A
    whole answer (sft) is compared with nothing, and a draft is cut where the policy rejects it."""
    if rollout["text"] is None:
        return {"times": rollout["times"], "status": rollout["status"]}
    if is_whole(chunk):
        return {"times": rollout["times"], "share": None, "parts": [(rollout["text"], "whole")]}
    if rollout.get("kept") is not None:
        text, kept = rollout["text"], rollout["kept"]
        accepted = rollout["accepted"] / max(1, len(rollout["ids"]))
        parts = [(text[:kept], "same"), (text[kept:], "beyond")]
        return {"times": rollout["times"], "share": round(accepted, 3), "parts": parts}
    parts = agreement(chunk["chunk_text"], rollout["text"], chunk["unit"] or "word")
    return {"times": rollout["times"], "share": round(share(parts), 3), "parts": parts}


class _Written:
    """One trajectory, cut and marked once, written out as long as there is room for."""

    def __init__(self, row: Row, chunks: list[Row], answers: dict[str, list[Row]], decode: Decode | None) -> None:
        self._row = row
        self._asked = str(Conversation.read(row["messages"], row["tools"], row["question"]))
        self._chunks = chunks
        self._answers = [answers[chunk["chunk_id"]] for chunk in chunks]
        self._spans = [(len(c["prefix_text"]), len(c["prefix_text"]) + len(c["chunk_text"])) for c in chunks]
        self._segments = _segments(row, self._spans, decode)

    def entry(self, characters: int, answers: int) -> Row:
        """What the page knows of the trajectory."""
        row = self._row
        pairs = zip(self._chunks, self._answers, strict=True)
        return {
            "id": row["trajectory_id"], "round": row["round"], "sample": row["sample_index"],
            "question": self._asked[:characters], "finish": row["finish_reason"], "tokens": row["tokens"],
            "entropy": _short(row["mean_entropy"]), "repetition": _short(row["repetition"]),
            "weight": _short(row["mean_weight"]), "lowest": _short(row["min_weight"]),
            "text": _elided(self._segments, self._spans, characters), 
            "chunks": [_chunk(chunk, found, answers) for chunk, found in pairs],
        }  # fmt: skip


def _chunk(chunk: Row, answers: list[Row], most: int) -> Row:
    return {
        "rank": chunk["rank"], "anchor": chunk["anchor"], "entropy": _short(chunk["anchor_entropy"]),
        "prior": _short(chunk["prior"]), "weight": _short(chunk["pi_teacher"]), "low": _short(chunk["pi_low"]),
        "high": _short(chunk["pi_high"]), "n": chunk["n"], "whole": is_whole(chunk),
        "rollouts": [marked(chunk, answer) for answer in answers[:most]],
        "more": sum(answer["times"] for answer in answers[most:]),
    }  # fmt: skip


Segment = tuple[int, int, int, int, str]
"""First character, one past the last, level of entropy, chunk or -1, text."""


def _segments(row: Row, spans: Sequence[tuple[int, int]], decode: Decode | None) -> list[Segment]:
    """The response; neighbours that look the same are one."""
    out: list[tuple[int, int, int, int]] = []
    at, text = 0, row["response_text"]
    edges = sorted({edge for span in spans for edge in span})
    for piece, entropy in pieces(row["response_text"], row["response_ids"], row["entropies"], decode):
        level = sum(entropy >= least for least in HEAT)
        inner = [edge for edge in edges if at < edge < at + len(piece)]
        for first, last in pairwise([at, *inner, at + len(piece)]):
            chunk = next((i for i, (start, end) in enumerate(spans) if start <= first < end), -1)
            if out and out[-1][2:] == (level, chunk):
                out[-1] = (out[-1][0], last, level, chunk)
            else:
                out.append((first, last, level, chunk))
        at += len(piece)
    return [(first, last, level, chunk, text[first:last]) for first, last, level, chunk in out]


def _elided(segments: list[Segment], spans: Sequence[tuple[int, int]], characters: int) -> list[Any]:
    """Segments as [text, level, chunk]; a number stands for that many characters that are left out.

    All of a response that fits; else its beginning, its end and what is around the chunks.
    """
    length = segments[-1][1] if segments else 0
    if length <= characters:
        return [[text, level, chunk] for *_, level, chunk, text in segments]
    around = max((characters - sum(end - start for start, end in spans)) // (2 * len(spans) + 2), 40)
    windows = [(0, around), *((start - around, end + around) for start, end in spans), (length - around, length)]
    out: list[Any] = []
    for first, last, level, chunk, text in segments:
        at = first
        while at < last:
            inside = any(start <= at < end for start, end in windows)
            borders = [edge for window in windows for edge in window if at < edge < last]
            until = min(borders, default=last)
            if inside:
                out.append([text[at - first : until - first], level, chunk])
            elif out and isinstance(out[-1], int):
                out[-1] += until - at
            else:
                out.append(until - at)
            at = until
    return out


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def sha256_source(text: str) -> str:
    """What a content security policy calls a script or style by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
