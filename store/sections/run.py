# pyright: strict
"""The rounds of a run, and the machines that they run on."""

from typing import Any, Literal

from pydantic import Field, field_validator

from .section import Section


class Phase(Section):
    objective: str
    """train.objective of these rounds."""
    rounds: int = Field(default=1, gt=0)
    set: dict[str, dict[str, Any]] = Field(default={})
    """Other keys that they have of their own, such as { teacher.rollouts = 4 }."""


class RunConfig(Section):
    rounds: int = Field(default=1, gt=0)
    """Rounds that `omniopd run` drives."""
    schedule: tuple[Phase, ...] = ()
    """Rounds that the run begins with, before those of train.objective: [{ objective = "sft", rounds = 1 }] is a cold
    start. The budget and the initial student are those of the whole run; `set` gives the rounds keys of their own."""
    mirror: str | None = Field(default=None, min_length=1)
    """Where a copy of the run is kept, pushed after each stage and while audit runs: s3://bucket/path, gs://..., az://...
    or the absolute path of a folder. `omniopd pull` restores it."""
    trackers: tuple[Literal["wandb", "mlflow"], ...] = ()
    """Who is told of spend, similarity, steps, failures and accuracy while the stages work (docs/metrics.md); their own
    variables, such as WANDB_PROJECT and MLFLOW_TRACKING_URI, say where. TensorBoard's files are always written."""
    overlap: bool = False
    """Audit what generate has committed while it still writes. Only live and without a budget: otherwise which chunks
    are worth it is known only once all are there, and audit waits."""


class ClusterConfig(Section):
    on: Literal["local", "ray"] = "local"
    """Where generate and train run: on this machine, or on the slots of a Ray cluster (docs/cluster.md). A slot is a
    GPU, or what a machine without one offers by `ray start --resources='{"slot": 1}'`."""
    address: str = Field(default="auto", min_length=1)
    """HOST:PORT of the cluster's head; auto: RAY_ADDRESS, or the cluster that this machine belongs to."""
    engines: int = Field(default=0, ge=0)
    """Engines that generate runs at a time, each with generate.tensor_parallel GPUs of one machine, or with one slot.
    0: as many as there are slots when it begins."""
    units_per_engine: int = Field(default=4, gt=0)
    """Shares of a round that an engine fills one after the other. After a machine is lost, what others do again is what
    its engine had not committed (generate.part_rows) of one of them."""

    @field_validator("address")
    @classmethod
    def _address_is_of_the_cluster_itself(cls, address: str) -> str:
        if "://" in address:
            raise ValueError("Ray Client is not supported: run the command on a machine of the cluster, with HOST:PORT")
        return address
