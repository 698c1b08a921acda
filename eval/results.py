"""Read evaluations back: verdicts as a matrix, and the figures that are reported of them."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..store.errors import InputError, TableError
from ..store.evals import EvalDir, evals_of_run
from ..store.layout import RunDir
from .estimate import Interval, pass_at_1, pass_at_k, repeat_error

T = TypeVar("T")

REPETITIVE = 0.5
"""A response is called repetitive when more than this share of it is its longest repeated sequence."""


@dataclass(frozen=True)
class Graded:
    """The verdicts of one grader on Q questions, S samples each."""

    question_ids: tuple[str, ...]
    verdicts_QS: NDArray[np.bool_]


@dataclass(frozen=True)
class GraderResult:
    """What one grader's verdicts say."""

    grader: str
    pass_at_1: Interval
    repeat_error: float
    """Standard error of Pass@1 if the same questions were sampled again; NaN for one sample."""
    pass_at_k: dict[int, float]
    reasons: dict[str, int]
    """Responses by reason: right, wrong, no_answer, timeout, ..."""


@dataclass(frozen=True)
class EvalResult:
    """One model on one benchmark."""

    folder: EvalDir
    benchmark: str
    rounds: int | None
    """Rounds that the policy was trained for, 0 is the initial student; None outside of a run."""
    policy: str
    """Hash of the weights."""
    questions: int
    samples: int
    graders: tuple[GraderResult, ...]
    """The first is the one to quote: math_verify or tests, where they graded."""
    disagreements: int
    """Responses on which the graders do not agree."""
    mean_tokens: float
    truncated: float
    """Share of responses that were cut off at the limit."""
    mean_repetition: float
    repetitive: float
    """Share of responses with a repetition above one half."""


@dataclass(frozen=True)
class Accuracy:
    """What an evaluation of a run's policy comes to, by the grader to quote."""

    benchmark: str
    rounds: int
    """Rounds that the policy was trained for; 0 is the initial student."""
    grader: str
    answers: int
    pass_at_1: Interval


def accuracy_of_run(run: RunDir) -> list[Accuracy]:
    """Pass@1 of a run's whole evaluations, by rounds and benchmark; those with a damaged file are left out."""
    return _of_whole_ones(run, _accuracy)


def _accuracy(folder: EvalDir) -> Accuracy:
    assert folder.rounds is not None  # it is in a run
    grader = min(folder.graders, key=_rank)
    verdicts_QS = matrix(folder, grader).verdicts_QS
    return Accuracy(folder.path.name, folder.rounds, grader, verdicts_QS.size, pass_at_1(verdicts_QS))


def results_of_run(run: RunDir) -> list[EvalResult]:
    """The evaluations of a run that are whole, by rounds and benchmark; those with a damaged file are left out."""
    return _of_whole_ones(run, result)


def _of_whole_ones(run: RunDir, read: Callable[[EvalDir], T]) -> list[T]:
    out: list[T] = []
    for folder in evals_of_run(run):
        with contextlib.suppress(TableError):
            if is_whole(folder):
                out.append(read(folder))
    return out


def is_whole(folder: EvalDir) -> bool:
    """Whether all responses are there, and all of them are graded."""
    graders = folder.graders
    return folder.responses().complete and bool(graders) and all(folder.verdicts(grader).complete for grader in graders)


def result(folder: EvalDir) -> EvalResult:
    """The figures of an evaluation that is whole.

    Raises:
        InputError: it is not.
        TableError: a file is missing or damaged.
    """
    if not is_whole(folder):
        raise InputError(f"There is no whole evaluation in {folder.path}.", "Finish it: the same `omniopd eval` again.")
    import polars as pl

    names = ("response_tokens", "finish_reason", "repetition", "policy")
    frame = pl.DataFrame(folder.responses().read(names))
    graded = {grader: matrix(folder, grader) for grader in sorted(folder.graders, key=_rank)}
    matrices = [one.verdicts_QS for one in graded.values()]
    questions, samples = matrices[0].shape
    return EvalResult(
        folder=folder,
        benchmark=str(folder.responses().manifest.made_with["benchmark"]),
        rounds=folder.rounds,
        policy=frame["policy"][0],
        questions=questions,
        samples=samples,
        graders=tuple(_figures(folder, grader, one.verdicts_QS) for grader, one in graded.items()),
        disagreements=int(np.any([other != matrices[0] for other in matrices], axis=0).sum()),
        mean_tokens=float(np.mean(frame["response_tokens"].to_numpy())),
        truncated=float(np.mean(frame["finish_reason"].to_numpy() == "length")),
        mean_repetition=float(np.mean(frame["repetition"].to_numpy())),
        repetitive=float(np.mean(frame["repetition"].to_numpy() > REPETITIVE)),
    )


def matrix(folder: EvalDir, grader: str) -> Graded:
    """A grader's verdicts, questions in the order of their ids and samples in the order of their index."""
    table = folder.verdicts(grader).read(["question_id", "sample_index", "correct"])
    table = table.sort_by([("question_id", "ascending"), ("sample_index", "ascending")])
    ids = tuple(dict.fromkeys(table["question_id"].to_pylist()))
    return Graded(ids, table["correct"].to_numpy().reshape(len(ids), -1))


def ks(samples: int) -> list[int]:
    """For which k pass@k is reported: powers of two, and all samples."""
    return sorted({2**i for i in range(samples.bit_length())} | {samples})


def _figures(folder: EvalDir, grader: str, verdicts_QS: NDArray[np.bool_]) -> GraderResult:
    reasons = folder.verdicts(grader).read(["reason"])["reason"].to_pylist()
    right_Q, samples = verdicts_QS.sum(axis=1), verdicts_QS.shape[1]
    return GraderResult(
        grader,
        pass_at_1(verdicts_QS),
        repeat_error(verdicts_QS),
        {k: pass_at_k(samples, right_Q, k) for k in ks(samples)},
        {reason: reasons.count(reason) for reason in sorted(set(reasons))},
    )


def _rank(grader: str) -> int:
    order: Sequence[str] = ("tests", "math_verify", "dapo_regex")
    return order.index(grader) if grader in order else len(order)
