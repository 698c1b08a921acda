"""A learner of random weights on the device, and a micro-batch for it."""

import torch

from omniopd.store.sections import TrainConfig
from omniopd.train.data import MicroBatch
from omniopd.train.lora import add_adapters
from omniopd.train.loss import LossRows
from omniopd.train.model import Student, build
from omniopd.train.step import Learner
from omniopd.train.weights import BatchFacts

from .sizes import architecture
from .timing import DEVICE


def student(shape: str, train: TrainConfig, device: torch.device = DEVICE) -> Student:
    """A model whose norms are ones and whose other weights are small and random."""
    model = build(architecture(shape), train, device)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.fill_(1)
            else:
                parameter.normal_(0, 0.02)
    return model


def learner(shape: str, train: TrainConfig, device: torch.device = DEVICE) -> Learner:
    """A policy and its frozen twin, or a policy with adapters that is its own reference."""
    if train.lora is not None:
        policy = student(shape, train, device)
        add_adapters(policy, train)
        return Learner(policy, policy, train, device)
    return Learner(student(shape, train, device), student(shape, train, device), train, device)


def micro_batch(shape: str, tokens: int) -> tuple[MicroBatch, BatchFacts]:
    """One sequence, with five audited chunks of 100 tokens where it is long enough."""
    vocabulary = architecture(shape).vocabulary
    generator = torch.Generator().manual_seed(1)
    row_T, audited = torch.arange(tokens), min(500, tokens // 4)
    rows = LossRows(
        row_T[:audited],
        torch.randint(0, vocabulary, (audited,), generator=generator),
        torch.rand(audited, generator=generator),
        -8 * torch.rand(audited, generator=generator),
        row_T[audited : tokens - 1],
    )
    left = tokens - audited
    ids_BS = torch.randint(0, vocabulary, (1, tokens), generator=generator)
    return MicroBatch(ids_BS, rows), BatchFacts(audited, left, left, 0.5, 0.0, audited)
