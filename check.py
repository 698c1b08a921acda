"""`omniopd check`: everything that a run rests on, looked at before it costs an hour or a dollar.

`generate`, `audit` and `run` do it by themselves, once for each way in which the teacher is set up: what was found is
remembered in the run (`.checked.json`).
"""

import hashlib
import json
import shutil
import sys
from typing import Literal

import orjson

from .method.objectives.registry import objective_of
from .stages.audit import setup
from .store import files
from .store.config import Config
from .store.errors import ConfigError, InputError, OmniopdError, TeacherError, without_credentials
from .store.findings import Finding, of_error
from .store.layout import RunDir
from .store.model import read_facts, resolve_model

Before = Literal["generate", "audit"]

_LEAST_DISK = 1 << 30


def check(run: RunDir, config: Config) -> list[Finding]:
    """Look at everything; asks the teacher two small questions."""
    findings = [*offline(run, config), *_trainable(config), *_similarity(config), _gpu()]
    if not _asks(config):
        return [*findings, Finding("teacher", "ok", "none is asked")]
    if not any(finding.verdict == "fail" for finding in findings):
        findings += _server(run, config)
    return findings


def offline(run: RunDir, config: Config) -> list[Finding]:
    """What needs no server."""
    teacher = setup.settings(config.teacher) if _asks(config) else []
    return [*teacher, *_student(config), *_answers(config), _disk(run), *_mirror(run, config)]


def require(run: RunDir, config: Config, before: Before) -> None:
    """Check the teacher and what its answers are compared by, unless they were checked under these settings; warnings
    go to stderr. Student and data are checked by the stages themselves.

    A server that nobody answers at stops `audit` and not `generate`, which may be what has the GPU until then.

    Raises:
        ConfigError: a setting cannot work.
        InputError: score.phi cannot be measured.
        TeacherError: the teacher cannot work.
    """
    if not _asks(config):
        return
    _refuse(setup.settings(config.teacher), ConfigError)
    embedding = f"embedding by {config.score.embedding_model}"
    if embedding not in _remembered(run) and (found := _similarity(config)):
        _refuse(found, InputError)
        _remember(run, embedding)
    if _fingerprint(config) in _remembered(run):
        return
    found = _server(run, config)
    if before == "generate" and found[0].name == "server":
        _say([Finding("server", "warn", found[0].value, "audit will need it.")])
        return
    _say([finding for finding in found if finding.verdict == "warn"])
    _refuse(found, TeacherError)
    _remember(run, _fingerprint(config))


def _asks(config: Config) -> bool:
    """Whether a teacher is asked for anything."""
    asks = objective_of(config).asks
    return asks == "answers" or (asks == "chunks" and config.score.weights == "teacher")


def _server(run: RunDir, config: Config) -> list[Finding]:
    # Half a second of imports, which `plan` does without.
    from .stages import own_loop
    from .stages.audit import probe

    return own_loop.run(probe.server(run, config))


def _refuse(findings: list[Finding], error: type[OmniopdError]) -> None:
    for finding in findings:
        if finding.verdict == "fail":
            raise error(f"{finding.value}.", f"{finding.hint} (omniopd check looks again; --no-check leaves it out.)")


def _say(findings: list[Finding]) -> None:
    for finding in findings:
        sys.stderr.write(f"{finding}\n")


def _fingerprint(config: Config) -> str:
    """Of all that decides what the teacher was seen to do."""
    teacher = config.teacher.model_dump(
        mode="json",
        include={"kind", "model", "base_url", "continuation", "extra", "system", "api_key_env", "api_key_file"},
    )
    return hashlib.sha256(orjson.dumps(teacher, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def _remembered(run: RunDir) -> set[str]:
    return set(json.loads(run.checked.read_text(encoding="utf-8"))) if run.checked.is_file() else set()


def _remember(run: RunDir, key: str) -> None:
    files.write_text(run.checked, json.dumps(sorted({*_remembered(run), key})) + "\n")


def _similarity(config: Config) -> list[Finding]:
    """What score.phi needs beside this package: `score` would only miss it once the rollouts are paid for."""
    if config.score.phi != "embedding" or objective_of(config).weights_from != "scores":
        return []
    from .method.similarity.metrics import find_metric

    try:
        find_metric(config.score)
    except OmniopdError as error:
        return [of_error("similarity", error)]
    return [Finding("similarity", "ok", f"cosine of {config.score.embedding_model}")]


def _student(config: Config) -> list[Finding]:
    """The student's folder and context."""
    try:
        described = read_facts(resolve_model(config.student.model) / "config.json")
    except OmniopdError as error:
        return [of_error("student", error)]
    positions = described.get("max_position_embeddings")
    wanted = config.generate.max_new_tokens
    if isinstance(positions, int) and wanted >= positions:
        problem = f"its context has {positions:,} tokens, and generate.max_new_tokens is {wanted:,}"
        hint = f"Set generate.max_new_tokens below {positions}, less the longest prompt."
        return [Finding("student", "fail", problem, hint)]
    context = f", context {positions:,}" if positions else ""
    return [Finding("student", "ok", f"{config.student.model}{context}")]


def _trainable(config: Config) -> list[Finding]:
    """What only shows with the weights' headers and transformers; `generate` refuses the same."""
    from .store.architecture import check_trainable
    from .store.model import load_tokenizer, stop_ids

    try:
        folder = resolve_model(config.student.model)
        tokenizer = load_tokenizer(folder)
        arch = check_trainable(folder, tokenizer, config.train)
        stop_ids(folder, tokenizer, config)
    except OmniopdError as error:
        return [of_error("trainer", error)]
    return [Finding("trainer", "ok", f"{arch.model_type}, {arch.layers} layers, {arch.vocabulary:,} tokens")]


def _answers(config: Config) -> list[Finding]:
    if objective_of(config).weights_from != "rewards" or config.data.answer:
        return []
    problem = f"{config.train.objective} grades the responses, and data.answer is not set"
    return [Finding("answers", "fail", problem, "Name the column with the reference answers.")]


def _disk(run: RunDir) -> Finding:
    free = shutil.disk_usage(run.path if run.path.exists() else run.path.parent).free
    if free < _LEAST_DISK:
        return Finding(
            "disk", "warn", f"{free / 1e9:.2f} GB free", "A round writes its tables, a policy and checkpoints."
        )
    return Finding("disk", "ok", f"{free / 1e9:.0f} GB free")


def _mirror(run: RunDir, config: Config) -> list[Finding]:
    if config.run.mirror is None:
        return []
    from .store.mirror.writer import mirror_of

    try:
        mirror_of(run, config)
    except OmniopdError as error:
        return [of_error("mirror", error)]
    return [Finding("mirror", "ok", without_credentials(config.run.mirror))]


def _gpu() -> Finding:
    import torch

    count = torch.cuda.device_count()
    if not count:
        return Finding("gpu", "ok", "none: the CPU does the work")
    from .train.columns import missing_to_compile

    found = f"{count} x {torch.cuda.get_device_name(0)}"
    if missing := missing_to_compile():
        return Finding("gpu", "warn", f"{found}, and {missing} is missing", "Training is slower without.")
    return Finding("gpu", "ok", found)
