"""Memory of one training step beside what train/memory.py predicts, on a CPU.

    python benchmarks/bench_memory.py

Each size is a process of its own with a random student. Measured is how much the largest resident memory grew from
before the models were made to after one step, so the prediction, an estimate from below, has to be under it.
"""

import argparse
import json
import resource
import subprocess
import sys

import numpy as np
import torch

from omniopd.store.architecture import Architecture
from omniopd.store.sections import TrainConfig
from omniopd.train.data import Sequences, micro_batches
from omniopd.train.memory import training_need
from omniopd.train.model import build
from omniopd.train.objective import loss_terms
from omniopd.train.parallel import model_parallel, world
from omniopd.train.share import Share
from omniopd.train.step import Learner
from omniopd.train.weights import batch_facts

SIZES = {
    "few tokens": {"layers": 8, "tokens": 128, "vocabulary": 49152, "recompute": False},
    "long": {"layers": 8, "tokens": 1536, "vocabulary": 8192, "recompute": False},
    "long, recomputed": {"layers": 8, "tokens": 1536, "vocabulary": 8192, "recompute": True},
    "large vocabulary": {"layers": 2, "tokens": 512, "vocabulary": 151936, "recompute": False},
}


def child(name: str) -> None:
    """One step of one size, as a line of JSON."""
    size = SIZES[name]
    arch = Architecture("llama", size["layers"], 576, 1536, 9, 3, 64, size["vocabulary"], 8192, True, 1e-5, 1e4, None)
    train = TrainConfig(micro_batch=1, recompute=size["recompute"]).on(cuda=False)
    tokens, cpu = size["tokens"], torch.device("cpu")
    ids = np.arange(tokens, dtype=np.int32) % arch.vocabulary
    audited = np.arange(tokens) % 10 == 5
    shards = Sequences(
        np.array([0, tokens]),
        ids,
        audited.astype(np.float32),
        audited,
        np.arange(tokens) > 20,
        np.zeros(tokens, np.float32),
    )
    with world(), model_parallel(train):
        torch.ones(512, 512).requires_grad_().matmul(torch.ones(512, 512)).sum().backward()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        models = [build(arch, train, cpu) for _ in range(2)]
        with torch.no_grad():
            for model in models:
                for parameter in model.parameters():
                    parameter.normal_(0, 0.02)
        learner = Learner(*models, train, cpu)
        facts = batch_facts(shards.loss_weight, audited, shards.response, centre="none", normalise="audited_tokens")
        for _ in range(2):  # the moments exist after the first
            batches = micro_batches(shards, np.array([0]), facts, Share(), micro_batch=1)
            learner.update(learner.gradients(batches, facts, loss_terms(train, facts, on_policy=True)), 1e-6)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    need = training_need(arch, train, processes=1, longest=tokens, frozen=arch)
    print(json.dumps({"measured": grown, "predicted": need.total, **need.__dict__}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child)
        return
    for name in SIZES:
        out = subprocess.run([sys.executable, __file__, "--child", name], check=True, stdout=subprocess.PIPE, text=True)
        row = json.loads(out.stdout)
        measured, predicted = row.pop("measured"), row.pop("predicted")
        parts = ", ".join(f"{key} {value / 1e9:.2f}" for key, value in row.items())
        print(
            f"{name:<18} GB measured {measured / 1e9:.2f}, predicted {predicted / 1e9:.2f}"
            f" ({predicted / measured:.2f}): {parts}",
            flush=True,
        )


if __name__ == "__main__":
    main()
