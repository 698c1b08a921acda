"""What several suites share: the shipped student, a run directory, and a teacher whose behavior a test scripts."""

import logging
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Models of a megabyte are fastest on one thread; said before torch is imported, and to every process a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest

from omniopd.store.layout import RunDir
from support.runs import STUDENT, GeneratedRounds, write_run
from support.scripted_teacher import ScriptedTeacher

# Examples that touch the disk are slow on a busy machine, which says nothing about the code.
for name, examples in (("fast", 25), ("thorough", 300)):
    hypothesis.settings.register_profile(
        name,
        max_examples=examples,
        deadline=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
    )
hypothesis.settings.load_profile("fast")  # another one by --hypothesis-profile


@pytest.fixture
def student() -> Path:
    """A real Qwen3-architecture model that ships with the package."""
    return STUDENT


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunDir]:
    """A run directory with prompts and a config; keyword arguments are sections of the config."""
    return lambda name="run", questions=12, **sections: write_run(tmp_path / name, questions, **sections)


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> GeneratedRounds:
    """Fills round 0 of a run as `generate` would; most rounds are copies of one that was sampled before."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "generated"
    folder.mkdir(exist_ok=True)
    return GeneratedRounds(folder)


@pytest.fixture
def worst_difference() -> Callable[..., tuple[float, float]]:
    """(model folder, [(prompt ids, Response)]) -> largest |log-prob - exact| and |entropy - exact| of all tokens, nats.

    The oracle: one sequence at a time in float32, without cache, padding or batch; softmax in float64.
    """

    def compare(folder: Path, written: list[tuple[Any, Any]]) -> tuple[float, float]:
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        worst_logprob = worst_entropy = 0.0
        for prompt_ids, response in written:
            ids_T = torch.from_numpy(response.ids_T).long()
            with torch.no_grad():
                ids_S = torch.cat([torch.tensor(prompt_ids), ids_T])
                logits_TV = model(ids_S[None]).logits[0, len(prompt_ids) - 1 : -1].double()
            probs_TV = torch.softmax(logits_TV, dim=-1)
            exact_T = -torch.special.xlogy(probs_TV, probs_TV).sum(dim=-1)
            logprob_T = probs_TV.log().gather(1, ids_T[:, None]).squeeze(1)
            worst_logprob = max(worst_logprob, (torch.from_numpy(response.logprobs_T) - logprob_T).abs().max().item())
            worst_entropy = max(worst_entropy, (torch.from_numpy(response.entropies_T) - exact_T).abs().max().item())
        return worst_logprob, worst_entropy

    return compare


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Address of an S3 server on this machine, which somebody else wrote (moto)."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new bucket, and its credentials in the environment."""
    import boto3

    url = request.getfixturevalue("s3_server")
    values = {"ENDPOINT_URL": url, "ACCESS_KEY_ID": "id", "SECRET_ACCESS_KEY": "secret", "REGION": "us-east-1"}
    for name, value in values.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    bucket = f"b-{uuid.uuid4().hex}"
    boto3.client("s3", endpoint_url=url, region_name="us-east-1").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/runs/first"


@pytest.fixture(params=["folder", "s3"])
def mirror_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place for a mirror, of each kind that there is on this machine."""
    return str(tmp_path / "mirror") if request.param == "folder" else request.getfixturevalue("s3")


@pytest.fixture
def teacher() -> Any:
    server = ScriptedTeacher()
    yield server
    server.stop()
