"""What runs inside vLLM's workers.

`omniopd_install`: the entropy of each sampled token, handed out through vLLM's own log-prob path.

A request that asks for one log-prob beside the sampled token's gets the entropy in that place. So vLLM itself keeps
the values beside their tokens through chunked prefill, preemption, prefix caching and asynchronous scheduling, and
nothing more than one number a token leaves the device.

vLLM has two model runners whose samplers meet at different functions, and neither is a stable interface. Where the
functions are not there, `omniopd_install` says so, and the caller rescores instead.

`omniopd_make_rewindable`: seeded requests on a CPU. When a prompt is read in several chunks, vLLM samples after each
and takes the draw back for all but the last, by the generator's offset. A CPU generator has none: the engine would die.
"""

import importlib.util
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

_ROWS = 256
"""Rows for which exp(log-probs) is held at a time."""

_OFFSET_OF_A_DRAW = 4
"""By which vLLM rewinds a generator."""

_V2_USERS = (
    "vllm.v1.worker.gpu.sample.sampler",
    "vllm.v1.worker.gpu.sample.prompt_logprob",
    "vllm.v1.worker.gpu.spec_decode.rejection_sampler",
)
"""Modules that import `compute_topk_scores` by name, in vLLM 0.32."""

if TYPE_CHECKING:

    class _Worker:
        model_runner: Any
else:
    _Worker = object


class EntropyWorker(_Worker):
    """Mixed into vLLM's workers (`worker_extension_cls`)."""

    def omniopd_install(self) -> str:
        """Hook the sampler. Returns what is in the way, or nothing."""
        sampler = getattr(self.model_runner, "sampler", None)
        if hasattr(sampler, "gather_logprobs"):
            _hook_v1(sampler)
            return ""
        if sampler is None or not hasattr(sampler, "sampling_states"):
            return f"the sampler {type(sampler).__name__} is not known"
        absent = [name for name in _V2_USERS if importlib.util.find_spec(name) is None]
        if absent:
            return f"there is no module {absent[0]}"
        return _hook_v2()

    def omniopd_make_rewindable(self) -> None:
        """Let draws from seeded generators be taken back where the device cannot do it by itself."""
        sampler = getattr(getattr(self.model_runner, "sampler", None), "topk_topp_sampler", None)
        if self.model_runner.device.type == "cpu" and sampler is not None:
            torch.Generator = RewindableGenerator  # in this worker process; vLLM makes one for each seeded request
            sampler.forward = _remembering(sampler.forward)


class RewindableGenerator(torch.Generator):
    """A CPU generator whose last draw can be taken back, through the two methods that vLLM uses for it on GPUs."""

    _before: Tensor

    def remember(self) -> None:
        """The next draw may be taken back."""
        self._before = self.get_state()

    def get_offset(self) -> int:
        return _OFFSET_OF_A_DRAW

    def set_offset(self, offset: int) -> torch.Generator:
        """Only back to before the last draw, which is what vLLM asks for."""
        assert offset == 0
        return self.set_state(self._before)


def _remembering(plain: Any) -> Any:
    def forward(logits: Tensor, generators: dict[int, Any], *args: Any, **kwargs: Any) -> Any:
        for generator in generators.values():
            if isinstance(generator, RewindableGenerator):
                generator.remember()
        return plain(logits, generators, *args, **kwargs)

    return forward


def entropies(log_probs_NV: Tensor) -> Tensor:
    """Entropy of each row [N], nats, from float32 log-probs."""
    return torch.cat([_entropy(part) for part in log_probs_NV.split(_ROWS)])


def _entropy(log_probs_RV: Tensor) -> Tensor:
    # The clamp makes 0 * log 0 zero; float32 probabilities are 0 far above it.
    return log_probs_RV.exp().mul_(log_probs_RV.clamp_min(-1e4)).sum(-1).neg_()


def _hook_v1(sampler: Any) -> None:
    from vllm.v1.outputs import LogprobsTensors  # pyright: ignore[reportMissingImports]

    plain = sampler.gather_logprobs

    def gather_logprobs(logprobs: Tensor, num_logprobs: int, token_ids: Tensor) -> Any:
        if num_logprobs != 1:
            return plain(logprobs, num_logprobs, token_ids=token_ids)
        ids_N1 = token_ids[:, None]
        values_N2 = torch.cat([logprobs.gather(-1, ids_N1), entropies(logprobs)[:, None]], dim=1)
        # The entropy's token id means nothing, and no one asked for the rank.
        return LogprobsTensors(ids_N1.expand(-1, 2).to(torch.int32), values_N2, torch.zeros_like(token_ids))

    sampler.gather_logprobs = gather_logprobs


def _hook_v2() -> str:
    modules = [importlib.import_module(name) for name in _V2_USERS]
    if not all(hasattr(module, "compute_topk_scores") for module in modules):
        return "the sampler has no compute_topk_scores"
    plain = modules[0].compute_topk_scores

    def compute_topk_scores(logits: Tensor, num_logprobs: int, *args: Any, **kwargs: Any) -> Any:
        if num_logprobs != 1:
            return plain(logits, num_logprobs, *args, **kwargs)
        sampled = plain(logits, 0, *args, **kwargs)
        values_N = torch.cat([entropies(part.log_softmax(-1, dtype=torch.float32)) for part in logits.split(_ROWS)])
        return sampled._replace(
            logprob_token_ids=sampled.logprob_token_ids.expand(-1, 2),
            logprobs=torch.cat([sampled.logprobs, values_N[:, None]], dim=1),
        )

    for module in modules:
        module.compute_topk_scores = compute_topk_scores  # pyright: ignore[reportAttributeAccessIssue]
    return ""
