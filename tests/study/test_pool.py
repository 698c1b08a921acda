"""Tasks that run at a time. GPUs are pretended."""

import os

import pytest
import torch

from omniopd.study.pool import _claim_gpus


@pytest.mark.parametrize(
    ("visible", "jobs", "claimed"),
    [
        (None, 4, ["0,1", "2,3", "4,5", "6,7"]),
        (None, 3, ["0,1", "2,3", "4,5"]),
        ("GPU-a,GPU-b", 2, ["GPU-a", "GPU-b"]),
        ("6,7", 4, ["6", "7", "6", "7"]),
    ],
)
def test_tasks_at_a_time_have_gpus_of_their_own(
    visible: str | None, jobs: int, claimed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(visible.split(",")) if visible else 8)
    found: list[str] = []
    for number in range(jobs):
        with monkeypatch.context() as patch:
            patch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
            _claim_gpus(jobs, number)
            found.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert found == claimed
