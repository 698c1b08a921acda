# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The shape of a student: what its config.json says, checked against the trainer's abilities and its own weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from .errors import ConfigError, InputError, first_line
from .model import read_facts, weight_files
from .sections import TrainConfig

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")

_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Of transformers' kinds of rotary frequencies: those that do not depend on a sequence's length."""


@dataclass(frozen=True)
class Architecture:
    """A dense decoder with RMSNorm, rotary positions, grouped-query attention and a gated SiLU network."""

    model_type: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    groups: int
    """Key-value heads."""
    head_dim: int
    vocabulary: int
    positions: int
    tied: bool
    """The head is the embedding."""
    norm_eps: float
    rope_base: float
    rope: tuple[tuple[str, Any], ...] = ()
    """transformers' rope_parameters of stretched frequencies, by name; empty: plain ones."""

    @property
    def qk_norm(self) -> bool:
        return self.model_type == "qwen3"

    @property
    def qkv_bias(self) -> bool:
        return self.model_type == "qwen2"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Hugging Face's name and shape of every weight."""
        query, key = self.heads * self.head_dim, self.groups * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocabulary, self.hidden),
            "model.norm.weight": (self.hidden,),
        }
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            name = f"model.layers.{layer}."
            shapes |= {
                name + "input_layernorm.weight": (self.hidden,),
                name + "post_attention_layernorm.weight": (self.hidden,),
                name + "self_attn.q_proj.weight": (query, self.hidden),
                name + "self_attn.k_proj.weight": (key, self.hidden),
                name + "self_attn.v_proj.weight": (key, self.hidden),
                name + "self_attn.o_proj.weight": (self.hidden, query),
                name + "mlp.gate_proj.weight": (self.ffn, self.hidden),
                name + "mlp.up_proj.weight": (self.ffn, self.hidden),
                name + "mlp.down_proj.weight": (self.hidden, self.ffn),
            }
            if self.qk_norm:
                shapes |= {name + f"self_attn.{x}_norm.weight": (self.head_dim,) for x in "qk"}
            if self.qkv_bias:
                sizes = {"q": query, "k": key, "v": key}
                shapes |= {name + f"self_attn.{x}_proj.bias": (size,) for x, size in sizes.items()}
        return shapes


def read_architecture(folder: Path, whose: str = "student") -> Architecture:
    """The architecture of a Hugging Face folder: a student's, or a white-box teacher's.

    Raises:
        InputError: no readable config.json, or an architecture that the trainer does not support.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(folder)  # pyright: ignore[reportUnknownMemberType]
    except (OSError, ValueError, StrictDataclassError) as error:
        raise InputError(
            f"{folder}/config.json cannot be read: {first_line(error.__cause__ or error)}.",
            f"Use a {whose} of type {', '.join(SUPPORTED)}.",
        ) from error
    whole = config.to_dict()
    _refuse_what_is_not_supported(whole, whose)
    return _architecture(whole)


def _architecture(config: Mapping[str, Any]) -> Architecture:
    """From the keys of a whole configuration, or of a config.json.

    Raises:
        KeyError: one is missing, whose default transformers knows.
    """
    # Folders from before transformers 5 have rotary positions in two keys.
    rope: dict[str, Any] = config.get("rope_parameters") or {
        "rope_theta": config.get("rope_theta"),
        "rope_type": "default",
        **(config.get("rope_scaling") or {}),
    }
    return Architecture(
        model_type=config["model_type"],
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        ffn=config["intermediate_size"],
        heads=config["num_attention_heads"],
        groups=config["num_key_value_heads"],
        head_dim=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        vocabulary=config["vocab_size"],
        positions=config["max_position_embeddings"],
        tied=config["tie_word_embeddings"],
        norm_eps=config["rms_norm_eps"],
        rope_base=rope["rope_theta"],
        rope=() if rope["rope_type"] == "default" else tuple(sorted(rope.items())),
    )


def read_config_json(folder: Path, whose: str = "student") -> Architecture:
    """The architecture as config.json says it outright, without transformers, whose configuration classes import torch.
    They are asked only where it leaves out a size and means the default.

    Raises:
        InputError: no readable config.json, or an architecture that the trainer does not support.
    """
    config = read_facts(folder / "config.json")
    _refuse_what_is_not_supported(config, whose)
    try:
        return _architecture(config)
    except KeyError:
        return read_architecture(folder, whose)


def check_config_json(folder: Path) -> Architecture:
    """`check_student` without torch: what transformers would refuse in a config.json is left to that.

    Raises:
        InputError: the trainer could not take it.
    """
    arch = read_config_json(folder)
    check_weights(arch, weight_shapes(folder), folder)
    return arch


def _refuse_what_is_not_supported(config: Mapping[str, Any], whose: str) -> None:
    """Takes a whole configuration of transformers, or what a config.json has of it: these options are off where they
    are left out, and a Mistral's window is not known."""
    kind = config.get("model_type")
    if kind not in SUPPORTED:
        raise InputError(
            f"The trainer does not support the architecture {kind}.",
            f"Use a {whose} of type {', '.join(SUPPORTED)}.",
        )
    # Folders from before transformers 5 have other names.
    rope: Mapping[str, Any] = config.get("rope_parameters") or config.get("rope_scaling") or {}
    window = config.get("sliding_window") if kind == "mistral" else None
    activation = config.get("hidden_act", "silu")
    unsupported = {
        f"hidden_act = {activation}": activation != "silu",
        "attention_bias": kind != "qwen2" and config.get("attention_bias", False),
        "mlp_bias": config.get("mlp_bias", False),
        f"sliding_window = {window}": window is not None and window < config.get("max_position_embeddings", 0),
        "use_sliding_window": config.get("use_sliding_window", False),
        f"rope_parameters = {rope}": rope.get("rope_type", rope.get("type", "default")) not in _ROPE_TYPES,
        "partial_rotary_factor": rope.get("partial_rotary_factor", 1.0) != 1.0,
        "quantization_config": config.get("quantization_config") is not None,
    }
    for what, present in unsupported.items():
        if present:
            raise InputError(
                f"The trainer does not support {what} in the {whose}'s config.json.", f"Use another {whose}."
            )


def check_student(folder: Path, whose: str = "student") -> Architecture:
    """Check a model folder as the trainer needs it: architecture and weights. Returns the architecture.

    Raises:
        InputError: the trainer could not take it.
    """
    arch = read_architecture(folder, whose)
    check_weights(arch, weight_shapes(folder), folder)
    return arch


def weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight in a folder, from the files' headers.

    Raises:
        InputError: there are none, or it is not clear which.
    """
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="numpy") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} cannot be read: {error}.", _save_again(folder)) from error
    return shapes


def check_weights(arch: Architecture, found: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    """Compare the shapes in the weight files with the ones that config.json implies.

    Raises:
        InputError: a weight is missing, unknown or of another shape.
    """
    hint = _save_again(folder)
    expected = arch.shapes()
    for name, shape in expected.items():
        if name not in found:
            raise _no_weight(name, folder)
        if found[name] != shape:
            raise InputError(
                f"{folder}: config.json makes {name} {list(shape)}, and its weights have {list(found[name])}.", hint
            )
    # A tied head may be stored a second time, and old files hold the rotary frequencies: both are implied.
    implied = ("lm_head.weight", "rotary_emb.inv_freq")
    unknown = [name for name in found if name not in expected and not name.endswith(implied)]
    if unknown:
        raise InputError(f"{folder} has a weight {unknown[0]} that a {arch.model_type} has not.", hint)


def _no_weight(name: str, folder: Path) -> InputError:
    return InputError(f"{folder} has no weight {name}.", _save_again(folder))


def _save_again(folder: Path) -> str:
    return f"Save {folder} again with `save_pretrained`."


def check_tokenizer(arch: Architecture, tokenizer: Any, folder: Path) -> None:
    """Check that every token of a tokenizer of transformers has an embedding.

    Raises:
        InputError: it knows ids beyond the vocabulary of the weights.
    """
    top = max(cast("dict[str, int]", tokenizer.get_vocab()).values())
    if top >= arch.vocabulary:
        raise InputError(
            f"The tokenizer of {folder} has ids up to {top}, and its embedding has {arch.vocabulary} rows.",
            "Use the tokenizer that belongs to the weights, or resize the embeddings.",
        )


def check_same_tokens(student: Path, teacher: Path) -> None:
    """Check that a white-box teacher's distributions are over the student's tokens.

    Raises:
        InputError: a token of the student is another one, or none, of the teacher.
    """
    from transformers import AutoTokenizer

    ours, theirs = (
        cast("dict[str, int]", cast(Any, AutoTokenizer.from_pretrained(folder)).get_vocab())  # pyright: ignore[reportUnknownMemberType]
        for folder in (student, teacher)
    )
    for token, id_ in sorted(ours.items(), key=lambda item: item[1]):
        if theirs.get(token) != id_:
            raise InputError(
                f"The teacher {teacher} has another tokenizer than the student: {token!r} is {id_} to the student and"
                f" {theirs.get(token, 'nothing')} to the teacher.",
                'Choose a teacher of the student\'s family, or set train.objective = "omniopd", which needs no logits.',
            )


def ranks(config: TrainConfig) -> int:
    """Processes that will train, as far as the config says: `torchrun` starts as many as it is told."""
    least = config.tensor_parallel * config.pipeline_parallel * config.context_parallel
    return least if config.processes == 1 else config.processes


def check_trainable(folder: Path, tokenizer: Any, config: TrainConfig) -> Architecture:
    """All that the trainer asks of a student, before anything is sampled or paid. Returns its architecture.

    Raises:
        InputError: the trainer could not take it.
        ConfigError: it cannot be split as [train] says.
    """
    arch = check_student(folder)
    check_tokenizer(arch, tokenizer, folder)
    check_layout(arch, config, ranks(config))
    return arch


def check_layout(arch: Architecture, config: TrainConfig, processes: int, whose: str = "student") -> None:
    """Check that the model can be split as [train] asks, over the given number of processes.

    Raises:
        ConfigError: it cannot.
    """
    tensor, pipeline, context = config.tensor_parallel, config.pipeline_parallel, config.context_parallel
    if processes % (tensor * pipeline * context):
        raise ConfigError(
            f"{processes} trainer process{'es' * (processes > 1)} cannot be split into groups of"
            f" tensor_parallel x pipeline_parallel x context_parallel = {tensor} x {pipeline} x {context}.",
            f"Set train.processes to a multiple of {tensor * pipeline * context}.",
        )
    split = {"attention heads": arch.heads, "key-value heads": arch.groups, "feed-forward channels": arch.ffn}
    for what, count in split.items():
        if count % tensor:
            raise ConfigError(
                f"train.tensor_parallel = {tensor} does not divide the {whose}'s {count} {what}.",
                "Set it to a divisor.",
            )
    if (tensor - 1) * -(-arch.vocabulary // tensor) >= arch.vocabulary:
        raise ConfigError(
            f"train.tensor_parallel = {tensor} leaves a rank without one of the {whose}'s {arch.vocabulary} tokens.",
            "Set it lower.",
        )
    if arch.layers % pipeline:
        raise ConfigError(
            f"train.pipeline_parallel = {pipeline} does not divide the {whose}'s {arch.layers} layers.",
            "Set it to a divisor.",
        )


def projection_sizes(arch: Architecture) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of each projection that can have an adapter."""
    query, key = arch.heads * arch.head_dim, arch.groups * arch.head_dim
    return {
        "q_proj": (query, arch.hidden), "k_proj": (key, arch.hidden), "v_proj": (key, arch.hidden),
        "o_proj": (arch.hidden, query), "gate_proj": (arch.ffn, arch.hidden), "up_proj": (arch.ffn, arch.hidden),
        "down_proj": (arch.hidden, arch.ffn),
    }  # fmt: skip
