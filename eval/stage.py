"""`omniopd eval`: a model and a benchmark in, responses and verdicts out."""

import contextlib
import hashlib
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..graders.find import in_parallel, make_grader
from ..graders.verdict import Grader, Verdict
from ..stages.generate.engine import Request, Response, Sampling
from ..stages.generate.engines.registry import make_engine
from ..stages.generate.prompts import Prompt, render
from ..stages.generate.repetition import repetition
from ..stages.generate.shown import Shown, sampled
from ..stages.generate.stage import claim_gpus
from ..stages.progress import progress
from ..store.config import Config
from ..store.errors import ConfigChangedError, UsageError
from ..store.evals import EvalDir
from ..store.model import load_tokenizer, resolve_model, stop_ids, weights_hash
from ..store.table import Table
from ..store.tokens import Decode, response_decoder
from ..store.worker import ALONE, Worker
from .benchmarks import Benchmark, Question, load_benchmark
from .settings import Target, default_folder, sampling_config

_VERDICTS_A_PART = 256
_SECONDS_A_PART = 60.0
"""A benchmark may be smaller than generate.part_rows, and long responses come slowly: a crash loses a minute."""
_FITTING = {False: ("math_verify", "dapo_regex"), True: ("tests",)}
"""For answers, and for programs."""


def evaluate(
    target: Target,
    config: Config,
    out: Path | None = None,
    worker: Worker = ALONE,
) -> tuple[EvalDir, bool]:
    """Sample what is missing, then grade what is missing. Returns where the results are, and whether they are whole.

    Args:
        config: Its section `eval` says what is asked, how, and who grades; `student` and `generate` have the engine's
            settings, and `data` the chat template's.
        worker: The share of the questions that this worker answers; the last one to finish grades.

    Raises:
        UsageError: no such benchmark or grader.
        InputError: benchmark, model or grader cannot be used.
        ConfigChangedError: the results were begun with other settings.
    """
    benchmark = load_benchmark(config.eval.benchmark)
    # Before anything is sampled: a grader that cannot work would be noticed hours later.
    with contextlib.closing(_Graders(choose_graders(config.eval.graders, benchmark))) as graders:
        folder = resolve_model(target.model)
        policy = weights_hash(folder)
        results = default_folder(target, benchmark.name, policy) if out is None else EvalDir(out)
        with results.lock("respond", worker):
            _respond(
                results.responses(worker), benchmark, sampling_config(config, target, benchmark.code), folder, policy
            )
        if not results.responses().complete:
            return results, False
        with results.lock("grade"):
            for grader in graders.all:
                grade(results, grader, benchmark)
    return results, True


# -- responses


def _respond(table: Table, benchmark: Benchmark, config: Config, folder: Path, policy: str) -> None:
    tokenizer = load_tokenizer(folder)
    prompts = render([question.conversation for question in benchmark.questions], config.data, tokenizer)
    generate, worker = config.generate, table.worker
    wanted = {
        response_id(question, sample, generate.seed): (question, prompt, sample)
        for question, prompt in list(zip(benchmark.questions, prompts, strict=True))[worker.index :: worker.count]
        for sample in range(generate.samples_per_prompt)
    }
    _begin(table, _made_with(benchmark, prompts, config, policy))
    present = table.existing_keys()
    missing = [
        Request(id_, prompt.ids)
        for id_, (question, prompt, sample) in wanted.items()
        if (question.question_id, sample) not in present
    ]
    if missing:
        claim_gpus(generate.tensor_parallel)
        engine = make_engine(str(folder), config, max(len(prompt.ids) for prompt in prompts), entropies=False)
        sampling = Sampling(
            generate.max_new_tokens, generate.temperature, generate.top_p, stop_ids(folder, tokenizer, config)
        )
        with contextlib.closing(engine), progress("answer", len(wanted), len(wanted) - len(missing)) as advance:
            rows: list[dict[str, Any]] = []
            committed = time.monotonic()
            decode = response_decoder(tokenizer)
            for response in sampled(engine, missing, sampling, Shown(advance)):
                row = _row(response, *wanted[response.trajectory_id], decode, sampling)
                rows.append(row | {"policy": policy, "engine": engine.name})
                if len(rows) == generate.part_rows or time.monotonic() - committed > _SECONDS_A_PART:
                    table.append(rows)
                    rows, committed = [], time.monotonic()
            table.append(rows)
    table.finish()


def response_id(question: Question, sample: int, seed: int) -> str:
    """Names a response and seeds its random stream, 128 bits in hex.

    The model has no part in it: two models answer a question from the same random numbers, which takes noise out of
    their difference.
    """
    return _hash(f"{question.question_id}|{sample}|{seed}")


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _made_with(benchmark: Benchmark, prompts: Sequence[Prompt], config: Config, policy: str) -> dict[str, Any]:
    generate = config.generate
    return {
        "benchmark": benchmark.name,
        "questions": benchmark.fingerprint,
        "prompts": _hash("\n".join(prompt.text for prompt in prompts)),
        "policy": policy,
        "engine": config.student.engine,
        "dtype": config.student.dtype,
        "samples": generate.samples_per_prompt,
        "max_new_tokens": generate.max_new_tokens,
        "temperature": generate.temperature,
        "top_p": generate.top_p,
        "stop_token_ids": list(generate.stop_token_ids),
        "seed": generate.seed,
    }


def _begin(table: Table, made_with: dict[str, Any]) -> None:
    try:
        table.begin(made_with)
    except ConfigChangedError as error:
        raise ConfigChangedError(error.problem, "Set it back, or choose another folder with --out.") from error


def _row(
    response: Response,
    question: Question,
    prompt: Prompt,
    sample: int,
    decode: Decode,
    sampling: Sampling,
) -> dict[str, Any]:
    ids = response.ids_T.tolist()
    spoken = ids[:-1] if ids[-1] in sampling.stop_ids else ids
    return {
        "question_id": question.question_id,
        "sample_index": sample,
        "question": str(question.conversation),
        "prompt_text": prompt.text,
        "response_text": decode(spoken),
        "response_tokens": len(ids),
        "finish_reason": response.finish_reason,
        "repetition": repetition(response.ids_T),
    }


# -- verdicts


def choose_graders(names: Sequence[str], benchmark: Benchmark) -> tuple[str, ...]:
    """The graders that are asked for, or all that fit.

    Raises:
        UsageError: one does not grade this benchmark.
    """
    fitting = _FITTING[benchmark.code]
    for name in names:
        if name not in fitting:
            raise UsageError(f"{benchmark.name} is not graded by {name!r}.", f"It can be by: {', '.join(fitting)}.")
    return tuple(names) or fitting


class _Graders:
    """The graders of an evaluation, and the processes that they hold."""

    def __init__(self, names: Sequence[str]) -> None:
        self.all: list[Grader] = [make_grader(name) for name in names]

    def close(self) -> None:
        for grader in self.all:
            grader.close()


@dataclass(frozen=True)
class _Answer:
    question_id: str
    sample_index: int
    text: str


def grade(results: EvalDir, grader: Grader, benchmark: Benchmark) -> None:
    """Grade the responses that have no verdict of this grader yet."""
    table = results.verdicts(grader.name)
    settings = {"benchmark": benchmark.fingerprint, **grader.settings}
    if table.manifest.parts and dict(table.manifest.made_with) != settings:
        # Verdicts can be made again from the responses, and those of another version would mislead.
        shutil.rmtree(table.folder)
    table.begin(settings)
    references = {question.question_id: question.reference for question in benchmark.questions}
    total, present = results.responses().manifest.rows, table.existing_keys()

    def ask(answer: _Answer) -> dict[str, Any]:
        start = time.monotonic()
        reference = references[answer.question_id]
        verdict = grader.grade(answer.text, reference)
        return _verdict_row(answer, grader.name, None if benchmark.code else reference, verdict) | {
            "seconds": time.monotonic() - start
        }

    with progress(grader.name, total, len(present)) as advance:
        for answers in _missing(results, present, grader.name):
            table.append(in_parallel(ask, answers, lambda: advance(1, "")))
    table.finish()


def _missing(results: EvalDir, present: set[tuple[Any, ...]], grader: str) -> Iterator[list[_Answer]]:
    """The responses that have no verdict yet, a part at a time."""
    for batch in results.responses().batches(_VERDICTS_A_PART, ["question_id", "sample_index", "response_text"]):
        answers = [_Answer(row["question_id"], row["sample_index"], row["response_text"]) for row in batch.to_pylist()]
        yield [answer for answer in answers if (answer.question_id, answer.sample_index, grader) not in present]


def _verdict_row(answer: _Answer, grader: str, reference: str | None, verdict: Verdict) -> dict[str, Any]:
    return {
        "question_id": answer.question_id,
        "sample_index": answer.sample_index,
        "grader": grader,
        "correct": verdict.correct,
        "reason": verdict.reason,
        "reference": reference,
        "extracted": verdict.extracted,
        "detail": verdict.detail,
    }
