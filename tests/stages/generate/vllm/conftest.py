"""A real student for the engines: the shipped one, or the folder in OMNIOPD_TEST_STUDENT (SmolLM2-135M, say)."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
# Several workers on one NUMA node, and other processes beside them: let the kernel place the threads.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")


@pytest.fixture
def real_student(student: Path) -> Path:
    return Path(os.environ.get("OMNIOPD_TEST_STUDENT", student))
