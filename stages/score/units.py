# pyright: strict
"""Texts as sequences of units: words and symbols, characters, or student tokens; whole columns at a time. Pure.

Each distinct unit becomes one code point, so that rapidfuzz compares sequences of units as it compares strings, and
NumPy counts them as integers. A text that occurs often (a chunk beside each of its rollouts) is read once.

Shapes: P pairs, D distinct texts, U units of all distinct texts together.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Unit = Literal["word", "char", "token"]

_SURROGATES = range(0xD800, 0xE000)
"""Code points that no string may hold."""
_CODE_POINTS = 0x110000
_SPACE, _WORD, _SYMBOL = 0, 1, 2


class Encoder(Protocol):
    """One way to cut texts into units."""

    def encode(self, texts: list[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Code points of the units [U] of D texts in NFC, one after the other, and each text's number of units [D]."""
        ...

    def cut(self, text: str, units: int) -> str:
        """The beginning of a text in NFC, up to the end of so many units."""
        ...


@dataclass(frozen=True)
class Pairs:
    """P pairs of a student chunk and a teacher rollout, each a window of `codes_U`.

    A rollout longer than its chunk is cut to the chunk's length in units: tokenizers differ, so the teacher was asked
    for more than enough.
    """

    codes_U: NDArray[np.uint32]
    """A code point for each unit; equal units have equal codes."""
    chunk_start_P: NDArray[np.int64]
    chunk_length_P: NDArray[np.int64]
    rollout_start_P: NDArray[np.int64]
    rollout_length_P: NDArray[np.int64]
    rollout_text: Callable[[int], str]
    """Text of pair i's rollout, cut as well."""
    chunk_text: Callable[[int], str]
    """Text of pair i's chunk, in NFC."""

    def __len__(self) -> int:
        return len(self.chunk_start_P)

    @functools.cached_property
    def chunks(self) -> list[str]:
        """The chunks with one character for each unit."""
        return self._windows(self.chunk_start_P, self.chunk_length_P)

    @functools.cached_property
    def rollouts(self) -> list[str]:
        """The rollouts, cut, with one character for each unit."""
        return self._windows(self.rollout_start_P, self.rollout_length_P)

    @functools.cached_property
    def _units(self) -> str:
        return self.codes_U.astype("<u4").tobytes().decode("utf-32-le")

    def _windows(self, start_P: NDArray[np.int64], length_P: NDArray[np.int64]) -> list[str]:
        units = self._units
        return [units[a:b] for a, b in zip(start_P.tolist(), (start_P + length_P).tolist(), strict=True)]


def pairs_of(chunks: pa.StringArray, rollouts: pa.StringArray, encoder: Encoder) -> Pairs:
    """Cut two columns of equal length into units; a null is an empty text."""
    # DuckDB may evaluate a function on rows that it filters out afterwards, whose text is null.
    both = pc.fill_null(pa.concat_arrays([chunks, rollouts]), "").dictionary_encode()
    texts = _nfc(both.dictionary).to_pylist()
    codes_U, length_D = encoder.encode(texts)
    start_D = np.cumsum(length_D) - length_D
    index = both.indices.to_numpy()
    chunk_P, rollout_P = index[: len(chunks)], index[len(chunks) :]
    chunk_length_P = length_D[chunk_P]
    rollout_length_P = np.minimum(length_D[rollout_P], chunk_length_P)

    def rollout_text(i: int) -> str:
        text = texts[rollout_P[i]]
        return text if length_D[rollout_P[i]] == rollout_length_P[i] else encoder.cut(text, int(rollout_length_P[i]))

    return Pairs(
        codes_U, start_D[chunk_P], chunk_length_P, start_D[rollout_P], rollout_length_P,
        rollout_text, lambda i: texts[chunk_P[i]],
    )  # fmt: skip


def _nfc(texts: pa.StringArray) -> pa.StringArray:
    other = pc.invert(pc.string_is_ascii(texts))
    if not pc.any(other).as_py():
        return texts
    return pc.replace_with_mask(texts, other, pc.utf8_normalize(texts.filter(other), form="NFC"))


class WordUnits:
    r"""Words and symbols: `\w+|[^\w\s]` in Unicode's sense of `\w` and `\s` (letters, marks, digits, connectors)."""

    def encode(self, texts: list[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        points, length_D = _code_points(texts)
        kinds = _kinds().take(points)
        word = kinds == _WORD
        begins = word.copy()
        begins[1:] &= ~word[:-1]
        firsts = (np.cumsum(length_D) - length_D)[length_D > 0]
        begins[firsts] = word[firsts]
        begins |= kinds == _SYMBOL
        kept = np.flatnonzero(kinds != _SPACE)
        starts = np.flatnonzero(begins.take(kept))
        units_D = np.diff(np.searchsorted(kept[starts], np.cumsum(length_D)), prepend=0)
        return _shift(_intern(points.take(kept), starts)), units_D

    def cut(self, text: str, units: int) -> str:
        end = 0
        points, _ = _code_points([text])
        kinds = _kinds().take(points)
        for _ in range(units):
            while kinds[end] == _SPACE:
                end += 1
            end += 1
            while kinds[end - 1] == _WORD and end < len(kinds) and kinds[end] == _WORD:
                end += 1
        return text[:end]


class CharUnits:
    """Characters (code points), spaces too."""

    def encode(self, texts: list[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        return _code_points(texts)

    def cut(self, text: str, units: int) -> str:
        return text[:units]


class TokenUnits:
    """Tokens of the student, each text encoded on its own and without special tokens."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer: Any = tokenizer

    def encode(self, texts: list[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        rows = self._ids(texts)
        length_D = np.array([len(row) for row in rows], dtype=np.int64)
        flat = np.fromiter((id_ for row in rows for id_ in row), dtype=np.uint32, count=int(length_D.sum()))
        return _shift(flat), length_D

    def cut(self, text: str, units: int) -> str:
        return self._tokenizer.decode(self._ids([text])[0][:units], clean_up_tokenization_spaces=False)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self._tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []


def _code_points(texts: list[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    points = np.frombuffer("".join(texts).encode("utf-32-le"), dtype="<u4")
    return points, np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))


def _intern(points: NDArray[np.uint32], starts: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Number the distinct units; a unit is the code points from its start to the next one's."""
    offsets = np.append(starts, len(points)).astype(np.int32) * points.itemsize
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(points))]
    units = cast("Any", pa.Array).from_buffers(pa.binary(), len(starts), buffers)
    return units.dictionary_encode().indices.to_numpy().astype(np.uint32)


def _shift(numbers: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Numbers as code points, past the surrogates."""
    return numbers + np.where(numbers >= _SURROGATES.start, np.uint32(len(_SURROGATES)), np.uint32(0))


@functools.cache
def _kinds() -> NDArray[np.uint8]:
    """For each code point: space, part of a word, or a symbol of its own, as the regular expression has it."""
    points = np.array([i for i in range(_CODE_POINTS) if i not in _SURROGATES])
    characters = pl.Series([chr(i) for i in points.tolist()])
    kinds = np.full(_CODE_POINTS, _SYMBOL, dtype=np.uint8)
    kinds[points[characters.str.contains(r"^\w$").to_numpy()]] = _WORD
    kinds[points[characters.str.contains(r"^\s$").to_numpy()]] = _SPACE
    return kinds
