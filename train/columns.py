# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""How the loss works on a matrix of logits: block of columns by block of columns on a CPU, in one kernel on CUDA.

A line of PyTorch by itself reads and writes every logit, which took half of the loss's time on an H100
(docs/experiments.md); torch.compile makes one kernel of a function's lines. On a CPU a block at a time bounds the
temporaries, and the function's operations in place need none.
"""

import functools
import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .memory import LOSS_BLOCK

BlockFunction = Callable[..., Tensor]
"""(blocks [R, C] of one or more matrices, further arguments) -> sums over the columns, [R] or [2, R].

It may use its blocks up. Where the matrix that it makes is wanted, that is its first block afterwards."""


def sums(function: BlockFunction) -> Callable[..., Tensor]:
    """Decorator: call it with a tuple of matrices [R, V] and the further arguments; returns the sums alone."""
    whole = _one_kernel(function)

    @functools.wraps(function)
    def call(matrices: tuple[Tensor, ...], *arguments: Any) -> Tensor:
        return whole(matrices, arguments, None)[0]

    return call


def sums_and_matrix(function: BlockFunction) -> Callable[..., tuple[Tensor, Tensor]]:
    """Decorator: call it as that of `sums`, with `dtype`; returns the sums, and the first matrix as made, in `dtype`.

    The matrices are used up, and the one that is returned may have the first one's memory.
    """
    whole = _one_kernel(function)

    @functools.wraps(function)
    def call(matrices: tuple[Tensor, ...], *arguments: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        total, made_RV = whole(matrices, arguments, dtype)
        assert made_RV is not None
        return total, made_RV

    return call


@functools.cache
def can_compile() -> bool:
    """Whether torch.compile finds what it makes CUDA kernels with."""
    return not missing_to_compile()


def missing_to_compile() -> str:
    """What torch.compile lacks to make CUDA kernels, or nothing: Triton, and with what Triton builds an extension of
    Python when it makes its first kernel (triton/runtime/build.py). Images without either are common."""
    if importlib.util.find_spec("triton") is None:
        return "Triton"
    if not any(map(shutil.which, [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"])):
        return "a C compiler (gcc, clang, or what CC names)"
    if not Path(sysconfig.get_paths("posix_prefix")["include"], "Python.h").is_file():
        return "Python.h (python3-dev)"
    return ""


Whole = Callable[[tuple[Tensor, ...], tuple[Any, ...], torch.dtype | None], tuple[Tensor, Tensor | None]]


def _one_kernel(function: BlockFunction) -> Whole:
    # Whole rows fill a GPU; sums in two kernels would write what they have in common in between.
    compiled: Whole = torch.compile(whole_rows(function), dynamic=True, options={"split_reductions": False})

    def call(
        matrices: tuple[Tensor, ...], arguments: tuple[Any, ...], dtype: torch.dtype | None
    ) -> tuple[Tensor, Tensor | None]:
        if matrices[0].is_cuda and can_compile():
            return compiled(matrices, arguments, dtype)
        blocks = zip(*(matrix_RV.split(LOSS_BLOCK, 1) for matrix_RV in matrices), strict=True)
        total = functools.reduce(Tensor.add_, (function(*block, *arguments) for block in blocks))
        return total, None if dtype is None else matrices[0].to(dtype)

    return call


def whole_rows(function: BlockFunction) -> Whole:
    """The function over all columns at once, in the form that is compiled."""

    def whole(
        matrices: tuple[Tensor, ...], arguments: tuple[Any, ...], dtype: torch.dtype | None
    ) -> tuple[Tensor, Tensor | None]:
        # What happens in place happens to copies, which exist in registers alone: nothing but the result is written.
        first_RV, *others = (matrix_RV.clone() for matrix_RV in matrices)
        total = function(first_RV, *others, *arguments)
        return total, None if dtype is None else first_RV.to(dtype)

    return whole
