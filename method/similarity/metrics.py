"""φ of Eq. 3: the similarity of a student chunk and a teacher rollout, in [0, 1], for whole columns at a time. Pure.

Every metric is a function of `Pairs`. Below, c is the number of units of the chunk and r that of the rollout, after it
was cut to c; the rollout is the reference and the chunk the candidate. An empty rollout is a miss (0) under every
metric, and an empty chunk is not judged (null).
"""

import importlib.metadata
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray
from rapidfuzz.distance import LCSseq, Levenshtein
from rapidfuzz.process import cpdist

from ...store.config import Config
from ...store.errors import InputError
from ...store.model import load_tokenizer, resolve_model
from ...store.sections import METRIC_GROUP, ScoreConfig
from .units import CharUnits, DigitUnits, Encoder, Pairs, TokenUnits, WordUnits, pairs_of

Metric = Callable[[Pairs], NDArray[np.float64]]
"""φ of each pair [P]. Installed packages add one under the entry point group `omniopd.metrics`."""

_compute: Any = pyarrow.compute  # its functions are made at import, out of a type checker's sight

_SLICE_BYTES = 4 << 20
"""Texts compared at a time. So few bytes cannot hold more distinct words than there are code points."""
_SLICE_PAIRS = 1 << 16


def similarities(metric: Metric, encoder: Encoder, chunks: pa.ChunkedArray, rollouts: pa.ChunkedArray) -> pa.Array:
    """φ of two columns of texts of equal length, as float64; null where the chunk has no unit.

    Raises:
        InputError: the metric gave something else than numbers in [0, 1].
    """
    parts: list[pa.Array] = []
    for first, last in _slices(chunks, rollouts):
        part = slice(first, last)
        pairs = pairs_of(_texts(chunks[part]), _texts(rollouts[part]), encoder)
        phi_P = np.asarray(metric(pairs), dtype=np.float64)
        if phi_P.shape != (len(pairs),) or not ((phi_P >= 0) & (phi_P <= 1)).all():
            raise InputError(
                f"The metric {getattr(metric, '__name__', metric)} gave values that are no numbers in [0, 1].",
                "Fix it, or set score.phi to another.",
            )
        phi_P = np.where(pairs.rollout_length_P == 0, 0.0, phi_P)
        parts.append(pa.array(phi_P, mask=pairs.chunk_length_P == 0))
    return pa.concat_arrays(parts) if parts else pa.array([], pa.float64())


def _slices(chunks: pa.ChunkedArray, rollouts: pa.ChunkedArray) -> list[tuple[int, int]]:
    """Ranges of pairs of about `_SLICE_BYTES` bytes; a longer pair is a range of its own."""
    if len(chunks) == 0:
        return []
    bytes_P = sum(
        _compute.fill_null(_compute.binary_length(column), 0).to_numpy().astype(np.int64)
        for column in (chunks, rollouts)
    )
    number_P = np.maximum(np.cumsum(bytes_P) // _SLICE_BYTES, np.arange(len(chunks)) // _SLICE_PAIRS)
    edges = [0, *(np.flatnonzero(np.diff(number_P)) + 1).tolist(), len(chunks)]
    return list(pairwise(edges))


def _texts(column: pa.ChunkedArray) -> pa.StringArray:
    return column.cast(pa.string()).combine_chunks()


def edit(pairs: Pairs) -> NDArray[np.float64]:
    """1 - Levenshtein distance / max(c, r) (Navarro, 2001)."""
    return cpdist(pairs.chunks, pairs.rollouts, scorer=Levenshtein.normalized_similarity, dtype=np.float64)


def rouge1(pairs: Pairs) -> NDArray[np.float64]:
    """ROUGE-1 as F1 (Lin, 2004): 2 m / (c + r), with m the units in common, each counted as often as in both sides.

    As `rouge_score`'s fmeasure without stemming, on our units in place of its lower-cased ASCII words.
    """
    return 2 * _shared(pairs, 1) / _at_least_one(pairs.chunk_length_P + pairs.rollout_length_P)


def rougeL(pairs: Pairs) -> NDArray[np.float64]:
    """ROUGE-L as F1 (Lin, 2004): 2 l / (c + r), with l the length of the longest common subsequence.

    As `rouge_score`'s fmeasure without stemming, on our units.
    """
    common = cpdist(pairs.chunks, pairs.rollouts, scorer=LCSseq.similarity, dtype=np.int64)
    return 2 * common / _at_least_one(pairs.chunk_length_P + pairs.rollout_length_P)


def jaccard(pairs: Pairs) -> NDArray[np.float64]:
    """Distinct units in both / distinct units in either (Niwattanakul et al., 2013)."""
    pair, in_chunk, in_rollout = _counts(pairs, 1)
    both = np.bincount(pair, weights=(in_chunk > 0) & (in_rollout > 0), minlength=len(pairs))
    return both / _at_least_one(np.bincount(pair, minlength=len(pairs)))


def bleu1(pairs: Pairs) -> NDArray[np.float64]:
    """BLEU (Papineni et al., 2002) of one pair with unigrams only: see `bleu2`."""
    return _brevity_penalty(pairs) * _precision(pairs, 1)


def bleu2(pairs: Pairs) -> NDArray[np.float64]:
    """BLEU of one pair up to bigrams: the brevity penalty min(1, exp(1 - r / c)) times the geometric mean of the
    clipped precisions of unigrams and bigrams; of unigrams alone where the chunk has one unit and so no bigram.

    No smoothing: without a common bigram it is 0. As `sacrebleu`'s sentence BLEU / 100 with smooth_method="none" and
    effective_order. Since a rollout is cut to its chunk, r <= c, and the penalty is 1.
    """
    has_bigram = pairs.chunk_length_P > 1
    unigrams, bigrams = _precision(pairs, 1), _precision(pairs, 2)
    return _brevity_penalty(pairs) * np.where(has_bigram, np.sqrt(unigrams * bigrams), unigrams)


def exact(pairs: Pairs) -> NDArray[np.float64]:
    """1 where chunk and cut rollout are the same units, else 0."""
    return (pl.Series(pairs.chunks, dtype=pl.String) == pl.Series(pairs.rollouts, dtype=pl.String)).to_numpy() * 1.0


def _brevity_penalty(pairs: Pairs) -> NDArray[np.float64]:
    return np.minimum(1.0, np.exp(1 - pairs.rollout_length_P / _at_least_one(pairs.chunk_length_P)))


def _precision(pairs: Pairs, n: int) -> NDArray[np.float64]:
    """Share of the chunk's n-grams that the rollout has too, each counted as often as there at most."""
    return _shared(pairs, n) / _at_least_one(pairs.chunk_length_P - n + 1)


def _shared(pairs: Pairs, n: int) -> NDArray[np.float64]:
    """Size of the multiset intersection of the n-grams of chunk and rollout [P]."""
    pair, in_chunk, in_rollout = _counts(pairs, n)
    return np.bincount(pair, weights=np.minimum(in_chunk, in_rollout), minlength=len(pairs)).astype(np.float64)


def _counts(pairs: Pairs, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """One entry for each pair and distinct n-gram (n <= 2): the pair, and how often each side has the n-gram."""
    base = int(pairs.codes_U.max(initial=0)) + 1
    chunk = _grams(pairs, pairs.chunk_start_P, pairs.chunk_length_P, n, base)
    rollout = _grams(pairs, pairs.rollout_start_P, pairs.rollout_length_P, n, base)
    # The lowest bit is the side, so that equal n-grams of both sides are neighbours after the sort. With it, bigrams
    # of 2^21 code points in 2^16 pairs take 59 bits.
    keys = np.sort(np.concatenate([chunk * 2, rollout * 2 + 1]))
    grams = keys >> 1
    first = np.flatnonzero(np.diff(grams, prepend=-1))
    if len(first) == 0:
        return first, first, first
    total = np.diff(first, append=len(keys))
    in_rollout = np.add.reduceat(keys & 1, first)
    return grams[first] // base**n, total - in_rollout, in_rollout


def _grams(
    pairs: Pairs, start_P: NDArray[np.int64], length_P: NDArray[np.int64], n: int, base: int
) -> NDArray[np.int64]:
    """The n-grams of one side of all pairs, as the number of the pair and of the units, written in base `base`."""
    count_P = np.maximum(length_P - n + 1, 0)
    pair = np.repeat(np.arange(len(pairs)), count_P)
    # Position of each n-gram's first unit: the window's start, plus how far inside the window it is.
    position = np.arange(len(pair)) + np.repeat(start_P - (np.cumsum(count_P) - count_P), count_P)
    number = pair
    for k in range(n):
        number = number * base + pairs.codes_U.take(position + k)
    return number


def _at_least_one(count_P: NDArray[np.int64]) -> NDArray[np.int64]:
    """A denominator; where it would be 0 so is the numerator."""
    return np.maximum(count_P, 1)


METRICS: dict[str, Metric] = {
    "edit": edit, "rouge1": rouge1, "rougeL": rougeL, "jaccard": jaccard, "bleu1": bleu1, "bleu2": bleu2, "exact": exact
}  # fmt: skip
"""The metrics of the paper's Table 3."""


def find_metric(score: ScoreConfig) -> Metric:
    """The metric that the config names: ours, the embedding, or an installed package's.

    Raises:
        InputError: `embedding` without its extra, or without its model.
    """
    if score.phi in METRICS:
        return METRICS[score.phi]
    if score.phi == "embedding":
        from .embedding import Embedding

        return Embedding(score.embedding_model)
    (entry,) = importlib.metadata.entry_points(group=METRIC_GROUP, name=score.phi)
    return entry.load()


def make_encoder(config: Config) -> Encoder:
    """What cuts texts into the config's units."""
    if config.score.unit == "token":
        return TokenUnits(load_tokenizer(resolve_model(config.student.model)))
    return {"word": WordUnits, "char": CharUnits, "digit": DigitUnits}[config.score.unit]()


def similarity_of_texts(config: Config) -> Callable[[Sequence[str], Sequence[str]], list[float | None]]:
    """φ as the config has it, of a few chunks and rollouts that are in memory.

    Raises:
        InputError: the metric cannot be used.
    """
    metric, encoder = find_metric(config.score), make_encoder(config)

    def similar(chunks: Sequence[str], texts: Sequence[str]) -> list[float | None]:
        columns = (pa.chunked_array([pa.array(column, pa.string())]) for column in (chunks, texts))
        return similarities(metric, encoder, *columns).to_pylist()

    return similar
