"""Grading of answers: math-verify's own verdicts, whatever a response does to it, and DAPO's rule beside it."""

import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from omniopd.graders import math_pool
from omniopd.graders.dapo_regex import DapoRegex, normalise
from omniopd.graders.math_pool import MathVerify, as_gold
from omniopd.store.errors import InputError


def forms(rng):
    """(reference, the same written otherwise, something else) of one random answer in each of many forms."""
    a, b, c = rng.randint(2, 60), rng.randint(2, 60), rng.randint(2, 9)
    yield f"{a}", f"{a}.0", f"{a + 1}"
    yield f"-{a}", f"-{a}", f"{a}"
    yield f"{1000 * a + b}", f"{a},{b:03d}", f"{1000 * a + b + 1}"
    yield rf"\frac{{{a}}}{{{b}}}", rf"\dfrac{{{a}}}{{{b}}}", rf"\frac{{{a + 1}}}{{{b}}}"
    yield rf"\frac{{{a}}}{{{b}}}", f"{a}/{b}", f"{a}/{b + 1}"
    yield rf"\frac{{{a}}}{{{b}}}", rf"\frac{{{c * a}}}{{{c * b}}}", rf"\frac{{{b}}}{{{a + b}}}"
    yield rf"\frac{{{a}}}{{4}}", f"{a / 4}", f"{a / 4 + 0.1:.2f}"
    yield rf"-\frac{{{a}}}{{{b}}}", rf"\frac{{-{a}}}{{{b}}}", rf"\frac{{{a}}}{{{b}}}"
    yield f"{a}\\%", f"{a}%", f"{a + 1}\\%"
    yield rf"\{{{a}, {a + b}\}}", rf"\{{{a + b}, {a}\}}", rf"\{{{a}, {a + b + 1}\}}"
    yield rf"\{{1, 2, {a + 2}\}}", rf"\{{{a + 2}, 1, 2\}}", r"\{1, 2\}"
    yield f"({a}, {b})", rf"\left({a}, {b}\right)", f"({a}, {b + 1})"
    yield f"[{a}, {a + b})", rf"\left[{a}, {a + b}\right)", f"[{a}, {a + b}]"
    yield rf"(-\infty, {a}]", rf"\left(-\infty, {a}\right]", rf"(-\infty, {a})"
    yield rf"(-\infty, {a}) \cup ({a + b}, \infty)", rf"(-\infty,{a})\cup({a + b},\infty)", rf"(-\infty, {a})"
    yield rf"{a}\text{{ cm}}", f"{a}", f"{a + 1}"
    yield rf"{a}\text{{ m}}^2", rf"{a} \text{{ m}}^2", rf"{a + 1}\text{{ m}}^2"
    yield rf"{a}^\circ", rf"{a}^{{\circ}}", rf"{a + 1}^\circ"
    yield rf"\${a}", f"{a}", f"{a + 1}"
    yield rf"{c}\sqrt{{{b}}}", rf"\sqrt{{{c * c * b}}}", rf"{c}\sqrt{{{b + 1}}}"
    yield rf"\frac{{{a}\pi}}{{{b}}}", rf"\frac{{{a}}}{{{b}}}\pi", rf"\frac{{{a}}}{{{b}}}"
    yield f"2^{{{c}}}", f"{2**c}", f"{2**c + 1}"
    yield f"x^2+{2 * a}x+{a * a}", f"(x+{a})^2", f"(x-{a})^2"
    yield f"{a}x+{b}y", f"{b}y+{a}x", f"{a}y+{b}x"
    yield f"x={a}", f"{a}", f"{a + 1}"
    yield f"y=\\frac{{{a}}}{{2}}x+{b}", f"y={a / 2}x+{b}", f"y={a / 2}x-{b}"
    yield f"{a}+{b}i", f"{b}i+{a}", f"{a}-{b}i"
    yield rf"\begin{{pmatrix}}{a}\\{b}\end{{pmatrix}}", rf"\begin{{pmatrix}} {a} \\ {b} \end{{pmatrix}}", \
        rf"\begin{{pmatrix}}{b}\\{a + b}\end{{pmatrix}}"  # fmt: skip
    yield rf"x \geq {a}", rf"x \ge {a}", rf"x \le {a}"
    yield rf"{a} \pm \sqrt{{{b}}}", rf"{a}\pm\sqrt{{{b}}}", rf"{a} \pm \sqrt{{{b + 1}}}"
    yield rf"{c}.5 \times 10^{{{c}}}", f"{int((c + 0.5) * 10**c)}", f"{int((c + 0.5) * 10**c) + 1}"
    yield rf"\log_2 {a}", rf"\frac{{\ln {a}}}{{\ln 2}}", rf"\log_2 {a + 1}"
    yield r"\text{Tuesday}", r"\text{Tuesday}", r"\text{Sunday}"
    yield f"{a}_{{{c + 10}}}", f"{a}_{{{c + 10}}}", f"{a + 1}_{{{c + 10}}}"
    yield rf"\binom{{{c + 3}}}{{2}}", f"{(c + 3) * (c + 2) // 2}", f"{(c + 3) * (c + 2)}"


WRAPPED = (
    "First we look at it. So there are 3 of 7.\n\nAnswer: ${}$",
    r"Thus $x = 2$ and the rest follows. The final answer is \boxed{{}}.",
    "Hence the answer is ${}$.",
    "We get\n\\[ {} \\]\nAnswer: \\({}\\)",
    "Answer: {}",
)


def pairs(count):
    """(reference, response, whether it is right) by code, the same ones every time."""
    rng = random.Random(2606)
    out = []
    while len(out) < count:
        for reference, same, other in forms(rng):
            for answer, right in ((same, True), (other, False)):
                out.append((reference, rng.choice(WRAPPED).replace("{}", answer), right))
    return out[:count]


@pytest.mark.slow
def test_agrees_with_math_verifys_own_verdict_on_500_pairs_of_many_forms():
    from math_verify import parse, verify

    grader = MathVerify(20, 2)
    cases = pairs(500)
    assert len({reference for reference, _, _ in cases}) > 200
    own, ours = [], []
    for reference, response, _ in cases:
        own.append(verify(parse(as_gold(reference)), parse(response)))
        ours.append(grader.grade(response, reference))
    grader.close()
    assert [verdict.correct for verdict in ours] == own
    assert not [verdict for verdict in ours if verdict.reason in ("timeout", "error")]
    # And it is asked the right way round: it knows nearly all of them, but for LaTeX that stands in prose.
    known = {True: [], False: []}
    for verdict, (_, response, right) in zip(own, cases, strict=True):
        if "\\" not in response or any(mark in response for mark in ("$", "\\boxed", "\\[")):
            known[right].append(verdict == right)
    for agreed in known.values():
        assert len(agreed) >= 180
        assert sum(agreed) / len(agreed) > 0.97


def test_a_reference_without_dollars_is_read_as_latex():
    grader = MathVerify(20, 1)
    assert grader.grade("so $0.5$", r"\frac{1}{2}").correct
    assert grader.grade("so $0.5$", r"$\frac{1}{2}$").correct
    assert grader.grade(r"\boxed{(1,2]}", "(1,2]").correct
    assert grader.grade("I do not know.", "4").reason == "no_answer"
    assert grader.grade("Answer: 5", "4").reason == "wrong"
    grader.close()


FAKE = """
import json, os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGALRM, signal.SIG_IGN)
print("{}", flush=True)
for line in sys.stdin:
    response = json.loads(line)["response"]
    if response == "hang":
        while True: pass
    if response == "die":
        os._exit(3)
    print(json.dumps({"correct": response == "right", "found": True, "extracted": str(os.getpid())}), flush=True)
"""


@pytest.fixture
def fake(monkeypatch, tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text(FAKE)
    monkeypatch.setattr(math_pool, "_WORKER", worker)


def test_a_wedged_worker_is_killed_and_replaced_and_the_others_go_on(fake):
    grader = MathVerify(0.5, 1)
    first = grader.grade("right", "1")
    start = time.monotonic()
    late = grader.grade("hang", "1")
    assert (late.correct, late.reason) == (False, "timeout")
    assert time.monotonic() - start < 10
    assert not Path(f"/proc/{first.extracted}").exists(), "it was killed"
    second = grader.grade("right", "1")
    assert second.correct
    assert second.extracted != first.extracted
    assert grader.grade("right", "1").extracted == second.extracted, "a healthy worker stays"
    grader.close()
    assert not Path(f"/proc/{second.extracted}").exists()


def test_a_worker_that_dies_costs_one_verdict(fake):
    grader = MathVerify(5, 1)
    died = grader.grade("die", "1")
    assert (died.correct, died.reason) == (False, "error")
    assert "ended (3)" in died.detail
    assert grader.grade("right", "1").correct
    grader.close()


def test_workers_outlive_the_threads_that_ask(fake):
    """They die with a thread, so it must not be one of those."""
    grader = MathVerify(5, 1)
    workers = set()
    for _ in range(3):
        with ThreadPoolExecutor(2) as executor:
            workers |= {verdict.extracted for verdict in executor.map(grader.grade, ["right"] * 4, ["1"] * 4)}
    assert len(workers) == 1
    os.kill(int(workers.pop()), signal.SIGKILL)
    time.sleep(0.2)
    assert grader.grade("right", "1").correct, "one that died while nobody asked costs no verdict"
    grader.close()


def test_a_power_tower_that_math_verify_itself_never_leaves_is_ended():
    """Measured: one call into big integers, in which no Python signal handler runs."""
    grader = MathVerify(2, 1)
    assert grader.grade(r"Answer: $10^{10^{10^{10}}}$", "3").reason == "timeout"
    grader.close()


def test_a_worker_that_cannot_start_is_one_line(monkeypatch, tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text("raise ImportError('antlr is broken')")
    monkeypatch.setattr(math_pool, "_WORKER", worker)
    with pytest.raises(InputError, match="antlr is broken"):
        MathVerify(5, 1).grade("x", "1")


def test_without_math_verify_the_cure_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"Install omniopd\[eval\], or grade with --grader dapo_regex"):
        MathVerify(5, 1)


@pytest.mark.parametrize(
    ("response", "reference", "right"),
    [
        ("Step 1 ...\nAnswer: 42", "42", True),
        ("Answer: 41\nWait, no.\nAnswer: 42", "42", True),
        ("answer :  $42$ ", "42", True),
        ("Answer: 1,042", "1042", True),
        ("Answer: x = 42", "42", True),
        ("Answer: 42 degrees", "42", True),
        (r"Answer: \boxed{42}", "42", True),
        (r"Answer: $\frac12$", r"\frac{1}{2}", True),
        (r"Answer: $\sqrt2$", r"\sqrt{2}", True),
        (r"Answer: $\text{East}$", "East", True),
        ("Answer: 0.5", r"\frac{1}{2}", False),  # it compares texts
        ("Answer: 43", "42", False),
        ("**Answer: 42**", "42", False),  # DAPO keeps the stars
    ],
)
def test_dapos_rule(response, reference, right):
    assert DapoRegex().grade(response, reference).correct == right


def test_dapo_reads_the_last_300_characters_and_says_when_there_is_no_answer():
    assert DapoRegex().grade("The answer is 42.", "42").reason == "no_answer"
    assert DapoRegex().grade("Answer: 42\n" + "x" * 300, "42").reason == "no_answer"
    assert DapoRegex().grade("x" * 10_000 + "\nAnswer: 42", "42").correct


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        (r"$3\text{ cm}$", "3"), ("an 8 inches", "8"), (r"12^\circ", "12"), (r"\$5", "5"), ("1{,}000", "1000"),
        (r"\overline{AB}", "AB"), (r"\mbox{yes}", "yes"), ("so $7$ it is", "7"),
    ],
)  # fmt: skip
def test_normalisation(text, normal):
    assert normalise(text) == normal
