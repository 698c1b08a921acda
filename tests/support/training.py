"""Small students and small rounds to train them on, made on the fly."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from omniopd.store.config import Config
from omniopd.store.layout import RunDir
from omniopd.store.model import weights_hash

VOCABULARY = 97

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def save_tokenizer(folder: Path, tokens: int) -> None:
    """A tokenizer with so many one-word tokens, the last ids included."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(tokens)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0", eos_token="w1").save_pretrained(folder)


def save_student(folder: Path, kind: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """A random student whose norms and biases are neither ones nor zeros, with tokenizer and chat template."""
    from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

    configs = {"qwen3": Qwen3Config, "qwen2": Qwen2Config, "llama": LlamaConfig, "mistral": MistralConfig}
    extra = {} if kind == "qwen2" else {"head_dim": 16}
    config = configs[kind](**{**_SHAPE, "tie_word_embeddings": kind == "qwen3", **extra, **changes})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:
                parameter.mul_(4)
    model.to(dtype).save_pretrained(folder)
    save_tokenizer(folder, VOCABULARY)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def shard_rows(sequences: int, *, seed: int = 0, vocabulary: int = VOCABULARY) -> list[dict[str, Any]]:
    """Sequences of unequal length; about a third of the response lies in audited chunks of four tokens."""
    rng = np.random.default_rng(seed)
    rows = []
    for n in range(sequences):
        prompt, response = int(rng.integers(2, 6)), int(rng.integers(5, 30))
        length = prompt + response
        audited, weight = np.zeros(length, bool), np.zeros(length, np.float32)
        for start in range(prompt + int(rng.integers(0, 3)), length, 12):
            audited[start : start + 4] = True
            weight[start : start + 4] = rng.uniform(0.1, 1.0)
        rows.append(
            {
                "trajectory_id": f"t{n:04d}",
                "input_ids": rng.integers(0, vocabulary, length).tolist(),
                "loss_weight": weight.tolist(),
                "audited": audited.tolist(),
                "response_mask": (np.arange(length) >= prompt).tolist(),
                "behaviour_logprobs": np.where(np.arange(length) >= prompt, -rng.uniform(2, 6, length), 0).tolist(),
            }
        )
    return rows


def make_config(student: Path, **train: Any) -> Config:
    """A config for a small round; keyword arguments go to [train], `centre` to [score]."""
    centre = train.pop("centre", "none")
    defaults = {"lr": 1e-3, "global_batch": 4, "micro_batch": 2, "loss_rows": 16, "checkpoint_every": 2}
    return Config.model_validate(
        {
            "student": {"model": str(student)},
            "data": {"prompts": "none.jsonl"},
            "teacher": {"model": "none"},
            "score": {"centre": centre},
            "train": defaults | train,
        }
    )


def write_round(run: RunDir, index: int, config: Config, rows: list[dict[str, Any]]) -> None:
    """A scored round, its trajectories sampled by the round's policy."""
    round_ = run.round(index)
    policy = weights_hash(Path(run.policy_for(index, config)))
    round_.trajectories.begin({})
    round_.trajectories.append(
        [{"trajectory_id": row["trajectory_id"], "round": index, "policy": policy} for row in rows]
    )
    round_.trajectories.finish()
    round_.shards.begin({})
    round_.shards.append(rows)
    round_.shards.finish()


def write_toml(run: RunDir, config: Config) -> None:
    """config.toml, for processes that read it themselves."""
    lines = []
    for section, values in config.model_dump(mode="json", exclude_unset=True).items():
        lines.append(f"[{section}]")
        lines += [
            f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}" for key, value in values.items()
        ]
    run.path.mkdir(parents=True, exist_ok=True)
    run.config_toml.write_text("\n".join(lines) + "\n")
