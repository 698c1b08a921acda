"""What Weights & Biases and MLflow have of a run, read back from what the real packages stored offline."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass

import mlflow
import pytest

from omniopd import Run
from omniopd.store import files
from omniopd.store.errors import BudgetReached, InputError
from omniopd.store.layout import RunDir
from omniopd.store.mirror.snapshot import Snapshots
from omniopd.view.trackers import tracked as module
from omniopd.view.trackers.points import AXES, CHUNK_COLUMNS
from omniopd.view.trackers.tracked import tracked
from support.offline_wandb import history, records, tables
from support.written_run import add_evaluation, score_again

TRACKERS = ("wandb", "mlflow")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_PROJECT", "WANDB_ENTITY", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


@dataclass
class Told:
    """What a tracker has."""

    values: Counter
    """(name, place on its axis, value): how often."""
    tables: dict
    """Round: the texts of the chunks."""
    settings: dict
    runs: set
    states: list


def of_wandb(run: RunDir) -> Told:
    folder = run.metrics / "wandb"
    values = Counter()
    for row in history(folder):
        for name, value in row.items():
            axis = AXES.get(name.partition("/")[0])
            if axis is not None and name not in AXES.values():
                values[name, row[axis], value] += 1
    of_rounds = {}
    for name, table in tables(folder).items():
        assert tuple(table["columns"]) == CHUNK_COLUMNS
        of_rounds[int(name.removeprefix("chunks/round="))] = [
            row[CHUNK_COLUMNS.index("chunk")] for row in table["data"]
        ]
    settings, runs, states = {}, set(), []
    for record in records(folder):
        if record.WhichOneof("record_type") == "run":
            runs.add((record.run.project, record.run.display_name, record.run.run_id))
            settings.update({item.key: json.loads(item.value_json) for item in record.run.config.update})
        if record.WhichOneof("record_type") == "exit":
            states.append("FAILED" if record.exit.exit_code else "FINISHED")
    return Told(values, of_rounds, settings, runs, states)


def of_mlflow(run: RunDir) -> Told:
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{run.metrics.absolute() / 'mlflow' / 'mlflow.db'}")
    values, of_rounds, settings, runs, states = Counter(), {}, {}, set(), []
    for experiment in client.search_experiments():
        for found in client.search_runs([experiment.experiment_id]):
            runs.add((experiment.name, found.info.run_name, found.data.tags["omniopd.id"]))
            states.append(found.info.status)
            settings.update(found.data.params)
            for name in found.data.metrics:
                for metric in client.get_metric_history(found.info.run_id, name):
                    values[name, metric.step, metric.value] += 1
            for artifact in client.list_artifacts(found.info.run_id, "chunks"):
                table = mlflow.artifacts.load_dict(f"{found.info.artifact_uri}/{artifact.path}")
                assert tuple(table["columns"]) == CHUNK_COLUMNS
                number = int(artifact.path.removeprefix("chunks/round=").removesuffix(".json"))
                of_rounds[number] = [row[CHUNK_COLUMNS.index("chunk")] for row in table["data"]]
    return Told(values, of_rounds, settings, runs, states)


READERS = {"wandb": of_wandb, "mlflow": of_mlflow}


# MLflow takes seconds to make its database.
@pytest.fixture(params=["wandb", pytest.param("mlflow", marks=pytest.mark.slow)])
def tracker(request):
    return request.param


@pytest.fixture
def told(tracker):
    return READERS[tracker]


def tell(run: RunDir, *trackers: str) -> None:
    with tracked(run, run.config((f"run.trackers={json.dumps(trackers)}",))):
        pass


@pytest.fixture
def scored_run(written_run):
    written_run.round(0).shards.finish()
    add_evaluation(written_run, 0, [True, False]).finish()
    return written_run


def test_every_stage_is_told_with_each_value_at_its_place(scored_run, tracker, told):
    tell(scored_run, tracker)
    found = told(scored_run)
    assert set(found.values.values()) == {1}
    expected = {
        ("train/chunk_loss", 0, 0.3), ("train/kl_mean", 1, 0.01), ("train/skipped", 1, 0.0),
        ("teacher/usd", 4, 0.012), ("teacher/tokens", 4, 180.0), ("teacher/cached_share", 4, 0.4),
        ("teacher/rollouts_failed", 4, 4.0), ("generate/trajectories", 0, 2.0), ("generate/cut_off", 0, 0.5),
        ("audit/chunks", 0, 4.0), ("audit/rollouts", 0, 12.0), ("audit/rollouts_ok", 0, 8.0),
        ("score/phi", 0, 0.5), ("score/weight", 0, 0.375), ("eval/aime24/pass_at_1", 0, 0.5),
    }  # fmt: skip
    assert expected <= set(found.values)
    assert not any(name == "train/step" for name, *_ in found.values), "the place itself is no value"
    # Two of each trajectory, the lowest weight first.
    assert found.tables == {0: ["t, I k", "et me ", "wer is", "o the "]}
    assert found.states == ["FINISHED"]
    assert {(project, name) for project, name, _ in found.runs} == {("omniopd", "run")}


def test_what_was_told_is_not_told_again_and_what_changed_is(scored_run, tracker, told):
    tell(scored_run, tracker)
    before = told(scored_run)
    tell(scored_run, tracker)
    after = told(scored_run)
    assert (after.values, after.runs) == (before.values, before.runs)
    with scored_run.train_steps(0).open("a") as file:  # its last line was cut off
        file.write('p": 2, "loss": 0.25, "seconds": 1.0, "tokens_per_s": 1.0, "skipped": true}\n')
    add_evaluation(scored_run, 1, [True, True]).finish()
    tell(scored_run, tracker)
    news = told(scored_run).values - after.values
    assert ("train/skipped", 2, 1.0) in news
    assert ("eval/aime24/pass_at_1", 1, 1.0) in news
    assert {name.partition("/")[0] for name, *_ in news} == {"train", "eval"}


def test_a_round_that_is_scored_again_is_told_again(scored_run, tracker, told):
    tell(scored_run, tracker)
    before = told(scored_run).values
    score_again(scored_run, **{"score.min_rollouts": 3})  # no chunk has so many answers
    scored_run.round(0).shards.finish()
    tell(scored_run, tracker)
    news = told(scored_run).values - before
    assert ("score/phi", 0, 0.5) in news
    assert not any(name == "score/weight" for name, *_ in news)


@pytest.mark.slow
def test_a_run_in_progress_is_told_of_its_spend_before_it_ends(
    make_run, generated, teacher, tracker, told, monkeypatch
):
    made = make_run(questions=6, teacher={"rollouts": 2, "max_concurrency": 1, "budget_usd": None})
    teacher.behave = lambda body, number: time.sleep(0.1)
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LOOKS", 0.2)
    run = Run(generated(made).path, {"teacher.base_url": teacher.base_url, "run.trackers": [tracker]})
    run.audit(check=False)
    counts = [place for name, place, _ in told(run.folder).values if name == "teacher/tokens"]
    assert len(counts) > 2
    assert max(counts) == run.status().spend.requests


@pytest.mark.slow
def test_a_whole_run_is_told_by_one_command_with_all_its_settings(make_run, teacher, tracker, told):
    run = Run(make_run(questions=4, teacher={"rollouts": 2, "budget_usd": None}).path,
              {"teacher.base_url": teacher.base_url, "train.steps": 2, "run.trackers": [tracker]})  # fmt: skip
    run.run(2, check=False, say=lambda _: None)
    found = told(run.folder)
    assert [place for name, place, _ in sorted(found.values) if name == "train/loss"] == [0, 1]  # 4 sequences a round
    assert {place for name, place, _ in found.values if name == "audit/rollouts"} == {0, 1}
    assert set(found.tables) == {0, 1}
    assert str(found.settings["teacher.rollouts"]) == "2"
    assert len(found.states) == 1, "one run, not one for each stage"


def test_no_password_leaves_the_run(scored_run, tracker):
    secret = "http://somebody:swordfish@127.0.0.1:9/v1"
    with tracked(scored_run, scored_run.config((f"run.trackers=['{tracker}']", f"teacher.base_url={secret}"))):
        pass
    stored = [path for path in (scored_run.metrics / tracker).rglob("*") if path.is_file()]
    assert stored
    assert not [path for path in stored if b"swordfish" in path.read_bytes()]


def test_while_one_command_tells_another_leaves_it_to_it(scored_run, tracker, told):
    lock = scored_run.tracked(tracker).with_suffix(".lock")
    with files.exclusive(lock, "another command"):
        tell(scored_run, tracker)
    assert not (scored_run.metrics / tracker).exists()
    tell(scored_run, tracker)
    assert told(scored_run).values


def test_a_command_that_outlives_the_one_that_told_tells_the_rest(scored_run, tracker, told):
    lock = scored_run.tracked(tracker).with_suffix(".lock")
    with files.exclusive(lock, "another command"):
        block = tracked(scored_run, scored_run.config((f"run.trackers=['{tracker}']",)))
        block.__enter__()
    block.__exit__(None, None, None)
    assert ("audit/chunks", 0, 4.0) in told(scored_run).values


def test_a_tracker_that_fails_on_the_way_stops_nothing_and_is_told_by_the_next_command(
    scored_run, tracker, told, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        if tracker == "mlflow":
            patch.setattr(
                mlflow.MlflowClient, "log_batch", _refuse(mlflow.MlflowException("the server is away\n at line 1"))
            )
            # The parameters are the first that a run is told.
            with pytest.raises(InputError, match="mlflow does not begin: the server is away"):
                tell(scored_run, tracker)
    tell(scored_run, tracker)
    add_evaluation(scored_run, 1, [True, True]).finish()
    capsys.readouterr()
    with monkeypatch.context() as patch:
        if tracker == "mlflow":
            patch.setattr(
                mlflow.MlflowClient, "log_batch", _refuse(mlflow.MlflowException("the server is away\n at line 1"))
            )
        else:
            import wandb

            patch.setattr(wandb.Run, "log", _refuse(wandb.Error("the server is away\n at line 1")))
        tell(scored_run, tracker)
    said = capsys.readouterr().err
    assert f"omniopd: {tracker}: the server is away. The run itself is whole" in said
    assert said.count("omniopd:") == 1
    before = told(scored_run).values
    tell(scored_run, tracker)
    assert ("eval/aime24/pass_at_1", 1, 1.0) in told(scored_run).values - before


def _refuse(error):
    def method(*_, **__):
        raise error

    return method


def test_an_error_of_the_stage_is_told_as_a_failed_run_and_a_spent_budget_is_not(scored_run, tracker, told):
    for error, expected in ((InputError("a", "b"), "FAILED"), (BudgetReached("a", "b"), "FINISHED")):
        with pytest.raises(type(error)), tracked(scored_run, scored_run.config((f"run.trackers=['{tracker}']",))):
            raise error
        assert told(scored_run).states[-1] == expected


def test_on_another_machine_a_tracker_without_its_store_is_told_all(scored_run, tracker, told, tmp_path):
    tell(scored_run, tracker)
    with Snapshots(scored_run).taken() as mirrored:
        names = set(mirrored)
    assert f"metrics/trackers/{tracker}.json" in names
    assert not [name for name in names if name.startswith(f"metrics/{tracker}/")], "it changes while it is copied"
    before = told(scored_run)
    elsewhere = RunDir(tmp_path / "elsewhere" / "run")
    shutil.copytree(scored_run.path, elsewhere.path, ignore=shutil.ignore_patterns(tracker))
    tell(elsewhere, tracker)
    after = told(elsewhere)
    assert after.values == before.values
    assert after.runs != before.runs, "a run of its own: nobody knows whether the old one was sent"


def test_another_project_is_told_all(scored_run, tracker, told, monkeypatch):
    tell(scored_run, tracker)
    monkeypatch.setenv("WANDB_PROJECT", "second")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "second")
    tell(scored_run, tracker)
    found = told(scored_run)
    assert {project for project, *_ in found.runs} == {"omniopd", "second"}
    assert set(found.values.values()) == {2}


def test_a_package_that_is_missing_is_named_before_anything_is_paid(make_run, generated, teacher, tracker, monkeypatch):
    made = generated(make_run(questions=6, teacher={"budget_usd": None}))
    monkeypatch.setitem(sys.modules, tracker, None)
    run = Run(made.path, {"teacher.base_url": teacher.base_url, "run.trackers": [tracker]})
    with pytest.raises(InputError, match=rf"run.trackers needs {tracker}: .* `pip install 'omniopd\[{tracker}\]'`"):
        run.audit(check=False)
    assert not teacher.requests


def test_a_tracker_that_wants_a_login_or_is_away_is_named_before_anything_is_paid(
    make_run, generated, teacher, tracker, tmp_path
):
    made = generated(make_run(questions=6, teacher={"budget_usd": None}))
    # A process of its own: wandb reads the environment once.
    left_out = ("WANDB_MODE", "WANDB_API_KEY", "NETRC")
    environment = {key: value for key, value in os.environ.items() if key not in left_out} | {
        "HOME": str(tmp_path), "MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }  # fmt: skip
    settings = (f"teacher.base_url={teacher.base_url}", f"run.trackers=['{tracker}']")
    command = ["audit", str(made.path), "--no-check", *(word for one in settings for word in ("--set", one))]
    ended = subprocess.run(
        [sys.executable, "-m", "omniopd", *command], env=environment, capture_output=True, text=True, timeout=100,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    hint = {"wandb": "wandb login", "mlflow": "MLFLOW_TRACKING_URI"}[tracker]
    assert re.fullmatch(f"omniopd: {tracker} does not begin: .*{hint}.*\n", ended.stderr)
    assert ended.returncode == 3
    assert not teacher.requests


def test_a_run_without_trackers_imports_none(scored_run, monkeypatch):
    for name in TRACKERS:
        monkeypatch.setitem(sys.modules, name, None)
    begun = time.monotonic()
    tell(scored_run)
    assert not (scored_run.metrics / "trackers").exists()
    assert time.monotonic() - begun < 5
