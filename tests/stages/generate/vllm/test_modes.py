"""The hook in vLLM's sampler stays exact in every mode of the scheduler. Needs vLLM: `make test-vllm`.

With OMNIOPD_TEST_STUDENT=FOLDER (benchmarks/experiments/smollm2.py writes one) the same on a real model; -s shows the
figures.
"""

import contextlib
import hashlib
import json
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from omniopd.stages.generate.engine import Request, Sampling
from omniopd.stages.generate.engines.registry import make_engine
from omniopd.stages.generate.engines.rescore import Rescored
from omniopd.stages.generate.engines.vllm_engine import VllmEngine
from omniopd.store.config import Config
from omniopd.store.model import load_tokenizer

TOLERANCE = 1e-4

MODES = {
    "plain": {},
    "without async scheduling": {"async_scheduling": False},
    "async scheduling": {"async_scheduling": True},
    "chunked prefill": {"max_num_batched_tokens": 64, "max_num_seqs": 8},
    "preemption": {"num_gpu_blocks_override": 14, "max_num_seqs": 16, "async_scheduling": True},
    "tensor parallel": {},
    "rescore": {},
}
PROMPT_TOKENS, TOKENS = 150, 120
"""A prompt is more than one block of the cache (128 tokens on a CPU), and a response grows into a third."""

QUESTION = "Somebody asked {} friends to go on with this story, and they did so together. "
STORY = (
    "The quick brown fox jumps over the lazy dog, and then it wanders into the forest to find food. It was late in the"
    " year, and there was little to be found between the old trees, so it walked on until it came to a small river. "
) * 5


def config(folder, vllm=None, **generate):
    return Config.model_validate(
        {
            "student": {"model": str(folder), "engine": "vllm", "dtype": "float32"},
            "generate": {"max_new_tokens": 200, "vllm": vllm or {}} | generate,
        }
    )


def natural_prompts(folder):
    """Text of the kind that the model was trained on: on noise, float32 itself is no better than 1e-4."""
    tokenizer = load_tokenizer(folder)
    texts = [QUESTION.format(number) + STORY for number in range(3, 7)]
    return [tuple(tokenizer(text, add_special_tokens=False)["input_ids"][:PROMPT_TOKENS]) for text in texts]


def asked(prompts, samples):
    return [
        Request(hashlib.blake2b(f"{p} {s}".encode(), digest_size=16).hexdigest(), prompt)
        for p, prompt in enumerate(prompts)
        for s in range(samples)
    ]


@pytest.fixture
def closing():
    """Engines are processes: they end with the test, also with one that fails."""
    with contextlib.ExitStack() as stack:
        yield stack


def metric(engine, name):
    sampler = engine.engine if isinstance(engine, Rescored) else engine
    return sum(m.value for m in sampler.llm.get_metrics() if m.name == f"vllm:{name}")


@pytest.mark.parametrize("mode", MODES)
def test_entropies_stay_exact(mode, real_student: Path, worst_difference, closing):
    heads = json.loads((real_student / "config.json").read_text())["num_attention_heads"]
    parallel = 3 if mode == "tensor parallel" and heads % 3 == 0 else 2 if mode == "tensor parallel" else 1
    prompts = natural_prompts(real_student)
    requests = asked(prompts, samples=4)
    options = MODES[mode] | {"disable_log_stats": False}
    way = "rescore" if mode == "rescore" else "decode"
    made = config(real_student, options, tensor_parallel=parallel, entropy=way)
    engine = make_engine(str(real_student), made, longest_prompt=PROMPT_TOKENS)
    closing.callback(engine.close)
    assert way in engine.entropy_source
    sampling = Sampling(TOKENS, 0.8, 0.9, frozenset({10**6}))
    found = {r.trajectory_id: r for r in engine.generate(requests, sampling)}
    preempted, hits = metric(engine, "num_preemptions"), metric(engine, "prefix_cache_hits")
    closing.close()
    logprob, entropy = worst_difference(real_student, [(r.prompt_ids, found[r.trajectory_id]) for r in requests])
    print(f"\n{mode}, TP {parallel}, top_p 0.9, 4 samples a prompt: {len(requests) * TOKENS} tokens, "
          f"max |dlogp| {logprob:.1e}, max |dH| {entropy:.1e}, "
          f"{preempted:.0f} preemptions, {hits:.0f} cached tokens")  # fmt: skip
    assert logprob < TOLERANCE
    assert entropy < TOLERANCE
    assert hits > 0
    assert preempted > 0 or mode != "preemption"


def test_another_sampler_falls_back_to_rescoring_with_one_line(real_student: Path, monkeypatch, capsys, closing):
    monkeypatch.setattr(VllmEngine, "check_entropies", lambda self: "vllm 9.9 has another sampler (it is not known)")
    engine = make_engine(str(real_student), config(real_student), longest_prompt=16)
    closing.callback(engine.close)
    assert "rescore" in engine.entropy_source
    (response,) = engine.generate(asked([(5, 6, 7)], 1), Sampling(8, 1.0, 1.0, frozenset({10**6})))
    assert (response.entropies_T > 0).all()
    assert "vllm 9.9 has another sampler (it is not known): falling back to generate.entropy = rescore" in (
        capsys.readouterr().err
    )


def test_a_wrong_entropy_is_noticed_at_the_start(real_student: Path, monkeypatch, closing):
    """The check compares with vLLM's full log-probs; without the hook the best one stands in the entropy's place."""
    engine = VllmEngine(str(real_student), config(real_student), 16, decode_entropies=True)
    closing.callback(engine.close)
    monkeypatch.setattr(engine.llm, "collective_rpc", lambda method: [""])
    assert "wrong by" in engine.check_entropies()


def test_arguments_that_vllm_refuses_are_one_clear_error(real_student: Path):
    from omniopd.store.errors import InputError

    with pytest.raises(InputError, match=r"vLLM does not start: .*generate\.vllm"):
        VllmEngine(str(real_student), config(real_student, {"tensor_parallel_sice": 2}), 16, decode_entropies=True)
