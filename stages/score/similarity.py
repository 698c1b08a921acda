"""Similarity of a student chunk and a teacher rollout (φ of Eq. 3), for whole columns at a time. Pure.

Each distinct unit (a word, a symbol, a character) becomes one code point, so that rapidfuzz compares sequences of
units as it compares strings.
"""

from itertools import pairwise
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cpdist

Unit = Literal["word", "char"]

_UNIT_PATTERN = {"word": r"\w+|[^\w\s]", "char": r"(?s)."}
_SURROGATES = range(0xD800, 0xE000)
"""Code points that no string may hold."""


def edit(chunks: pa.ChunkedArray, rollouts: pa.ChunkedArray, unit: Unit) -> pa.DoubleArray:
    """1 - Levenshtein distance / length of the longer, in units (Navarro, 2001); null where the chunk has no unit.

    Texts are normalised to NFC. A rollout longer than its chunk is cut to the chunk's length in units: tokenizers
    differ, so the teacher was asked for more than enough.
    """
    chunk_units, rollout_units = encode(chunks, rollouts, unit)
    cut = [rollout[: len(chunk)] for chunk, rollout in zip(chunk_units, rollout_units, strict=True)]
    phi = cpdist(chunk_units, cut, scorer=Levenshtein.normalized_similarity, dtype=np.float64)
    return pa.array(phi, mask=np.array([not units for units in chunk_units], dtype=np.bool_))


def encode(chunks: pa.ChunkedArray, rollouts: pa.ChunkedArray, unit: Unit) -> tuple[list[str], list[str]]:
    """Both columns with one code point for each unit; equal units have equal code points."""
    # DuckDB may evaluate a function on rows that it filters out afterwards, whose text is null.
    both = pl.concat([_texts(chunks), _texts(rollouts)]).fill_null("")
    units = both.str.normalize("NFC").str.extract_all(_UNIT_PATTERN[unit])
    lengths = units.list.len().to_numpy()
    codes = units.explode(empty_as_null=False).drop_nulls().rank("dense").to_numpy().astype(np.uint32)
    codes[codes >= _SURROGATES.start] += len(_SURROGATES)
    encoded = _split(codes, lengths)
    return encoded[: len(chunks)], encoded[len(chunks) :]


def _texts(column: pa.ChunkedArray) -> pl.Series:
    series = pl.from_arrow(column)
    assert isinstance(series, pl.Series)
    return series.alias("text")


def _split(codes: NDArray[np.uint32], lengths: NDArray[np.uint32]) -> list[str]:
    text = codes.astype("<u4").tobytes().decode("utf-32-le")
    offsets = [0, *np.cumsum(lengths, dtype=np.int64).tolist()]
    return [text[start:end] for start, end in pairwise(offsets)]


METRICS = {"edit": edit}
"""Every φ by its name in the config."""
