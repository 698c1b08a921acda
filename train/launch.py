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


def launch(
    run: RunDir, index: int, config: Config, overrides: Sequence[str] = (), progress: Progress | None = None
) -> TrainResult:
    """Train a round with `config.train.processes` processes.

    One process trains right here; so does a process that torchrun started. Otherwise torchrun starts the processes,
    and what they print goes to logs/train-round=NNN.log of the run.

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
    # psutil too: Megatron does not declare it, and a CPU is asked for its free memory through it.
    missing = [name for name in ("megatron", "psutil", "tensorboard") if importlib.util.find_spec(name) is None]
    if missing:
        raise errors.InputError(
            f"Training needs {', '.join(missing)}, not installed here.", "Run `pip install 'omniopd[train]'`."
        )
    _check_gpus(config.train.processes)
    if config.train.processes > 1 and "WORLD_SIZE" not in os.environ and not run.round(index).policy.is_dir():
        _torchrun(run, index, config, overrides, progress)
        return result_of(run, index, trained=True)
    from .trainer import train_round

    return train_round(run, index, config, progress)


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
            process.terminate()  # torchrun passes it on to its processes
            process.wait()
            raise
        if process.returncode:
            raise _failure(error_file, process.returncode, log)


def _command(run: RunDir, index: int, processes: int, overrides: Sequence[str]) -> list[str]:
    # --standalone meets on a free port of this machine.
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    trainer = ["-m", "omniopd.train", str(run.path), "--round", str(index)]
    sets = [part for override in overrides for part in ("--set", override)]
    return [sys.executable, *torchrun, "--nproc-per-node", str(processes), *trainer, *sets]


def _environment(error_file: Path) -> dict[str, str]:
    # One connection keeps communication and computation of tensor parallelism in the order they were issued in.
    defaults = {"OMP_NUM_THREADS": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    return {**defaults, **os.environ, ERROR_FILE: str(error_file)}


def _follow(
    process: "subprocess.Popen[bytes]", run: RunDir, index: int, config: Config, progress: Progress | None
) -> None:
    """Wait for the trainers, reporting the steps that they log meanwhile."""
    metrics = MetricsLog(run, index).path
    total = count_steps(run.round(index).shards.manifest.rows, config.train)
    reported = len(read_lines(metrics))
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_POLL_S)
        rows = read_lines(metrics)
        reported = min(reported, len(rows))  # a resumed round takes back what it does again
        for row in rows[reported:]:
            if progress is not None:
                progress(row["step"] + 1, total, row)
        reported = len(rows)
        if process.returncode is not None:
            return


def _failure(error_file: Path, code: int, log: Path) -> errors.OmniopdError:
    """The error that a trainer left, or what is known where it left none."""
    if error_file.is_file():
        kind, problem, hint = json.loads(error_file.read_text(encoding="utf-8"))
        return getattr(errors, kind)(problem, hint)
    return errors.OmniopdError(f"The trainer ended with exit code {code}.", f"Read {log}; `omniopd train` resumes.")
