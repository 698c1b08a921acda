"""One suite for all dialects. A new teacher passes it against a server that enforces its vendor's rules."""

import asyncio
from collections import Counter

import pytest

from omniopd.stages.audit.client import find_teacher, open_session, post
from omniopd.stages.audit.forecast import continuations
from omniopd.stages.audit.served_model import same_model
from omniopd.stages.audit.stage import audit
from omniopd.stages.audit.teacher import Ask, Reply
from omniopd.stages.audit.teachers import anthropic, openai
from omniopd.stages.audit.teachers.registry import BUILT_IN, find_dialect
from omniopd.store.conversation import Conversation
from omniopd.store.errors import ConfigError, TeacherError
from omniopd.store.ledger_read import read_totals
from omniopd.store.sections import CONTINUE, TeacherConfig
from support import vendors

CASES = {
    "vllm": (lambda: vendors.OpenAI("vllm", ("/completions", "/chat/completions")), "completion"),
    "chat only": (lambda: vendors.OpenAI("vllm"), "prefill"),
    "api.openai.com": (lambda: vendors.OpenAI("openai"), "instruct"),
    "api.mistral.ai": (lambda: vendors.OpenAI("mistral"), "prefill"),
    "openrouter.ai": (lambda: vendors.OpenAI("openrouter"), "prefill"),
    "anthropic": (lambda: vendors.Anthropic(prefills=True), "prefill"),
    "anthropic, newer": (lambda: vendors.Anthropic(prefills=False), "instruct"),
    "gemini": (lambda: vendors.Gemini(prefills=True), "prefill"),
    "gemini, newer": (lambda: vendors.Gemini(prefills=False), "instruct"),
}
KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY")


@pytest.fixture(params=CASES)
def case(request, monkeypatch):
    """A server, and the way in which `auto` should have its teacher go on."""
    make, continuation = CASES[request.param]
    if request.param in openai.HOSTS:
        monkeypatch.setitem(openai.HOSTS, "127.0.0.1", openai.HOSTS[request.param])
    for key in KEYS:
        monkeypatch.setenv(key, vendors.KEY)
    server = vendors.VendorServer(make())
    yield server, continuation
    server.stop()


def config_of(server, **changes):
    vendor = server.vendor
    values = {"kind": vendor.kind, "model": vendor.model, "base_url": server.base_url, "rollouts": 3} | changes
    return TeacherConfig.model_validate(values)


def ask(config, *asks):
    """The teacher that is found, and its answers."""

    async def main():
        teacher = await find_teacher(config)
        async with open_session(config, teacher.headers) as session:
            outcomes = [await post(session, teacher.base_urls[0], teacher.request(one)) for one in asks]
        assert [outcome.kind for outcome in outcomes] == ["answered"] * len(asks), outcomes
        return teacher, [teacher.parse(outcome.body, one) for one, outcome in zip(asks, outcomes, strict=True)]

    return asyncio.run(main())


def plain(n=1, prefix="The sum is"):
    return Ask(Conversation.of("What is 2 + 2?"), "What is 2 + 2?\n", prefix, n, 16)


def most(server):
    """Samples that one request may ask for, of three."""
    vendor = server.vendor
    return 1 if vendor.kind == "anthropic" or (vendor.kind == "gemini" and not vendor.prefills) else 3


def test_the_teacher_is_shown_question_and_prefix_and_its_words_come_back(case):
    server, continuation = case
    teacher, (answer,) = ask(config_of(server), plain(most(server)))
    assert teacher.continuation == continuation
    (seen,) = server.vendor.seen
    assert (seen.question + seen.prefix).replace("\n", "") == "What is 2 + 2?The sum is"
    assert [(r.status, r.text) for r in answer.rollouts] == [("ok", "next")] * most(server)
    assert answer.model == server.vendor.model


def test_an_empty_prefix_is_a_plain_question(case):
    server, _ = case
    _, answers = ask(config_of(server), plain(prefix=""), plain(prefix=" \n"))
    assert [answer.rollouts[0].text for answer in answers] == ["next", "next"]
    alone, _ = server.vendor.seen
    assert (alone.question + alone.prefix).strip() == "What is 2 + 2?"
    assert CONTINUE not in str(alone.body), "there is nothing to go on with"


def test_the_whitespace_around_a_whole_answer_is_kept(case):
    server, _ = case
    server.vendor.text = "\n next \n"
    _, (answer,) = ask(config_of(server), plain(prefix=""))
    assert answer.rollouts[0].text == "\n next \n"


@pytest.mark.parametrize("end", [" ", "\n\n", " \t\n"])
def test_whitespace_that_was_held_back_does_not_count_against_the_student(case, end):
    server, _ = case
    server.vendor.text = end + "next"
    _, (answer,) = ask(config_of(server), plain(prefix="The sum is" + end))
    (seen,) = server.vendor.seen
    if seen.prefix.endswith(end):
        assert answer.rollouts[0].text == end + "next", "it was shown, so what comes is what follows"
    else:
        assert answer.rollouts[0].text == "next"
    server.vendor.text = "next"
    _, (answer,) = ask(config_of(server), plain(prefix="The sum is" + end))
    assert answer.rollouts[0].text == "next"


def test_half_a_character_at_the_end_is_cut_off(case):
    server, _ = case
    server.vendor.text = "数\ufffd"
    _, (answer,) = ask(config_of(server), plain())
    assert answer.rollouts[0].text == "数"


def test_nothing_said_is_empty_and_refusals_and_filters_have_no_text(case):
    server, _ = case
    modes = {"empty": "empty", "refused": "refused", "filtered": "filtered", "blocked": "filtered"}
    known = {"openai": ("empty", "filtered", "refused"), "anthropic": ("empty", "refused"),
             "gemini": ("empty", "filtered", "blocked")}[server.vendor.kind]  # fmt: skip
    for mode in known:
        server.vendor.mode = mode
        if mode == "refused" and server.vendor.kind == "openai" and "/completions" in server.vendor.endpoints:
            continue  # a completion has no field for a refusal
        _, (answer,) = ask(config_of(server), plain(most(server)))
        assert {r.status for r in answer.rollouts} == {modes[mode]}
        assert len(answer.rollouts) == most(server)
        assert all((r.text is None) == (mode != "empty") for r in answer.rollouts)


def test_the_worst_case_covers_the_bill_and_every_kind_of_token_is_read(case):
    server, _ = case
    teacher, (answer,) = ask(config_of(server), plain(most(server)))
    worst, usage = teacher.worst_case(plain(most(server))), answer.usage
    assert usage.tokens <= worst.tokens
    assert usage.cache_write_tokens <= worst.cache_write_tokens
    assert usage.cached_tokens > 0
    assert usage.completion_tokens == most(server) * len("next")
    sent = server.vendor.seen[0]
    shown = len(sent.question + sent.prefix)
    assert usage.prompt_tokens in (shown, shown + len(CONTINUE))


def test_an_answer_of_another_form_is_a_value_error(case):
    server, _ = case
    teacher, _ = ask(config_of(server), plain())
    for body in (None, 3, "text", [], {}, {"choices": 1}, {"choices": [1]}, {"choices": [{"text": 3}]},
                 {"candidates": {}}, {"candidates": [None]}, {"type": "message", "content": [{"type": "text"}]},
                 {"type": "message", "content": "text"},
                 {"choices": [{"message": {"content": [{"type": "text"}]}}]},
                 {"candidates": [{"content": {"parts": [{"text": 3}]}}]}):  # fmt: skip
        with pytest.raises(ValueError, match=r"."):
            teacher.parse(body, plain())


def test_a_wrong_key_and_an_unknown_model_are_found_before_anything_is_asked(case, monkeypatch):
    server, _ = case
    with pytest.raises(TeacherError, match="has no model 'other'"):
        ask(config_of(server, model="other"))
    monkeypatch.delenv(next(key for key in KEYS if key.lower().startswith(server.vendor.kind)))
    with pytest.raises(TeacherError, match=r"refused the key \(401\).*teacher\.api_key_file"):
        ask(config_of(server))
    assert server.vendor.seen == []


def test_the_key_may_come_from_a_file_or_another_variable(case, monkeypatch, tmp_path):
    server, _ = case
    for key in KEYS:
        monkeypatch.delenv(key)
    (tmp_path / "key").write_text(vendors.KEY + "\n")
    monkeypatch.setenv("MINE", vendors.KEY)
    ask(config_of(server, api_key_file=str(tmp_path / "key")), plain())
    ask(config_of(server, api_key_env="MINE"), plain())
    assert len(server.vendor.seen) == 2
    with pytest.raises(TeacherError, match="api_key_file cannot be read"):
        ask(config_of(server, api_key_file=str(tmp_path / "none")))


@pytest.mark.parametrize("instructed", [False, True])
def test_a_run_has_every_rollout_once_pays_what_was_billed_and_writes_the_key_nowhere(
    case, make_run, generated, capsys, instructed
):  # fmt: skip
    server, continuation = case
    server.vendor.answers_as = "something-else"
    changes = {"continuation": "instruct"} if instructed else {}
    run = make_run(questions=4, teacher=config_of(server, max_concurrency=3, **changes).model_dump(
        include={"kind", "model", "base_url", "rollouts", "max_concurrency", "continuation"}
    ))  # fmt: skip
    config = run.config(("teacher.price={input=1.0, output=5.0}",))
    run.record(config)
    generated(run)
    audit(run, 0, config)
    rows = run.round(0).rollouts.read().to_pylist()
    chunks = run.round(0).chunks.manifest.rows
    assert Counter(row["rollout_index"] for row in rows) == {0: chunks, 1: chunks, 2: chunks}
    assert {(row["status"], row["continuation"]) for row in rows} == {
        ("ok", "instruct" if instructed else continuation)
    }
    assert {row["teacher"] for row in rows} == {"something-else"}
    said = capsys.readouterr().err
    assert said.count("something-else answers") == 1
    assert f"continuation = {'instruct' if instructed else continuation} (" in said
    totals = read_totals(run.ledger)
    assert totals.requests == len(server.vendor.seen) == chunks * (3 if most(server) == 1 else 1)
    assert sum(row["prompt_tokens"] for row in rows) == totals.prompt_tokens
    assert all("key=" not in url and vendors.KEY not in url for url in server.urls)
    assert vendors.KEY not in said
    for path in run.path.rglob("*"):
        assert not path.is_file() or vendors.KEY.encode() not in path.read_bytes(), path


def test_anthropic_blocks_end_where_the_shorter_prefixes_do():
    teacher = asyncio.run(_anthropic())
    longer = Ask(Conversation.of("Q"), "Q\n", "one two \n three", 1, 16, cuts=(0, 4, 9, 10))
    (_, said) = teacher.request(longer).body["messages"]
    assert [block["text"] for block in said["content"]] == ["one", " two", " \n three"]
    assert ["cache_control" in block for block in said["content"]] == [False, False, True]
    shorter = teacher.request(Ask(Conversation.of("Q"), "Q\n", "one two ", 1, 16, cuts=(0, 4))).body["messages"][1][
        "content"
    ]
    assert [block["text"] for block in shorter] == ["one", " two"], "so the longer one's first blocks are in the cache"


class Silent:
    """A server that has nothing to say against it."""

    async def get(self, url, headers):
        return Reply(200, {})

    async def post(self, url, headers, body):
        return Reply(200, {})


async def _anthropic():
    return await find_dialect("anthropic").find(TeacherConfig(kind="anthropic", model="claude-haiku-4-5"), Silent())


def test_deepseek_continues_an_answer_only_at_its_beta_address():
    config = TeacherConfig(model="deepseek-chat", base_url="https://api.deepseek.com")
    with pytest.raises(TeacherError, match=r'base_url = "https://api\.deepseek\.com/beta"'):
        asyncio.run(openai.find(config, Silent()))
    beta = TeacherConfig(model="deepseek-chat", base_url="https://api.deepseek.com/beta")
    body = asyncio.run(openai.find(beta, Silent())).request(plain()).body
    assert body["messages"][-1] == {"role": "assistant", "content": "The sum is", "prefix": True}


@pytest.mark.parametrize(
    ("asked", "answered", "same"),
    [
        ("gpt-x", "gpt-x", True),
        ("gpt-x", "gpt-x-2025-08-07", True),
        ("claude-haiku-4-5", "claude-haiku-4-5-20251001", True),
        ("gemini-2.5-flash", "gemini-2.5-flash-lite", False),
        ("gemini-2.5-flash", "gemini-3-flash", False),
        ("gpt-x", "gpt-x-mini", False),
    ],
)
def test_a_dated_version_is_the_same_model_and_a_sibling_is_not(asked, answered, same):
    assert same_model(asked, answered) == same


def test_an_unknown_kind_names_the_known_ones_and_packages_can_add_some(monkeypatch):
    with pytest.raises(ConfigError, match=r"no teacher\.kind 'claude' \(known here: anthropic, gemini, openai\)"):
        find_dialect("claude")
    assert set(BUILT_IN) == {"anthropic", "gemini", "openai"}
    from importlib.metadata import EntryPoint, EntryPoints

    names = {"mine": f"{openai.__name__}:find", "theirs": f"{anthropic.__name__}:DIALECT"}
    added = EntryPoints([EntryPoint(name, value, "omniopd.teachers") for name, value in names.items()])
    monkeypatch.setattr("omniopd.stages.audit.teachers.registry.entry_points", lambda group: added)
    assert find_dialect("mine").find is openai.find, "a function alone states nothing, and the defaults hold"
    assert continuations("mine", "auto") == ("completion", "prefill", "instruct")
    assert (find_dialect("mine").most_choices("m"), find_dialect("mine").price_provider) == (None, None)
    assert find_dialect("theirs") is anthropic.DIALECT
    assert continuations("theirs", "auto") == ("prefill", "instruct")


@pytest.mark.parametrize(
    ("kind", "model"),
    [("anthropic", "claude-haiku-4-5"), ("gemini", "gemini-2.5-flash"), ("gemini", "gemini-3-flash"), ("openai", "m")],
)
def test_what_a_dialect_states_beforehand_is_what_its_teacher_does(kind, model):
    dialect = find_dialect(kind)
    for continuation in dialect.continuations:
        config = TeacherConfig(kind=kind, model=model, base_url="http://127.0.0.1:1", continuation=continuation)
        teacher = asyncio.run(dialect.find(config, Silent()))
        assert teacher.continuation == continuation
        assert teacher.most_choices == dialect.most_choices(model)


def test_what_an_api_cannot_do_is_said_before_it_is_asked():
    for changes, message in (
        ({"kind": "anthropic", "temperature": 1.5}, "cannot sample above temperature 1"),
        ({"kind": "anthropic", "continuation": "completion"}, "cannot complete raw text"),
        ({"kind": "gemini", "continuation": "completion"}, "cannot complete raw text"),
    ):
        with pytest.raises(TeacherError, match=message):
            asyncio.run(find_teacher(TeacherConfig.model_validate({"model": "m"} | changes)))
