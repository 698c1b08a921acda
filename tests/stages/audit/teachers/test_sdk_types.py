"""Requests and answers against the typed models of the official SDKs.

A body that a dialect writes must be one that the SDK's own types take; an answer that the SDK's models write, with all
their fields, must be read.
"""

import asyncio
import itertools

import pytest
from pydantic import ConfigDict, TypeAdapter, create_model

from omniopd.stages.audit.teacher import Ask, Reply
from omniopd.stages.audit.teachers import openai as dialect_of_openai
from omniopd.stages.audit.teachers.registry import find_dialect
from omniopd.store.conversation import Conversation
from omniopd.store.sections import TeacherConfig

pytestmark = pytest.mark.slow

PREFIXES = ("", "The sum is ", "one two \n three")
SYSTEMS = ("", "Be brief.")
SEEDS = (None, 7)
HOSTS = ("vllm", "api.openai.com", "api.mistral.ai")
BEYOND = {"continue_final_message", "add_generation_prompt", "add_special_tokens"}
"""Fields of vLLM and SGLang that OpenAI's API does not have."""


class Server:
    def __init__(self, completions):
        self.completions = completions

    async def get(self, url, headers):
        return Reply(200, {})

    async def post(self, url, headers, body):
        return Reply(400 if self.completions else 404, None)


def find(kind, completions=False, **values):
    config = TeacherConfig(kind=kind, base_url="http://127.0.0.1:1/v1", **values)
    return asyncio.run(find_dialect(kind).find(config, Server(completions)))


CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
CHAT = Conversation.made(
    [
        {"role": "system", "content": "You add."},
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "", "tool_calls": [CALL, {**CALL, "id": "c2"}]},
        {"role": "tool", "tool_call_id": "c1", "content": "4"},
        {"role": "tool", "tool_call_id": "c2", "content": "4"},
        {"role": "assistant", "content": "Four."},
        {"role": "user", "content": "And 3+3?"},
    ],
    [{"type": "function", "function": {"name": "add", "description": "Add.", "parameters": {
        "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}},
     {"type": "function", "function": {"name": "now"}}],
)  # fmt: skip


def asks(most):
    for asked, prefix, seed in itertools.product((Conversation.of("Q"), CHAT), PREFIXES, SEEDS):
        yield Ask(asked, "<s>Q\n", prefix, most, 16, seed, cuts=(4, 9), holds_bos=True)


def strictly(adapter, body):
    """Validate a body, and that the type knows each of its fields: TypedDicts ignore what they do not know."""
    validated = adapter.validate_python(body)
    assert _plain(validated) == body


def _plain(value):
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple) or hasattr(value, "__next__"):
        return [_plain(part) for part in value]
    return value


def test_openai_bodies_are_those_of_the_sdk(monkeypatch, record_property):
    from openai.types import completion_create_params
    from openai.types.chat import completion_create_params as chat_params

    chat = TypeAdapter(chat_params.CompletionCreateParamsNonStreaming)
    raw = TypeAdapter(completion_create_params.CompletionCreateParamsNonStreaming)
    bodies = 0
    for host, system in itertools.product(HOSTS, SYSTEMS):
        if host != "vllm":
            monkeypatch.setitem(dialect_of_openai.HOSTS, "127.0.0.1", dialect_of_openai.HOSTS[host])
        for continuation in ("completion", "prefill", "instruct"):
            if continuation == "completion" and system:
                continue
            extra = {"reasoning_effort": "low", "service_tier": "flex"} if continuation != "completion" else {}
            teacher = find("openai", continuation=continuation, system=system, model="m", extra=extra)
            for refusals, ask in itertools.product(range(3), asks(4)):
                if refusals:
                    teacher.adapt(400, ["", "'n' must be at most 1", "'temperature' is not supported"][refusals])
                request = teacher.request(ask)
                body = {name: value for name, value in request.body.items() if name not in BEYOND}
                if host == "api.mistral.ai":  # a field of Mistral's in the message itself
                    for message in body.get("messages", []):
                        message.pop("prefix", None)
                strictly(raw if request.path == "/completions" else chat, body)
                bodies += 1
    record_property("bodies", bodies)
    assert bodies == 540


def test_anthropic_bodies_are_those_of_the_sdk(record_property):
    from anthropic.types import message_create_params

    adapter = TypeAdapter(message_create_params.MessageCreateParamsNonStreaming)
    bodies = 0
    extra = {"thinking": {"type": "disabled"}, "service_tier": "standard_only"}
    for model, system, told in itertools.product(("claude-haiku-4-5", "claude-opus-4-7"), SYSTEMS, (1.0, 0.7)):
        teacher = find("anthropic", model=model, system=system, extra=extra, temperature=told)
        for ask in asks(1):
            body = dict(teacher.request(ask).body)
            # A field of the API version 2023-06-01, which is the one that is asked for; later ones and the SDK lack it.
            assert body.pop("temperature", 1.0) == told
            strictly(adapter, body)
            bodies += 1
    record_property("bodies", bodies)
    assert bodies == 96


def test_gemini_bodies_are_those_of_the_sdk(record_property):
    from google.genai import types

    known = {"contents": (list[types.Content], ...), "generationConfig": (types.GenerationConfig, ...),
             "systemInstruction": (types.Content | None, None), "tools": (list[types.Tool] | None, None),
             "toolConfig": (types.ToolConfig | None, None)}  # fmt: skip
    model_of_body = create_model("Body", __config__=ConfigDict(extra="forbid"), **known)
    bodies = 0
    for model, system in itertools.product(("gemini-2.0-flash", "gemini-2.5-pro", "gemini-3-pro"), SYSTEMS):
        teacher = find("gemini", model=model, system=system, extra={"generationConfig": {"topP": 0.9}})
        for refusal, ask in itertools.product(("", "thinking budget 0 is invalid", "use thinking_level"), asks(1)):
            if refusal:
                teacher.adapt(400, refusal)
            body = teacher.request(ask).body
            read = model_of_body.model_validate(body)  # the SDK's models forbid what they do not know
            assert read.generationConfig.max_output_tokens == body["generationConfig"]["maxOutputTokens"]
            assert read.contents[0].parts[0].text == "Q"
            bodies += 1
    record_property("bodies", bodies)
    assert bodies == 216


def test_openai_answers_of_the_sdk_are_read(record_property):
    from openai.types import Completion, CompletionUsage
    from openai.types.chat import ChatCompletion, ChatCompletionMessage
    from openai.types.completion_usage import CompletionTokensDetails, PromptTokensDetails

    usage = CompletionUsage(
        prompt_tokens=20, completion_tokens=8, total_tokens=28,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=5, cache_write_tokens=4, audio_tokens=0),
        completion_tokens_details=CompletionTokensDetails(reasoning_tokens=3),
    )  # fmt: skip
    teacher = find("openai", model="m")
    expected = {
        ("stop", "four"): ("ok", "four"), ("length", "four"): ("ok", "four"), ("stop", ""): ("empty", ""),
        ("length", None): ("failed", None), ("content_filter", "four"): ("filtered", None),
        ("tool_calls", None): ("failed", None), ("function_call", None): ("failed", None),
    }  # fmt: skip
    answers = 0
    for (finish, text), outcome in expected.items():
        message = ChatCompletionMessage(role="assistant", content=text)
        body = ChatCompletion.model_validate(
            {"id": "c", "created": 1, "model": "m", "object": "chat.completion", "usage": usage,
             "choices": [{"index": 0, "finish_reason": finish, "message": message}]}
        ).model_dump(mode="json")  # fmt: skip
        answer = teacher.parse(body, Ask(Conversation.of("Q"), "Q\n", "The", 1, 16))
        assert (answer.rollouts[0].status, answer.rollouts[0].text) == outcome
        assert (answer.usage.prompt_tokens, answer.usage.cached_tokens, answer.usage.cache_write_tokens) == (20, 5, 4)
        answers += 1
    refusal = ChatCompletionMessage(role="assistant", content=None, refusal="no").model_dump(mode="json")
    body["choices"][0] = {"index": 0, "finish_reason": "stop", "message": refusal}
    assert teacher.parse(body, Ask(Conversation.of("Q"), "Q\n", "The", 1, 16)).rollouts[0].status == "refused"
    for finish in ("stop", "length", "content_filter"):
        body = Completion.model_validate(
            {"id": "c", "created": 1, "model": "m", "object": "text_completion", "usage": usage,
             "choices": [{"index": 0, "finish_reason": finish, "text": "four", "logprobs": None}]}
        ).model_dump(mode="json")  # fmt: skip
        (rollout,) = (
            find("openai", completions=True, model="m")
            .parse(body, Ask(Conversation.of("Q"), "Q\n", "The", 1, 16))
            .rollouts
        )
        assert rollout.status == ("filtered" if finish == "content_filter" else "ok")
        answers += 1
    record_property("answers", answers + 1)
    assert answers + 1 == 11


def test_anthropic_answers_of_the_sdk_are_read(record_property):
    from typing import get_args

    from anthropic.types import CacheCreation, Message, StopReason, TextBlock, ThinkingBlock, Usage

    usage = Usage(
        input_tokens=9, output_tokens=4, cache_read_input_tokens=3, cache_creation_input_tokens=6,
        cache_creation=CacheCreation(ephemeral_1h_input_tokens=2, ephemeral_5m_input_tokens=4),
    )  # fmt: skip
    text = TextBlock(type="text", text=" four", citations=None)
    thought = ThinkingBlock(type="thinking", thinking="hm", signature="s")
    with_text = dict.fromkeys(get_args(StopReason), "ok") | {"refusal": "refused"}
    without = dict.fromkeys(get_args(StopReason), "failed") | {"refusal": "refused"}
    answers = 0
    for content, outcomes in (([text], with_text), ([thought, text], with_text), ([thought], without)):
        for stop, status in outcomes.items():
            body = Message(
                id="m", type="message", role="assistant", model="claude-opus-4-7", content=content, stop_reason=stop,
                stop_sequence=None, usage=usage,
            ).model_dump(mode="json")  # fmt: skip
            answer = find("anthropic", model="claude-opus-4-7").parse(
                body, Ask(Conversation.of("Q"), "Q\n", "The", 1, 16)
            )
            assert answer.rollouts[0].status == status, (stop, len(content))
            assert answer.usage.prompt_tokens == 18
            assert (answer.usage.cache_write_tokens, answer.usage.cache_write_1h_tokens) == (6, 2)
            answers += 1
    record_property("answers", answers)
    assert answers == 3 * len(get_args(StopReason))


def test_gemini_answers_of_the_sdk_are_read_and_each_finish_reason_is_typed(record_property):
    from google.genai import types

    usage = types.GenerateContentResponseUsageMetadata(
        prompt_token_count=20, cached_content_token_count=5, candidates_token_count=4, thoughts_token_count=3,
        total_token_count=27,
    )  # fmt: skip
    teacher = find("gemini", model="gemini-2.5-flash")
    answers, typed = 0, {}
    for reason in types.FinishReason:
        for parts in ([types.Part(text=" four")], [types.Part(text="hm", thought=True)]):
            body = types.GenerateContentResponse(
                candidates=[types.Candidate(content=types.Content(role="model", parts=parts), finish_reason=reason)],
                model_version="models/gemini-2.5-flash", usage_metadata=usage,
            ).model_dump(mode="json", by_alias=True)  # fmt: skip
            answer = teacher.parse(body, Ask(Conversation.of("Q"), "Q\n", "The sum is", 1, 16))
            typed.setdefault(answer.rollouts[0].status, set()).add((reason.value, bool(parts[0].thought)))
            assert (answer.model, answer.usage.prompt_tokens, answer.usage.cached_tokens) == (
                *("gemini-2.5-flash", 20, 5),
            )
            assert answer.usage.completion_tokens == 7
            answers += 1
    assert typed["ok"] == {("STOP", False), ("MAX_TOKENS", False)}
    assert {("STOP", True), ("MAX_TOKENS", True), ("OTHER", False), ("MALFORMED_RESPONSE", False)} <= typed["failed"]
    assert {("SAFETY", False), ("MODEL_ARMOR", True)} <= typed["filtered"]
    assert set(typed) == {"ok", "failed", "filtered"}
    for blocked in types.BlockedReason:
        body = types.GenerateContentResponse(
            prompt_feedback=types.GenerateContentResponsePromptFeedback(block_reason=blocked), usage_metadata=usage
        ).model_dump(mode="json", by_alias=True)
        assert teacher.parse(body, Ask(Conversation.of("Q"), "Q\n", "The", 1, 16)).rollouts[0].status == "filtered"
        answers += 1
    record_property("answers", answers)
    assert answers == 2 * len(types.FinishReason) + len(types.BlockedReason)
