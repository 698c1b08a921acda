"""`train` on a cluster: the ranks of a round under Ray Train, which starts them again when a machine is lost."""

import os
import shutil
from collections.abc import Callable

from ..store.config import Config
from ..store.layout import RunDir
from ..train.launch import Steps, launch, rank_environment
from ..train.result import Progress, TrainResult, result_of
from .connection import connected
from .driver import prints_to, watched
from .place import Place, shared
from .slots import Slots, Watch, slots_of

_LOST_MACHINES = 3
"""Without notice, in one round; with notice there is no limit. Then the command ends, and the same one resumes."""


def train(
    run: RunDir, index: int, config: Config, progress: Progress | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> TrainResult:  # fmt: skip
    """Train a round with `config.train.processes` ranks, each on a slot.

    Args:
        progress: called after each step.
        note: told what the training waits for, "" when it does no longer.

    Raises:
        OmniopdError: as `trainer.train_round`, on whatever machine.
    """
    round_, ranks = run.round(index), config.train.processes
    if round_.policy.is_dir():
        return launch(run, index, config)
    # Outermost: Ray is still printing when the connection ends.
    with prints_to(run.ray_log), connected(config.cluster), shared(run) as place:
        slots = slots_of(1)
        steps = Steps(run, index, config, progress)
        watch = Watch(round_, "train", slots, ranks, note)

        def look() -> None:
            steps.look()
            watch.look()

        try:
            watched(lambda: _fit(place, index, config, slots), look)
        finally:
            watch.over()
            shutil.rmtree(run.ray / _name(index), ignore_errors=True)
        steps.look()
    return result_of(run, index, trained=True)


def _name(index: int) -> str:
    """Of the folder that Ray Train wants to have. Nothing in it matters: checkpoints are our own."""
    return f"train-round={index:03d}"


def _fit(place: Place, index: int, config: Config, slots: Slots) -> None:
    import ray.train
    import ray.train.torch

    from .rank import OnlyMachinesAreReplaced, rank

    environment = {**rank_environment(), **{key: os.environ[key] for key in rank_environment() if key in os.environ}}
    # A rank has the driver's current folder (place.py), not one that Ray Train makes.
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    ray.train.torch.TorchTrainer(
        rank,
        train_loop_config={"place": place, "index": index, "config": config},
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.train.processes,
            use_gpu=slots.gpu,
            resources_per_worker={"CPU": 0, **slots.resources},
        ),
        run_config=ray.train.RunConfig(
            name=_name(index),
            storage_path=str(RunDir(place.run).ray),
            failure_config=ray.train.FailureConfig(max_failures=_LOST_MACHINES),
            callbacks=[OnlyMachinesAreReplaced()],
            worker_runtime_env={"env_vars": environment},
        ),
    ).fit()
