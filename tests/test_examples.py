"""The examples, as a reader runs them: against the demo's models and a teacher on loopback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from omniopd.demo.tasks.sums import PROMPT_TEMPLATE, problems
from omniopd.demo.teacher.process import MODELS, TeacherServer

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = (
    "student.engine=transformers", "student.dtype=float32", f"data.template={json.dumps(PROMPT_TEMPLATE)}",
    "generate.max_new_tokens=64", "select.chunks=3", "select.chunk_tokens=6", "score.unit=char", "train.lr=2e-4",
    "train.global_batch=16", "eval.samples=1", "eval.max_new_tokens=64",
)  # fmt: skip


@pytest.fixture(scope="module")
def base_url():
    with TeacherServer() as url:
        yield url


@pytest.fixture
def questions(tmp_path):
    def write(name, count, split):
        rows = [json.dumps({"question": p.question, "answer": str(p.answer)})
                for p in problems(count, seed=0, split=split)]  # fmt: skip
        path = tmp_path / name
        path.write_text("\n".join(rows) + "\n")
        return path

    return write


def example(name, *words):
    command = [sys.executable, EXAMPLES / name, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def settings(*more):
    return [word for setting in (*SMALL, *more) for word in ("--set", setting)]


def first_run(tmp_path, questions, base_url, *more):
    given = ("--student", MODELS / "student", "--prompts", questions("prompts.jsonl", 16, "train"), "--teacher",
             "teacher", "--base-url", base_url)  # fmt: skip
    return example("first_run.py", tmp_path / "run", *given, *settings("teacher.rollouts=4", *more))


def test_a_first_run_then_its_weights_by_three_similarities(tmp_path, questions, base_url):
    said = first_run(tmp_path, questions, base_url)
    assert "next: omniopd export" in said
    assert said.count("  weight 0.") == 5
    assert said.splitlines()[-1] == str(tmp_path / "run" / "round=000" / "policy")
    said = example("similarities.py", tmp_path / "run")
    assert "  edit on char and edit on word: 0." in said, "the first run's own weights stand beside them"
    assert "  exact on word and rouge1 on word: " in said


def test_two_objectives_at_the_same_teacher_tokens(tmp_path, questions, base_url):
    first_run(tmp_path, questions, base_url, "data.per_round=8")
    benchmark = questions("heldout.jsonl", 20, "heldout")
    words = ("--benchmark", benchmark, "--prompts", 16, *settings("data.per_round=8", "teacher.rollouts=4"))
    said = example("two_objectives.py", tmp_path / "run", tmp_path / "draft", *words)
    spent = {line.split()[0]: int(line.split()[-3].replace(",", "")) for line in said.splitlines() if "Pass@1" in line}
    assert set(spent) == {"student", "omniopd", "draft"}
    assert 0 < spent["draft"] <= spent["omniopd"]


def test_the_notebook_runs_and_says_what_it_says_in_the_repository(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(EXAMPLES / "look_into_a_run.ipynb", as_version=4)
    committed = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in committed[1:]), "the outputs are committed with it"
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute()
    shown = "".join(str(output) for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs)
    assert shown.count("Pass@1") == 2
    assert "omniopd export" not in shown, "paths of a machine are not shown"
