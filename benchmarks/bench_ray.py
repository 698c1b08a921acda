"""What Ray costs beside the plain commands, in seconds and MB: a head and two nodes of one slot, all on this machine.

    python benchmarks/bench_ray.py [REPEATS]

The same round by the same number of processes each time: `generate` with one engine, `train` with two ranks, so what
differs is Ray's own. Plain and Ray in turn. Wall time (median, and least: other programs only add), CPU time of all
processes of the command and the cluster, and the largest proportional set size (PSS) of them together. `nothing to do`
is the same command on the finished round.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import psutil

from omniopd.store.layout import RunDir
from support import training as kit
from support.ray_cluster import ray_cluster
from support.runs import write_run

QUESTIONS, SEQUENCES = 64, 64
MB = 1e6


class Watch:
    """What all processes below this one take while a block runs, looked at twice a second."""

    def __enter__(self) -> "Watch":
        self.mb = 0.0
        self._over = threading.Event()
        self._cpu: dict[tuple[int, float], float] = {}
        self._before = self._look()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    @property
    def cpu_s(self) -> float:
        """CPU time; what a process takes between the last look at it and its end is missed."""
        return sum(self._cpu.values()) - self._before

    def _look(self) -> float:
        total = 0.0
        for process in psutil.Process().children(recursive=True):
            try:
                times = process.cpu_times()
                total += process.memory_full_info().pss / MB
                self._cpu[process.pid, process.create_time()] = times.user + times.system
            except psutil.Error:
                continue  # it has ended
        self.mb = max(self.mb, total)
        return sum(self._cpu.values())

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            self._look()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()


def memory() -> float:
    """PSS of all processes below this one, MB."""
    with Watch() as watch:
        return watch.mb


def measure(*words: object) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and MB of a command."""
    with Watch() as watch:
        begun = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "omniopd", *map(str, words)], check=True, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        seconds = time.monotonic() - begun
    return seconds, watch.cpu_s, watch.mb


def sampled(folder: Path) -> RunDir:
    return write_run(folder / "run", QUESTIONS)


def trained(folder: Path) -> RunDir:
    config = kit.make_config(kit.save_student(folder / "student", "qwen3"), processes=2, epochs=2, checkpoint_every=8)
    run = RunDir(folder / "run")
    kit.write_toml(run, config)
    kit.write_round(run, 0, config, kit.shard_rows(SEQUENCES))
    return run


def compare(repeats: int, command: str, make: Callable[[Path], RunDir], ray: tuple[str, ...]) -> dict[str, object]:
    extra = ("--no-check",) if command == "generate" else ()
    found: dict[str, list[tuple[float, float, float]]] = {}
    for _ in range(repeats):
        for name, words in (("plain", extra), ("ray", (*extra, *ray))):
            with tempfile.TemporaryDirectory() as folder:
                run = make(Path(folder))
                for again in ("", ", nothing to do"):
                    found.setdefault(name + again, []).append(measure(command, run.path, *words, "--round", 0))
                shutil.rmtree(run.path)
    shown: dict[str, object] = {}
    for name, measured in found.items():
        wall, cpu, peak = zip(*measured, strict=True)
        shown[name] = {"wall_s": round(median(wall), 1), "least_wall_s": round(min(wall), 1),
                       "cpu_s": round(median(cpu), 1), "MB": round(median(peak))}  # fmt: skip
    return shown


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    begun = time.monotonic()
    with ray_cluster(2) as nodes:
        found: dict[str, object] = {"cluster": {"seconds": round(time.monotonic() - begun, 1), "MB": round(memory())}}
        nodes.add()
        time.sleep(10)  # its idle workers begin
        more = memory()
        found["a node more"] = {"MB": round(more - float(found["cluster"]["MB"]))}  # pyright: ignore[reportIndexIssue]
        for command, make in (("generate", sampled), ("train", trained)):
            ray = (*nodes.words, "--set", "cluster.engines=1")
            found[command] = compare(repeats, command, make, ray)
    sys.stdout.write(json.dumps({"load": os.getloadavg(), **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
