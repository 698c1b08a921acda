"""Kill the trainer with SIGKILL at random moments, resume each time, and compare with a run that was not interrupted.

    python benchmarks/experiments/kill_trainer.py RUN FOLDER --kills 10 --set train.epochs=10

RUN has a scored round 0, which is trained in two copies under FOLDER. A kill comes up to `--within` seconds after the
first step that the process has logged, so also in the middle of a checkpoint.
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from omniopd.store.layout import RunDir
from omniopd.store.model import weights_hash
from omniopd.train.checkpoint import Checkpoints
from omniopd.train.metrics import MetricsLog


def copy(source: RunDir, target: Path) -> RunDir:
    """A run with round 0 of another, not trained yet."""
    shutil.rmtree(target, ignore_errors=True)
    ignore = shutil.ignore_patterns("round=*", "metrics", "policy", "checkpoint", ".*")
    shutil.copytree(source.path, target, ignore=ignore)
    shutil.copytree(source.round(0).path, target / "round=000", ignore=shutil.ignore_patterns("policy", "checkpoint"))
    return RunDir(target)


def start(run: RunDir, sets: list[str]) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "omniopd.train", str(run.path), "--round", "0"]
    for override in sets:
        command += ["--set", override]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--within", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="A.B=C")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    whole, killed = (copy(RunDir(args.run), args.folder / name) for name in ("whole", "killed"))
    if start(whole, args.sets).wait():
        raise SystemExit("the run that was to be left alone failed")
    log = MetricsLog(killed, 0)
    for kill in range(1, args.kills + 1):
        before = (Checkpoints(killed.round(0).checkpoint).latest() or "step=000000").removeprefix("step=")
        log.rewind(int(before))  # as the trainer will do, so that the first row to come is a new one
        process = start(killed, args.sets)
        while len(log.rows()) <= int(before) and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, args.within))
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            print(f"the round was done before kill {kill}")
            break
        latest = Checkpoints(killed.round(0).checkpoint).latest()
        names = {path.name for path in killed.round(0).checkpoint.glob("step=*")}
        cut = " while it wrote a checkpoint" if any(name > (latest or "") for name in names) else ""
        print(f"kill {kill}: after {len(log.rows())} steps, checkpoint {latest}{cut}", flush=True)
    if start(killed, args.sets).wait():
        raise SystemExit("the last start failed")
    hashes = [weights_hash(run.round(0).policy) for run in (whole, killed)]
    print(f"left alone {hashes[0]}, killed {hashes[1]}: {'equal' if hashes[0] == hashes[1] else 'DIFFERENT'}")


if __name__ == "__main__":
    main()
