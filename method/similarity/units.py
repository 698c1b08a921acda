"""Texts as sequences of units: words and symbols, characters, digits, or student tokens; whole columns at a time. Pure.

docs/similarity.md says what a unit is in which script.

Each distinct unit becomes one code point, so that rapidfuzz compares sequences of units as it compares strings, and
NumPy counts them as integers. A chunk, which occurs beside each of its rollouts, is read once.

Shapes: P pairs, D texts (each chunk once, and all rollouts), U units of all texts together.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_compute: Any = pyarrow.compute  # its functions are made at import, out of a type checker's sight

_UNSPACED = "".join(
    rf"\p{{{script}}}"
    for script in (
        *("Han", "Hiragana", "Katakana", "Bopomofo", "Tangut", "Nushu", "Khitan_Small_Script", "Yi"),
        *("Thai", "Lao", "Khmer", "Myanmar", "Tai_Le", "New_Tai_Lue", "Tai_Tham", "Tai_Viet", "Ahom"),
        *("Javanese", "Balinese"),
    )
)
"""Scripts that put no space between words: those whose letters are no ALetter in UAX #29 (ideographs, kana, and what
Line_Break calls SA, for which it asks for a dictionary), and Yi, Javanese and Balinese, which it leaves out."""
_SHARED = r"\u3006\u3031-\u3035\u303c\u3099\u309a\u30fc\uff70\uff9e\uff9f"
"""Letters and marks that Japanese alone uses, but that Unicode calls common to several scripts: the long-vowel mark,
repeat marks, voicing. Script_Extensions would add combining accents of Latin to them."""
_CHARACTER = rf"[{_UNSPACED}{_SHARED}&&[\p{{L}}\p{{M}}\p{{Nl}}]]"
"""Decimal digits of these scripts make numbers, as others do."""
WORD_PATTERN = rf"{_CHARACTER}|[\w--{_CHARACTER}]+|[^\w\s\u200b]"
"""A unit of the kind "word", in the syntax of Polars' regular expressions. The zero-width space is a space: it stands
between words in scripts that show none."""

_SURROGATES = range(0xD800, 0xE000)
"""Code points that no string may hold."""
_CODE_POINTS = 0x110000
_SPACE, _WORD, _SYMBOL, _INSIDE_SYMBOL = range(4)
_DIGITS = "0123456789"
_KEY_BYTES = 8
_KEY_MASKS = np.array([(1 << 8 * n) - 1 for n in range(_KEY_BYTES + 1)], dtype=np.uint64)
"""Keep so many bytes of a little-endian integer."""
_LONG = np.uint64(0xFF << 56)
"""Marks the key of a long unit: 0xFF is no byte of UTF-8."""


class Encoder(Protocol):
    """One way to cut texts into units."""

    def encode(self, texts: pa.StringArray) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
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
    chunk_text: Callable[[int], str]
    """Text of pair i's chunk, in NFC."""
    rollout_text: Callable[[int], str]
    """Text of pair i's rollout, cut as well."""

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
    distinct = _compute.fill_null(chunks, "").dictionary_encode()
    units = units_of(pa.concat_arrays([distinct.dictionary, _compute.fill_null(rollouts, "")]), encoder)
    start_D, length_D = units.start_D, units.length_D
    chunk_P = distinct.indices.to_numpy()
    rollout_P = np.arange(len(distinct.dictionary), len(length_D))
    chunk_length_P = length_D[chunk_P]
    rollout_length_P = np.minimum(length_D[rollout_P], chunk_length_P)
    return Pairs(
        units.codes_U, start_D[chunk_P], chunk_length_P, start_D[rollout_P], rollout_length_P,
        lambda i: units.text(int(chunk_P[i]), int(chunk_length_P[i])),
        lambda i: units.text(int(rollout_P[i]), int(rollout_length_P[i])),
    )  # fmt: skip


@dataclass(frozen=True)
class Units:
    """D texts in NFC, cut into units."""

    codes_U: NDArray[np.uint32]
    """A code point for each unit, of one text after the other; equal units have equal codes."""
    length_D: NDArray[np.int64]
    texts: pa.StringArray
    encoder: Encoder

    @functools.cached_property
    def start_D(self) -> NDArray[np.int64]:
        """Where each text's units begin."""
        return np.cumsum(self.length_D) - self.length_D

    def text(self, number: int, units: int) -> str:
        """The first units of a text."""
        text = self.texts[number].as_py()
        return text if self.length_D[number] == units else self.encoder.cut(text, units)


def units_of(texts: pa.StringArray, encoder: Encoder) -> Units:
    """Cut texts into units."""
    texts = _nfc(texts)
    return Units(*encoder.encode(texts), texts, encoder)


def _nfc(texts: pa.StringArray) -> pa.StringArray:
    other = _compute.invert(_compute.string_is_ascii(texts))
    if not _compute.any(other).as_py():
        return texts
    return _compute.replace_with_mask(texts, other, _compute.utf8_normalize(texts.filter(other), form="NFC"))


class WordUnits:
    r"""Words and symbols: `\w+|[^\w\s]` in Unicode's sense of `\w` and `\s` (letters, marks, digits, connectors); in
    scripts without spaces each character (code point) is a word: `WORD_PATTERN`.
    """

    def encode(self, texts: pa.StringArray) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        data, end_D = _utf8(texts)
        start_U, end_U = _word_bounds(data, end_D)
        number_U = _intern(data, start_U, end_U)
        return _shift(number_U), np.diff(np.searchsorted(start_U, end_D), prepend=0)

    def cut(self, text: str, units: int) -> str:
        data, end_D = _utf8(pa.array([text]))
        _, end_U = _word_bounds(data, end_D)
        return data[: end_U[units - 1] if units else 0].tobytes().decode()


class CharUnits:
    """Characters (code points), spaces too."""

    def encode(self, texts: pa.StringArray) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        data, _ = _utf8(texts)
        return _code_points(data), _compute.utf8_length(texts).to_numpy().astype(np.int64)

    def cut(self, text: str, units: int) -> str:
        return text[:units]


class DigitUnits:
    """The digits 0 to 9, and nothing else: texts that differ in wording alone are equal (Remark 4.5)."""

    def encode(self, texts: pa.StringArray) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        data, end_D = _utf8(texts)
        (at_U,) = np.nonzero((data >= ord("0")) & (data <= ord("9")))  # no byte of a longer character is below 0x80
        return data[at_U].astype(np.uint32), np.diff(np.searchsorted(at_U, end_D), prepend=0)

    def cut(self, text: str, units: int) -> str:
        ends = [i + 1 for i, character in enumerate(text) if character in _DIGITS]
        return text[: ends[units - 1] if units else 0]


class TokenUnits:
    """Tokens of the student, each text encoded on its own and without special tokens."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer: Any = tokenizer

    def encode(self, texts: pa.StringArray) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        rows = self._ids(texts.to_pylist())
        length_D = np.array([len(row) for row in rows], dtype=np.int64)
        flat = np.fromiter((id_ for row in rows for id_ in row), dtype=np.uint32, count=int(length_D.sum()))
        return _shift(flat), length_D

    def cut(self, text: str, units: int) -> str:
        return self._tokenizer.decode(self._ids([text])[0][:units], clean_up_tokenization_spaces=False)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self._tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []


def _utf8(texts: pa.StringArray) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The bytes of all texts, one after the other, and where each text ends [D]."""
    if len(texts) == 0:
        return np.zeros(0, dtype=np.uint8), np.zeros(0, dtype=np.int64)
    _, offsets, data = texts.buffers()
    offset_D1 = np.frombuffer(offsets, dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    first, last = int(offset_D1[0]), int(offset_D1[-1])
    # Arrow gives no buffer where there is no byte.
    return np.frombuffer(data or b"", dtype=np.uint8)[first:last], offset_D1[1:] - first


def _code_points(data: NDArray[np.uint8]) -> NDArray[np.uint32]:
    return np.frombuffer(data.tobytes().decode().encode("utf-32-le"), dtype="<u4")


def _word_bounds(data: NDArray[np.uint8], end_D: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First byte of each word or symbol, and one past its last [U]."""
    kinds = _byte_kinds(data)
    # Neighbours are compared across the texts first, and the ends of texts put right after.
    filled = np.diff(end_D, prepend=0) > 0
    last_D = end_D[filled] - 1
    first_D = np.concatenate([end_D[:0], [0], last_D + 1])[: len(last_D)]
    word, space = kinds == _WORD, kinds == _SPACE
    begins = word.copy()
    begins[1:] &= ~word[:-1]
    begins[first_D] = word[first_D]
    begins |= kinds == _SYMBOL
    ends = ~space
    ends[:-1] &= (begins | space)[1:]
    ends[last_D] = ~space[last_D]
    return np.flatnonzero(begins), np.flatnonzero(ends) + 1


def _byte_kinds(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What each byte of UTF-8 belongs to."""
    if data.max(initial=0) < 0x80:
        return np.frombuffer(data.tobytes().translate(_ascii_kinds()), dtype=np.uint8)
    points = _code_points(data)
    bytes_of = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)
    kinds = np.repeat(_kinds().take(points), bytes_of)
    kinds[(kinds == _SYMBOL) & (data & 0xC0 == 0x80)] = _INSIDE_SYMBOL
    return kinds


def _intern(data: NDArray[np.uint8], start_U: NDArray[np.int64], end_U: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Number the distinct units. A unit of up to 8 bytes is its own key, as an integer; a longer one has a key that no
    UTF-8 can have, with its own number in it."""
    # An integer at every byte; the zeros let the last ones reach past the end.
    padded = data.tobytes() + bytes(_KEY_BYTES)
    window = np.ndarray((len(data) + 1,), dtype="<u8", buffer=padded, strides=(1,))
    length_U = end_U - start_U
    key_U = window[start_U] & _KEY_MASKS.take(np.minimum(length_U, _KEY_BYTES))
    long = np.flatnonzero(length_U > _KEY_BYTES)
    offsets = np.concatenate([[0], np.cumsum(length_U[long])])
    position = np.arange(offsets[-1]) + np.repeat(start_U[long] - offsets[:-1], length_U[long])
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(data.take(position))]
    units = cast("Any", pa.Array).from_buffers(pa.binary(), len(long), buffers)
    key_U[long] = _LONG | units.dictionary_encode().indices.to_numpy().astype(np.uint64)
    return pa.array(key_U).dictionary_encode().indices.to_numpy().astype(np.uint32)


def _shift(number_U: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Numbers as code points, past the surrogates."""
    if number_U.max(initial=0) < _SURROGATES.start:
        return number_U
    return number_U + np.where(number_U >= _SURROGATES.start, np.uint32(len(_SURROGATES)), np.uint32(0))


@functools.cache
def _ascii_kinds() -> bytes:
    return _kinds()[:0x100].tobytes()


@functools.cache
def _kinds() -> NDArray[np.uint8]:
    """For each code point: space, part of a word, or a symbol of its own, as the regular expression has it."""
    points = np.array([i for i in range(_CODE_POINTS) if i not in _SURROGATES])
    characters = pl.Series([chr(i) for i in points.tolist()])
    kinds = np.full(_CODE_POINTS, _SYMBOL, dtype=np.uint8)
    kinds[points[characters.str.contains(rf"^[\w--{_CHARACTER}]$").to_numpy()]] = _WORD
    kinds[points[characters.str.contains(r"^[\s\u200b]$").to_numpy()]] = _SPACE
    return kinds
