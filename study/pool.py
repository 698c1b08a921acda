"""All tasks of a study, one after the other or several at a time, each in a process."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing.connection import wait as wait_for
from multiprocessing.queues import SimpleQueue

from ..stages.generate.workers import assign_devices
from .arms import REFERENCE
from .task import Task
from .train_arm import train_arm


def train_all(tasks: Sequence[Task], jobs: int, done: Callable[[Task, float], None]) -> None:
    """Train and evaluate all tasks, the reference arm of a seed before the arms that borrow from it.

    Several at a time share the GPUs of the machine: each has its own, as long as there are enough.

    Args:
        done: Called after each task, with Pass@1 of its last policy.

    Raises:
        OmniopdError: as the stages, from the first task that fails.
    """
    first = [task for task in tasks if task.arm.name == REFERENCE]
    rest = [task for task in tasks if task.arm.name != REFERENCE]
    if jobs == 1:
        for task in [*first, *rest]:
            done(task, train_arm(task))
        return
    # torch is not imported here, so the workers' threads are still to be decided.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    spawn = multiprocessing.get_context("spawn")
    numbers = spawn.SimpleQueue()
    for number in range(jobs):
        numbers.put(number)
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_start_worker, initargs=(jobs, numbers)) as pool:
        try:
            running: dict[Future[float], Task] = {pool.submit(_train_in_worker, task): task for task in first}
            while running:
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    task = running.pop(future)
                    done(task, future.result())
                    if task.arm.name == REFERENCE:
                        freed = [other for other in rest if other.seed == task.seed]
                        running.update((pool.submit(_train_in_worker, other), other) for other in freed)
        except BaseException:
            # What runs comes to the end of its task; after Ctrl-C it was interrupted as this process was.
            pool.shutdown(cancel_futures=True)
            raise


def _start_worker(jobs: int, numbers: "SimpleQueue[int]") -> None:
    """A worker ends with whoever started it, even one that was killed, and Ctrl-C is for its task alone.

    Args:
        numbers: Has one for each worker.
    """
    _claim_gpus(jobs, numbers.get())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait_for([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _claim_gpus(jobs: int, number: int) -> None:
    """Leave this process its share of the GPUs, before CUDA starts. Otherwise all would train on the first one."""
    import torch

    if devices := torch.cuda.device_count():
        assign_devices(os.environ, devices, max(1, devices // jobs), number)


def _train_in_worker(task: Task) -> float:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return train_arm(task)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
