"""The fused loss beside Eq. 8 with whole matrices of logits, and its memory beside what train/memory.py predicts.

    python benchmarks/bench_loss.py                              V=49,152, H=576, T=2,048 and 8,192
    python benchmarks/bench_loss.py --fused-only --tokens 20480 --vocabulary 151936 --hidden 1024

Float32 on a CPU. Three rows in ten are audited, the rest are anchored; with --weighted 0.1 only a tenth of the rows has
either weight. Each measurement is a process of its own: the best time of `--repeats` of forward and backward, and how
much the largest resident memory grew over what the inputs take.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch
from torch import Tensor

from omniopd.train.loss import Head, LossRows, fused_loss
from omniopd.train.memory import loss_bytes
from omniopd.train.objective import LossTerms

BETA = 0.1


def inputs(tokens: int, vocabulary: int, hidden: int, weighted: float = 1.0) -> tuple[list[Tensor], LossRows]:
    """Hidden states and heads of policy and reference, and the rows."""
    generator = torch.Generator().manual_seed(0)
    hidden_TH = torch.randn(tokens, hidden, generator=generator)
    weight_VH = torch.randn(vocabulary, hidden, generator=generator).mul_(0.05)
    reference_TH, reference_VH = hidden_TH + 0.1, weight_VH * 1.01
    kind_T = torch.rand(tokens, generator=generator) / weighted
    audited_A = (kind_T < 0.3).nonzero().squeeze(1)
    rows = LossRows(
        audited_A,
        torch.randint(0, vocabulary, (len(audited_A),), generator=generator),
        torch.randn(len(audited_A), generator=generator),
        torch.full((len(audited_A),), -11.0),
        ((kind_T >= 0.3) & (kind_T < 1)).nonzero().squeeze(1),
    )
    return [hidden_TH.requires_grad_(), weight_VH.requires_grad_(), reference_TH, reference_VH], rows


def naive(hidden_TH: Tensor, weight_VH: Tensor, reference_TH: Tensor, reference_VH: Tensor, rows: LossRows) -> Tensor:
    """Eq. 8 as one would write it: log-probs of every row."""
    logp_TV = (hidden_TH @ weight_VH.t()).log_softmax(-1)
    with torch.no_grad():
        reference_TV = (reference_TH @ reference_VH.t()).log_softmax(-1)
    chunk_loss = -(rows.weight_A * logp_TV[rows.audited_A, rows.target_A]).sum()
    kl_T = torch.nn.functional.kl_div(logp_TV, reference_TV, reduction="none", log_target=True).sum(-1)
    return chunk_loss + BETA * kl_T[rows.anchored_U].sum()


def child(kind: str, tokens: int, vocabulary: int, hidden: int, chunk: int, repeats: int, weighted: float) -> None:
    """One measurement, as a line of JSON."""
    tensors, rows = inputs(tokens, vocabulary, hidden, weighted)
    small, few = inputs(64, 512, 16)
    naive(*small, few).backward()  # what the first backward pass of a process sets up is no part of the loss
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    best = float("inf")
    value = 0.0
    for _ in range(repeats):
        tensors[0].grad = tensors[1].grad = None
        start = time.perf_counter()
        if kind == "naive":
            loss = naive(*tensors, rows)
        else:
            loss = fused_loss(
                tensors[0], Head(tensors[1]), rows, LossTerms(forward_kl=BETA), reference_TH=tensors[2],
                reference_head=Head(tensors[3]), chunk=chunk,
            ).loss  # fmt: skip
        loss.backward()
        best = min(best, time.perf_counter() - start)
        value = loss.item()
        del loss
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(json.dumps({"s": best, "bytes": grown, "loss": value}))


def measure(kind: str, args: argparse.Namespace, tokens: int, chunk: int) -> dict[str, Any]:
    sizes = [kind, tokens, args.vocabulary, args.hidden, chunk, args.repeats, args.weighted]
    command = [sys.executable, __file__, "--child", *map(str, sizes)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--chunks", type=int, nargs="+", default=[256])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--weighted", type=float, default=1.0)
    parser.add_argument("--fused-only", action="store_true")
    parser.add_argument("--child", nargs=7, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        kind, *sizes, weighted = args.child
        child(kind, *map(int, sizes), float(weighted))
        return
    print(f"V={args.vocabulary:,} H={args.hidden:,} float32, {torch.get_num_threads()} threads, best of {args.repeats}")
    print(f"{'':22}{'s':>8}{'GiB':>8}{'predicted':>11}{'time':>7}{'memory':>8}")
    for tokens in args.tokens:
        other = None if args.fused_only else measure("naive", args, tokens, 0)
        if other:
            print(f"T={tokens:<7}naive        {other['s']:>8.2f}{other['bytes'] / 2**30:>8.2f}", flush=True)
        for chunk in args.chunks:
            mine = measure("fused", args, tokens, chunk)
            predicted = loss_bytes(tokens, args.vocabulary, args.hidden, rows=chunk, parameter_bytes=4)
            line = f"T={tokens:<7}fused, {chunk:<5} {mine['s']:>8.2f}{mine['bytes'] / 2**30:>8.2f}"
            line += f"{predicted / 2**30:>11.2f}"
            if other:
                line += f"{mine['s'] / other['s']:>6.2f}x{'1/':>4}{other['bytes'] / mine['bytes']:.1f}"
                assert abs(mine["loss"] - other["loss"]) < 1e-4 * abs(other["loss"])
            print(line, flush=True)


if __name__ == "__main__":
    main()
