# pyright: strict
"""How much of a response is a repetition: the length of its longest token sequence that occurs twice. Pure."""

import numpy as np
from numpy.typing import NDArray


def repetition(ids_T: NDArray[np.int32]) -> float:
    """Share of a response that its longest repeated token sequence makes up, in [0, 1).

    The two occurrences may overlap, so a response that falls into a loop of one token scores (T - 1) / T; ordinary
    prose of some hundred tokens stays below 0.1.
    """
    return longest_repeat(ids_T) / len(ids_T) if len(ids_T) else 0.0


def longest_repeat(ids_T: NDArray[np.int32]) -> int:
    """Length of the longest token sequence that occurs at two places, 0 if no token does.

    Exact, in O(T log^2 T): sequences of 2^k tokens are numbered by doubling, until none occurs twice; the length in
    between is found by bisection, since every part of a repeated sequence is repeated.
    """
    names = [_named(ids_T.astype(np.int64))]
    low, high = 0, 1
    while _repeats(names[-1]):
        low = 2 ** (len(names) - 1)
        high = min(2 * low, len(ids_T))
        if high < 2 * low:
            break
        names.append(_named(_pairs(names[-1], low)))
    while high - low > 1:
        middle = (low + high) // 2
        k = middle.bit_length() - 1
        # Two overlapping sequences of 2^k tokens cover one of `middle` tokens.
        low, high = (middle, high) if _repeats(_pairs(names[k], middle - 2**k)) else (low, middle)
    return low


def _pairs(names_P: NDArray[np.int64], distance: int) -> NDArray[np.int64]:
    """One number for each pair of names at a distance; equal for equal pairs."""
    if distance == 0:
        return names_P
    return names_P[:-distance] * (int(names_P.max()) + 1) + names_P[distance:]


def _named(keys_P: NDArray[np.int64]) -> NDArray[np.int64]:
    """Small numbers for keys, equal for equal keys."""
    return np.unique(keys_P, return_inverse=True)[1].astype(np.int64)


def _repeats(keys_P: NDArray[np.int64]) -> bool:
    ordered = np.sort(keys_P)
    return bool((ordered[1:] == ordered[:-1]).any())
