"""Rows to write."""

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="session")
def rows() -> Callable[..., list[dict[str, Any]]]:
    """Rows of the scores table with the given chunk ids."""

    def make(*ids: str) -> list[dict[str, Any]]:
        shared = {"phi": "edit", "unit": "word", "k_sem": 1.0, "n": 2, "prior": 0.5, "pi_freq": 0.5, "pi_teacher": 0.5}
        return [{"chunk_id": id_, "phi_var": None} | shared for id_ in ids]

    return make
