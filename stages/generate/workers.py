# pyright: strict
"""Which of several workers this process is: from --shard, from torchrun, or from SLURM."""

from collections.abc import Mapping, MutableMapping

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
    visible = environment.get("CUDA_VISIBLE_DEVICES") or ",".join(str(i) for i in range(devices))
    first = int(local) * each % devices
    environment["CUDA_VISIBLE_DEVICES"] = ",".join(visible.split(",")[first : first + each])
