# pyright: strict
"""The frozen student to which the KL anchor holds every round: it is the one that round 0 was sampled from."""

from .config import Config
from .errors import ConfigChangedError
from .layout import RunDir
from .model import resolve_model, weights_hash


def check_reference(run: RunDir, index: int, config: Config) -> None:
    """Check that a later round has the initial student of round 0.

    Raises:
        ConfigChangedError: student.model has other weights now.
    """
    sampled_from = run.round(0).trajectories.manifest.made_with.get("policy")
    if index == 0 or sampled_from is None:
        return
    if (now := weights_hash(resolve_model(config.student.model))) != sampled_from:
        raise ConfigChangedError(
            f"student.model is {config.student.model} ({now}) now, and round 0 was sampled from another"
            f" ({sampled_from}): the student of round 0 is the reference of all rounds.",
            "Set it back, or begin a new run with `omniopd init`.",
        )
