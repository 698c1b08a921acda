"""`omniopd check`: what is wrong with a set-up is said before it costs anything, and what is right is let through."""

import socket
import sys

import pytest
from aiohttp import web

from omniopd.check import check, offline, require
from omniopd.stages.audit.stage import audit
from omniopd.store.errors import ConfigError, InputError, TeacherError
from omniopd.store.ledger_read import read_totals
from support.runs import STUDENT
from support.served import transformers_serve


@pytest.fixture
def run(make_run, teacher):
    return make_run(teacher={"base_url": teacher.base_url})


def verdicts(findings):
    return {finding.name: finding.verdict for finding in findings}


def line(findings, name):
    (found,) = [str(finding) for finding in findings if finding.name == name]
    return " ".join(found.split())


def nobody():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


def test_a_sound_set_up_costs_two_requests_which_are_in_the_ledger(run, teacher):
    findings = check(run, run.config())
    assert set(verdicts(findings).values()) == {"ok"}
    assert {"student", "trainer", "disk", "gpu", "price", "teacher", "continues", "cache"} <= set(verdicts(findings))
    totals = read_totals(run.ledger)
    assert (teacher.requests, totals.requests, totals.checks) == (2, 2, 2)
    assert 0 < totals.charged_tokens <= 500
    assert [body["n"] for body in teacher.bodies] == [2, 2]


@pytest.mark.parametrize(
    ("overrides", "name", "said"),
    [
        (("teacher.base_url=localhost:8000/v1",), "address",
         'does not begin with http:// or https://. Set teacher.base_url = "http://localhost:8000/v1".'),
        (("teacher.base_url=https://api.openai.com/v1",), "key", "The environment variable OPENAI_API_KEY is not set"),
        (("teacher.kind=anthropic", "teacher.base_url=''"), "key", "ANTHROPIC_API_KEY is not set"),
        (("teacher.kind=nonsense",), "teacher", "nonsense"),
        (("teacher.budget_usd=1.0",), "price", "A budget in dollars needs a price"),
        (("train.objective=grpo", "data.answer=''"), "answers", "data.answer is not set"),
        (("generate.max_new_tokens=1000000",), "student", "generate.max_new_tokens is 1,000,000"),
        (("student.model=./no/such/folder",), "student", "no/such/folder"),
    ],
)  # fmt: skip
def test_what_the_config_shows_needs_no_server(run, teacher, monkeypatch, overrides, name, said):
    for key in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(key, raising=False)
    findings = offline(run, run.config(overrides))
    assert verdicts(findings)[name] == "fail"
    assert said in line(findings, name)
    if name not in ("student", "answers"):  # which the stages refuse by themselves
        with pytest.raises(ConfigError, match="--no-check"):
            require(run, run.config(overrides), "generate")
    assert teacher.requests == 0


def test_a_missing_v1_is_tried_and_said(run, teacher):
    findings = check(run, run.config((f"teacher.base_url={teacher.base_url[:-3]}",)))
    assert f'Set teacher.base_url = "{teacher.base_url}"' in line(findings, "address")


def test_an_unknown_model_is_said_with_those_that_there_are(run, teacher):
    findings = check(run, run.config(("teacher.model=absent",)))
    assert verdicts(findings)["teacher"] == "fail"
    assert "absent" in line(findings, "teacher")
    assert "scripted" in line(findings, "teacher")


THOUGHTS = {"role": "assistant", "content": "", "reasoning_content": "They want digits. Let me think"}


def answer(**choice):
    """A behavior: every continuation is like this."""

    def behave(body, number):
        one = {"index": 0, "text": "", "finish_reason": "length"} | choice
        usage = {"prompt_tokens": 30, "completion_tokens": 12}
        return web.json_response({"choices": [one] * body.get("n", 1), "usage": usage})

    return behave


def test_a_server_that_samples_nothing_repeats_the_prefix_or_thinks_is_noticed(run, teacher):
    teacher.behave = answer(text=" 3, 3, 3,")
    assert verdicts(check(run, run.config()))["temperature"] == "warn"
    assert "temperature" not in verdicts(check(run, run.config(("teacher.temperature=0.0",))))
    teacher.behave = answer(text="7, 2, 9, 4, 0, 4, 1, 5, 5,")
    assert "repeats the prefix" in line(check(run, run.config()), "continues")
    teacher.chat_only, teacher.behave = True, answer(message=THOUGHTS)
    found = check(run, run.config())
    assert verdicts(found)["thinking"] == "fail"
    assert "Set teacher.extra = " in line(found, "thinking")


def test_a_server_that_ignores_n_or_does_not_say_what_it_bills_is_noticed(run, teacher):
    teacher.most_choices = 1
    assert "each rollout sends its prefix anew" in line(check(run, run.config()), "n")
    teacher.behave = lambda body, number: web.json_response({"choices": [{"index": 0, "text": f"{number}"}]})
    found = check(run, run.config())
    assert verdicts(found)["usage"] == "warn"
    assert read_totals(run.ledger).unknown == 2


def test_a_context_shorter_than_a_response_is_noticed(run, teacher):
    teacher.model_facts = {"max_model_len": 32}
    assert verdicts(check(run, run.config()))["context"] == "warn"
    teacher.model_facts = {"max_model_len": 4096}
    assert line(check(run, run.config()), "context") == "ok context 4,096 tokens"


def test_an_account_without_credit_and_a_budget_that_is_spent_are_said(run, teacher):
    found = check(run, run.config(("teacher.budget_tokens=20",)))
    assert "Raise teacher.budget_*" in line(found, "budget")
    assert teacher.requests == 0
    teacher.behave = lambda body, number: web.json_response({"error": {"message": "Insufficient credits"}}, status=402)
    assert "Insufficient credits" in line(check(run, run.config()), "account")
    assert read_totals(run.ledger).charged_tokens == 0


def test_what_a_first_refusal_teaches_is_learned_and_kept(run, teacher):
    def behave(body, number):
        if body.get("n", 1) > 1:
            return web.json_response({"error": {"message": "n must be 1", "param": "n"}}, status=400)
        return None

    teacher.behave = behave
    assert verdicts(check(run, run.config()))["continues"] == "ok"
    assert [body.get("n", 1) for body in teacher.bodies] == [2, 1, 1]


def test_a_connection_that_the_server_closed_meanwhile_is_opened_again(run, teacher):
    teacher.closed_probes = 1
    assert verdicts(check(run, run.config()))["teacher"] == "ok"


def test_generate_goes_on_without_a_server_and_audit_does_not(run, capsys):
    config = run.config((f"teacher.base_url={nobody()}",))
    require(run, config, "generate")
    assert "warn server No teacher answers at" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(TeacherError, match="No teacher answers at"):
        require(run, config, "audit")


def test_a_set_up_is_looked_at_once(run, teacher, generated):
    generated(run)
    require(run, run.config(), "generate")
    require(run, run.config(), "audit")
    assert teacher.requests == 2
    audit(run, 0, run.config())
    assert read_totals(run.ledger).checks == 2
    require(run, run.config(("teacher.continuation=instruct",)), "audit")
    assert read_totals(run.ledger).checks == 4


def test_a_failed_look_is_not_remembered(run, teacher):
    teacher.chat_only, teacher.behave = True, answer(message=THOUGHTS)
    with pytest.raises(TeacherError, match="thinking"):
        require(run, run.config(), "audit")
    teacher.behave = lambda body, number: None
    require(run, run.config(), "audit")
    assert teacher.requests == 4


@pytest.mark.parametrize(
    "overrides", [("train.objective=grpo", "data.answer=answer"), ("score.weights=constant",)], ids=["grpo", "constant"]
)
def test_nobody_is_asked_where_no_teacher_is(run, teacher, overrides):
    assert "none is asked" in line(check(run, run.config(overrides)), "teacher")
    require(run, run.config(overrides), "generate")
    assert teacher.requests == 0


def test_a_similarity_that_cannot_be_measured_is_said_before_anybody_is_asked(run, teacher, tmp_path):
    (tmp_path / "empty").mkdir()
    embedding = ("score.phi=embedding", f"score.embedding_model={tmp_path / 'empty'}")
    config = run.config(embedding)
    assert "is no sentence-transformers model" in line(check(run, config), "similarity")
    require(run, run.config((*embedding, "train.objective=draft")), "generate")
    assert teacher.requests == 2, "a draft is compared with nothing"
    with pytest.raises(InputError, match="is no sentence-transformers model"):
        require(run, config, "generate")
    assert teacher.requests == 2


@pytest.mark.slow
def test_transformers_serve_is_seen_as_it_is(make_run, tmp_path):
    """Its list of models fails, and it closes the connection then; it takes no `n`; it counts its tokens."""
    model = STUDENT.parent / "teacher"
    with transformers_serve(model, tmp_path) as url:
        run = make_run(teacher={"base_url": url, "model": str(model)})
        found = check(run, run.config())
        assert {name: v for name, v in verdicts(found).items() if v != "ok"} == {"n": "warn"}
        assert "the server has /completions" in line(found, "teacher")
        totals = read_totals(run.ledger)
        assert totals.unknown == 0
        assert 0 < totals.prompt_tokens + totals.completion_tokens == totals.charged_tokens <= 400
        wrong = check(run, run.config(("teacher.model=absent",)))
        assert "requested 'absent'" in line(wrong, "answer")
        bare = check(run, run.config((f"teacher.base_url={url[:-3]}",)))
        assert f'Set teacher.base_url = "{url}"' in line(bare, "address")


def test_a_mirror_that_cannot_be_one_is_said_before_anything_is_sent(run, monkeypatch):
    def finding(mirror):
        return line(offline(run, run.config((f"run.mirror={mirror}",))), "mirror")

    assert finding("/elsewhere/first").startswith("ok")
    assert "is not the absolute path of a folder outside of the run" in finding("mirrors/first")
    monkeypatch.setitem(sys.modules, "obstore", None)
    assert "pip install 'omniopd[mirror]'" in finding("s3://bucket/first")


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("", "ok gpu 2 x H100"),
        (
            "Python.h (python3-dev)",
            "warn gpu 2 x H100, and Python.h (python3-dev) is missing. Training is slower without.",
        ),
    ],
)
def test_what_kernels_are_compiled_with_is_looked_for_where_there_is_a_gpu(run, teacher, missing, said, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "H100")
    monkeypatch.setattr("omniopd.train.columns.missing_to_compile", lambda: missing)
    assert line(check(run, run.config()), "gpu") == said
