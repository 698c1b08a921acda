"""What runs as one kernel on CUDA against the same function run block by block; here PyTorch runs the traced form."""

import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from omniopd.train import columns, loss
from omniopd.train.loss import Normalizer

ROWS, COLUMNS = 5, 37


def log_normalizer(logits_RV: Tensor) -> Normalizer:
    top_R = logits_RV.amax(-1)
    return Normalizer(top_R, (logits_RV - top_R[:, None]).exp().sum(-1).log())


def arguments(name: str) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(3)
    policy_RV, ref_RV = (torch.randn(ROWS, COLUMNS, generator=generator, dtype=torch.float64) for _ in range(2))
    normalizer, ref_normalizer = log_normalizer(policy_RV), log_normalizer(ref_RV)
    reverse_R = torch.rand(ROWS, generator=generator, dtype=torch.float64)
    return {
        "_sum_exp": ((policy_RV,), (normalizer.top_R,)),
        "_into_probs": ((policy_RV,), (normalizer,)),
        "_into_kl_gradient": ((policy_RV, ref_RV), (normalizer, ref_normalizer, torch.tensor(0.3))),
        "_divergences": ((policy_RV, ref_RV), (normalizer, ref_normalizer)),
        "_into_mixed_gradient": (
            (policy_RV, ref_RV),
            (normalizer, ref_normalizer, reverse_R, torch.tensor(0.4), torch.tensor(0.6)),
        ),
    }[name]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "name", ["_sum_exp", "_into_probs", "_into_kl_gradient", "_divergences", "_into_mixed_gradient"]
)
def test_the_compiled_form_of_a_function_is_its_form_by_blocks(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "LOSS_BLOCK", 10)
    function: Callable[..., Any] = getattr(loss, name)
    matrices, rest = arguments(name)
    makes_a_matrix = name.startswith("_into")
    kept = [matrix_RV.clone() for matrix_RV in matrices]
    compiled = torch.compile(
        columns.whole_rows(function.__wrapped__), dynamic=True, backend="aot_eager"  # pyright: ignore[reportFunctionMemberAccess]
    )  # fmt: skip
    total, made_RV = compiled(matrices, rest, dtype if makes_a_matrix else None)
    assert all(torch.equal(a, b) for a, b in zip(matrices, kept, strict=True)), "its operands are not written"
    if makes_a_matrix:
        by_blocks, expected_RV = function(matrices, *rest, dtype=dtype)
        torch.testing.assert_close(made_RV, expected_RV)
        assert made_RV is not None
        assert made_RV.dtype == dtype
    else:
        by_blocks = function(matrices, *rest)
        assert made_RV is None
    torch.testing.assert_close(total, by_blocks)


@pytest.mark.parametrize(
    ("found", "cc", "headers", "missing"),
    [
        (["gcc"], None, True, ""),
        (["clang"], None, True, ""),
        (["cc"], None, True, "a C compiler"),  # Triton does not look for it
        (["cc"], "cc", True, ""),
        (["gcc"], "nvc", True, "a C compiler"),
        (["gcc"], None, False, "Python.h"),  # of an interpreter without its development package
    ],
)
def test_kernels_are_compiled_where_triton_finds_what_it_builds_with(
    found: list[str], cc: str | None, headers: bool, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(shutil, "which", lambda name: name if name in found else None)
    monkeypatch.setattr(sysconfig, "get_paths", lambda *_: {"include": str(tmp_path)})
    monkeypatch.delenv("CC", raising=False)
    if cc is not None:
        monkeypatch.setenv("CC", cc)
    if headers:
        (tmp_path / "Python.h").touch()
    columns.can_compile.cache_clear()
    try:
        assert columns.can_compile() is not bool(missing)
    finally:
        columns.can_compile.cache_clear()
    assert missing in columns.missing_to_compile()
