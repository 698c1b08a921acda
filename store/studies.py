"""Where things are in a study: a folder with a config.toml, the base of its arms, each of which is a run directory."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from . import files
from .layout import RunDir
from .schema import ARM_STUDY
from .table import Table


@dataclass(frozen=True)
class StudyDir:
    """A study. STUDY/arms/<changes>/seed=S are its runs, shared by all kinds of study."""

    path: Path

    @property
    def base(self) -> RunDir:
        """What holds the base config; nothing is trained in it."""
        return RunDir(self.path)

    def run(self, arm: str, seed: int) -> RunDir:
        """The run of one arm, by the name of its folder, and seed."""
        return RunDir(self.path / "arms" / arm / f"seed={seed}")

    def runs_of_seed(self, seed: int) -> list[RunDir]:
        """Runs of all arms with this seed, by name."""
        return [RunDir(path.parent) for path in sorted(self.path.glob(f"arms/*/seed={seed}/config.toml"))]

    def results(self, kind: str) -> Table:
        """The figures of a kind of study, a row for each arm, seed and evaluation."""
        return Table(self.path / kind, ARM_STUDY)

    def log(self, arm: str, seed: int) -> Path:
        """What the stages of one run say."""
        return self.run(arm, seed).logs / "study.log"

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Keep a second study out: the runs are shared."""
        return files.exclusive(self.path / ".study.lock", f"a study in {self.path}")
