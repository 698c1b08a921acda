"""`omniopd generate`: questions in, the trajectories table out."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...method.objectives.record import Objective
from ...method.objectives.registry import objective_of
from ...store.architecture import check_trainable
from ...store.config import Config, made_with
from ...store.conversation import Conversation
from ...store.errors import InputError
from ...store.layout import RunDir
from ...store.model import load_tokenizer, resolve_model, stop_ids, unheard_end_of_turn, weights_hash
from ...store.reference import check_reference
from ...store.table import Table
from ...store.tokens import Decode, response_decoder
from ...store.worker import ALONE, Worker
from .engine import Engine, Request, Response, Sampling
from .engines.registry import make_engine
from .processes import sample_in_processes
from .prompts import Prompt, asked, questions_of_round, read_problems, render, say_once
from .repetition import repetition
from .shown import Show, bar, sampled
from .workers import claim_devices, processes_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHOWN = 60
"""Characters of a question in an error."""


Say = Callable[[str], None]
"""Hears a line for the user."""

EngineMaker = Callable[[str, Config, int, Say], contextlib.AbstractContextManager[Engine]]
"""Model folder, config, tokens of the longest prompt."""


def closed_after(
    folder: str, config: Config, longest_prompt: int, say: Say
) -> contextlib.AbstractContextManager[Engine]:
    """An engine for the length of a `with`."""
    return contextlib.closing(make_engine(folder, config, longest_prompt, say=say))


def generate(
    run: RunDir,
    index: int,
    config: Config,
    worker: Worker = ALONE,
    before: Callable[[], None] = lambda: None,
    say: Say = say_once,
    show: Show = bar,
    engine_of: EngineMaker = closed_after,
    patience_s: float = 0.0,
) -> str:
    """Sample the trajectories of a round that are not there yet. Returns a line about the table.

    Where the objective does not sample the student (sft), a trajectory is a prompt, which the teacher is to answer.
    The only worker starts others on the machine's GPUs, by generate.processes.

    Args:
        worker: The share that this worker fills. Prompts are dealt out in turn, so that the samples of a prompt stay
            together and share its prefix.
        before: Called where there is something to sample, may refuse. The model is loaded then.
        say: Hears of what the user should know about data and engine.
        show: Shows how the responses grow.
        engine_of: Gives the engine, where there is something to sample.
        patience_s: How long to wait for a process that is at the same share.

    Raises:
        InputError: the prompts or the model cannot be used, or a prompt has too few samples or nothing to grade
            them against (grpo).
        ConfigError: generate.processes is more than there are GPUs for.
        UsageError: it is more than one, for one of several workers.
        ConfigChangedError: the table was begun with other settings.
        OmniopdError: one of the processes failed.
    """
    round_, objective = run.round(index), objective_of(config)
    processes = _processes(config, worker) if objective.samples_student else 1
    # One worker says what there is to say about the data.
    found = inputs(run, index, config, say if worker.index == 0 else lambda _: None)
    policy = weights_hash(found.folder)
    wanted = {
        trajectory_id(policy, prompt, sample, config.generate.seed): (prompt, sample)
        for prompt in found.prompts[worker.index :: worker.count]
        for sample in range(samples_of(config))
    }
    table = round_.trajectories_of(worker)
    if processes > 1:
        # They hold the locks of their shards, and it is they that are recorded.
        with round_.idle("generate"):
            missing = _begin(table, config, found, policy, wanted)
            if not missing:
                table.finish()
        if missing:
            rows_there = len(wanted), len(wanted) - len(missing)
            sample_in_processes(run, index, config, processes, rows_there, before, say)
        return summary(run, index)
    with round_.lock("generate", worker, patience_s):
        round_.expect("generate", found.rows, worker)
        missing = _begin(table, config, found, policy, wanted)
        answers = {asked(question, config.data): found.problems[question] for question in found.questions}
        rows = Rows(wanted, answers, {"round": index, "policy": policy})
        if missing and not objective.samples_student:
            for start in range(0, len(missing), config.generate.part_rows):
                part = missing[start : start + config.generate.part_rows]
                table.append([rows.prompt_alone(request.trajectory_id) for request in part])
        elif missing:
            stops = stop_ids(found.folder, found.tokenizer, config)
            if config.data.chat_template != "off" and found.tokenizer.chat_template and worker.index == 0:
                _say_end_of_turn(found.tokenizer, stops, say)
            claim_gpus(config.generate.tensor_parallel)
            sampling = Sampling(
                config.generate.max_new_tokens, config.generate.temperature, config.generate.top_p,
                stops,
            )  # fmt: skip
            writer = Writer(table, rows, response_decoder(found.tokenizer), sampling)
            longest = max(len(prompt.ids) for prompt in found.prompts)
            with engine_of(str(found.folder), config, longest, say) as engine:
                before()
                writer.fill(engine, missing, config.generate.part_rows, show)
        table.finish()
    return summary(run, index)


def _begin(
    table: Table, config: Config, found: "Inputs", policy: str, wanted: Mapping[str, tuple[Prompt, int]]
) -> list[Request]:
    """Begin a worker's table, or go on with it. Returns what it lacks.

    Args:
        policy: Hash of the student's weights.
        wanted: Prompt and sample index of each trajectory that it is to have.

    Raises:
        ConfigChangedError: it was begun with other settings.
        InputError: something is missing, and the model cannot be used.
        ConfigError: or it cannot be split as [train] says.
    """
    content = {"questions": _hash("\n".join(question.identity for question in found.questions)), "policy": policy}
    if config.data.answer is not None:
        content["answers"] = _hash("\n".join(found.problems[question] for question in found.questions))
    table.begin(_named_as_before(made_with(config, table.spec.name) | content, table.manifest.made_with))
    present = {key for (key,) in table.existing_keys()}
    missing = [Request(id_, prompt.ids) for id_, (prompt, _) in wanted.items() if id_ not in present]
    if missing:
        # Also where the student is not sampled (sft): the teacher is paid next.
        check_trainable(found.folder, found.tokenizer, config.train)
    return missing


def _processes(config: Config, worker: Worker) -> int:
    def devices() -> int:
        import torch  # seconds, which a single engine need not take before the data is read

        return torch.cuda.device_count()

    asked = config.generate.processes
    return processes_of(asked, config.generate.tensor_parallel, worker, devices, os.environ)


@dataclass(frozen=True)
class Inputs:
    """What a round is sampled from."""

    problems: Mapping[Conversation, str]
    """Reference answer of each question of the data set; "" for none."""
    questions: Sequence[Conversation]
    """Those of the round."""
    prompts: Sequence[Prompt]
    folder: Path
    """Of the policy."""
    tokenizer: "PreTrainedTokenizerBase"
    rows: int
    """Trajectories that the round comes to in all."""


def inputs(run: RunDir, index: int, config: Config, say: Say = say_once) -> Inputs:
    """Read and check what a round is sampled from.

    Args:
        say: Told what is remarkable about the data.

    Raises:
        InputError: as `generate`.
    """
    if index and not run.round(index - 1).policy.is_dir():
        raise InputError(
            f"Round {index} begins with what round {index - 1} trains, which has no policy yet.",
            f"Run `omniopd run {run.path}` first, or the stages of round {index - 1}.",
        )
    problems = read_problems(config.data, run.path, say)
    objective = objective_of(config)
    check_samples(objective, config)
    if objective.graded:
        check_gradable(problems, config)
    questions = questions_of_round(list(problems), config.data, index)
    check_reference(run, index, config)
    folder = resolve_model(run.policy_for(index, config))
    tokenizer = load_tokenizer(folder)
    prompts = render(questions, config.data, tokenizer)
    return Inputs(problems, questions, prompts, folder, tokenizer, len(prompts) * samples_of(config))


def _named_as_before(settings: dict[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a table that may have been begun under other names of the same student and the same prompts: what
    they hold counts, and on another machine, or in a run that was moved, they lie elsewhere."""
    for name, content in (("student.model", "policy"), ("data.prompts", "questions")):
        if before.get(content) == settings[content]:
            settings[name] = before[name]
    return settings


def _say_end_of_turn(tokenizer: "PreTrainedTokenizerBase", stops: frozenset[int], say: Say) -> None:
    if (found := unheard_end_of_turn(tokenizer, stops)) is not None:
        token, id_ = found
        say(
            f"the chat template ends a turn with {token!r}, which is no stop token: responses may run on. Set"
            f" generate.stop_token_ids = [{id_}]."
        )


def samples_of(config: Config) -> int:
    """Trajectories for each prompt; where the student is not sampled it is the teacher who answers several times
    (teacher.rollouts)."""
    return config.generate.samples_per_prompt if objective_of(config).samples_student else 1


def check_samples(objective: Objective, config: Config) -> None:
    """Refuse fewer samples of a prompt than the objective can compare.

    Raises:
        InputError: how many there are to be, and how many are needed.
    """
    samples = config.generate.samples_per_prompt
    if samples < objective.least_samples:
        raise InputError(
            f"{objective.name} compares the samples of a prompt, and generate.samples_per_prompt is {samples}.",
            f"Set generate.samples_per_prompt to {objective.least_samples} or more; 8 is usual.",
        )


def check_gradable(problems: Mapping[Conversation, str], config: Config) -> None:
    """Refuse prompts whose responses could not be rewarded.

    Raises:
        InputError: no answers, or a question without one.
    """
    if config.data.answer is None:
        raise InputError(
            f"{config.train.objective} grades responses against the data set's answers, and data.answer is not set.",
            "Set data.answer to the column with the answers, or the tests.",
        )
    every_round = config.data.model_copy(update={"per_round": None})
    missing = [question for question in questions_of_round(list(problems), every_round, 0) if not problems[question]]
    if missing:
        raise InputError(
            f"{len(missing)} questions of {config.data.prompts_label} have no {config.data.answer!r}, the first is"
            f" {missing[0].question[:_SHOWN]!r}.",
            "Leave those rows out, with data.filter or in the file.",
        )


def claim_gpus(each: int) -> None:
    """Keep this worker to its own GPUs."""
    import torch

    claim_devices(os.environ, torch.cuda.device_count(), each)


def trajectory_id(policy: str, prompt: Prompt, sample_index: int, seed: int) -> str:
    """Stable 128-bit name of a trajectory, in hex."""
    return _hash(f"{policy}|{prompt.prompt_id}|{sample_index}|{seed}")


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Rows:
    """What is known of a round's trajectories before they are sampled."""

    wanted: Mapping[str, tuple[Prompt, int]]
    """Prompt and sample index of each trajectory."""
    answers: Mapping[Conversation, str]
    """Reference answer of each; "" for none."""
    shared: Mapping[str, Any]
    """Columns that are the same in all rows."""

    def of(self, trajectory_id: str) -> dict[str, Any]:
        """The columns about the prompt."""
        prompt, sample_index = self.wanted[trajectory_id]
        return {
            **self.shared,
            "trajectory_id": trajectory_id,
            "prompt_id": prompt.prompt_id,
            "sample_index": sample_index,
            "question": prompt.question,
            "messages": prompt.conversation.messages_json,
            "tools": prompt.conversation.tools_json or None,
            "prompt_text": prompt.text,
            "prompt_ids": prompt.ids,
            "answer": self.answers[prompt.conversation] or None,
        }

    def prompt_alone(self, trajectory_id: str) -> dict[str, Any]:
        """A whole row without a response."""
        nothing: dict[str, Any] = {"response_text": "", "response_ids": [], "logprobs": [], "entropies": []}
        return self.of(trajectory_id) | nothing | {"finish_reason": "none"}


@dataclass(frozen=True)
class Writer:
    """From responses to rows of the table."""

    table: Table
    rows: Rows
    decode: Decode
    """Text of response tokens."""
    sampling: Sampling

    def fill(self, engine: Engine, missing: Sequence[Request], part_rows: int, show: Show = bar) -> None:
        """Sample, and commit every `part_rows` trajectories as they finish, with progress."""
        rows: list[dict[str, Any]] = []
        total = len(self.rows.wanted)
        with show(total, total - len(missing)) as tell:
            for response in sampled(engine, missing, self.sampling, tell):
                rows.append(self._row(response) | {"entropy_source": engine.entropy_source})
                if len(rows) == part_rows:
                    self.table.append(rows)
                    rows = []
        self.table.append(rows)

    def _row(self, response: Response) -> dict[str, Any]:
        """
        Raises:
            InputError: the student is broken.
        """
        if not (np.isfinite(response.logprobs_T).all() and np.isfinite(response.entropies_T).all()):
            raise InputError(
                "The student's log-probs are not finite: its weights hold NaN, or overflow in this precision.",
                "Set student.dtype to bfloat16 or float32, or student.model to whole weights.",
            )
        ids = response.ids_T.tolist()
        spoken = ids[:-1] if ids[-1] in self.sampling.stop_ids else ids
        return {
            **self.rows.of(response.trajectory_id),
            "response_text": self.decode(spoken),
            "response_ids": response.ids_T,
            "logprobs": response.logprobs_T,
            "entropies": response.entropies_T,
            "finish_reason": response.finish_reason,
            "repetition": repetition(response.ids_T),
        }


def summary(run: RunDir, index: int) -> str:
    """One line about a round's trajectories, of all workers."""
    import polars as pl

    table = run.round(index).trajectories.read(["response_ids", "finish_reason", "repetition"])
    (row,) = (
        pl.LazyFrame(table)
        .select(
            pl.len().alias("rows"),
            pl.col("response_ids").list.len().sum().alias("tokens"),
            (pl.col("finish_reason") == "none").sum().alias("prompts"),
            (pl.col("finish_reason") == "length").mean().alias("cut"),
            pl.col("repetition").mean().alias("repetition"),
        )
        .collect()
        .to_dicts()
    )
    if not row["rows"]:
        return "no trajectories in this shard"
    if row["prompts"]:
        return f"{row['prompts']} prompts for the teacher to answer; the student is not sampled"
    repeated = "" if row["repetition"] is None else f", mean repetition {row['repetition']:.3f}"
    return (
        f"{row['rows']} trajectories, {row['tokens']} tokens, mean length {row['tokens'] / row['rows']:.1f},"
        f" {row['cut']:.1%} cut off at the limit{repeated}"
    )
