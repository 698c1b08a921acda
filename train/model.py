"""The student as Megatron's GPTModel, built from an Architecture."""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from ..store.architecture import Architecture
from ..store.sections import TrainConfig
from . import mcore
from .attention import CausalAttention, RMSNorm
from .columns import can_compile
from .hf_weights import is_split, padded_vocabulary
from .loss import Head
from .mcore import parallel_state as mpu
from .optimizer import PRECISIONS


class Student(mcore.GPTModel):
    """A GPTModel whose last pipeline stage hands out the final hidden states instead of logits."""

    arch: Architecture
    adapters: Any
    """lora.Adapters, where train.lora is set."""

    def _postprocess(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        # post_process=False would hand them out too, but without the final norm.
        return hidden_states

    def rows(self, hidden_SBH: Tensor) -> Tensor:
        """Final hidden states as rows [S * B, H], whole on every tensor-parallel rank.

        In the backward pass the ranks' shares of the gradient are summed here, and only here.
        """
        if self.config.sequence_parallel:
            hidden_SBH = mcore.gather_from_sequence_parallel_region(hidden_SBH, tensor_parallel_output_grad=True)
            return hidden_SBH.reshape(-1, hidden_SBH.shape[-1])
        # Reshape first: Megatron's sum over the ranks is lost where the gradient that arrives is not contiguous.
        return mcore.copy_to_tensor_model_parallel_region(hidden_SBH.reshape(-1, hidden_SBH.shape[-1]))

    def head(self) -> Head:
        """The output head, or this tensor-parallel rank's slice of it. Last pipeline stage only."""
        if self.share_embeddings_and_output_weights:
            weight_VH = self.shared_embedding_or_output_weight()
        else:
            weight_VH = cast(Tensor, self.output_layer.weight)
        ranks, rank = mpu.get_tensor_model_parallel_world_size(), mpu.get_tensor_model_parallel_rank()
        first_id = rank * len(weight_VH)
        real = self.arch.vocabulary - first_id
        if real < len(weight_VH):  # the rows that pad the vocabulary are no tokens
            weight_VH = weight_VH[:real]
        group = cast(dist.ProcessGroup, mpu.get_tensor_model_parallel_group())
        return Head(weight_VH, first_id, group if ranks > 1 else None)


def build(arch: Architecture, config: TrainConfig, device: torch.device) -> Student:
    """An uninitialised student, this rank's part of it. Needs Megatron's process groups."""
    if device.type == "cuda":
        # Megatron's compiled SwiGLU is compiled again for each of: with and without gradients, in a recomputation,
        # and with the first lengths. Eight were too few on an H100, and what is beyond them is not compiled.
        torch._dynamo.config.recompile_limit = 64  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    transformer = _transformer_config(arch, config, device)
    layer = mcore.get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=arch.qk_norm)
    parts: Any = layer.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = RMSNorm
    attention = parts.self_attention.submodules
    attention.core_attention = CausalAttention
    if arch.qk_norm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    layers = [layer] * mcore.get_num_layers_to_build(transformer)
    model = Student(
        transformer,
        cast(Any, mcore.TransformerBlockSubmodules(layer_specs=layers, layer_norm=cast(Any, RMSNorm))),
        vocab_size=padded_vocabulary(arch, mpu.get_tensor_model_parallel_world_size()),
        max_sequence_length=arch.positions,
        pre_process=mpu.is_pipeline_first_stage(),
        post_process=mpu.is_pipeline_last_stage(),
        position_embedding_type="rope",
        rotary_base=cast(int, arch.rope_base),
        share_embeddings_and_output_weights=arch.tied,
    )
    model.arch = arch
    _stretch_positions(model, arch)
    # Megatron marks split parameters only while it initialises them. Without the mark their gradients would be left out
    # of the norm on all tensor-parallel ranks but the first, and so would be clipped wrongly.
    for name, parameter in model.named_parameters():
        parameter.tensor_model_parallel = is_split(name)  # pyright: ignore[reportAttributeAccessIssue]
    return model.to(device)


def _stretch_positions(model: Student, arch: Architecture) -> None:
    """Give rotary positions the student's own frequencies, as transformers computes them: Megatron knows Llama 3's with
    one set of constants, and YaRN's by another rule.

    YaRN also scales sine and cosine by a factor, the same for queries and keys: their products by its square.
    """
    if not arch.rope:
        return
    from transformers import PreTrainedConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = dict(arch.rope)
    make: Any = PreTrainedConfig
    config = make(
        hidden_size=arch.hidden, num_attention_heads=arch.heads, head_dim=arch.head_dim,
        max_position_embeddings=arch.positions, rope_parameters=rope,
    )  # fmt: skip
    inverse_frequencies, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))
    rotary: Any = model.rotary_pos_emb
    rotary.inv_freq = inverse_frequencies.to(rotary.inv_freq.device)
    for module in model.modules():
        if isinstance(module, CausalAttention):
            module.softmax_scale = factor**2 / arch.head_dim**0.5


def _transformer_config(arch: Architecture, config: TrainConfig, device: torch.device) -> mcore.TransformerConfig:
    dtype = PRECISIONS[config.precision]
    recompute: dict[str, Any] = (
        {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
        if config.recompute
        else {}
    )
    return mcore.TransformerConfig(
        num_layers=arch.layers,
        hidden_size=arch.hidden,
        ffn_hidden_size=arch.ffn,
        num_attention_heads=arch.heads,
        num_query_groups=arch.groups,
        kv_channels=arch.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=arch.norm_eps,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        add_qkv_bias=arch.qkv_bias,
        qk_layernorm=arch.qk_norm,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        tensor_model_parallel_size=config.tensor_parallel,
        pipeline_model_parallel_size=config.pipeline_parallel,
        context_parallel_size=config.context_parallel,
        sequence_parallel=config.sequence_parallel and config.tensor_parallel > 1,
        perform_initialization=False,  # every weight is loaded
        use_cpu_initialization=device.type == "cpu",
        bias_activation_fusion=device.type == "cuda" and can_compile(),
        gradient_accumulation_fusion=False,
        batch_p2p_sync=torch.cuda.is_available(),
        variable_seq_lengths=True,
        moe_token_dispatcher_type="alltoall",  # variable lengths ask for it, also in a dense model
        calculate_per_token_loss=True,  # gradients are summed over the data-parallel ranks, not averaged
        **recompute,
    )
