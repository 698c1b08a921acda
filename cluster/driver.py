"""What the driver does while Ray works: look on, and tell what failed on another machine as if it had failed here."""

import concurrent.futures
import contextlib
import re
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TypeVar

from ..store.errors import InputError, OmniopdError, first_line
from ..store.storage import storage_error
from .connection import reach

T = TypeVar("T")

_SECONDS_BETWEEN_LOOKS = 1.0
_ANSWERS_WITHIN_S = 2.0
_GONE_AFTER_S = 30.0
_MISSING = re.compile(r"No module named '([\w.]+)'")


@contextlib.contextmanager
def prints_to(log: Path) -> Generator[None]:
    """Keep for a file what Ray prints to stdout about machines and workers: many lines for one that is gone."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        yield


class Head:
    """The cluster's head. Ray ends this process without a word when it has not answered for a minute."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._answered = time.monotonic()

    def answers(self) -> bool:
        """Whether it is there.

        Raises:
            OmniopdError: it has not been for some time.
        """
        try:
            reach(self._address, _ANSWERS_WITHIN_S)
        except OSError as error:
            if time.monotonic() - self._answered < _GONE_AFTER_S:
                return False
            raise OmniopdError(
                f"The head of the Ray cluster at {self._address} is gone.",
                "Start the cluster again and run the same command: it resumes.",
            ) from error
        self._answered = time.monotonic()
        return True


def watched(work: Callable[[], T], look: Callable[[], None]) -> T:
    """Do `work` in a thread of its own, and `look` around meanwhile.

    Ctrl-C is heard at once: the thread is left behind, and what it has started on other machines ends with the
    connection to the cluster.

    Raises:
        OmniopdError: as `told`; or the head is gone.
    """
    import ray

    future: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  raised again by result()
            future.set_exception(error)

    head = Head(ray.get_runtime_context().gcs_address)
    with told():
        threading.Thread(target=run, name="ray", daemon=True).start()
        while True:
            if head.answers():
                look()
            if concurrent.futures.wait([future], _SECONDS_BETWEEN_LOOKS).done:
                return future.result()


@contextlib.contextmanager
def told() -> Generator[None]:
    """What is raised on another machine as it was raised there.

    Raises:
        OmniopdError: a worker's own error; or a machine or Ray itself failed, and Ray has given up.
    """
    import ray.exceptions
    import ray.train

    try:
        yield
    except OmniopdError as error:
        # Of a class that Ray made of the error's own and of RayTaskError.
        raise (_cause(error) if isinstance(error, ray.exceptions.RayTaskError) else error) from None
    except (ray.exceptions.RayError, ray.train.TrainingFailedError) as error:
        raise _told(_cause(error)) from error


def _cause(error: BaseException) -> BaseException:
    """What was raised first, out of all that Ray has wrapped it in."""
    import ray.exceptions
    import ray.train

    inner: BaseException | None = None
    if isinstance(error, ray.train.WorkerGroupError):
        failures = [_cause(failure) for failure in error.worker_failures.values()]
        # The others fail because one did.
        inner = next((f for f in failures if isinstance(f, OmniopdError)), next(iter(failures), None))
    elif isinstance(error, ray.train.ControllerError):
        inner = error.controller_failure
    elif isinstance(error, ray.exceptions.RayTaskError):
        inner = error.cause
    elif isinstance(error, ray.exceptions.UserCodeException):
        inner = error.__cause__
    return error if inner is None or inner is error else _cause(inner)


def _told(error: BaseException) -> BaseException:
    """An error of a worker or of Ray as a user is told of it; itself where it is a bug."""
    import ray.exceptions
    import ray.train

    if isinstance(error, OmniopdError):
        return error
    if (stored := storage_error(error)) is not None:
        return stored
    of_ray = isinstance(error, (ray.exceptions.RayError, ray.train.TrainingFailedError))
    # A worker that cannot import what it is sent has no error to send back, only a text.
    if (of_ray or isinstance(error, ImportError)) and (missing := _MISSING.search(str(error))):
        return InputError(
            f"A machine of the cluster has no package {missing[1]}.",
            "Install the same omniopd, with the same extras, on all of them: docs/cluster.md.",
        )
    if of_ray:
        return OmniopdError(
            f"The cluster failed: {first_line(error)}.", "Run the same command again: it resumes. Ray's logs say more."
        )
    return error
