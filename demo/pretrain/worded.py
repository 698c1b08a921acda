"""Train the harder task's teacher and student (tasks/worded.py).

    python -m omniopd.demo.pretrain.worded --out demo/models

*The teacher* continues from the weights of the sums' teacher, which can add and reads one byte a token. It learns to
write equations from a plain question. Most of its texts begin in words, as somebody else's would, often with that
person's mistakes, and turn to equations at a step drawn at random or never: so, continuing such a text, it finishes
the step at hand in words and may then continue in its own manner. Mistakes and the choice of words over equations are
left out of its loss.

*The student* is new. It reads words and single digits, and it was raised on answers in words with ``STUDENT_HABITS``,
mistakes included.
"""

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ..tasks.worded import (
    MAX_NEW_BYTES,
    MAX_NEW_TOKENS,
    STEPS,
    STUDENT_HABITS,
    STUDENT_WORDING,
    TEACHER_WORDING,
    Habits,
    Manner,
    generate,
    grade,
    in_words,
    pieces,
    problems,
    solve,
    text_of,
)
from ..teacher.decoder import Decoder
from ..teacher.process import MODELS
from .sums import (
    SPECIALS,
    Example,
    Recipe,
    accuracy,
    as_transformers,
    build_model,
    build_tokenizer,
    labelled,
    save,
    say,
    train,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

STUDENT_VOCABULARY = 384
"""The specials, 256 bytes, some eighty merges that make each word a token, and reserved ones."""

TEACHER_SEES = Habits(hard_borrow=0.2, carry=0.1, confuses=0.2, swaps=0.05, skips=0.05)
"""Mistakes in the beginnings that the teacher learns to continue from."""

TEACHER = Recipe(
    "worded-teacher", 128, 4, 320, steps=1200, slip_rate=0.0, learns_slips=False, seed=21, batch=32, lr=1e-3
)


@dataclass(frozen=True)
class Training:
    """One of the teacher's trainings, each with a warm-up and a decay of its own."""

    steps: int
    lr: float
    begins_in_words: float
    """Share of the texts that do."""
    turns: float
    """How often those turn to equations at a step."""
    taste_counts: float
    """Share of the texts whose synonyms are in the loss: they are noise beside the arithmetic."""


TRAININGS = (
    Training(steps=1200, lr=1e-3, begins_in_words=0.5, turns=0.4, taste_counts=1.0),
    # After the first it reckoned well in equations only: from right beginnings in words, 26 % came out right.
    Training(steps=1200, lr=1.5e-3, begins_in_words=0.85, turns=0.35, taste_counts=0.25),
    Training(steps=800, lr=1.5e-3, begins_in_words=0.85, turns=0.35, taste_counts=0.25),
)

STUDENT = Recipe("worded-student", 128, 3, 256, steps=1800, slip_rate=0.0, learns_slips=True, seed=22)


def build_student_tokenizer() -> "PreTrainedTokenizerFast":
    """A byte-level BPE of the student's own texts; as Qwen's, it never joins digits."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(r"\n| ?\d| ?[^\s\d,.:]+|[,.:]|\s"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=STUDENT_VOCABULARY, special_tokens=list(SPECIALS), initial_alphabet=alphabet, show_progress=False
    )
    rng = random.Random(STUDENT.seed)
    texts = islice(student_texts(rng), 2000)
    tokenizer.train_from_iterator((prompt + answer for prompt, answer in texts), trainer)
    reserved = [f"<reserved_{i}>" for i in range(STUDENT_VOCABULARY - tokenizer.get_vocab_size())]
    tokenizer.add_special_tokens(reserved)
    return as_transformers(tokenizer)


def student_texts(rng: random.Random) -> Iterator[tuple[str, str]]:
    """An endless stream of prompts and answers of the student's corpus."""
    for problem in generate(STUDENT.seed, "train"):
        yield problem.prompt, text_of(in_words(solve(problem, STUDENT_HABITS, rng), STUDENT_WORDING, rng))


def student_examples(tokenizer: "PreTrainedTokenizerFast") -> Iterator[Example]:
    """All of the answer counts, mistakes too."""
    for prompt, answer in student_texts(random.Random(STUDENT.seed)):
        yield labelled(prompt, [(answer, True)], tokenizer)


def teacher_examples(tokenizer: "PreTrainedTokenizerFast", training: Training, seed: int) -> Iterator[Example]:
    """Pieces that are no example to anybody do not count."""
    rng = random.Random(seed)
    for problem in generate(seed, "train"):
        manners = draw_manners(rng, training)
        tasteful = rng.random() < training.taste_counts
        habits = Habits() if manners[0] == "equations" else TEACHER_SEES
        written = pieces(solve(problem, habits, rng), manners, TEACHER_WORDING, rng)
        counted = ((piece.text, piece.exemplary and (tasteful or not piece.taste)) for piece in written)
        yield labelled(problem.prompt, counted, tokenizer)


def draw_manners(rng: random.Random, training: Training) -> list[Manner]:
    """For each step and the last line: words, which turn to equations once or never."""
    manners: list[Manner] = ["words" if rng.random() < training.begins_in_words else "equations"]
    while len(manners) <= STEPS:
        stays = manners[-1] == "words" and rng.random() >= training.turns
        manners.append("words" if stays else "equations")
    return manners


def new_teacher() -> "Qwen3ForCausalLM":
    """The sums' teacher, to continue from."""
    import torch
    from transformers import Qwen3ForCausalLM

    model = Qwen3ForCausalLM.from_pretrained(MODELS / "teacher", local_files_only=True, dtype=torch.float32)
    assert model.generation_config is not None
    model.generation_config.max_new_tokens = MAX_NEW_BYTES
    return model


def main() -> None:
    """Train, save and measure both models."""
    parser = argparse.ArgumentParser(description="Train the harder task's teacher and student.")
    parser.add_argument("--out", type=Path, default=MODELS)
    parser.add_argument("--only", choices=[TEACHER.name, STUDENT.name])
    parser.add_argument("--eval-problems", type=int, default=1000)
    arguments = parser.parse_args()
    held_out = problems(arguments.eval_problems, seed=0, split="heldout")
    for recipe in (TEACHER, STUDENT):
        if arguments.only not in (None, recipe.name):
            continue
        if recipe is TEACHER:
            tokenizer = build_tokenizer()
            model, limit = new_teacher(), MAX_NEW_BYTES
            for i, training in enumerate(TRAININGS):
                texts = teacher_examples(tokenizer, training, recipe.seed + 100 * i)
                model = train(model, replace(recipe, steps=training.steps, lr=training.lr), texts)
        else:
            tokenizer, limit = build_student_tokenizer(), MAX_NEW_TOKENS
            fresh = build_model(recipe, STUDENT_VOCABULARY, limit)
            model = train(fresh, recipe, student_examples(tokenizer))
        folder = arguments.out / recipe.name
        save(model, tokenizer, folder)
        for greedy in (False, True):
            result = accuracy(Decoder(folder), held_out, greedy=greedy, limit=limit, grade=grade)
            say(json.dumps({"model": recipe.name, "parameters": model.num_parameters(), **result}))


if __name__ == "__main__":
    main()
