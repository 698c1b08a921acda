# pyright: strict
"""Which of several workers this process is: from --shard, from torchrun, or from SLURM; and how many it may start."""

from collections.abc import Callable, Mapping, MutableMapping
from typing import Literal

from ...store.config import Config
from ...store.errors import ConfigError, UsageError
from ...store.worker import ALONE, Worker

_LAUNCHERS = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))
"""torchrun first: it may have been started by srun, once a node."""


def which_worker(given: str, environment: Mapping[str, str]) -> Worker:
    """The share of this process. `given` is the value of --shard, or "".

    Raises:
        UsageError: --shard is not i/n.
    """
    if given:
        return Worker.parse(given)
    for index, count in _LAUNCHERS:
        if index in environment and count in environment:
            return Worker.parse(f"{environment[index]}/{environment[count]}")
    return ALONE


def one_process(config: Config) -> Config:
    """The config for whoever is one of several already, and starts no others."""
    return config.model_copy(update={"generate": config.generate.model_copy(update={"processes": 1})})


def processes_of(
    asked: int | Literal["auto"],
    each: int,
    worker: Worker,
    devices: Callable[[], int],
    environment: Mapping[str, str],
) -> int:
    """In how many processes a worker samples, one engine each.

    Args:
        asked: generate.processes.
        each: GPUs that an engine needs.
        worker: The share; one of several has one engine.
        devices: Tells how many GPUs this process can see. Asked only where that matters.
        environment: torchrun gives each of its processes one engine, even where there is a single one.

    Raises:
        UsageError: several are asked for, of a worker that is one of several itself.
        ConfigError: they need more GPUs than there are.
    """
    if asked == 1:
        return 1
    if asked == "auto":
        return 1 if worker.count > 1 or "LOCAL_RANK" in environment else max(devices() // each, 1)
    if worker.count > 1:
        raise UsageError(
            f"generate.processes is {asked}, and this process is shard {worker} of several itself.",
            "Leave out --shard, torchrun or srun, or set generate.processes = auto: a shard has one engine then.",
        )
    if 0 < (found := devices()) < asked * each:
        needs = "a GPU of its own" if each == 1 else f"{each} GPUs of its own (generate.tensor_parallel)"
        raise ConfigError(
            f"generate.processes is {asked}, and this machine has {found} GPU{'s' * (found > 1)}.",
            f"Set generate.processes = {max(found // each, 1)}: a process has {needs}.",
        )
    return asked


def claim_devices(environment: MutableMapping[str, str], devices: int, each: int) -> None:
    """Leave this worker its own GPUs where several workers share a machine. Before CUDA starts.

    Args:
        devices: GPUs that the process can see.
        each: GPUs that a worker needs.
    """
    local = environment.get("LOCAL_RANK", environment.get("SLURM_LOCALID"))
    # A launcher that gives each task its own GPUs leaves it no more than it needs.
    if local is None or devices <= each:
        return
    assign_devices(environment, devices, each, int(local))


def assign_devices(environment: MutableMapping[str, str], devices: int, each: int, number: int) -> None:
    """Leave process `number` of a machine its own GPUs, of those that `environment` lets it see."""
    visible = environment.get("CUDA_VISIBLE_DEVICES") or ",".join(str(i) for i in range(devices))
    first = number * each % devices
    environment["CUDA_VISIBLE_DEVICES"] = ",".join(visible.split(",")[first : first + each])
