# pyright: strict
"""Start a round's training: in this process, or in several that torchrun starts on this machine."""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..store import errors
from ..store.config import Config
from ..store.layout import RunDir
from .metrics import MetricsLog, read_lines
from .result import Progress, TrainResult, count_steps, result_of
from .stop import on_sigterm

ERROR_FILE = "OMNIOPD_TRAIN_ERROR_FILE"
"""Environment variable that tells a trainer process where to leave its error for the one that launched it."""

_POLL_S = 0.2

_LAST_STEP_S = 3600
"""How long ranks that were told to stop (SIGTERM) may take for the step that is under way and a checkpoint. torchrun
kills them after 30 s, which on a GPU is less than a step of many sequences takes."""

_GRACE_S = 30.0
"""How long they may take after Ctrl-C."""


def launch(
    run: RunDir, index: int, config: Config, overrides: Sequence[str] = (), progress: Progress | None = None
) -> TrainResult:
    """Train a round with `config.train.processes` processes.

    One process trains right here, unless train.deterministic asks for a fresh one; so does a process that torchrun
    started. Otherwise torchrun starts the processes, and what they print goes to logs/train-round=NNN.log of the run.

    Args:
        run: the run.
        index: the round.
        config: what config.toml and `overrides` come to.
        overrides: `a.b=c`; the processes read config.toml themselves and need them again.
        progress: called after each step.

    Raises:
        InputError: Megatron-Core is not installed.
        OmniopdError: as `trainer.train_round`, or a process died without saying why.
    """
    check_installed()
    if "WORLD_SIZE" not in os.environ and not run.round(index).policy.is_dir():
        _check_gpus(config.train.processes)
        if config.train.processes > 1 or (config.train.deterministic and _gpu_was_used()):
            _torchrun(run, index, config, overrides, progress)
            return result_of(run, index, trained=True)
    from .trainer import train_round

    return train_round(run, index, config, progress)


def check_installed() -> None:
    """
    Raises:
        InputError: something that a trainer process needs is not installed.
    """
    # psutil too: Megatron does not declare it, and a CPU is asked for its free memory through it.
    missing = [name for name in ("megatron", "psutil", "tensorboard") if importlib.util.find_spec(name) is None]
    if missing:
        raise errors.InputError(
            f"Training needs {', '.join(missing)}, not installed here.", "Run `pip install 'omniopd[train]'`."
        )


def _check_gpus(processes: int) -> None:
    """
    Raises:
        ConfigError: there are GPUs, and fewer than processes.
    """
    from torch.cuda import device_count

    if 0 < device_count() < processes:
        raise errors.ConfigError(
            f"train.processes is {processes}, and this machine has {device_count()} GPUs.",
            f"Set train.processes = {device_count()}: a process has a GPU of its own.",
        )


def _gpu_was_used() -> bool:
    """Whether this process has used a GPU: to sample, say. From its first product on, torch remembers whether cuBLAS
    was told to repeat itself (aten/src/ATen/Context.cpp, alertCuBLASConfigNotDeterministic)."""
    import torch

    return torch.cuda.is_initialized()


def _torchrun(run: RunDir, index: int, config: Config, overrides: Sequence[str], progress: Progress | None) -> None:
    run.logs.mkdir(parents=True, exist_ok=True)
    log = run.train_log(index)
    with tempfile.TemporaryDirectory() as scratch, log.open("ab") as output:
        error_file = Path(scratch) / "error.json"
        process = subprocess.Popen(
            _command(run, index, config.train.processes, overrides),
            stdout=output,
            stderr=output,
            env=_environment(error_file),
        )
        try:
            # A scheduler's SIGTERM is forwarded to torchrun, which passes it to its processes.
            with on_sigterm(process.terminate):
                _follow(process, run, index, config, progress)
        except BaseException:
            _end(process)
            raise
        if process.returncode:
            raise _failure(error_file, process.returncode, log)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """After Ctrl-C, say. A rank may be in a collective that another one has left."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        ranks = psutil.Process(process.pid).children(recursive=True)
        process.terminate()  # torchrun passes it on to its processes
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
        for rank in ranks:
            with contextlib.suppress(psutil.NoSuchProcess):
                rank.kill()
    process.wait()


def _command(run: RunDir, index: int, processes: int, overrides: Sequence[str]) -> list[str]:
    # --standalone meets on a free port of this machine.
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    torchrun += ["--shutdown-timeout", str(_LAST_STEP_S)]
    trainer = ["-m", "omniopd.train", str(run.path), "--round", str(index)]
    sets = [part for override in overrides for part in ("--set", override)]
    return [sys.executable, *torchrun, "--nproc-per-node", str(processes), *trainer, *sets]


def _environment(error_file: Path) -> dict[str, str]:
    return {**rank_environment(), **os.environ, ERROR_FILE: str(error_file)}


def rank_environment() -> dict[str, str]:
    """What a process of several has in its environment, unless it has something else there."""
    # One connection keeps communication and computation of tensor parallelism in the order they were issued in.
    return {"OMP_NUM_THREADS": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}


def _follow(
    process: "subprocess.Popen[bytes]", run: RunDir, index: int, config: Config, progress: Progress | None
) -> None:
    """Wait for the trainers, reporting the steps that they log meanwhile."""
    steps = Steps(run, index, config, progress)
    while process.returncode is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_POLL_S)
        steps.look()


class Steps:
    """The steps of a round that other processes train, as they log them."""

    def __init__(self, run: RunDir, index: int, config: Config, progress: Progress | None) -> None:
        """
        Args:
            progress: called after each step.
        """
        self._metrics = MetricsLog(run, index).path
        self._total = count_steps(run.round(index).shards.manifest.rows, config.train)
        self._progress = progress
        self._reported = len(read_lines(self._metrics))

    def look(self) -> None:
        """Report the steps that were done since the last look."""
        rows = read_lines(self._metrics)
        reported = min(self._reported, len(rows))  # a resumed round takes back what it does again
        for row in rows[reported:]:
            if self._progress is not None:
                self._progress(row["step"] + 1, self._total, row)
        self._reported = len(rows)


def _failure(error_file: Path, code: int, log: Path) -> errors.OmniopdError:
    """The error that a trainer left, or what is known where it left none."""
    if error_file.is_file():
        kind, problem, hint = json.loads(error_file.read_text(encoding="utf-8"))
        return getattr(errors, kind)(problem, hint)
    return errors.OmniopdError(f"The trainer ended with exit code {code}.", f"Read {log}; `omniopd train` resumes.")
