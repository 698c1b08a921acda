# pyright: strict
"""The sections of a run's configuration, one frozen model each; a module for each stage, and for what spans them.

The docstring under each field is what `omniopd init` writes beside it, so these files are the reference.
"""

from .audit import CONTINUE, Price, SelectConfig, TeacherConfig
from .eval import EvalConfig
from .generate import DataConfig, GenerateConfig, StudentConfig
from .run import ClusterConfig, Phase, RunConfig
from .score import METRIC_GROUP, METRIC_NAMES, ScoreConfig
from .section import Section
from .train import LoraConfig, TrainConfig

__all__ = [
    "CONTINUE",
    "METRIC_GROUP",
    "METRIC_NAMES",
    "ClusterConfig",
    "DataConfig",
    "EvalConfig",
    "GenerateConfig",
    "LoraConfig",
    "Phase",
    "Price",
    "RunConfig",
    "ScoreConfig",
    "Section",
    "SelectConfig",
    "StudentConfig",
    "TeacherConfig",
    "TrainConfig",
]
