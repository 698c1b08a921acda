"""What comes before the first step in a job of several machines: one rank works, the others wait."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from omniopd.store.config import Config
from omniopd.store.errors import InputError
from omniopd.store.layout import RunDir
from omniopd.store.model import found_here
from omniopd.train.metrics import MetricsLog
from omniopd.train.parallel import on_each_node, on_first_rank, world
from support import training as kit
from support.hub import Hub

TESTS = Path(__file__).parents[1]


def train_on_two_machines(run: RunDir, home: Path, **env: str) -> list[str]:
    """What two trainers said, each a machine of its own with its own cache of the hub; empty where all went well.

    Interpreters of their own: the hub's client takes its address from the environment when it is imported.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {
        **os.environ, "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{TESTS}", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GLOO_SOCKET_IFNAME": "lo",
        "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", **env,
    }  # fmt: skip
    command = [sys.executable, "-m", "support.impatient", str(run.path), "--round", "0"]
    ranks = [
        subprocess.Popen(
            command, env=shared | {"RANK": str(rank), "HF_HOME": str(home / f"machine{rank}")},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[1] for process in ranks]
    return [text for process, text in zip(ranks, said, strict=True) if process.returncode]


@pytest.mark.slow
def test_machines_wait_for_the_first_one_s_download_and_then_take_the_snapshot_themselves(
    run: RunDir, students: Callable[[str], Path], tmp_path: Path
) -> None:
    config = kit.make_config(students("qwen3"))
    kit.write_round(run, 0, config, kit.shard_rows(4))
    from_hub = config.model_dump(mode="json", exclude_unset=True) | {"student": {"model": "owner/model"}}
    kit.write_toml(run, Config.model_validate(from_hub))
    # The default group gives up after three seconds.
    with Hub(model=students("qwen3"), delay_s=8) as hub:
        assert train_on_two_machines(run, tmp_path, HF_ENDPOINT=hub.url) == []
        sent = [revision for revision, name in hub.downloads if name == "model.safetensors"]
    assert sent == ["c" * 40] * 2, "each machine took the commit that the first one found"
    assert len(MetricsLog(run, 0).rows()) == 1
    assert (run.round(0).policy / "model.safetensors").is_file()


def test_a_model_folder_that_another_machine_does_not_have_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "student"
    folder.mkdir()
    assert found_here(str(folder), folder) == folder
    shutil.rmtree(folder)
    with pytest.raises(
        InputError, match=r"is on the first node, and .* does not have it\. Put it where all nodes see it"
    ):
        found_here(str(folder), folder)


def test_what_fails_on_a_machine_is_raised_on_all_ranks() -> None:
    def fails() -> None:
        raise InputError("No snapshot.", "Get one.")

    with world():
        for collective in (on_first_rank, on_each_node):
            assert collective(lambda: 7) == 7
            with pytest.raises(InputError, match=r"No snapshot\. Get one\."):
                collective(fails)
