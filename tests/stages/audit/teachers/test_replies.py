"""What an answer says about the student, in the forms that providers have: text, silence, thinking, tools, filters."""

import asyncio

import pytest

from omniopd.stages.audit.price import Rates
from omniopd.stages.audit.teacher import Ask, Reply
from omniopd.stages.audit.teachers.registry import find_dialect
from omniopd.store.conversation import Conversation
from omniopd.store.ledger import NANO
from omniopd.store.sections import TeacherConfig

ONE = Ask(Conversation.of("Q"), "Q\n", "The sum is", 1, 16)


class Silent:
    async def get(self, url, headers):
        return Reply(200, {})

    async def post(self, url, headers, body):
        return Reply(404, None)


def teacher_of(kind):
    config = TeacherConfig(kind=kind, model="m", base_url="http://127.0.0.1:1")
    return asyncio.run(find_dialect(kind).find(config, Silent()))


def parsed(kind, body, ask=ONE):
    (rollout,) = teacher_of(kind).parse(body, ask).rollouts
    return rollout.status, rollout.text, rollout.finish_reason


def chat(content, finish="stop", **more):
    return {"model": "m", "choices": [{"message": {"content": content, **more}, "finish_reason": finish}]}


def completion(text, finish):
    return {"model": "m", "choices": [{"text": text, "finish_reason": finish}]}


def claude(*content, stop="end_turn"):
    return {"type": "message", "model": "m", "content": list(content), "stop_reason": stop}


def gemini(*parts, finish="STOP"):
    return {"modelVersion": "m", "candidates": [{"content": {"parts": list(parts)}, "finishReason": finish}]}


TEXT = {"type": "text", "text": " 4"}
MISTRAL = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, TEXT]
CASES = {
    "parts": ("openai", chat([TEXT, {"type": "text", "text": "!"}]), ("ok", " 4!", "stop")),
    "parts with thinking": ("openai", chat(MISTRAL), ("ok", " 4", "stop")),
    "parts of thinking": ("openai", chat(MISTRAL[:1], "length"), ("failed", None, "thinking: length")),
    "reasoning beside": ("openai", chat(" 4", reasoning_content="hm"), ("ok", " 4", "stop")),
    "reasoning alone": ("openai", chat(None, "length", reasoning="hm"), ("failed", None, "thinking: length")),
    "reasoning, then silence": ("openai", chat("", reasoning_content="hm"), ("failed", None, "thinking: stop")),
    "think that closes": ("openai", chat("<think>\nhm\n</think>\n\n 4"), ("ok", " 4", "stop")),
    "think without its opening": ("openai", chat("hm\n</think>\n 4"), ("ok", " 4", "stop")),
    "think of Magistral": ("openai", chat("[THINK]hm[/THINK] 4"), ("ok", " 4", "stop")),
    "think that never closes": ("openai", chat("<think>\nhm", "length"), ("failed", None, "thinking: length")),
    "think, then silence": ("openai", chat("<think>hm</think>\n"), ("failed", None, "thinking: stop")),
    "a tag in the middle": ("openai", chat(" 4 <think>x"), ("ok", " 4 <think>x", "stop")),
    "length without text": ("openai", chat("", "length"), ("failed", None, "thinking: length")),
    "completion without text": ("openai", completion("", "length"), ("failed", None, "no text: length")),
    "completion is all continuation": ("openai", completion("<think>x", "length"), ("ok", "<think>x", "length")),
    "silence": ("openai", chat("", "stop"), ("empty", "", "stop")),
    "tools": ("openai", chat(None, "tool_calls", tool_calls=[{"id": "c"}]), ("failed", None, "tool_calls")),
    "tools, but stop": ("openai", chat("", "stop", tool_calls=[{"id": "c"}]), ("failed", None, "stop")),
    "tools and text": ("openai", chat(" 4", "tool_calls", tool_calls=[{"id": "c"}]), ("ok", " 4", "tool_calls")),
    "eos": ("openai", chat(" 4", "eos"), ("ok", " 4", "eos")),
    "provider's error": ("openai", chat("", "error"), ("failed", None, "error")),
    "filter": ("openai", chat(" 4", "content_filter"), ("filtered", None, "content_filter")),
    "claude, parts": ("anthropic", claude(TEXT, TEXT), ("ok", " 4 4", "end_turn")),
    "claude thinks": (
        "anthropic", claude({"type": "thinking", "thinking": "hm"}, stop="max_tokens"),
        ("failed", None, "thinking: max_tokens"),
    ),
    "claude thinks and answers": ("anthropic", claude({"type": "thinking", "thinking": "hm"}, TEXT),
                                  ("ok", " 4", "end_turn")),
    "claude is cut": ("anthropic", claude(stop="max_tokens"), ("failed", None, "thinking: max_tokens")),
    "claude is silent": ("anthropic", claude(), ("empty", "", "end_turn")),
    "claude's tool": ("anthropic", claude({"type": "tool_use", "id": "t"}, stop="tool_use"),
                      ("failed", None, "tool_use")),
    "claude refuses": ("anthropic", claude(TEXT, stop="refusal"), ("refused", None, "refusal")),
    "gemini thinks": ("gemini", gemini({"text": "hm", "thought": True}, finish="MAX_TOKENS"),
                      ("failed", None, "thinking: MAX_TOKENS")),
    "gemini thinks and answers": ("gemini", gemini({"text": "hm", "thought": True}, {"text": " 4"}),
                                  ("ok", " 4", "STOP")),
    "gemini is cut": ("gemini", gemini(finish="MAX_TOKENS"), ("failed", None, "thinking: MAX_TOKENS")),
    "gemini is silent": ("gemini", gemini(), ("empty", "", "STOP")),
    "gemini calls": ("gemini", gemini({"functionCall": {"name": "f"}}), ("failed", None, "functionCall")),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_an_answer_is_typed_by_what_it_says_about_the_student(name):
    kind, body, expected = CASES[name]
    assert parsed(kind, body) == expected


@pytest.mark.parametrize(
    ("reason", "status"),
    [("SAFETY", "filtered"), ("MODEL_ARMOR", "filtered"), ("LANGUAGE", "filtered"), ("OTHER", "failed"),
     ("MALFORMED_RESPONSE", "failed"), ("MALFORMED_FUNCTION_CALL", "failed"), ("UNEXPECTED_TOOL_CALL", "failed"),
     ("TOO_MANY_TOOL_CALLS", "failed"), ("WHATEVER_COMES", "failed")],
)  # fmt: skip
def test_a_reason_of_geminis_that_is_no_answer_is_never_an_empty_one(reason, status):
    for body in (gemini(finish=reason), gemini({"text": "half"}, finish=reason)):
        assert parsed("gemini", body) == (status, None, reason)


def test_a_student_that_thinks_aloud_is_continued_in_its_thinking():
    thinking = Ask(Conversation.of("Q"), "Q\n", "<think>\nOkay, 2 and", 1, 16)
    assert parsed("openai", chat(" 2\n</think>\n4"), thinking) == ("ok", " 2\n</think>\n4", "stop")


def usage_of(kind, body):
    return teacher_of(kind).parse(body, ONE).usage


def test_numbers_of_the_bill_may_be_floats_or_strings_and_a_bill_that_is_none_keeps_the_texts():
    usage = usage_of("openai", chat(" 4") | {"usage": {"prompt_tokens": 20.0, "completion_tokens": "16"}})
    assert (usage.prompt_tokens, usage.completion_tokens) == (20, 16)
    bad = [None, 3, "20", [], {"prompt_tokens": -5}, {"prompt_tokens": 1.5}, {"prompt_tokens": "many"},
           {"prompt_tokens": True}, {"prompt_tokens": 9, "prompt_tokens_details": [1]},
           {"prompt_tokens": float("nan")}, {"prompt_tokens": float("inf")}, {"prompt_tokens": 1e30}]  # fmt: skip
    for value in bad:
        answer = teacher_of("openai").parse(chat(" 4") | {"usage": value}, ONE)
        assert (answer.usage, answer.rollouts[0].text) == (None, " 4"), value
    assert usage_of("anthropic", claude(TEXT) | {"usage": {"input_tokens": 1.5}}) is None
    assert usage_of("gemini", gemini({"text": " 4"}) | {"usageMetadata": {"promptTokenCount": "x"}}) is None


RATES = Rates(input=1.0, output=5.0, cached_input=0.1, cache_write=1.25, source="test")


def test_what_is_written_to_a_cache_is_priced():
    details = {"cached_tokens": 20, "cache_write_tokens": 40}
    usage = usage_of("openai", chat(" 4") | {"usage": {
        "prompt_tokens": 100, "completion_tokens": 10, "prompt_tokens_details": details}})  # fmt: skip
    assert RATES.nusd(usage) == round((40 * 1 + 20 * 0.1 + 40 * 1.25 + 10 * 5) * NANO / 1e6)
    split = {"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 10}
    body = {"input_tokens": 40, "cache_read_input_tokens": 20, "cache_creation_input_tokens": 40, "output_tokens": 10,
            "cache_creation": split}  # fmt: skip
    usage = usage_of("anthropic", claude(TEXT) | {"usage": body})
    assert (usage.prompt_tokens, usage.cache_write_tokens) == (100, 40)
    assert RATES.nusd(usage) == round((40 * 1 + 20 * 0.1 + 30 * 1.25 + 10 * 2 + 10 * 5) * NANO / 1e6)
    del body["cache_creation_input_tokens"]
    assert usage_of("anthropic", claude(TEXT) | {"usage": body}) == usage


def test_the_worst_case_covers_a_prompt_that_is_written_to_a_cache():
    assert RATES.nusd(teacher_of("openai").worst_case(ONE)) >= RATES.nusd(
        usage_of("openai", chat(" 4") | {"usage": {"prompt_tokens": 200, "completion_tokens": 16,
                                                    "prompt_tokens_details": {"cache_write_tokens": 200}}})
    )  # fmt: skip
    hour = TeacherConfig(kind="anthropic", model="m", base_url="http://127.0.0.1:1",
                         extra={"cache_control": {"type": "ephemeral", "ttl": "1h"}})  # fmt: skip
    worst = asyncio.run(find_dialect("anthropic").find(hour, Silent())).worst_case(ONE)
    assert RATES.nusd(worst) == round((worst.prompt_tokens * 2.0 + 16 * 5) * NANO / 1e6)


def test_a_missing_finish_reason_is_an_end_where_the_bill_shows_that_nothing_was_cut():
    body = chat("four", None)
    assert parsed("openai", body) == ("ok", "four", None)
    assert parsed("openai", body | {"usage": {"prompt_tokens": 5, "completion_tokens": 3}})[2] == "stop"
    assert parsed("openai", body | {"usage": {"prompt_tokens": 5, "completion_tokens": 16}})[2] is None
