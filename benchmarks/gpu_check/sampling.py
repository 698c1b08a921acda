"""The engine that `generate` takes, before a training step and after it, in one process as `omniopd run` does it."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from omniopd.stages.generate.engine import Request, Sampling
from omniopd.stages.generate.engines.registry import make_engine
from omniopd.store.config import Config
from support.training import save_tokenizer

from .sizes import Sizes, architecture
from .steps import one_step
from .timing import CUDA


def check(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """A row for each time that the engine starts. That the second one finds memory is what matters."""
    with tempfile.TemporaryDirectory() as folder:
        student(sizes.checkpoint_shape, Path(folder))
        for after in ("nothing", "a step"):
            yield {"after": after} | _sampled(sizes, folder)
            if after == "nothing":
                one_step(sizes.checkpoint_shape, sizes.lengths[0], {"recompute": True})


def student(shape: str, folder: Path) -> None:
    """A student of random weights, as generate reads it."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    arch = architecture(shape)
    config = Qwen3Config(
        vocab_size=arch.vocabulary, hidden_size=arch.hidden, intermediate_size=arch.ffn, num_hidden_layers=arch.layers,
        num_attention_heads=arch.heads, num_key_value_heads=arch.groups, head_dim=arch.head_dim,
        max_position_embeddings=4096, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    save_tokenizer(folder, min(arch.vocabulary, 1000))


def _sampled(sizes: Sizes, folder: str) -> dict[str, Any]:
    count, tokens = (256, 512) if CUDA else (4, 8)
    said: list[str] = []
    started = time.perf_counter()
    engine = make_engine(folder, Config(), 32, say=said.append)
    ready = time.perf_counter()
    requests = [Request(f"{number:032x}", tuple(range(5, 37))) for number in range(count)]
    sampling = Sampling(tokens, 1.0, 1.0, frozenset())
    finished = sum(len(response.ids_T) for response in engine.generate(requests, sampling))
    done = time.perf_counter()
    engine.close()
    row = {
        "engine": engine.name, "entropies": engine.entropy_source, "said": said, "start_s": ready - started,
        "tokens_a_second": finished / (done - ready), "close_s": time.perf_counter() - done,
    }  # fmt: skip
    return row | ({"free_gb": round(torch.cuda.mem_get_info()[0] / 1e9, 1)} if CUDA else {})
