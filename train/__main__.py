"""Train one round. This is what torchrun starts; `omniopd train` is the command for people.

torchrun --nproc-per-node 8 -m omniopd.train RUN --round 0 --set train.tensor_parallel=2
"""

import argparse
import json
import os
import sys
from pathlib import Path

from ..store.errors import OmniopdError
from ..store.layout import RunDir
from ..store.storage import storage_error
from .launch import ERROR_FILE


def main() -> int:
    """Train, and return the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m omniopd.train", description="Train one round of a run.")
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--round", type=int, required=True, help="which round, from 0")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="override a key of config.toml")
    arguments = parser.parse_args()
    run = RunDir(arguments.run)
    try:
        config = run.config(tuple(arguments.set)).of_round(arguments.round)
        from .trainer import train_round

        result = train_round(run, arguments.round, config)
    except OmniopdError as error:
        _report(error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if (told := storage_error(error)) is None:
            raise
        _report(told)
        return told.exit_code
    if os.environ.get("RANK", "0") == "0":
        sys.stdout.write(f"{result.policy}: {result.steps} steps, {result.skipped} skipped\n")
    return 0


def _report(error: OmniopdError) -> None:
    """One line for people, and the whole error for the process that launched this one."""
    if os.environ.get("RANK", "0") == "0":
        sys.stderr.write(f"{error}\n")
    if ERROR_FILE in os.environ:
        path = Path(os.environ[ERROR_FILE])
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps([type(error).__name__, error.problem, error.hint]), encoding="utf-8")
        temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())
