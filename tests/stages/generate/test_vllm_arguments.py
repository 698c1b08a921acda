"""What vLLM is started with on a GPU, which is pretended. What vLLM makes of it is tested where it is installed."""

import types
from pathlib import Path
from typing import Any

import pytest
import torch

from omniopd.stages import likelihood
from omniopd.stages.generate.engines import vllm_engine
from omniopd.stages.generate.engines.registry import make_engine
from omniopd.store.config import Config


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of each LLM."""
    arguments: list[dict[str, Any]] = []

    class LLM:
        def __init__(self, **given: Any) -> None:
            arguments.append(given)

        def collective_rpc(self, _: str) -> list[str]:
            return []

    monkeypatch.setattr(vllm_engine, "_import", lambda: types.SimpleNamespace(LLM=LLM, __version__="0.32.0"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(likelihood, "Student", lambda *_: None)
    return arguments


def config(**generate: Any) -> Config:
    return Config.model_validate({"student": {"engine": "vllm"}, "generate": generate})


@pytest.mark.parametrize("native", [True, False])
def test_an_engine_that_is_alone_has_the_gpu_and_bfloat16_where_that_is_computed(
    started: list[dict[str, Any]], student: Path, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def context(**_: Any) -> bool:
        raise AssertionError("torch would make a CUDA context to answer")

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", context)
    monkeypatch.setattr(vllm_engine, "_computes_bfloat16", lambda: native)
    make_engine(str(student), config(), 16, entropies=False)  # eval's
    assert "gpu_memory_utilization" not in started[0]
    assert started[0]["dtype"] == ("bfloat16" if native else "float32")


def test_beside_a_second_copy_of_the_model_it_has_a_share(
    started: list[dict[str, Any]], student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(vllm_engine, "_computes_bfloat16", lambda: True)
    make_engine(str(student), config(entropy="rescore"), 16)
    make_engine(str(student), config(entropy="rescore", vllm={"gpu_memory_utilization": 0.3}), 16)
    assert [given["gpu_memory_utilization"] for given in started] == [0.6, 0.3]
