"""Train the demo's teacher and student from scratch.

    python -m omniopd.demo.pretrain.sums --out demo/models

Both are Qwen3 models of under 1 M parameters over a byte-level tokenizer, saved as ordinary Hugging Face folders.

*The teacher* learns correct arithmetic. Some of the texts it reads hold a forgotten carry, so that it can carry on from
somebody else's mistake, but the wrong numbers themselves are left out of its loss: it never learns to write one.

*The student* is smaller and was raised on a flawed corpus: at ``SLIP_RATE`` of the steps that carry or borrow, the
carry is forgotten, and those numbers are in its loss. So it knows the layout of an answer and it can add, but at each
carry it is in two minds. It is a constructed weakness, chosen because it is visible (high entropy at the digit where
the carry counts, next to nothing elsewhere), correctable, and the same in every run.
"""

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ...eval.estimate import wilson
from ..tasks import task as tasks
from ..tasks.sums import MAX_NEW_TOKENS, Problem, Step, generate, grade, problems, solve
from ..teacher.decoder import Decoder, Job

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

SLIP_RATE = 0.55
"""How often the student's corpus forgets a carry. Above one half, so that greedy decoding forgets it as well."""

TEACHER_SEES_SLIPS = 0.15
VOCABULARY = 320
"""The specials, 256 bytes, and reserved tokens up to a multiple of 64 (tensor parallelism divides it)."""

SPECIALS = ("<pad>", "<bos>", "<eos>")
PAD, BOS, EOS = range(3)

IGNORE = -100

Example = tuple[list[int], list[int]]
"""``(input_ids, labels)`` of one text, unpadded."""


@dataclass(frozen=True)
class Recipe:
    """One model's shape and training."""

    name: str
    hidden: int
    layers: int
    intermediate: int
    steps: int
    slip_rate: float
    learns_slips: bool
    seed: int
    batch: int = 64
    lr: float = 3e-3
    warmup: int = 100


RECIPES = (
    Recipe("teacher", 128, 4, 320, steps=2400, slip_rate=TEACHER_SEES_SLIPS, learns_slips=False, seed=11),
    Recipe("student", 128, 3, 256, steps=1600, slip_rate=SLIP_RATE, learns_slips=True, seed=12),
)


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """A tokenizer with one token a byte: it encodes any text, and decoding gives exactly that text back."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    reserved = [f"<reserved_{i}>" for i in range(VOCABULARY - len(SPECIALS) - len(alphabet))]
    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*SPECIALS, *reserved])
    return as_transformers(tokenizer)


def as_transformers(tokenizer: "Tokenizer") -> "PreTrainedTokenizerFast":
    """The tokenizer with its special tokens, for models to be saved with."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIALS[PAD],
        bos_token=SPECIALS[BOS],
        eos_token=SPECIALS[EOS],
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=512,
    )


def build_model(recipe: Recipe, vocabulary: int, max_new_tokens: int) -> "Qwen3ForCausalLM":
    """A freshly initialised Qwen3 of the recipe's shape."""
    import torch
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(recipe.seed)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        dtype=torch.float32,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        do_sample=True,
        max_new_tokens=max_new_tokens,
    )
    return model


def answer_parts(steps: list[Step], learns_slips: bool) -> Iterator[tuple[str, bool]]:
    """The answer's text in parts, each with whether it counts in the loss."""
    for step in steps:
        yield f"{step.before}{step.term:+d}=", True
        yield f"{step.result}", learns_slips or not step.slipped
        yield "\n", True
    yield f"#### {steps[-1].result}", True


def example(problem: Problem, recipe: Recipe, rng: random.Random, tokenizer: "PreTrainedTokenizerFast") -> Example:
    """One text; the prompt and the parts that do not count are ignored."""
    steps = solve(problem, lambda: rng.random() < recipe.slip_rate)
    return labelled(problem.prompt, answer_parts(steps, recipe.learns_slips), tokenizer)


def labelled(prompt: str, answer: Iterable[tuple[str, bool]], tokenizer: "PreTrainedTokenizerFast") -> Example:
    """A prompt, which does not count in the loss, and the parts of an answer, each with whether it does."""
    ids = tokenizer.encode(prompt)
    labels = [IGNORE] * len(ids)
    for text, counts in answer:
        part = tokenizer.encode(text)
        ids += part
        labels += part if counts else [IGNORE] * len(part)
    return [*ids, EOS], [*labels, EOS]


def examples(recipe: Recipe, tokenizer: "PreTrainedTokenizerFast") -> Iterator[Example]:
    """An endless stream of texts."""
    rng = random.Random(recipe.seed)
    for problem in generate(recipe.seed, "train"):
        yield example(problem, recipe, rng, tokenizer)


def batches(texts: Iterator[Example], size: int) -> "Iterator[tuple[torch.Tensor, torch.Tensor]]":
    """``(input_ids, labels)``, each ``[size, longest]``, padded on the right."""
    import torch

    while True:
        rows = list(islice(texts, size))
        longest = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([ids + [PAD] * (longest - len(ids)) for ids, _ in rows])
        labels = torch.tensor([labels + [IGNORE] * (longest - len(labels)) for _, labels in rows])
        yield ids, labels


def train(model: "Qwen3ForCausalLM", recipe: Recipe, texts: Iterator[Example]) -> "Qwen3ForCausalLM":
    """Train one model: AdamW, warm-up, then cosine decay to zero."""
    import torch
    from torch.nn.functional import cross_entropy

    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.01)
    started = time.monotonic()
    for step, (ids, labels) in enumerate(batches(texts, recipe.batch)):
        if step == recipe.steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * _schedule(step, recipe)
        logits = model(input_ids=ids[:, :-1]).logits
        loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0:
            say(f"{recipe.name} step {step:5d} loss {loss.item():.4f} {time.monotonic() - started:6.0f} s")
    return model.eval()


def save(model: "Qwen3ForCausalLM", tokenizer: "PreTrainedTokenizerFast", folder: Path) -> None:
    """Write an ordinary Hugging Face folder that everybody may read (weights are written private by default)."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)


def _schedule(step: int, recipe: Recipe) -> float:
    """The learning rate's factor at a step."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return 0.5 * (1 + math.cos(math.pi * done))


def accuracy(
    decoder: Decoder,
    held_out: Sequence[tasks.Problem],
    *,
    greedy: bool,
    seed: int = 0,
    limit: int = MAX_NEW_TOKENS,
    grade: Callable[[str, int], bool] = grade,
) -> dict[str, object]:
    """Pass@1 on the problems with its 95 % interval: greedy, or sampled at temperature 1, of at most limit tokens."""
    jobs = [
        Job(decoder.encode(problem.prompt), max_tokens=limit, temperature=0.0 if greedy else 1.0, seed=seed + i)
        for i, problem in enumerate(held_out)
    ]
    texts = [completion.text for (completion,) in decoder.complete(jobs)]
    right = sum(grade(text, problem.answer) for text, problem in zip(texts, held_out, strict=True))
    interval = wilson(right, len(held_out))
    return {
        "decoding": "greedy" if greedy else "T=1",
        "pass@1": round(right / len(held_out), 4),
        "interval_95": [round(interval.low, 4), round(interval.high, 4)],
        "problems": len(held_out),
    }


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Train, save and measure both models."""
    parser = argparse.ArgumentParser(description="Train the demo's teacher and student from scratch.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "models")
    parser.add_argument("--only", choices=[recipe.name for recipe in RECIPES])
    parser.add_argument("--eval-problems", type=int, default=1000)
    arguments = parser.parse_args()
    tokenizer = build_tokenizer()
    held_out = problems(arguments.eval_problems, seed=0, split="heldout")
    for recipe in RECIPES:
        if arguments.only not in (None, recipe.name):
            continue
        model = train(build_model(recipe, VOCABULARY, MAX_NEW_TOKENS), recipe, examples(recipe, tokenizer))
        parameters = sum(parameter.numel() for parameter in model.parameters())
        folder = arguments.out / recipe.name
        save(model, tokenizer, folder)
        decoder = Decoder(folder)
        for greedy in (False, True):
            result = accuracy(decoder, held_out, greedy=greedy)
            say(json.dumps({"model": recipe.name, "parameters": parameters, **result}))


if __name__ == "__main__":
    main()
