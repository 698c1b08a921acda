"""`omniopd eval` as a whole: real student, real command line, real graders."""

import json
import signal
import time
from pathlib import Path

import pytest

from omniopd.demo.tasks.sums import problems
from omniopd.eval import stage
from omniopd.eval.benchmarks import load_benchmark
from omniopd.eval.compare import compare
from omniopd.eval.describe import describe, describe_comparison
from omniopd.eval.results import is_whole, result, results_of_run
from omniopd.eval.settings import EvalSettings, Target, find_target, make_config
from omniopd.eval.stage import evaluate
from omniopd.graders.code import CodeTests, extract_program, parse_tests, same_output
from omniopd.graders.dapo_regex import DapoRegex
from omniopd.graders.sandbox import Limits
from omniopd.graders.verdict import Verdict
from omniopd.store.errors import BusyError, ConfigChangedError, InputError, UsageError
from omniopd.store.evals import EvalDir
from omniopd.store.worker import Worker
from support.processes import Command

FAST = ("generate.batch_size=16", "generate.part_rows=8")


@pytest.fixture
def benchmark(tmp_path):
    rows = [{"id": f"q{i}", "question": p.question, "answer": p.answer}
            for i, p in enumerate(problems(12, seed=1, split="heldout"))]  # fmt: skip
    path = tmp_path / "heldout.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(benchmark, **changes):
    defaults = {
        "samples": 2,
        "max_new_tokens": 56,
        "template": "{question}\n",
        "graders": ("math_verify", "dapo_regex"),
    }
    return EvalSettings(str(benchmark), **(defaults | changes))


def rows_of(table, *drop):
    rows = table.read().to_pylist()
    return sorted(({k: v for k, v in row.items() if k not in drop} for row in rows), key=str)


def test_figures_are_those_of_the_rows_and_a_second_call_samples_and_grades_nothing(benchmark, student, tmp_path):
    from math_verify import parse, verify

    out = tmp_path / "out"
    folder, whole = evaluate(Target(str(student)), settings(benchmark), FAST, out)
    assert whole
    figures = result(folder)
    responses, verdicts = (rows_of(t) for t in (folder.responses(), folder.verdicts("math_verify")))
    assert (figures.questions, figures.samples, len(responses)) == (12, 2, 24)
    assert {row["engine"].split()[0] for row in responses} == {"transformers"}
    # The demo's task has its own way to end an answer, which DAPO's rule does not know.
    expected = {f"q{i}": p.answer for i, p in enumerate(problems(12, seed=1, split="heldout"))}
    texts = {(row["question_id"], row["sample_index"]): row["response_text"] for row in responses}
    for row in verdicts:
        text = texts[row["question_id"], row["sample_index"]]
        assert row["correct"] == verify(parse(f"\\boxed{{{expected[row['question_id']]}}}"), parse(text))
    assert figures.graders[0].pass_at_1.value == sum(row["correct"] for row in verdicts) / 24
    assert figures.graders[1].reasons == {"no_answer": 24}
    assert figures.disagreements == sum(row["correct"] for row in verdicts)
    assert figures.mean_tokens == sum(row["response_tokens"] for row in responses) / 24
    text = describe(figures)
    assert "12 questions, 2 samples each" in text
    assert f"graders disagree on {figures.disagreements} of 24" in text

    parts = [folder.responses().manifest.parts, folder.verdicts("math_verify").manifest.parts]
    evaluate(Target(str(student)), settings(benchmark), FAST, out)
    assert [folder.responses().manifest.parts, folder.verdicts("math_verify").manifest.parts] == parts


def test_killed_while_it_samples_the_same_command_goes_on(benchmark, student, tmp_path):
    words = [
        "eval", str(student), "--benchmark", str(benchmark), "--samples", "8",
        "--template", "{question}\n", "--max-new-tokens", "56", "--grader", "dapo_regex",
        *(word for key in FAST for word in ("--set", key)), "--out",
    ]  # fmt: skip
    calm, killed = EvalDir(tmp_path / "calm"), EvalDir(tmp_path / "killed")
    same = settings(benchmark, samples=8, graders=("dapo_regex",))
    evaluate(Target(str(student)), same, FAST, calm.path)
    process = Command(*words, killed.path)
    deadline = time.monotonic() + 120
    while killed.responses().manifest.rows < 8:
        assert process.running, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait(10).returncode == -signal.SIGKILL
    parts = killed.responses().manifest.parts
    assert 8 <= killed.responses().manifest.rows < 96
    assert not is_whole(killed)
    evaluate(Target(str(student)), same, FAST, killed.path)
    assert killed.responses().manifest.parts[: len(parts)] == parts
    assert rows_of(killed.responses()) == rows_of(calm.responses())
    assert rows_of(killed.verdicts("dapo_regex"), "seconds") == rows_of(calm.verdicts("dapo_regex"), "seconds")


def test_grading_that_was_interrupted_goes_on_and_doubles_nothing(benchmark, student, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "_VERDICTS_A_PART", 8)
    asked = []

    class Interrupted(DapoRegex):
        def grade(self, response, reference):
            asked.append(response)
            if len(asked) == 12:
                raise KeyboardInterrupt
            return super().grade(response, reference)

    monkeypatch.setattr(stage, "make_grader", lambda name: Interrupted())
    with pytest.raises(KeyboardInterrupt):
        evaluate(Target(str(student)), settings(benchmark, graders=("dapo_regex",)), FAST, tmp_path / "out")
    table = EvalDir(tmp_path / "out").verdicts("dapo_regex")
    assert table.manifest.rows == 8
    assert not table.complete
    evaluate(Target(str(student)), settings(benchmark, graders=("dapo_regex",)), FAST, tmp_path / "out")
    assert table.manifest.rows == len(table.existing_keys()) == 24
    assert len(asked) <= 16 + 16, "what was graded is not graded again"


def test_other_settings_are_refused_and_another_grader_version_grades_again(benchmark, student, tmp_path, monkeypatch):
    only = {"graders": ("dapo_regex",)}
    folder, _ = evaluate(Target(str(student)), settings(benchmark, **only), FAST, tmp_path / "out")
    for change in ({"temperature": 0.7}, {"samples": 3}, {"seed": 1}, {"template": "{question}=\n"}):
        with pytest.raises(ConfigChangedError, match="choose another folder with --out"):
            evaluate(Target(str(student)), settings(benchmark, **(only | change)), FAST, tmp_path / "out")
    benchmark.write_text(benchmark.read_text().replace('"answer": ', '"answer": 1'))
    with pytest.raises(ConfigChangedError, match="questions from"):
        evaluate(Target(str(student)), settings(benchmark, **only), FAST, tmp_path / "out")
    benchmark.write_text(benchmark.read_text().replace('"answer": 1', '"answer": '))
    before = folder.responses().manifest
    monkeypatch.setattr(DapoRegex, "settings", {"version": 2})
    evaluate(Target(str(student)), settings(benchmark, **only), FAST, tmp_path / "out")
    assert folder.responses().manifest == before
    assert folder.verdicts("dapo_regex").manifest.made_with["version"] == 2
    assert folder.verdicts("dapo_regex").manifest.rows == 24


def test_shards_answer_side_by_side_and_the_last_one_grades(benchmark, student, tmp_path):
    only = settings(benchmark, graders=("dapo_regex",))
    first = evaluate(Target(str(student)), only, FAST, tmp_path / "out", Worker(0, 2))
    assert not first[1]
    assert not is_whole(first[0])
    folder, whole = evaluate(Target(str(student)), only, FAST, tmp_path / "out", Worker(1, 2))
    assert whole
    alone, _ = evaluate(Target(str(student)), only, FAST, tmp_path / "alone")
    assert rows_of(folder.responses()) == rows_of(alone.responses())
    with folder.lock("respond"), pytest.raises(BusyError):
        evaluate(Target(str(student)), only, FAST, tmp_path / "out")


def test_in_a_run_results_stand_by_rounds_and_are_found(benchmark, make_run, student):
    import shutil

    run = make_run()
    shutil.copytree(student, run.round(0).policy)
    only = settings(benchmark, template=None, graders=("dapo_regex",))
    for rounds in (0, 1):
        folder, _ = evaluate(find_target(str(run.path), rounds), only, FAST)
        assert folder.path == run.path / "eval" / f"after=00{rounds}" / "heldout"
        assert folder.responses().read(["prompt_text"])["prompt_text"][0].as_py().endswith("\n"), "the run's template"
    assert find_target(str(run.path), None).rounds == 1
    inside = find_target(str(run.round(0).policy), None)
    assert (inside.rounds, inside.run.path.name) == (1, run.path.name)
    assert [(one.rounds, one.benchmark) for one in results_of_run(run)] == [(0, "heldout"), (1, "heldout")]
    (run.path / "eval" / "after=001" / "begun" / "responses").mkdir(parents=True)
    assert len(results_of_run(run)) == 2, "what is not whole is left out"
    with pytest.raises(UsageError, match="was trained for 1 rounds, not 2"):
        find_target(str(run.path), 2)
    with pytest.raises(UsageError, match="needs a run directory"):
        find_target(str(student), 1)


class LastNumber(DapoRegex):
    """Reads the demo's way to end an answer."""

    def grade(self, response, reference):
        right = response.endswith(f"#### {reference}")
        return Verdict(right, "right" if right else "wrong")


def test_a_model_against_itself_has_no_gain_and_other_questions_are_refused(benchmark, student, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "make_grader", lambda name: LastNumber())
    only = {"graders": ("dapo_regex",)}
    greedy, _ = evaluate(
        Target(str(student)), settings(benchmark, samples=1, temperature=0.0, **only), FAST, tmp_path / "greedy"
    )
    sampled, _ = evaluate(Target(str(student)), settings(benchmark, **only), FAST, tmp_path / "sampled")
    same = compare(greedy, greedy).differences["dapo_regex"]
    assert (same.gain.value, same.p) == (0.0, 1.0)
    comparison = compare(greedy, sampled)
    difference = comparison.differences["dapo_regex"]
    values = [one.graders[0].pass_at_1.value for one in (comparison.a, comparison.b)]
    assert 0 < values[1] < values[0], "the student is better where it does not gamble"
    assert difference.gain.value == pytest.approx(values[0] - values[1])
    assert "A - B" in describe_comparison(comparison)
    benchmark.write_text("".join(benchmark.read_text().splitlines(keepends=True)[:6]))
    fewer, _ = evaluate(Target(str(student)), settings(benchmark, **only), FAST, tmp_path / "fewer")
    with pytest.raises(InputError, match="do not answer the same questions"):
        compare(fewer, sampled)
    with pytest.raises(InputError, match="no whole evaluation"):
        compare(EvalDir(tmp_path / "nowhere"), sampled)


def test_defaults_are_the_papers_and_a_runs_own_template_goes_first(make_run):
    config = make_config(Target("m"), EvalSettings("math500"), False, ())
    assert config.data.template.lstrip().startswith("Solve the following math problem step by step. The last line")
    generate = config.generate
    assert (generate.samples_per_prompt, generate.temperature, generate.max_new_tokens) == (16, 1.0, 32768)
    assert make_config(Target("m"), EvalSettings("apps"), True, ()).data.template == "{question}"
    run = make_run()
    assert make_config(Target("m", run, 0), EvalSettings("x"), False, ()).data.template == "{question}\n"
    greedy = make_config(Target("m"), EvalSettings("x", samples=1, temperature=0), False, ())
    assert 0 < greedy.generate.temperature <= 1e-6
    chosen = ("data.template={question}!", "student.dtype=bfloat16")
    config = make_config(Target("m"), EvalSettings("x"), False, chosen)
    assert (config.data.template, config.student.dtype) == ("{question}!", "bfloat16")
    with pytest.raises(UsageError, match="Use --max-new-tokens"):
        make_config(Target("m"), EvalSettings("x"), False, ("generate.max_new_tokens=9",))
    with pytest.raises(UsageError, match="--samples 1"):
        EvalSettings("x", temperature=0)


def test_a_grader_that_does_not_fit_and_a_benchmark_that_is_not_there_are_said_before_any_model_is_loaded(benchmark):
    with pytest.raises(UsageError, match=r"not graded by 'tests'.*math_verify, dapo_regex"):
        evaluate(Target("/no/model"), settings(benchmark, graders=("tests",)))
    with pytest.raises(UsageError, match="There is no benchmark"):
        evaluate(Target("/no/model"), settings("nothing"))


HOSTILE = {
    "fork bomb": "import os\nwhile True:\n    os.fork()",
    "endless loop": "while True: pass",
    "ten gigabytes": "x = bytearray(10 << 30)\nprint(input())",
    "file": "open({target!r}, 'w').write('x')\nprint(input())",
    "socket": "import socket\nsocket.create_connection(('127.0.0.1', {port}))\nprint(input())",
}


def test_hostile_programs_are_contained_graded_wrong_and_the_run_goes_on(tmp_path):
    import socket

    names = [*HOSTILE, "good"]
    path = tmp_path / "echo.jsonl"
    tests = {"inputs": ["7\n"], "outputs": ["7\n"]}
    path.write_text("".join(json.dumps({"id": n, "question": f"echo, {n}", "tests": tests}) + "\n" for n in names))
    benchmark = load_benchmark(str(path))
    folder = EvalDir(tmp_path / "out")
    target = tmp_path / "written"
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        shared = {"question": "", "prompt_text": "", "response_tokens": 1, "finish_reason": "stop", "repetition": 0.0,
                  "policy": "p", "engine": "e"}  # fmt: skip
        programs = {n: p.format(target=str(target), port=server.getsockname()[1]) for n, p in HOSTILE.items()}
        programs["good"] = "print(input())"
        folder.responses().begin({"benchmark": "echo", "questions": benchmark.fingerprint})
        folder.responses().append(
            [shared | {"question_id": name, "sample_index": sample, "response_text": f"Here:\n```python\n{code}\n```"}
             for name, code in programs.items() for sample in range(2)]
        )  # fmt: skip
        folder.responses().finish()
        processes = set(Path("/proc").iterdir())
        stage.grade(folder, CodeTests(Limits(cpu_s=1, wall_s=5)), benchmark)
        with pytest.raises(TimeoutError):
            server.accept()
    verdicts = folder.verdicts("tests").read().to_pylist()
    assert {row["question_id"] for row in verdicts if row["correct"]} == {"good"}
    reasons = {row["question_id"]: row["reason"] for row in verdicts}
    assert reasons == {"fork bomb": "error", "endless loop": "timeout", "ten gigabytes": "memory", "file": "error",
                       "socket": "error", "good": "right"}  # fmt: skip
    assert not target.exists()
    left = [
        pid for pid in set(Path("/proc").iterdir()) - processes if pid.name.isdigit() and "confine.py" in cmdline(pid)
    ]
    assert left == []
    figures = result(folder).graders[0]
    assert figures.pass_at_1.value == pytest.approx(1 / 6)
    assert figures.reasons["timeout"] == 2


def cmdline(pid):
    try:
        return (pid / "cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


@pytest.fixture(scope="module")
def tests_grader():
    return CodeTests(Limits(cpu_s=2, wall_s=10))


STDIO = json.dumps({"inputs": ["1 2\n", "3 4\n"], "outputs": ["3", "7"]})
CALL = json.dumps({"fn_name": "add", "inputs": ["[1, 2]\n3", [[1], 1]], "outputs": ["[4, 5]", [[2]]]})
ASSERT = json.dumps({"test": "assert add(1, 2) == 3"})


@pytest.mark.parametrize(
    ("program", "tests", "reason"),
    [
        ("a, b = map(int, input().split())\nprint(a + b)", STDIO, "right"),
        ("a, b = map(int, input().split())\nprint(3)", STDIO, "wrong"),
        ("a, b = map(int, input().split())\nprint(a + b)\nraise SystemExit(1)", STDIO, "error"),
        (
            "from __future__ import annotations\ndef add(a, b):\n    print(1)\n    return (*(x + b for x in a),)",
            CALL,
            "right",
        ),
        ("class Solution:\n    def add(self, a: List[int], b: int): return [x + b for x in a]", CALL, "right"),
        ("def add(a, b): return [0, 0]", CALL, "wrong"),
        ("def plus(a, b): return 1", CALL, "error"),
        ("import atexit\natexit.register(print, ']')\ndef add(a, b): return [x + b for x in a]", CALL, "wrong"),
        ("def add(a, b): return a + b", ASSERT, "right"),
        ("def add(a, b): return a - b", ASSERT, "error"),
        ("import os\nos._exit(0)", ASSERT, "wrong"),
    ],
)
def test_programs_are_held_against_their_tests(tests_grader, program, tests, reason):
    verdict = tests_grader.grade(f"<think>```python\nno\n```</think>\nSo:\n```python\n{program}\n```\nDone.", tests)
    assert verdict.reason == reason, verdict.detail
    assert verdict.correct == (reason == "right")
    assert verdict.extracted.strip() == program


def test_the_program_is_the_last_block_of_python():
    assert extract_program("```python\na\n```\n```\nb\n```\n```bash\nls\n```") == "b\n"
    assert extract_program("no code") is None
    assert extract_program("```python\nunfinished") is None


@pytest.mark.parametrize(
    ("got", "expected", "same"),
    [
        ("1 2\n3\n", "1 2 \n3", True), ("1\n2", "1 2", True), ("0.3333333", "0.33333333", True), ("1e-9", "0.0", True),
        ("0.34", "0.33", False), ("2", "2.0", True), ("2.0", "2", False), ("1000000001", "1000000000", False),
        ("YES", "Yes", False), ("", "", True), ("nan", "1.0", False), ("1 2", "1", False),
    ],
)  # fmt: skip
def test_outputs_are_compared_word_by_word(got, expected, same):
    assert same_output(got, expected) == same


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        ("{", "are no JSON"), ("[]", "are no JSON object"), ("{}", "neither inputs and outputs nor a test"),
        ('{"inputs": [], "outputs": []}', "0 inputs and 0 outputs"),
        ('{"inputs": ["1"], "outputs": []}', "1 inputs and 0 outputs"),
    ],
)  # fmt: skip
def test_tests_of_no_known_form_are_one_line(tests, message):
    with pytest.raises(InputError, match=message):
        parse_tests(tests)


def test_where_code_cannot_be_confined_nothing_is_sampled(tmp_path, monkeypatch):
    from omniopd.graders import sandbox

    path = tmp_path / "code.jsonl"
    path.write_text(json.dumps({"question": "q", "tests": {"test": "assert True"}}) + "\n")
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    with pytest.raises(InputError, match=r"Code cannot be graded here, .*: it is not Linux"):
        evaluate(Target("/no/model"), EvalSettings(str(path)), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_line_says_what_is_missing():
    for arguments, message in (
        (["m"], "MODEL and --benchmark are needed"),
        (["m", "--benchmark", "x"], "no benchmark"),
    ):
        done = Command("eval", *arguments).wait()
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
