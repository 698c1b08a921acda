"""What `omniopd eval` prints."""

from collections.abc import Iterator

from .compare import Comparison
from .estimate import Interval
from .results import EvalResult, GraderResult


def describe(result: EvalResult) -> str:
    """An evaluation in a few lines."""
    return "\n".join(_lines(result))


def _lines(result: EvalResult) -> Iterator[str]:
    yield f"{result.benchmark}: {result.questions} questions, {result.samples} samples each{_which(result)}"
    for grader in result.graders:
        error = 100 * grader.repeat_error
        again = f"   +- {error:.1f} if sampled again" if error > 0 else ""  # NaN for one sample
        yield f"  Pass@1  {grader.grader:<12} {_percent(grader.pass_at_1)}{again}"
    if result.samples > 1:
        ks = result.graders[0].pass_at_k
        values = "   ".join(f"@{k} {100 * value:.1f}" for k, value in ks.items() if k > 1)
        yield f"  pass@k  {result.graders[0].grader:<12} {values}"
    if len(result.graders) > 1:
        total = result.questions * result.samples
        yield f"  graders disagree on {result.disagreements} of {total} responses"
    for grader in result.graders:
        yield from _failures(grader)
    yield (
        f"  mean length {result.mean_tokens:.1f} tokens, {result.truncated:.1%} cut off at the limit,"
        f" mean repetition {result.mean_repetition:.3f}, {result.repetitive:.1%} mostly repetition"
    )
    yield f"  results in {result.folder.path}"


def _which(result: EvalResult) -> str:
    if result.rounds is None:
        return ""
    return ", initial student" if result.rounds == 0 else f", after {result.rounds} rounds"


def _failures(grader: GraderResult) -> Iterator[str]:
    others = {reason: n for reason, n in grader.reasons.items() if reason not in ("right", "wrong")}
    if others:
        counts = ", ".join(f"{n} {reason}" for reason, n in others.items())
        yield f"  of the wrong ones, {grader.grader} says: {counts}"


def describe_comparison(comparison: Comparison) -> str:
    """Two evaluations and their difference in a few lines."""
    lines = [f"{comparison.a.benchmark}: {comparison.a.questions} questions, Pass@1 in percent with 95 % intervals"]
    for grader, difference in comparison.differences.items():
        lines.append(f"  {grader}")
        for name, result in (("A", comparison.a), ("B", comparison.b)):
            (figures,) = (one for one in result.graders if one.grader == grader)
            lines.append(f"    {name}      {_percent(figures.pass_at_1)}   {result.folder.path}")
        gain = difference.gain
        lines.append(
            f"    A - B  {100 * gain.value:+5.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
            f"   p = {_p(difference.p)} ({'exact' if difference.exact else '100,000 draws'})"
        )
    lines.append("  interval: paired bootstrap over questions; p: two-sided, by flipping signs of the differences")
    return "\n".join(lines)


def _percent(interval: Interval) -> str:
    return f"{100 * interval.value:5.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _p(p: float) -> str:
    return f"{p:.2g}" if p < 0.1 else f"{p:.2f}"
