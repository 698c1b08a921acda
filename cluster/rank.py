"""What runs on a slot when a round is trained: one rank, under Ray Train."""

from typing import Any

import ray.train

from ..store.config import Config
from ..store.errors import OmniopdError
from ..store.storage import storage_error
from ..train.launch import check_installed
from .place import PATIENCE_S, Place


def rank(settings: dict[str, Any]) -> None:
    """Train a round as one of its ranks, in the process group that Ray Train has made.

    Raises:
        OmniopdError: as `trainer.train_round`.
    """
    place: Place = settings["place"]
    config: Config = settings["config"]
    run = place.enter()
    check_installed()
    from ..train.trainer import train_round

    try:
        train_round(run, settings["index"], config, leaving=_Notice(), patience_s=PATIENCE_S)
    except OmniopdError:
        raise
    except Exception as error:
        if (told := storage_error(error)) is None:
            raise
        raise told from error


class _Notice:
    """Whether Ray has been told, since it was asked last, that it will lose a machine. Asks on all ranks together."""

    def __init__(self) -> None:
        self._known: ray.train.PreemptionInfo | None = None

    def __call__(self) -> bool:
        info = ray.train.get_preemption_info()
        new = info is not None and info != self._known
        self._known = info
        return new


class OnlyMachinesAreReplaced(ray.train.UserCallback):
    """Ray Train starts the ranks again when one fails. That helps against a machine that is gone; an error that a
    person has to fix ends the training."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            if isinstance(error, OmniopdError):
                raise error
