"""The same conversation in the dialects of the three providers, and in the text that the student read."""

import asyncio

import pytest

from omniopd.stages.audit.teacher import Ask, Reply
from omniopd.stages.audit.teachers.registry import find_dialect
from omniopd.store.conversation import Conversation
from omniopd.store.sections import TeacherConfig

CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
MESSAGES = [
    {"role": "system", "content": "You add."},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "4"},
    {"role": "user", "content": "So?"},
]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOL = {"type": "function", "function": {"name": "add", "description": "Add.", "parameters": SCHEMA}}
ASK = Ask(Conversation.made(MESSAGES, [TOOL]), "<system>You add.<user>2+2?...", "It is", 1, 16)


class Server:
    async def get(self, url, headers):
        return Reply(200, {})

    async def post(self, url, headers, body):
        return Reply(404, None)


def find(kind, **values):
    config = TeacherConfig(kind=kind, model="m", base_url="http://127.0.0.1:1/v1", **values)
    return asyncio.run(find_dialect(kind).find(config, Server()))


def test_openai_gets_the_turns_as_they_are_and_the_tools_but_no_leave_to_call_them():
    body = find("openai", continuation="prefill").request(ASK).body
    assert body["messages"][:2] == MESSAGES[:2]
    assert body["messages"][2] == {"role": "assistant", "content": None, "tool_calls": [CALL]}
    assert body["messages"][3:5] == MESSAGES[3:]
    assert body["messages"][5]["content"] == "It is"
    assert (body["tools"], body["tool_choice"]) == ([TOOL], "none")


def test_a_raw_completion_is_of_the_text_that_the_student_read():
    body = find("openai", continuation="completion").request(ASK).body
    assert body["prompt"] == ASK.prompt_text + ASK.prefix
    assert "tools" not in body


def test_anthropic_gets_blocks_with_results_and_user_turns_in_one_message():
    body = find("anthropic", continuation="prefill").request(ASK).body
    assert body["system"] == "You add."
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user", "assistant"]
    assert body["messages"][1]["content"] == [{"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 2}}]
    assert body["messages"][2]["content"] == [
        {"type": "tool_result", "tool_use_id": "c1", "content": "4"},
        {"type": "text", "text": "So?"},
    ]
    assert body["tools"] == [{"name": "add", "description": "Add.", "input_schema": SCHEMA}]
    assert body["tool_choice"] == {"type": "none"}


def test_gemini_gets_contents_with_calls_and_responses_by_name():
    body = find("gemini", continuation="prefill").request(ASK).body
    assert body["systemInstruction"] == {"parts": [{"text": "You add."}]}
    assert body["contents"] == [
        {"role": "user", "parts": [{"text": "2+2?"}]},
        {"role": "model", "parts": [{"functionCall": {"name": "add", "args": {"a": 2}}}]},
        {
            "role": "user",
            "parts": [{"functionResponse": {"name": "add", "response": {"result": "4"}}}, {"text": "So?"}],
        },
        {"role": "model", "parts": [{"text": "It is"}]},
    ]
    (tool,) = body["tools"]
    assert tool["functionDeclarations"] == [{"name": "add", "description": "Add.", "parametersJsonSchema": SCHEMA}]
    assert body["toolConfig"] == {"functionCallingConfig": {"mode": "NONE"}}


@pytest.mark.parametrize("kind", ["openai", "anthropic", "gemini"])
def test_the_teachers_own_system_prompt_stands_before_that_of_the_conversation(kind):
    body = find(kind, continuation="instruct", system="Be brief.").request(ASK).body
    both = "Be brief.\n\nYou add."
    assert both in (body.get("system"), body.get("messages", [{}])[0].get("content"),
                    body.get("systemInstruction", {}).get("parts", [{}])[0].get("text"))  # fmt: skip


@pytest.mark.parametrize("kind", ["openai", "anthropic", "gemini"])
def test_the_worst_case_counts_turns_and_tools(kind):
    teacher = find(kind, continuation="instruct")
    plain = teacher.worst_case(Ask(Conversation.of("So?"), "", "It is", 1, 16)).prompt_tokens
    whole = teacher.worst_case(ASK).prompt_tokens
    assert whole - plain >= sum(len(str(turn["content"])) for turn in MESSAGES) + len(str(SCHEMA)) + 800
