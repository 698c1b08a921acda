"""Benchmarks from files and from the hub: what is read, and what is refused in one line."""

import gzip
import json

import polars as pl
import pytest

from omniopd.eval.benchmarks import HUB, load_benchmark
from omniopd.graders.code import CodeTests
from omniopd.graders.sandbox import Limits
from omniopd.store.errors import InputError, UsageError


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_file_of_questions_and_answers(tmp_path):
    rows = [{"problem": "1+1?", "answer": 2}, {"problem": "1/2?", "answer": 0.5}]
    benchmark = load_benchmark(write(tmp_path / "sums.jsonl", rows))
    assert (benchmark.name, benchmark.code) == ("sums", False)
    assert [(q.conversation.question, q.reference) for q in benchmark.questions] == [("1+1?", "2"), ("1/2?", "0.5")]
    assert len({q.question_id for q in benchmark.questions}) == 2


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_each_kind_of_file_says_the_same(tmp_path, suffix):
    frame = pl.DataFrame({"id": ["a", "b"], "question": ["1+1", "2+2"], "answer": ["2", "4"]})
    path = tmp_path / f"x{suffix}"
    {".csv": frame.write_csv, ".parquet": frame.write_parquet, ".jsonl": frame.write_ndjson}[suffix](path)
    assert [(q.question_id, q.conversation.question, q.reference) for q in load_benchmark(str(path)).questions] == [
        ("a", "1+1", "2"),
        ("b", "2+2", "4"),
    ]


def test_tests_are_read_as_text_or_as_a_struct(tmp_path):
    tests = {"inputs": ["1\n"], "outputs": ["2\n"]}
    rows = [{"question": "a", "tests": json.dumps(tests)}, {"question": "b", "tests": json.dumps(tests)}]
    as_text = load_benchmark(write(tmp_path / "t.jsonl", rows))
    as_struct = load_benchmark(write(tmp_path / "s.jsonl", [{**row, "tests": tests} for row in rows]))
    assert as_text.code
    assert as_struct.code
    assert [json.loads(q.reference) for q in as_text.questions] == [tests, tests]
    assert [json.loads(q.reference) for q in as_struct.questions] == [tests, tests]


EXACT = {
    "mixed": ({"fn_name": "f", "inputs": [[3, "x"]], "outputs": [6]}, "def f(a, b):\n    return a * 2 + len(b) - 1"),
    "objects": (
        {"fn_name": "f", "inputs": [[{"a": 1}], [{"b": 2, "c": 3}]], "outputs": [["a"], ["b", "c"]]},
        "def f(d):\n    return sorted(d)",
    ),
    "text and lists": (
        {"fn_name": "add", "inputs": ["1\n2", [3, 4]], "outputs": ["3", 7]}, "def add(a, b):\n    return a + b",
    ),
    "whole and decimal": (
        {"fn_name": "f", "inputs": [[1], [1.0], [10**20]], "outputs": ["int", "float", "int"]},
        "def f(x):\n    return type(x).__name__",
    ),
}  # fmt: skip


def test_tests_reach_the_grader_as_the_exact_json_of_the_file(tmp_path):
    """Values of several types, objects with other keys, 1 and 1.0, in one file: none is made like another."""
    rows = [{"id": name, "question": name, "tests": tests} for name, (tests, _) in EXACT.items()]
    benchmark = load_benchmark(write(tmp_path / "x.jsonl", rows))
    grader = CodeTests(Limits())
    for question in benchmark.questions:
        tests, program = EXACT[question.question_id]
        assert question.reference == json.dumps(tests)
        assert grader.grade(f"```python\n{program}\n```", question.reference).correct, question.question_id


def test_tests_that_no_grader_knows_are_refused_with_their_line_before_anything_is_sampled(tmp_path):
    good = {"question": "a", "tests": {"inputs": ["1"], "outputs": ["1"]}}
    for tests, message in (
        (["assert f(1) == 1"], "line 2, column 'tests': a list"),
        ({"inputs": ["1"], "outputs": []}, "line 2: The tests of a question have 1 inputs and 0 outputs"),
        ("no json", "line 2: The tests of a question are no JSON"),
    ):
        with pytest.raises(InputError, match=rf"x\.jsonl, {message}"):
            load_benchmark(write(tmp_path / "x.jsonl", [good, {"question": "b", "tests": tests}]))


def test_a_compressed_file_and_a_folder_are_benchmarks_too(tmp_path):
    rows = "".join(json.dumps({"question": q, "answer": q}) + "\n" for q in "ab")
    (tmp_path / "sums.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    benchmark = load_benchmark(str(tmp_path / "sums.jsonl.gz"))
    assert (benchmark.name, len(benchmark.questions)) == ("sums", 2)
    folder = tmp_path / "held.out"
    folder.mkdir()
    (folder / "test.jsonl").write_text(rows)
    (folder / "train.jsonl").write_text(rows * 2)
    benchmark = load_benchmark(str(folder))
    assert (benchmark.name, len(benchmark.questions)) == ("held.out", 2)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "x", "answer": 1}], r"has no column 'question' \(or 'problem', 'prompt'\); it has text, answer"),
        ([{"question": "x", "solution": 1}], r"has no column 'answer' \(or 'final_answer'\), and no 'tests'"),
        (
            [{"question": "x", "answer": "1"}, {"question": "y", "answer": None}],
            r"x\.jsonl, line 2: there is no answer",
        ),
        ([{"question": " ", "answer": "1"}], r"x\.jsonl, line 1: there is no question"),
        (
            [{"id": 1, "question": "x", "answer": 1}, {"id": 1, "question": "y", "answer": 1}],
            r"x\.jsonl, line 2: an earlier row has the same id '1'",
        ),
        (
            [{"question": "x", "answer": 1}, {"question": "x", "answer": 2}],
            "line 2: an earlier row has the same question",
        ),
        ([], "is empty"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path, rows, message):
    with pytest.raises(InputError, match=message) as error:
        load_benchmark(write(tmp_path / "x.jsonl", rows))
    assert "\n" not in str(error.value)


def test_a_missing_or_damaged_file_and_an_unknown_name(tmp_path):
    with pytest.raises(InputError, match=r"no\.jsonl does not exist"):
        load_benchmark(str(tmp_path / "no.jsonl"))
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(InputError, match=r"bad\.jsonl, line 1, column 2: not JSON"):
        load_benchmark(str(tmp_path / "bad.jsonl"))
    (tmp_path / "header.csv").write_text("question,answer\n")
    with pytest.raises(InputError, match="holds no question"):
        load_benchmark(str(tmp_path / "header.csv"))
    with pytest.raises(UsageError, match=r"There is no benchmark 'gsm8k'.*math500, aime24.*\.jsonl"):
        load_benchmark("gsm8k")


@pytest.fixture
def hub(monkeypatch):
    """A hub of rows: {dataset: [row, ...]}; says what was asked for."""
    import datasets

    asked, rows = [], {}

    def load(name, subset=None, split=None):
        asked.append((name, subset, split))
        if name not in rows:
            raise ConnectionError("Couldn't reach the hub\nmore")
        return datasets.Dataset.from_list(rows[name])

    monkeypatch.setattr(datasets, "load_dataset", load)
    return rows, asked


def test_an_unreachable_hub_is_one_line_that_names_the_file(hub):
    for name in HUB:
        with pytest.raises(InputError, match=rf"the hub did not give it: .*--benchmark {name}\.jsonl") as error:
            load_benchmark(name)
        assert "\n" not in str(error.value)


def test_answers_of_contests_are_whole_numbers_however_the_hub_writes_them(hub):
    rows, asked = hub
    rows["HuggingFaceH4/aime_2024"] = [
        {"id": 60, "problem": "p", "answer": "025"},
        {"id": 61, "problem": "q", "answer": "7"},
    ]
    rows["math-ai/amc23"] = [{"id": 0, "question": "p", "answer": "27.0"}]
    assert [q.reference for q in load_benchmark("aime24").questions] == ["25", "7"]
    assert [(q.question_id, q.reference) for q in load_benchmark("amc23").questions] == [("0", "27")]
    assert asked == [("HuggingFaceH4/aime_2024", None, "train"), ("math-ai/amc23", None, "test")]


def test_an_answer_in_several_parts_is_joined(hub):
    rows, asked = hub
    rows["Hothan/OlympiadBench"] = [{"id": 1606, "question": "p", "final_answer": ["$1$", "$2$"]}]
    assert load_benchmark("olympiadbench").questions[0].reference == "$1$, $2$"
    assert asked[0][1] == "OE_TO_maths_en_COMP"


def test_programs_of_one_source_are_drawn_from_the_compilation_always_the_same(hub):
    rows, _ = hub
    tests = json.dumps({"inputs": ["1"], "outputs": ["1"]})
    rows["PRIME-RL/Eurus-2-RL-Data"] = [
        {"data_source": source,
         "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": f"{source} {i}"}],
         "reward_model": {"ground_truth": tests, "style": "rule"}}
        for source in ("apps", "taco") for i in range(130)
    ]  # fmt: skip
    first = load_benchmark("taco")
    assert len(first.questions) == 100
    assert all(q.conversation.question.startswith("taco ") and q.reference == tests for q in first.questions)
    assert load_benchmark("taco") == first
    rows["PRIME-RL/Eurus-2-RL-Data"] += rows["PRIME-RL/Eurus-2-RL-Data"][:5]
    assert len({q.question_id for q in load_benchmark("apps").questions}) == 100, "copies are one question"


def test_a_hub_dataset_that_changed_is_said(hub):
    rows, _ = hub
    rows["HuggingFaceH4/MATH-500"] = [{"unique_id": "a", "question": "p", "answer": "1"}]
    with pytest.raises(InputError, match=r"has changed: it has no column 'problem'.*--benchmark math500\.jsonl"):
        load_benchmark("math500")


def test_a_file_asks_its_chats_whole(tmp_path):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"prompt": chat, "answer": "2"}) + "\n" + json.dumps({"prompt": "1+1?", "answer": "2"}))
    whole, plain = load_benchmark(str(path)).questions
    assert whole.conversation.messages == chat
    assert plain.conversation.is_question
    assert whole.question_id != plain.question_id
    assert str(whole.conversation) == "system: Be brief.\nuser: 1+1?"
