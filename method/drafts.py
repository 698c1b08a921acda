"""draft: how far the student follows what the teacher wrote from its own prefix. Pure.

Speculative decoding turned round: the teacher drafts, and the student accepts up to the first token that it would
hardly ever say. Shapes: T tokens of a draft, D drafts, U units of all texts together, P pairs of drafts.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..store.sections import ScoreConfig
from .similarity.units import Encoder, Pairs, units_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Accept = Literal["min_p", "typical", "probability", "rank"]

_CONTEXT = 8
"""Tokens before the fork behind which a draft is decoded to be checked."""
_SHORTEST = 8
"""Teacher tokens: a draft is not made shorter than that."""
_ENOUGH = 0.9
"""Of the most accepted tokens for the price. The optimum is flat, and what comes late in a draft, such as an answer's
end, teaches more than its count says."""
_END = 0x10FFFF
"""The end of a text as a unit. The last code point there is: no text has it, and no encoder gets so far."""


def draft_ids(
    tokenizer: "PreTrainedTokenizerBase", prefix_ids: Sequence[int], text: str, *, end_id: int | None, ended: bool
) -> list[int] | None:
    """A draft in the student's tokens, which decode, behind the prefix, to exactly the text.

    Args:
        prefix_ids: Prompt and response up to the fork.
        end_id: The token that ends a turn; None: there is none.
        ended: The teacher came to an end by itself. The end then is a token of the draft. Otherwise its last token is
            dropped, which may be half a word.

    Returns:
        None where no tokens are found that decode to the text.
    """
    ids = _exact(tokenizer, list(prefix_ids[-_CONTEXT:]), text)
    if ids is None:
        return None
    if not ended:
        return ids[:-1]
    return ids if end_id is None else [*ids, end_id]


def _exact(tokenizer: "PreTrainedTokenizerBase", before: list[int], text: str) -> list[int] | None:
    coder: Any = tokenizer

    def encode(string: str) -> list[int]:
        # What looks like a special token in the teacher's text is text.
        return coder(string, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]

    def decode(ids: list[int]) -> str:
        return coder.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    wanted = decode(before) + text
    # Tokenizers of SentencePiece models begin a text with a space of their own; behind a line's end they do not.
    newline = encode("\n")
    behind = encode("\n" + text)
    for ids in (encode(text), behind[len(newline) :] if behind[: len(newline)] == newline else None):
        if ids is not None and decode([*before, *ids]) == wanted:
            return ids
    return None


def accepted_tokens(
    score: ScoreConfig,
    logprobs_T: NDArray[np.floating],
    entropies_T: NDArray[np.floating],
    top_logprobs_T: NDArray[np.floating],
    ranks_T: NDArray[np.integer],
) -> int:
    """How many tokens of a draft come before the first that the student rejects.

    The cut is final: behind a foreign token the next ones look likely.

    Args:
        score: Says the criterion. Typical acceptance is that of Hewitt et al. (2022) as Medusa (2401.10774, section
            3.3) uses it, with epsilon = t and delta = sqrt(t).
        logprobs_T: Of the draft's tokens under the policy, nats.
        entropies_T: Of the policy at each of them, nats.
        top_logprobs_T: Of the likeliest token at each of them, nats.
        ranks_T: How many tokens are likelier.
    """
    t = score.threshold
    logprobs_T = logprobs_T.astype(np.float64)
    accepted_T = {
        "min_p": lambda: logprobs_T >= top_logprobs_T + np.log(t),
        "probability": lambda: logprobs_T >= np.log(t),
        "typical": lambda: logprobs_T >= np.minimum(np.log(t), np.log(t) / 2 - entropies_T),
        "rank": lambda: ranks_T < t,
    }[score.accept]()
    rejected = np.flatnonzero(~accepted_T)
    return int(rejected[0]) if len(rejected) else len(logprobs_T)


def reach(logprobs_T: NDArray[np.floating]) -> float | None:
    """Geometric mean of the probabilities of a draft's tokens; None where it has no token."""
    return float(np.exp(logprobs_T.mean(dtype=np.float64))) if len(logprobs_T) else None


def consensus(
    fork_D: NDArray[np.integer],
    texts: Sequence[str],
    ended_D: NDArray[np.bool_],
    encoder: Encoder,
    metric: Callable[[Pairs], NDArray[np.float64]],
) -> NDArray[np.float64]:
    """Mean similarity of each draft to the other drafts of its fork [D], each pair at the shorter one's length.

    The end of a text counts as a unit. 1 where there is nothing to compare with.

    Args:
        fork_D: Number of the fork of each draft.
    """
    mine_P, other_P = _pairs_within(fork_D)
    units = units_of(pa.array(texts, pa.string()), encoder)
    codes_U = np.insert(units.codes_U, np.cumsum(units.length_D)[ended_D], _END)
    length_D = units.length_D + ended_D
    start_D = np.cumsum(length_D) - length_D
    shorter_P = np.minimum(length_D[mine_P], length_D[other_P])
    mine_P, other_P, shorter_P = (column[shorter_P > 0] for column in (mine_P, other_P, shorter_P))

    def texts_of(side_P: NDArray[np.int64]) -> Callable[[int], str]:
        return lambda i: units.text(int(side_P[i]), int(min(shorter_P[i], units.length_D[side_P[i]])))

    pairs = Pairs(
        codes_U, start_D[mine_P], shorter_P, start_D[other_P], shorter_P, texts_of(mine_P), texts_of(other_P)
    )  # fmt: skip
    phi_P = metric(pairs) if len(pairs) else np.zeros(0)
    count_D = np.bincount(mine_P, minlength=len(texts))
    return np.where(count_D == 0, 1.0, np.bincount(mine_P, phi_P, len(texts)) / np.maximum(count_D, 1))


def _pairs_within(fork_D: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All ordered pairs of different drafts of one fork."""
    same = [np.flatnonzero(fork_D == fork) for fork in np.unique(fork_D)]
    pairs = [(a, b) for drafts in same for a in drafts.tolist() for b in drafts.tolist() if a != b]
    mine_other_P2 = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return mine_other_P2[:, 0], mine_other_P2[:, 1]


def paying_length(followed_D: NDArray[np.floating], drafted_D: NDArray[np.floating], prompt: float) -> int:
    """The longest draft that brings nearly the most accepted tokens for what is paid.

    Drafts of a length are beginnings of the longer ones that are there, so each shorter length is known as if it had
    been asked for. Where the longest is good enough, twice that is the answer: what it would bring is not known, and
    it may be more.

    Args:
        followed_D: Tokens of each draft before the first that the student rejects, in the teacher's tokens.
        drafted_D: Tokens of each draft.
        prompt: What the prompt of a draft costs, in tokens of a draft's price.
    """
    longest = int(drafted_D.max())
    lengths_L = np.arange(min(_SHORTEST, longest), longest + 1)
    paid_L = prompt + _mean_up_to(drafted_D, lengths_L)
    brought_L = _mean_up_to(followed_D, lengths_L) / paid_L
    chosen = int(lengths_L[np.nonzero(brought_L >= _ENOUGH * brought_L.max())[0][-1]])
    return 2 * longest if chosen == longest else chosen


def _mean_up_to(tokens_D: NDArray[np.floating], lengths_L: NDArray[np.integer]) -> NDArray[np.floating]:
    """Mean of min(tokens, length) for each length."""
    ascending_D = np.sort(tokens_D)
    sums = np.concatenate([[0.0], np.cumsum(ascending_D)])
    shorter_L = np.searchsorted(ascending_D, lengths_L)
    return (sums[shorter_L] + (len(tokens_D) - shorter_L) * lengths_L) / len(tokens_D)
