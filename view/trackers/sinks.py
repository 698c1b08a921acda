"""The two trackers behind one protocol. Each package is an extra of its own and is imported only where it is asked for.

https://docs.wandb.ai/ref/python, https://mlflow.org/docs/latest/api_reference/python_api/mlflow.client.html
"""

import importlib
import logging
import os
import time
from pathlib import Path
from typing import Any, Protocol

from ...store.errors import InputError, OmniopdError, first_line
from ...store.layout import RunDir
from .points import AXES, CHUNK_COLUMNS, ChunkTable, Point

PROJECT = "omniopd"

_TAG_OF_MLFLOW = "omniopd.id"
_MOST_VALUES = 1000
"""Values that MLflow takes in one request."""


class TrackerError(OmniopdError, ConnectionError):
    """A tracker was not told. The run itself is whole, and what is missing is sent with the next command."""


class Sink(Protocol):
    """One run at one tracker."""

    where: str
    """The run's page, or the folder of what is stored offline."""

    def send(self, points: list[Point]) -> None:
        """
        Raises:
            TrackerError: it was not told, or only some.
        """
        ...

    def send_table(self, table: ChunkTable) -> None:
        """
        Raises:
            TrackerError: as `send`.
        """
        ...

    def close(self, *, failed: bool) -> None:
        """
        Raises:
            TrackerError: as `send`.
        """
        ...


def package_of(name: str) -> Any:
    """
    Raises:
        InputError: the tracker's package is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"run.trackers needs {name}: {error}.", f"Run `pip install 'omniopd[{name}]'`, or take it out."
        ) from error


def place_of(name: str) -> str:
    """Server and project that the environment says, in the trackers' own variables."""
    if name == "wandb":
        words = [os.environ.get(key, "") for key in ("WANDB_BASE_URL", "WANDB_ENTITY", "WANDB_PROJECT")]
        return " ".join(words).strip() or PROJECT
    return " ".join(os.environ.get(key, "") for key in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME")).strip()


def is_local(name: str) -> bool:
    """Whether what a tracker is told stays in the run directory."""
    if name == "wandb":
        return os.environ.get("WANDB_MODE", "online") in ("offline", "dryrun")
    return "MLFLOW_TRACKING_URI" not in os.environ


def open_sink(name: str, run: RunDir, id_: str, settings: dict[str, Any]) -> Sink:
    """
    Args:
        name: wandb or mlflow.
        id_: which run it is at the tracker: one of the same id is continued.
        settings: config keys and their values, shown with the run.

    Raises:
        InputError: the package is missing, or the tracker cannot be reached or wants a login.
    """
    return (Wandb if name == "wandb" else MLflow)(run, id_, settings)


class Wandb:
    """Weights & Biases. Without a network (WANDB_MODE=offline) metrics/wandb keeps it for `wandb sync`."""

    def __init__(self, run: RunDir, id_: str, settings: dict[str, Any]) -> None:
        self._package = package_of("wandb")
        run.metrics.mkdir(parents=True, exist_ok=True)
        try:
            self._run = self._package.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT), name=run.path.resolve().name, id=id_, resume="allow",
                dir=str(run.metrics), config=settings, allow_val_change=True,
                # A run of the user's own, in a notebook, say, stays theirs.
                reinit="create_new", settings=self._package.Settings(silent=True, console="off"),
            )  # fmt: skip
        except (self._package.Error, OSError) as error:
            hint = "Run `wandb login`, or set WANDB_MODE=offline and `wandb sync` the folder later."
            raise InputError(f"wandb does not begin: {first_line(error)}.", hint) from error
        for group, axis in AXES.items():
            self._run.define_metric(axis)
            self._run.define_metric(f"{group}/*", step_metric=axis)
        self.where = str(Path(self._run.dir).parent) if self._run.offline else str(self._run.url)

    def send(self, points: list[Point]) -> None:
        for point in points:
            self._log({point.axis: point.at, **point.values})

    def send_table(self, table: ChunkTable) -> None:
        content = self._package.Table(columns=list(CHUNK_COLUMNS), data=table.rows, allow_mixed_types=True)
        self._log({"round": table.round, f"chunks/round={table.round:03d}": content})

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))

    def _log(self, values: dict[str, Any]) -> None:
        try:
            self._run.log(values)
        except (self._package.Error, OSError) as error:
            raise TrackerError(f"wandb: {first_line(error)}.", _LATER) from error


class MLflow:
    """MLflow: the server that MLFLOW_TRACKING_URI names, or a database in metrics/mlflow."""

    def __init__(self, run: RunDir, id_: str, settings: dict[str, Any]) -> None:
        # Its own defaults try for minutes, which nobody who waits for a stage would.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        self._package = package_of("mlflow")
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # says that it makes its tables
        self._entities = importlib.import_module("mlflow.entities")
        folder = (run.metrics / "mlflow").absolute()
        local = is_local("mlflow")
        if local:
            folder.mkdir(parents=True, exist_ok=True)
        address = f"sqlite:///{folder / 'mlflow.db'}" if local else os.environ["MLFLOW_TRACKING_URI"]
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        try:
            self._client = self._package.MlflowClient(tracking_uri=address)
            known = self._client.get_experiment_by_name(project)
            experiment = known.experiment_id if known is not None else self._client.create_experiment(
                project, artifact_location=(folder / "artifacts").as_uri() if local else None
            )  # fmt: skip
            self._id = self._continued(experiment, id_) or self._begun(experiment, id_, run, settings)
        except (self._package.MlflowException, ImportError, OSError) as error:
            hint = "Start the server that MLFLOW_TRACKING_URI names, or unset it: then metrics/mlflow is written."
            raise InputError(f"mlflow does not begin: {first_line(error)}.", hint) from error
        self.where = str(folder) if local else f"{address.rstrip('/')}/#/experiments/{experiment}/runs/{self._id}"

    def send(self, points: list[Point]) -> None:
        now = time.time_ns() // 1_000_000
        metrics = [
            self._entities.Metric(name, value, now, point.at)
            for point in points
            for name, value in point.values.items()
        ]
        for first in range(0, len(metrics), _MOST_VALUES):
            self._call(self._client.log_batch, self._id, metrics=metrics[first : first + _MOST_VALUES])

    def send_table(self, table: ChunkTable) -> None:
        # `log_table` would add rows to those that are there.
        content = {"columns": list(CHUNK_COLUMNS), "data": table.rows}
        self._call(self._client.log_dict, self._id, content, f"chunks/round={table.round:03d}.json")

    def close(self, *, failed: bool) -> None:
        self._call(self._client.set_terminated, self._id, "FAILED" if failed else "FINISHED")

    def _continued(self, experiment: str, id_: str) -> str | None:
        found = self._client.search_runs([experiment], f"tags.`{_TAG_OF_MLFLOW}` = '{id_}'", max_results=1)
        if not found:
            return None
        self._client.update_run(found[0].info.run_id, "RUNNING")
        return found[0].info.run_id

    def _begun(self, experiment: str, id_: str, run: RunDir, settings: dict[str, Any]) -> str:
        made = self._client.create_run(experiment, run_name=run.path.resolve().name, tags={_TAG_OF_MLFLOW: id_})
        params = [self._entities.Param(key, str(value)) for key, value in settings.items()]
        self._client.log_batch(made.info.run_id, params=params)
        return made.info.run_id

    def _call(self, method: Any, *arguments: Any, **options: Any) -> None:
        try:
            method(*arguments, **options)
        except (self._package.MlflowException, OSError) as error:
            raise TrackerError(f"mlflow: {first_line(error)}.", _LATER) from error


_LATER = "The run itself is whole; what is missing is sent with the next command."
