"""The student as Megatron's GPTModel: built from an Architecture, filled from and written to Hugging Face folders."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from ..store.sections import TrainConfig
from . import mcore
from .architecture import Architecture
from .attention import CausalAttention, RMSNorm
from .hf_weights import WeightFiles, fuse, hf_names, is_split, padded_vocabulary, shard, unfuse, unshard
from .loss import Head
from .mcore import parallel_state as mpu
from .optimizer import PRECISIONS


class Student(mcore.GPTModel):
    """A GPTModel whose last pipeline stage hands out the final hidden states instead of logits."""

    arch: Architecture

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
    transformer = _transformer_config(arch, config)
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
        rope_scaling=arch.rope_factor is not None,
        rope_scaling_factor=arch.rope_factor or 1.0,
        share_embeddings_and_output_weights=arch.tied,
    )
    model.arch = arch
    # Megatron marks split parameters only while it initialises them. Without the mark their gradients would be left out
    # of the norm on all tensor-parallel ranks but the first, and so would be clipped wrongly.
    for name, parameter in model.named_parameters():
        parameter.tensor_model_parallel = is_split(name)  # pyright: ignore[reportAttributeAccessIssue]
    return model.to(device)


def _transformer_config(arch: Architecture, config: TrainConfig) -> mcore.TransformerConfig:
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
        use_cpu_initialization=True,
        gradient_accumulation_fusion=False,
        batch_p2p_sync=torch.cuda.is_available(),
        variable_seq_lengths=True,
        moe_token_dispatcher_type="alltoall",  # variable lengths ask for it, also in a dense model
        calculate_per_token_loss=True,  # gradients are summed over the data-parallel ranks, not averaged
        **recompute,
    )


def _parameters(model: Student) -> Iterator[tuple[str, torch.nn.Parameter, list[str]]]:
    """Each parameter of this rank with its name and the Hugging Face weights that it is made of."""
    layers: Any = model.decoder.layers
    first_layer = layers[0].layer_number - 1
    for name, parameter in model.named_parameters():
        yield name, parameter, hf_names(name, first_layer, model.arch.tied)


@torch.no_grad()
def load_weights(model: Student, files: WeightFiles) -> None:
    """Fill a model from Hugging Face weights whose shapes were checked, a tensor at a time."""
    rank, ranks = mpu.get_tensor_model_parallel_rank(), mpu.get_tensor_model_parallel_world_size()
    for name, parameter, sources in _parameters(model):
        whole = fuse(name, [files.tensor(source) for source in sources], model.arch)
        parameter.copy_(shard(name, whole, model.arch, rank, ranks))


@torch.no_grad()
def hf_tensors(model: Student) -> dict[str, Tensor]:
    """This pipeline stage's weights under Hugging Face's names, on the CPU. Collective over tensor-parallel ranks."""
    return _hf_tensors(model, {name: parameter.detach() for name, parameter, _ in _parameters(model)})


@torch.no_grad()
def hf_gradients(model: Student) -> dict[str, Tensor]:
    """As `hf_tensors`, for the summed gradients that Megatron's DDP keeps."""
    return _hf_tensors(model, {name: cast(Any, parameter).main_grad for name, parameter, _ in _parameters(model)})


def _hf_tensors(model: Student, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    ranks = mpu.get_tensor_model_parallel_world_size()
    out: dict[str, Tensor] = {}
    for name, _, sources in _parameters(model):
        slices = [values[name].contiguous()]
        if ranks > 1 and is_split(name):
            slices = [torch.empty_like(slices[0]) for _ in range(ranks)]
            dist.all_gather(slices, values[name].contiguous(), group=mpu.get_tensor_model_parallel_group())
        parts = unfuse(name, unshard(name, slices, model.arch), model.arch)
        # The last stage's copy of a tied embedding has the first stage's name and value.
        if not (model.arch.tied and name == "output_layer.weight"):
            out |= {source: part.cpu() for source, part in zip(sources, parts, strict=True)}
    return out


def write_weights(model: Student, folder: Path) -> None:
    """Write safetensors that transformers reads, one file a pipeline stage. Collective; `folder` exists.

    The weights keep the precision that they were trained in. A student that came as bfloat16 and is trained in float32
    is written as float32: at a learning rate of 1e-6 a round moves most weights by less than bfloat16 can hold, and
    the rounds would train nothing.

    Args:
        model: this rank's part of the student.
        folder: seen by all ranks.
    """
    from safetensors.torch import save_file

    if mpu.get_data_parallel_rank() > 0:
        return
    tensors = hf_tensors(model)
    if mpu.get_tensor_model_parallel_rank() > 0:
        return
    stage, stages = mpu.get_pipeline_model_parallel_rank(), mpu.get_pipeline_model_parallel_world_size()
    file = f"model-{stage + 1:05d}-of-{stages:05d}.safetensors" if stages > 1 else "model.safetensors"
    save_file(tensors, folder / file, metadata={"format": "pt"})
    if stages > 1:
        mine = {name: (file, tensor.nbytes) for name, tensor in tensors.items()}
        _write_index(mine, folder)


def _write_index(mine: dict[str, tuple[str, int]], folder: Path) -> None:
    """model.safetensors.index.json from every stage's (file, bytes) by weight."""
    stages: list[Any] = [None] * mpu.get_pipeline_model_parallel_world_size()
    dist.all_gather_object(stages, mine, group=mpu.get_pipeline_model_parallel_group())
    if mpu.get_pipeline_model_parallel_rank() == 0:
        entries: dict[str, tuple[str, int]] = {name: entry for stage in stages for name, entry in stage.items()}
        index = {
            "metadata": {"total_size": sum(size for _, size in entries.values())},
            "weight_map": {name: file for name, (file, _) in sorted(entries.items())},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
