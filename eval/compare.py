"""`omniopd eval --compare A B`: is A better than B on the same questions?"""

from dataclasses import dataclass

from ..store.errors import InputError
from ..store.evals import EvalDir
from .estimate import Difference, paired_difference
from .results import EvalResult, matrix, result


@dataclass(frozen=True)
class Comparison:
    """Two evaluations of the same questions, and what each grader says of their difference."""

    a: EvalResult
    b: EvalResult
    differences: dict[str, Difference]
    """Pass@1 of A minus B, by grader; only graders that both have."""


def compare(a: EvalDir, b: EvalDir) -> Comparison:
    """Compare question by question. The numbers of samples may differ.

    Raises:
        InputError: one of them is not whole, or they are not of the same questions, or no grader graded both.
        TableError: a file is missing or damaged.
    """
    results = result(a), result(b)
    fingerprints = [folder.responses().manifest.made_with["questions"] for folder in (a, b)]
    if fingerprints[0] != fingerprints[1]:
        raise InputError(
            f"{a.path} and {b.path} do not answer the same questions ({results[0].benchmark}, {results[1].benchmark}).",
            "Evaluate both on the same benchmark.",
        )
    names = [grader.grader for grader in results[0].graders]
    both = [name for name in names if name in {grader.grader for grader in results[1].graders}]
    if not both:
        raise InputError(f"No grader graded both {a.path} and {b.path}.", "Evaluate both with the same --grader.")
    differences: dict[str, Difference] = {}
    for name in both:
        means = [matrix(folder, name).verdicts_QS.mean(axis=1) for folder in (a, b)]
        differences[name] = paired_difference(means[0], means[1])
    return Comparison(*results, differences)
