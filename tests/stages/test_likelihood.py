"""How models are loaded to read and to sample. A GPU is pretended."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from omniopd.stages import likelihood
from omniopd.stages.generate.engine import Request, Response, Sampling
from omniopd.stages.generate.engines.transformers_engine import TransformersEngine
from omniopd.stages.likelihood import Likelihood, Read, Student, attention
from support.training import save_student

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
READS = [Read([3, 4, 5], [6, 7, 8, 9]), Read([3], [9, 8])]
REQUESTS = [Request(f"{n:032x}", prompt) for n, prompt in enumerate([(3, 4, 5), (3,), (7, 8)])]


def worked(folder: Path) -> tuple[list[tuple[int, Likelihood]], list[Response]]:
    """What a student reads and samples, with padding and without."""
    engine = TransformersEngine(str(folder), "float32", None)
    sampling = Sampling(5, 1.0, 1.0, frozenset())
    alone = list(engine.generate(REQUESTS[:1], sampling))
    return list(Student(str(folder), "fp32").read(READS)), [*alone, *engine.generate(REQUESTS, sampling)]


def test_in_float32_a_gpu_is_given_as_many_heads_of_keys_as_of_queries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_student(tmp_path / "student", "qwen3")
    reads, sampled = worked(folder)
    plain = torch.nn.functional.scaled_dot_product_attention
    heads: list[tuple[int, int]] = []

    def seen(query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        assert not kwargs.get("enable_gqa")
        heads.append((query.shape[1], key.shape[1]))
        return plain(query, key, *args, **kwargs)

    monkeypatch.setattr(likelihood, "attention", lambda _, dtype: attention(CUDA, dtype))
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", seen)
    reads_again, sampled_again = worked(folder)
    assert set(heads) == {(4, 4)}
    for (number, one), (number_again, again) in zip(reads, reads_again, strict=True):
        assert number == number_again
        np.testing.assert_allclose(again.logprobs_T, one.logprobs_T, atol=1e-5)
    for one, again in zip(sampled, sampled_again, strict=True):
        assert one.ids_T.tolist() == again.ids_T.tolist()
        np.testing.assert_allclose(again.logprobs_T, one.logprobs_T, atol=1e-5)


@pytest.mark.parametrize(("device", "dtype"), [(CPU, torch.float32), (CPU, torch.bfloat16), (CUDA, torch.bfloat16)])
def test_elsewhere_transformers_chooses(device: torch.device, dtype: torch.dtype) -> None:
    assert attention(device, dtype) is None
