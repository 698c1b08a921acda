"""The card and the libraries."""

import importlib.metadata
import platform
from collections.abc import Iterator
from typing import Any

import torch

from omniopd.train.columns import missing_to_compile

from .sizes import Sizes
from .timing import CUDA

PACKAGES = ("torch", "triton", "megatron-core", "transformers", "transformer-engine", "vllm", "flash-attn")


def check(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """One row."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "compiles": missing_to_compile() or True,
    }
    if CUDA:
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "gb": round(properties.total_memory / 1e9, 1),
            "free_gb": round(torch.cuda.mem_get_info()[0] / 1e9, 1),
            "cudnn": torch.backends.cudnn.version(),
            "gpus": torch.cuda.device_count(),
            "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
        }
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    yield found
