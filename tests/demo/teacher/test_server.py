"""The teacher's server over its real HTTP interface, with the OpenAI SDK as client."""

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from omniopd.demo.tasks.sums import problems, solve, write
from omniopd.demo.teacher.process import TeacherError, TeacherServer

PROBLEM = problems(1, seed=0, split="heldout")[0]
ANSWER = write(solve(PROBLEM))


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with TeacherServer() as url:
        yield url


@pytest.fixture(scope="module")
def client(base_url: str) -> OpenAI:
    return OpenAI(base_url=base_url, api_key="unused", max_retries=0)


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["teacher"]


def test_a_greedy_completion_solves_the_problem(client: OpenAI) -> None:
    reply = client.completions.create(model="teacher", prompt=PROBLEM.prompt, max_tokens=60, temperature=0)
    assert reply.choices[0].text == ANSWER
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == len(PROBLEM.prompt)
    assert reply.usage.completion_tokens == len(ANSWER) + 1


def test_several_prompts_and_samples_come_in_order(client: OpenAI) -> None:
    prefixes = [PROBLEM.prompt + ANSWER[:cut] for cut in (0, 9, 3)]
    reply = client.completions.create(model="teacher", prompt=prefixes, n=2, max_tokens=4, temperature=0)
    assert [choice.index for choice in reply.choices] == list(range(6))
    assert [choice.text for choice in reply.choices] == [ANSWER[cut : cut + 4] for cut in (0, 0, 9, 9, 3, 3)]
    assert {choice.finish_reason for choice in reply.choices} == {"length"}
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 24
    assert reply.usage.prompt_tokens == sum(map(len, prefixes))


def test_stop_strings_end_the_text_before_them(client: OpenAI) -> None:
    reply = client.completions.create(
        model="teacher", prompt=PROBLEM.prompt, max_tokens=60, temperature=0, stop=["####", "\n"]
    )
    assert reply.choices[0].text == ANSWER.split("\n")[0]
    assert reply.choices[0].finish_reason == "stop"


def test_a_seed_repeats_the_samples_and_the_samples_differ(client: OpenAI) -> None:
    def texts(seed: int) -> list[str]:
        reply = client.completions.create(model="teacher", prompt="", n=8, max_tokens=8, temperature=2, seed=seed)
        return [choice.text for choice in reply.choices]

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)
    assert len(set(texts(1))) > 1


def test_a_tiny_top_p_is_greedy(client: OpenAI) -> None:
    reply = client.completions.create(
        model="teacher", prompt=PROBLEM.prompt, n=4, max_tokens=8, temperature=2, top_p=1e-6
    )
    assert {choice.text for choice in reply.choices} == {ANSWER[:8]}


def test_chat_continues_the_last_assistant_message(client: OpenAI) -> None:
    reply = client.chat.completions.create(
        model="teacher",
        messages=[{"role": "user", "content": PROBLEM.prompt}, {"role": "assistant", "content": ANSWER[:5]}],
        n=2,
        max_tokens=60,
        temperature=0,
        extra_body={"continue_final_message": True, "add_generation_prompt": False},
    )
    assert [choice.message.content for choice in reply.choices] == [ANSWER[5:]] * 2


def test_bad_requests_are_refused_in_openais_shape(client: OpenAI) -> None:
    for wrong in (
        {"n": 0},
        {"max_tokens": 0},
        {"max_tokens": 10_000},
        {"temperature": -1},
        {"top_p": 0},
        {"prompt": []},
        {"prompt": 3},
        {"logprobs": 1},
        {"echo": True},
    ):
        with pytest.raises(BadRequestError) as caught:
            client.post("/completions", body={"model": "teacher", "prompt": "1", **wrong}, cast_to=object)
        assert isinstance(caught.value.body, dict)
        assert caught.value.body["type"] == "invalid_request_error"
        assert next(iter(wrong)) in caught.value.body["message"]


def test_an_unknown_model_and_an_unknown_path_are_404(client: OpenAI) -> None:
    with pytest.raises(NotFoundError) as caught:
        client.completions.create(model="other", prompt="1")
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["code"] == "model_not_found"
    with pytest.raises(NotFoundError):
        client.post("/embeddings", body={}, cast_to=object)


def test_concurrent_requests_share_batches(client: OpenAI, base_url: str) -> None:
    before = _stats(base_url)
    with ThreadPoolExecutor(16) as pool:
        replies = list(
            pool.map(
                lambda cut: client.completions.create(
                    model="teacher", prompt=PROBLEM.prompt + ANSWER[:cut], n=3, max_tokens=5, temperature=0
                ),
                list(range(16)) * 2,
            )
        )
    for cut, reply in zip(list(range(16)) * 2, replies, strict=True):
        assert [choice.text for choice in reply.choices] == [ANSWER[cut : cut + 5]] * 3
    after = _stats(base_url)
    assert after["requests"] - before["requests"] == 32
    assert after["completions"] - before["completions"] == 96
    assert after["batches"] - before["batches"] < 32


def test_the_process_ends_cleanly_with_the_block() -> None:
    server = TeacherServer()
    with server as url:
        process = server._process
        assert process is not None
        assert server.pid == process.pid
        assert _stats(url)["requests"] == 0
        started = time.monotonic()
    assert time.monotonic() - started < 5
    assert process.returncode == 0  # SIGTERM was enough
    assert server.pid is None


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"exit code 2[\s\S]*nothing-here"), TeacherServer(tmp_path / "nothing-here"):
        pass


def _stats(base_url: str) -> dict[str, int]:
    with urllib.request.urlopen(base_url.removesuffix("/v1") + "/stats", timeout=10) as answer:
        return json.load(answer)


@pytest.mark.slow
def test_the_server_does_not_outlive_a_starter_that_was_killed() -> None:
    code = (
        "import os, signal\n"
        "from omniopd.demo.teacher.process import TeacherServer\n"
        "server = TeacherServer()\n"
        "with server:\n"
        "    print(server.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    pid = int(result.stdout)
    deadline = time.monotonic() + 20
    while _runs(pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _runs(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
