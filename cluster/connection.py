"""Into a Ray cluster and out of it, with one line for each way in which that can fail."""

import contextlib
import importlib.metadata
import logging
import os
import socket
import sys
from collections.abc import Generator

from ..store.errors import InputError
from ..store.sections import ClusterConfig

RAY = "2.60"
"""The minor version whose behavior the tests of this room hold; pyproject.toml asks for the same."""

_ANSWERS_WITHIN_S = 5.0

_REFUSED = "Run it on a machine of the cluster, with its version of Ray and, where it has a token, RAY_AUTH_MODE=token."
_START = "Start one (`ray start --head` on this machine), or set cluster.address to HOST:PORT: docs/cluster.md."


@contextlib.contextmanager
def connected(config: ClusterConfig) -> Generator[None]:
    """Be a driver of the cluster for the length of a `with`. A program that is one already stays as it is.

    Raises:
        InputError: Ray is missing or of another version, nothing answers at the address, or the cluster refuses.
    """
    check_ray()
    import ray
    import ray.exceptions

    if ray.is_initialized():
        yield
        return
    address = _answering(config.address)
    quiet("ray")
    try:
        with _silent():
            ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise InputError(f"The Ray cluster at {address} refuses: {said}.", _REFUSED) from error
    try:
        yield
    finally:
        ray.shutdown()


def quiet(*loggers: str) -> None:
    """Leave to Ray's log files what parts of it would print beside the progress; with --debug, let them."""
    if not os.environ.get("OMNIOPD_DEBUG"):
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        for name in loggers:
            logging.getLogger(name).setLevel(logging.CRITICAL)


@contextlib.contextmanager
def _silent() -> Generator[None]:
    """Without stderr, on which Ray says that RAY_BACKEND_LOG_LEVEL is set."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123  a device
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def check_ray() -> None:
    """
    Raises:
        InputError: Ray is not installed, or of another minor version.
    """
    hint = "Run `pip install 'omniopd[ray]'`, on all machines of the cluster."
    try:
        version = importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError("cluster.on = ray needs Ray, which is not installed here.", hint) from error
    if not version.startswith(f"{RAY}."):
        raise InputError(f"cluster.on = ray needs Ray {RAY}, and {version} is installed here.", hint)


def _answering(given: str) -> str:
    """The address as HOST:PORT, at which something answers: Ray itself would try for minutes.

    Raises:
        InputError: what is wrong with it.
    """
    from ray._private.services import canonicalize_bootstrap_address_or_die

    where = "that RAY_ADDRESS names" if given == "auto" and os.environ.get("RAY_ADDRESS") else f"at {given}"
    try:
        # RAY_ADDRESS, or what `ray start` has left on this machine. Only Ray knows where to look.
        address = canonicalize_bootstrap_address_or_die(given)
    except ConnectionError as error:
        raise InputError("No Ray cluster runs on this machine.", _START) from error
    except (ValueError, OSError) as error:
        raise InputError(f"There is no Ray cluster {where}: {error}.", _START) from error
    try:
        reach(address, _ANSWERS_WITHIN_S)
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"No Ray cluster answers at {address}: {said}.", _START) from error
    return address


def reach(address: str, within_s: float) -> None:
    """See that something answers at HOST:PORT.

    Raises:
        OSError: nothing does.
        ValueError: it is no such address.
    """
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), within_s).close()
