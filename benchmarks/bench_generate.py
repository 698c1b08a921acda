"""What `omniopd generate` costs beside a bare vLLM loop, tokens a second, alternating in one process.

    python benchmarks/bench_generate.py [FOLDER [runs]]      # FOLDER: benchmarks/experiments/smollm2.py writes one

On one engine, in turn, from the same prompts:

- generate: the stage's writer, that is sampling with exact entropies, decoding, repetition, Parquet on disk
- logprobs=0: a bare loop that returns the log-prob of each sampled token; the price to be compared with
- no log-probs: the same loop without them
- full: all log-probs of the vocabulary through vLLM's own API, on fewer tokens (it is slow)

The bare loops are as lean as vLLM allows (no detokenization, flat lists). Each run has its own prompts, so that the
prefix cache of one does not help the next. Reported: medians of the ratios of paired runs, in CPU time of all
processes and in wall time. Needs vLLM.
"""

import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"

import numpy as np

import omniopd
from omniopd.stages.generate.engine import Request, Sampling
from omniopd.stages.generate.prompts import Prompt
from omniopd.stages.generate.stage import Rows, Writer
from omniopd.store.config import Config
from omniopd.store.model import load_tokenizer
from omniopd.store.schema import TRAJECTORIES
from omniopd.store.table import Table
from omniopd.store.tokens import response_decoder

SEQUENCES, TOKENS, PROMPT, FULL_TOKENS = 16, 64, 12, 4


def cpu_of(pids: list[int]) -> float:
    """User and system seconds of processes."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """A process and all below it."""
    children = [int(c) for t in Path(f"/proc/{pid}/task").iterdir() for c in (t / "children").read_text().split()]
    return [pid, *(p for child in children for p in family(child))]


class Bench:
    def __init__(self, folder: Path) -> None:
        from omniopd.stages.generate.engines.vllm_engine import VllmEngine

        config = Config.model_validate(
            {"student": {"model": str(folder), "engine": "vllm"}, "generate": {"max_new_tokens": TOKENS}}
        )
        self.engine = VllmEngine(str(folder), config, PROMPT, decode_entropies=True)
        problem = self.engine.check_entropies()
        assert not problem, problem
        self.tokenizer = load_tokenizer(folder)
        self.rng = np.random.default_rng(0)
        self.pids = family(os.getpid())

    def prompts(self, count: int) -> list[tuple[int, ...]]:
        return [tuple(row) for row in self.rng.integers(5, 300, (count, PROMPT)).tolist()]

    def generate(self) -> int:
        asked = [Request(self.rng.bytes(16).hex(), ids) for ids in self.prompts(SEQUENCES)]
        wanted = {r.trajectory_id: (Prompt("0" * 16, "q", "q", r.prompt_ids), 0) for r in asked}
        with tempfile.TemporaryDirectory() as folder:
            table = Table(Path(folder) / "trajectories", TRAJECTORIES)
            table.begin({})
            sampling = Sampling(TOKENS, 1.0, 1.0, frozenset())
            rows = Rows(wanted, {"q": ""}, {"round": 0, "policy": "0" * 16})
            Writer(table, rows, response_decoder(self.tokenizer), sampling).fill(self.engine, asked, part_rows=512)
        return SEQUENCES * TOKENS

    def bare(self, logprobs: int | None, tokens: int = TOKENS) -> int:
        from vllm import SamplingParams

        params = SamplingParams(
            temperature=1.0, max_tokens=tokens, ignore_eos=True, detokenize=False, flat_logprobs=True, logprobs=logprobs
        )
        prompts = [{"prompt_token_ids": list(ids)} for ids in self.prompts(SEQUENCES)]
        self.engine.llm.generate(prompts, params, use_tqdm=False)
        return SEQUENCES * tokens

    def timed(self, run: Callable[[], int]) -> tuple[float, float]:
        """Wall and CPU seconds a token."""
        wall, cpu = time.perf_counter(), cpu_of(self.pids)
        tokens = run()
        return (time.perf_counter() - wall) / tokens, (cpu_of(self.pids) - cpu) / tokens


def main() -> None:
    if importlib.util.find_spec("vllm") is None:
        print("generate: vLLM is not installed here; skipped (docs/install.md)")
        return
    demo = Path(omniopd.__file__).parent / "demo" / "models" / "student"
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else demo
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 25
    bench = Bench(folder)
    ways: dict[str, Callable[[], int]] = {
        "generate": bench.generate,
        "logprobs=0": lambda: bench.bare(0),
        "no log-probs": lambda: bench.bare(None),
    }
    for run in ways.values():
        run()
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(runs):
        # Each way is first, second and third equally often.
        names = list(ways)[turn % 3 :] + list(ways)[: turn % 3]
        for name in names:
            seen[name].append(bench.timed(ways[name]))
        last = ", ".join(f"{name} {1000 * seen[name][-1][1]:.2f}" for name in ways)
        print(f"run {turn + 1}/{runs}, CPU-ms a token: {last}", file=sys.stderr, flush=True)
    seen["full"] = [bench.timed(lambda: bench.bare(-1, FULL_TOKENS)) for _ in range(3)]
    short = [bench.timed(lambda: bench.bare(0, FULL_TOKENS)) for _ in range(3)]
    bench.engine.close()
    print(f"generate: {folder.name}, {bench.engine.name}, {runs} runs of {SEQUENCES} x {TOKENS} tokens each")
    for name, times in seen.items():
        wall, cpu = (median(t[i] for t in times) for i in (0, 1))
        print(f"  {name:<13} {1 / wall:8.0f} tokens/s  {1000 * cpu:7.2f} CPU-ms a token")
    for name in ("generate", "no log-probs"):
        for i, what in ((1, "CPU"), (0, "wall")):
            ratios = [a[i] / b[i] for a, b in zip(seen[name], seen["logprobs=0"], strict=True)]
            low, _, high = quantiles(ratios, n=4)
            print(f"  {name} / logprobs=0, {what}: median {median(ratios):.3f}, quartiles {low:.3f} to {high:.3f}")
    full = median(a[1] for a in seen["full"]) / median(b[1] for b in short)
    print(f"  full vocabulary / logprobs=0, CPU, {FULL_TOKENS} tokens a sequence: {full:.1f}")


if __name__ == "__main__":
    main()
