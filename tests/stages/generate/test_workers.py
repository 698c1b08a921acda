"""Several workers fill a round without talking to each other, and it comes out as one worker's."""

import pytest

from omniopd.stages.generate.stage import generate
from omniopd.stages.generate.workers import claim_devices, which_worker
from omniopd.store.errors import UsageError
from omniopd.store.worker import Worker
from support.processes import Command


@pytest.mark.parametrize(
    ("given", "environment", "worker"),
    [
        ("", {}, Worker()),
        ("1/3", {"RANK": "0", "WORLD_SIZE": "2"}, Worker(1, 3)),
        ("", {"RANK": "3", "WORLD_SIZE": "4", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, Worker(3, 4)),
        ("", {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, Worker(1, 2)),
        ("", {"SLURM_PROCID": "0"}, Worker()),
    ],
)
def test_a_worker_finds_its_share(given, environment, worker):
    assert which_worker(given, environment) == worker


def test_a_share_that_does_not_exist_is_refused():
    with pytest.raises(UsageError, match=r"Shard 3/3 does not exist"):
        which_worker("3/3", {})


@pytest.mark.parametrize(
    ("environment", "devices", "each", "visible"),
    [
        ({}, 8, 1, None),  # one worker alone has them all
        ({"LOCAL_RANK": "2"}, 8, 1, "2"),
        ({"LOCAL_RANK": "1"}, 8, 2, "2,3"),
        ({"SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": "4,5"}, 2, 1, "5"),
        ({"SLURM_LOCALID": "3", "CUDA_VISIBLE_DEVICES": "6"}, 1, 1, "6"),  # srun gave it its own
        ({"LOCAL_RANK": "1"}, 0, 1, None),
    ],
)
def test_workers_of_one_machine_take_a_gpu_each(environment, devices, each, visible):
    claim_devices(environment, devices, each)
    assert environment.get("CUDA_VISIBLE_DEVICES") == visible


def table_of(run):
    rows = run.round(0).trajectories.read().sort_by("trajectory_id").to_pylist()
    return {row["trajectory_id"]: row for row in rows}


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name, row in left.items():
        other = right[name]
        for column in row.keys() - {"logprobs", "entropies"}:
            assert row[column] == other[column], column
        for column in ("logprobs", "entropies"):
            assert row[column] == pytest.approx(other[column], abs=1e-5)


def test_three_workers_at_once_write_the_table_of_one(make_run):
    settings = {"generate": {"samples_per_prompt": 2, "part_rows": 3, "max_new_tokens": 24}}
    alone, shared = make_run("alone", **settings), make_run("shared", **settings)
    generate(alone, 0, alone.config())
    # The same prompts, so that the ids can be compared.
    shared.config_toml.write_text(alone.config_toml.read_text())

    environments = [{"SLURM_PROCID": str(rank), "SLURM_NTASKS": "3"} for rank in range(3)]
    for worker in [Command("generate", shared.path, env=environment) for environment in environments]:
        ended = worker.wait()
        assert ended.returncode == 0, ended.stderr
    table = shared.round(0).trajectories
    assert table.complete
    assert {Worker.of_file(path.name) for path in table.folder.glob("manifest*")} == {Worker(i, 3) for i in range(3)}
    assert_same(table_of(alone), table_of(shared))


def test_another_number_of_workers_goes_on_where_the_first_stopped(make_run):
    run = make_run(generate={"max_new_tokens": 8})
    generate(run, 0, run.config(), Worker(1, 4))
    first = table_of(run)
    assert len(first) == 3
    line = generate(run, 0, run.config())
    assert line.startswith("12 trajectories")
    assert first.items() <= table_of(run).items()
    assert run.round(0).trajectories.complete


def test_a_worker_without_prompts_is_done_at_once(make_run):
    run = make_run(questions=2, generate={"max_new_tokens": 4})
    assert generate(run, 0, run.config(), Worker(2, 3)) == "no trajectories in this shard"
    for index in range(2):
        generate(run, 0, run.config(), Worker(index, 3))
    assert run.round(0).trajectories.complete


def test_status_shows_what_was_cut_off_and_repetition(make_run):
    from omniopd.view.status import read_status

    run = make_run(generate={"max_new_tokens": 6})
    generate(run, 0, run.config())
    (round_,) = read_status(run, run.config()).rounds
    assert round_.cut_off is not None
    assert 0 <= round_.cut_off <= 1
    assert round_.repetition is not None
    assert 0 <= round_.repetition < 1
