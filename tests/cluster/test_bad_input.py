"""What is wrong with Ray, the address or the command, in one line each; no cluster is needed to say so."""

import importlib.metadata
import socket
import threading
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray.exceptions
import ray.train

import omniopd
from omniopd import Run
from omniopd.cluster import driver
from omniopd.cluster.connection import RAY, check_ray, connected
from omniopd.cluster.driver import prints_to, told, watched
from omniopd.store.errors import ConfigError, InputError, OmniopdError, StorageError
from omniopd.store.sections import ClusterConfig
from support.processes import Command


@pytest.fixture
def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield probe.getsockname()[1]


def test_the_extra_and_the_check_ask_for_the_same_version():
    text = (Path(omniopd.__file__).parent / "pyproject.toml").read_text()
    assert tomllib.loads(text)["project"]["optional-dependencies"]["ray"] == [f"ray[default]>={RAY},<2.61"]
    check_ray()


def test_ray_that_is_missing_or_of_another_version_is_named(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.6.0")
    with pytest.raises(InputError, match=r"needs Ray 2\.60, and 2\.6\.0 is installed here\. Run `pip install"):
        check_ray()

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(InputError, match="needs Ray, which is not installed here"), connected(ClusterConfig(on="ray")):
        pass


@pytest.mark.parametrize("command", ["generate", "run"])
def test_an_address_at_which_nothing_answers_ends_the_command_with_one_line(make_run, closed_port, command):
    run = make_run()
    words = command, run.path, "--no-check", "--on", "ray", "--set", f"cluster.address=127.0.0.1:{closed_port}"
    # A driver of `ray symmetric-run` is one of several tasks of srun; that makes it no shard.
    ended = Command(*words, env={"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}).wait()
    assert ended.returncode == 3
    assert ended.stderr.count("\n") == 1
    assert f":{closed_port}: Connection refused. Start one" in ended.stderr
    assert not list((run.path / ".ray").glob("*"))


def test_an_address_from_the_environment_and_one_of_no_host_are_refused_at_once(monkeypatch, closed_port):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    with pytest.raises(InputError, match=f":{closed_port}: Connection refused"), connected(ClusterConfig(on="ray")):
        pass
    for address, said in (("nowhere.invalid:6379", "nowhere.invalid"), ("nowhere", "nowhere")):
        with pytest.raises(InputError, match=said), connected(ClusterConfig(on="ray", address=address)):
            pass


def test_ray_client_is_refused(make_run):
    run = Run(make_run().path, {"cluster.address": "ray://head:10001"})
    with pytest.raises(ConfigError, match=r"cluster\.address: Ray Client is not supported"):
        run.generate()


def test_a_share_of_its_own_is_refused_where_ray_deals_them_out(make_run):
    ended = Command("generate", make_run().path, "--shard", "0/2", "--on", "ray").wait()
    assert ended.returncode == 2
    assert ended.stderr == (
        "omniopd: --shard and cluster.on = ray exclude each other. Leave out --shard: Ray deals out the shares.\n"
    )


INPUT = InputError("The prompts are empty.", "Write some.")


def task_error(cause: Exception) -> ray.exceptions.RayTaskError:
    return ray.exceptions.RayTaskError("generate", "Traceback ...", cause, proctitle="ray", pid=1, ip="10.0.0.1")


@pytest.mark.parametrize(
    "raised",
    [
        INPUT,
        task_error(INPUT),
        task_error(INPUT).as_instanceof_cause(),
        # A rank that fails brings the others down.
        ray.train.WorkerGroupError("", {0: ConnectionError("gloo"), 1: INPUT}),
        ray.train.ControllerError(INPUT),
    ],
)
def test_an_error_of_a_worker_is_raised_as_it_was_there(raised):
    with pytest.raises(InputError) as caught, told():
        raise raised
    assert type(caught.value) is InputError
    assert (str(caught.value), caught.value.exit_code) == (str(INPUT), 3)


def test_what_the_system_and_ray_say_comes_to_one_line():
    with pytest.raises(StorageError, match="/shared/part: No space left on device"), told():
        raise task_error(OSError(28, "No space left on device", "/shared/part"))
    with pytest.raises(InputError, match="A machine of the cluster has no package megatron"), told():
        raise task_error(ModuleNotFoundError("No module named 'megatron'", name="megatron"))
    with pytest.raises(InputError, match=r"has no package omniopd\.cluster\."), told():
        raise ray.exceptions.RaySystemError("No module named 'omniopd.cluster'", "Traceback ...")
    with pytest.raises(OmniopdError, match=r"^The cluster failed: [^\n]* Run the same command again") as caught, told():
        raise ray.exceptions.RayActorError()
    assert caught.value.exit_code == 3


def test_work_that_ends_in_a_timeout_of_its_own_ends(head):
    def work():
        raise TimeoutError("of the file server")

    with pytest.raises(TimeoutError, match="of the file server"):
        watched(work, lambda: None)


def test_a_bug_stays_one():
    with pytest.raises(ZeroDivisionError), told():
        raise task_error(ZeroDivisionError("of ours"))


@pytest.fixture
def head(monkeypatch):
    """Something that listens where this process takes the cluster's head to be."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address=address))
        yield server


def test_a_head_that_is_gone_ends_the_work_with_one_line(head, monkeypatch):
    over = threading.Event()
    looks = []

    def look():
        looks.append(1)
        head.close()

    monkeypatch.setattr(driver, "_SECONDS_BETWEEN_LOOKS", 0.01)
    monkeypatch.setattr(driver, "_GONE_AFTER_S", 0.2)
    with pytest.raises(OmniopdError, match=r"head of the Ray cluster at 127\.0\.0\.1:\d+ is gone\. Start the cluster"):
        watched(over.wait, look)
    over.set()
    assert looks == [1], "nothing is asked of a head that does not answer"


def test_what_is_printed_while_ray_works_goes_to_the_log(head, tmp_path, capsys):
    looks = []

    def work():
        print("(raylet) 20 lines")
        return 7

    with prints_to(tmp_path / "logs" / "ray.log"):
        assert watched(work, lambda: looks.append(1)) == 7
    assert (tmp_path / "logs" / "ray.log").read_text() == "(raylet) 20 lines\n"
    assert looks
    assert capsys.readouterr().out == ""
