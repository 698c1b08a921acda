"""A run whose tables are written by hand."""

from collections.abc import Callable

import pytest

from omniopd.store.layout import RunDir
from support.written_run import write_tables


@pytest.fixture
def written_run(make_run: Callable[..., RunDir]) -> RunDir:
    return write_tables(make_run(teacher={"rollouts": 3, "budget_tokens": 2000}))
