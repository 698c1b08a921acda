"""What every engine must do, whichever way its entropies come. The vllm engine takes part where vLLM is installed."""

import hashlib
import importlib.util
import os

import numpy as np
import pytest

from omniopd.stages.generate.engine import Request, Sampling
from omniopd.stages.generate.engines.registry import make_engine
from omniopd.store.config import Config
from omniopd.store.errors import InputError

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

ENGINES = ["transformers", *(["vllm"] if importlib.util.find_spec("vllm") else [])]
CONTEXT = 64


@pytest.fixture(scope="module")
def short_student(tmp_path_factory):
    """The shipped student with a context of 64 tokens, so that its end is near."""
    import json
    import shutil
    from pathlib import Path

    import omniopd

    folder = tmp_path_factory.mktemp("student") / "student"
    shutil.copytree(Path(omniopd.__file__).parent / "demo" / "models" / "student", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": CONTEXT}))
    return folder


@pytest.fixture(scope="module", params=[(name, way) for name in ENGINES for way in ("decode", "rescore")], ids="-".join)
def engine(request, short_student):
    name, way = request.param
    config = Config.model_validate(
        {
            "student": {"model": str(short_student), "engine": name, "dtype": "float32"},
            "generate": {"entropy": way, "max_new_tokens": 60, "batch_size": 4},
        }
    )
    engine = make_engine(str(short_student), config, longest_prompt=CONTEXT)
    yield engine
    engine.close()


def requests(count):
    prompts = [tuple(range(5, 8 + i % 4)) for i in range(count)]
    names = [hashlib.blake2b(bytes([i]), digest_size=16).hexdigest() for i in range(count)]
    return [Request(name, prompt) for name, prompt in zip(names, prompts, strict=True)]


def sample(engine, asked, **changes):
    sampling = Sampling(
        **{"max_new_tokens": 30, "temperature": 1.0, "top_p": 1.0, "stop_ids": frozenset({2})} | changes
    )
    found = list(engine.generate(asked, sampling))
    assert sorted(r.trajectory_id for r in found) == sorted(r.trajectory_id for r in asked)
    return {r.trajectory_id: r for r in found}


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.6, "top_p": 0.9}], ids=["raw", "top_p"])
def test_values_are_those_of_the_raw_distribution(engine, short_student, worst_difference, sampling):
    asked = requests(10)
    found = sample(engine, asked, **sampling)
    logprob, entropy = worst_difference(short_student, [(r.prompt_ids, found[r.trajectory_id]) for r in asked])
    assert logprob < 1e-4
    assert entropy < 1e-4


def test_a_response_is_its_own_whatever_is_sampled_beside_it(engine):
    asked = requests(9)
    together = sample(engine, asked)
    apart = sample(engine, asked[4:][::-1])
    for name, response in apart.items():
        assert response.ids_T.tolist() == together[name].ids_T.tolist()
        assert np.abs(response.entropies_T - together[name].entropies_T).max() < 1e-4


def test_samples_of_one_prompt_differ(engine):
    found = sample(engine, [Request(r.trajectory_id, (5, 6, 7)) for r in requests(6)])
    assert len({tuple(r.ids_T) for r in found.values()}) > 1


def test_a_response_ends_with_its_stop_token_or_at_the_limit(engine):
    found = sample(engine, requests(16), stop_ids=frozenset({2, 9, 12}))
    for response in found.values():
        stops = np.isin(response.ids_T, [2, 9, 12])
        assert not stops[:-1].any()
        assert response.finish_reason == ("stop" if stops[-1] else "length")
        assert stops[-1] or len(response.ids_T) == 30
        assert len(response.ids_T) == len(response.logprobs_T) == len(response.entropies_T)
    assert {r.finish_reason for r in found.values()} == {"stop", "length"}


def test_a_response_ends_where_the_context_does(engine):
    asked = [Request("5" * 32, (5,) * (CONTEXT - 3))]
    (response,) = sample(engine, asked, stop_ids=frozenset({10**6})).values()
    assert len(response.ids_T) == 3
    assert response.finish_reason == "length"


def test_a_prompt_as_long_as_the_context_is_refused(engine):
    with pytest.raises(
        InputError, match=rf"A prompt has {CONTEXT} tokens, and the student's context is {CONTEXT}.*max_p"
    ):
        sample(engine, [Request("5" * 32, (5,) * CONTEXT)])


def test_no_request_is_no_work(engine):
    assert sample(engine, []) == {}


def test_the_source_says_engine_version_way_and_precision(engine, request):
    name, way = engine.entropy_source.split()[0], request.node.callspec.params["engine"][1]
    assert name in ENGINES
    assert way in engine.entropy_source
    assert "float32" in engine.entropy_source


def test_it_tells_while_responses_grow_how_many_are_in_work_and_by_how_many_tokens(engine):
    told = []
    sampling = Sampling(30, 1.0, 1.0, frozenset({2}))
    found = list(engine.generate(requests(9), sampling, lambda running, tokens: told.append((running, tokens))))
    assert sum(tokens for _, tokens in told) == sum(len(response.ids_T) for response in found)
    assert told[-1][0] == 0
    assert max(running for running, _ in told) > 1
