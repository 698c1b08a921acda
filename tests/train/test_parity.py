"""The trainer's loss and gradient against Eq. 8 written out in float64 over transformers, and every layout likewise."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from support import training as kit
from support.processes import run_ranks

LAYOUTS: dict[str, dict[str, Any]] = {
    "data": {},
    "data, by tokens": {"micro_tokens": 40},
    "tensor": {"tensor_parallel": 2},
    "sequence": {"tensor_parallel": 2, "sequence_parallel": True, "recompute": True},
    "pipeline": {"pipeline_parallel": 2},
    "context": {"context_parallel": 2},
}
SINGLE: dict[str, dict[str, Any]] = {"one": {}, "alone": {"micro_batch": 1}, "tokens": {"micro_tokens": 70}}
"""Of one process."""
KINDS = ("qwen3", "llama", "qwen2")
TRAIN = {"precision": "fp32", "beta": 0.3, "micro_batch": 2, "loss_rows": 7, "importance_cap": 1.5}
BASELINES: dict[str, dict[str, Any]] = {
    "sft": {"objective": "sft"},
    "opd": {"objective": "opd", "forward_kl": 0.4},
    "grpo": {"objective": "grpo", "clip_low": 0.5, "clip_high": 1.0},
    "draft": {"objective": "draft"},
}
ADAPTED: dict[str, dict[str, Any]] = {
    "adapters": {"lora": {"rank": 3, "alpha": 6}},
    "adapters of a few": {"lora": {"rank": 2, "alpha": 3, "targets": ["k_proj", "up_proj", "down_proj"]}},
}
"""Eq. 8 with adapters beside a frozen qwen3."""
"""Each on a qwen3; what they compute is held against other implementations in test_baselines.py."""


Steps = Callable[[str, str], dict[str, Any]]
"""(kind, layout) -> what that layout made of the step; "one" is a process alone, "written out" is float64."""


@pytest.fixture(scope="module")
def jobs(students: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """A student, a policy and a batch of each kind."""
    folder = tmp_path_factory.mktemp("parity")
    made = {
        kind: {
            "student": students(kind),
            # Far enough from the reference that the divergence counts.
            "policy": kit.save_student(folder / kind, kind, seed=7),
            # An odd number of sequences, so that data-parallel ranks differ.
            "rows": kit.shard_rows(7, seed=3),
            "centre": "batch_mean",
        }
        for kind in KINDS
    }
    for name in BASELINES:
        rows = kit.shard_rows(7, seed=3)
        for n, row in enumerate(rows):
            first = len(row["input_ids"]) - 3 if name == "draft" else 0
            inside = [name != "opd" and i >= first and within for i, within in enumerate(row["response_mask"])]
            weight = {"sft": 1.0, "draft": 0.25 * (1 + n % 4)}.get(name, 0.5 - n % 3)
            row["audited"], row["loss_weight"] = inside, [weight * is_in for is_in in inside]
        policy = kit.save_student(folder / name, "qwen3", seed=7)
        made[name] = made["qwen3"] | {"rows": rows, "centre": "none", "policy": policy}
    for name, section in ADAPTED.items():
        student = kit.save_student(folder / name, "qwen3")
        adapter = save_adapter(student, folder / f"{name} in PEFT's format", section["lora"])
        made[name] = made["qwen3"] | {"student": student, "policy": student, "adapter": adapter}
    return made


def save_adapter(student: Path, folder: Path, lora: dict[str, Any]) -> Path:
    """Adapters as PEFT writes them, none of whose matrices is zero."""
    import peft
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(student)
    every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    targets = lora.get("targets", every)
    config = peft.LoraConfig(r=lora["rank"], lora_alpha=lora["alpha"], target_modules=targets, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, config)
    torch.manual_seed(11)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3)
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def steps(jobs: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Steps:
    """One step of each kind by a layout; a layout's processes start when the first test asks for it."""
    folder = tmp_path_factory.mktemp("steps")

    @functools.cache
    def by(layout: str) -> dict[str, dict[str, Any]]:
        own = BASELINES | ADAPTED
        sections = {kind: {layout: TRAIN | own.get(kind, {}) | (LAYOUTS | SINGLE)[layout]} for kind in jobs}
        torch.save({kind: job | {"layouts": sections[kind]} for kind, job in jobs.items()}, folder / f"{layout}.pt")
        ranks, out = 2 if layout in LAYOUTS else 1, folder / f"{layout}-out.pt"
        run_ranks(ranks, "support.one_step", folder / f"{layout}.pt", out)
        return {kind: found[layout] for kind, found in torch.load(out).items()}

    def step(kind: str, layout: str) -> dict[str, Any]:
        if layout == "written out":
            job = jobs[kind]
            return written_out(job["student"], job["policy"], job["rows"], job.get("adapter"))
        return by(layout)[kind]

    return step


def written_out(student: Path, policy: Path, rows: list[dict[str, Any]], adapter: Path | None = None) -> dict[str, Any]:
    """Eq. 8 with centred weights and truncated importance ratios, one sequence at a time, float64; with PEFT's adapters
    where there are some."""
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float64, attn_implementation="eager")
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float64, attn_implementation="eager")
    if adapter is not None:
        import peft

        model = peft.PeftModel.from_pretrained(model, adapter, is_trainable=True, autocast_adapter_dtype=False).double()
    weights = [w for row in rows for w, a in zip(row["loss_weight"], row["audited"], strict=True) if a]
    baseline = sum(weights) / len(weights)
    chunk_loss = kl = nll = torch.zeros((), dtype=torch.float64)
    for row in rows:
        ids = torch.tensor(row["input_ids"])
        logp = model(ids[None]).logits[0].log_softmax(-1)
        with torch.no_grad():
            reference_logp = reference(ids[None]).logits[0].log_softmax(-1)
        for i in range(1, len(ids)):
            at = logp[i - 1, ids[i]]
            if row["audited"][i]:
                rho = (at.detach() - row["behaviour_logprobs"][i]).exp().clamp(max=TRAIN["importance_cap"])
                chunk_loss = chunk_loss - (row["loss_weight"][i] - baseline) * rho * at
                nll = nll - at
            elif row["response_mask"][i]:
                kl = kl + (reference_logp[i - 1].exp() * (reference_logp[i - 1] - logp[i - 1])).sum()
    ((chunk_loss + TRAIN["beta"] * kl) / len(weights)).backward()
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    gradients = {name.replace(".default", ""): parameter.grad for name, parameter in trained}
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm().item()
    sums = {"chunk_loss": chunk_loss.item(), "kl": kl.item(), "nll": nll.item()}
    return {"sums": sums, "norm": norm, "gradients": gradients, "normaliser": len(weights)}


def worst(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Largest relative error over the tensors' gradients."""
    assert a.keys() == b.keys()
    return max(((a[name].double() - b[name].double()).norm() / b[name].double().norm()).item() for name in b)


@pytest.mark.parametrize("kind", [*KINDS, *ADAPTED])
def test_loss_and_gradient_equal_equation_8_written_out_in_float64(steps: Steps, kind: str) -> None:
    mine, theirs = steps(kind, "one"), steps(kind, "written out")
    for name, value in theirs["sums"].items():
        assert mine["sums"][name] == pytest.approx(value, rel=5e-6)
    assert mine["normaliser"] == theirs["normaliser"]
    assert mine["norm"] == pytest.approx(theirs["norm"], rel=2e-6)
    assert worst(mine["gradients"], theirs["gradients"]) < 1e-5
    assert 0 < mine["sums"]["clipped"] < mine["normaliser"]  # the importance cap was at work


@pytest.mark.parametrize("kind", [*KINDS, *BASELINES, *ADAPTED])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_processes_form_the_gradient_of_one(steps: Steps, kind: str, layout: str) -> None:
    one, two = steps(kind, "one"), steps(kind, layout)
    terms = [name for name in ("chunk_loss", "kl", "reverse_kl") if one["sums"][name]]
    loss = max(abs(two["sums"][name] / one["sums"][name] - 1) for name in terms)
    print(f"{kind} {layout}: loss {loss:.1e}, gradient {worst(two['gradients'], one['gradients']):.1e}")
    for name, value in one["sums"].items():
        assert two["sums"][name] == pytest.approx(value, rel=5e-6)
    assert two["norm"] == pytest.approx(one["norm"], rel=2e-6)
    assert worst(two["gradients"], one["gradients"]) < 1e-5


@pytest.mark.parametrize("kind", [*KINDS, *BASELINES, *ADAPTED])
def test_micro_batches_by_tokens_form_the_gradient_of_single_sequences(steps: Steps, kind: str) -> None:
    alone, tokens = steps(kind, "alone"), steps(kind, "tokens")
    for name, value in alone["sums"].items():
        assert tokens["sums"][name] == pytest.approx(value, rel=2e-6)
    assert tokens["normaliser"] == alone["normaliser"]
    assert tokens["norm"] == pytest.approx(alone["norm"], rel=1e-6)
    assert worst(tokens["gradients"], alone["gradients"]) < 2e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_writes_the_bits_that_it_read(
    steps: Steps, jobs: dict[str, dict[str, Any]], kind: str, layout: str
) -> None:
    steps(kind, layout)
    policy = jobs[kind]["policy"]
    files = sorted(Path(f"{policy}-{layout}").glob("*.safetensors"))
    index = json.loads(Path(f"{policy}-{layout}", "model.safetensors.index.json").read_text())
    assert {path.name for path in files} == set(index["weight_map"].values())
    assert len(files) > 2
    before = load_file(policy / "model.safetensors")
    after = {name: tensor for path in files for name, tensor in load_file(path).items()}
    assert before.keys() == after.keys() == index["weight_map"].keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in after.values())


@pytest.mark.parametrize("kind", ADAPTED)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_writes_the_adapters_that_it_read(
    steps: Steps, jobs: dict[str, dict[str, Any]], kind: str, layout: str
) -> None:
    steps(kind, layout)
    before = load_file(jobs[kind]["adapter"] / "adapter_model.safetensors")
    after = load_file(Path(f"{jobs[kind]['policy']}-{layout}", "adapter", "adapter_model.safetensors"))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
