"""Form the gradient of one global batch under several layouts, in the processes of one job.

    torchrun --nproc-per-node 2 --module support.one_step JOB.pt OUT.pt

JOB.pt holds jobs by name: the student's and the policy's folders, the shards' rows, score.centre, and [train] sections
by name; with LoRA the policy is the student, and `adapter` a folder of adapters in PEFT's format. OUT.pt gets, by both
names, the step's sums, the gradient's norm and the gradient under Hugging Face's names, or PEFT's. The policy, or the
adapters, are written again, in small files, into a folder beside its own whose name ends in the layout's.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import torch.distributed as dist

from omniopd.method.objectives.registry import get
from omniopd.store.architecture import check_layout, read_architecture
from omniopd.store.schema import SHARDS
from omniopd.store.sections import TrainConfig
from omniopd.train import hf_model
from omniopd.train.data import lay_out, map_sequences, micro_batches
from omniopd.train.hf_model import hf_gradients, load_weights, write_weights
from omniopd.train.hf_weights import WeightFiles
from omniopd.train.lora import adapter_tensors, add_adapters, load_adapters, write_adapters
from omniopd.train.mcore import parallel_state as mpu
from omniopd.train.model import Student, build
from omniopd.train.objective import loss_terms
from omniopd.train.parallel import model_parallel, on_device, share, world
from omniopd.train.step import Learner
from omniopd.train.weights import batch_facts


def one_step(job: dict[str, Any], train: TrainConfig, device: torch.device, written: Path) -> dict[str, Any]:
    """The sums and the gradient of a batch of all rows; the policy goes through Megatron into a new folder."""
    arch, objective = read_architecture(job["student"]), get(train.objective)
    check_layout(arch, train, dist.get_world_size())

    def student(folder: Path) -> Student:
        model = build(arch, train, device)
        with WeightFiles(folder) as weights:
            load_weights(model, weights)
        return model

    policy = student(job["policy"])
    if dist.get_rank() == 0:
        written.mkdir()
    dist.barrier()
    if train.lora is None:
        write_weights(policy, written)
        reference = student(job["student"]) if objective.frozen_model(train) else None
    else:
        add_adapters(policy, train)
        load_adapters(policy, job["adapter"])
        write_adapters(policy, train.lora, job["student"], written / "adapter")
        reference = policy
    learner = Learner(policy, reference, train, device)
    with tempfile.TemporaryDirectory() as flat:
        lay_out(pa.Table.from_pylist(job["rows"], schema=SHARDS.schema).to_batches(), arch.vocabulary, Path(flat, "x"))
        shards = map_sequences(Path(flat, "x"))
    facts = batch_facts(
        shards.loss_weight, shards.audited, shards.response, centre=job["centre"], normalise=train.normalise,
        anchored=objective.anchored, divided_by=objective.divided_by,
    )  # fmt: skip
    everything = torch.arange(len(shards)).numpy()
    batches = micro_batches(
        shards,
        everything,
        facts,
        share(train),
        micro_batch=train.micro_batch,
        micro_tokens=train.micro_tokens,
        anchored=objective.anchored,
    )
    sums = learner.gradients(batches, facts, loss_terms(train, facts, on_policy=False))
    stages: list[Any] = [None] * train.pipeline_parallel
    mine = hf_gradients(learner.policy) if train.lora is None else adapter_tensors(learner.policy, "main_grad")
    dist.all_gather_object(stages, mine, group=mpu.get_pipeline_model_parallel_group())
    # Pipeline stages that share an embedding hold its whole gradient each.
    gradients = {name: gradient.clone() for stage in reversed(stages) for name, gradient in stage.items()}
    norm, _ = learner.update(sums, 0.0)
    return {"sums": dataclasses.asdict(sums), "norm": norm, "gradients": gradients, "normaliser": facts.normaliser}


def main() -> None:
    hf_model.FILE_BYTES = 20_000
    jobs = torch.load(sys.argv[1], weights_only=False)
    results: dict[str, dict[str, Any]] = {}
    with world() as device:
        for kind, job in jobs.items():
            for layout, section in job["layouts"].items():
                train = on_device(TrainConfig.model_validate(section), device)
                with model_parallel(train):
                    results.setdefault(kind, {})[layout] = one_step(
                        job, train, device, Path(f"{job['policy']}-{layout}")
                    )
        if dist.get_rank() == 0:
            torch.save(results, sys.argv[2])


if __name__ == "__main__":
    main()
