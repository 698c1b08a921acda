"""Students by kind, and a run directory for a small round."""

from collections.abc import Callable
from pathlib import Path

import pytest

from omniopd.store.layout import RunDir
from support.training import save_student


@pytest.fixture(scope="session")
def students(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Students by kind, made once. `other` is a second random qwen3 of the same shape."""
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind) / "student"
            made[kind] = save_student(folder, "qwen3", seed=1) if kind == "other" else save_student(folder, kind)
        return made[kind]

    return get


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")
