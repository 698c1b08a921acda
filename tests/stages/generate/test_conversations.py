"""Chats as data sets have them: read whole, rendered whole, or refused with the row."""

import json

import pytest
from transformers import AutoTokenizer

from omniopd.stages.generate.prompts import read_questions, render
from omniopd.store.conversation import Conversation
from omniopd.store.errors import InputError
from omniopd.store.sections import DataConfig
from support.runs import STUDENT

CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 2}'}}
CHAT = [
    {"role": "system", "content": "You add."},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "4"},
    {"role": "assistant", "content": "Four."},
    {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "3+3?"}]},
]
TOOL = {"type": "function", "function": {"name": "add", "description": "Add.", "parameters": {"type": "object"}}}
TEMPLATE = (
    "{% if tools %}[{% for t in tools %}{{ t.function.name }}{% endfor %}]{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments.a }}){% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def read(tmp_path):
    """Write rows as JSON Lines, and read them as questions."""

    def reading(*rows, **data):
        path = tmp_path / "chats.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_questions(DataConfig(**{"prompts": str(path), "field": "messages", **data}))

    return reading


@pytest.fixture
def tokenizer():
    tokenizer = AutoTokenizer.from_pretrained(STUDENT)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def text_of(conversation, tokenizer, **data):
    (prompt,) = render([conversation], DataConfig(**data), tokenizer)
    return prompt.text


def test_a_chat_is_rendered_whole_with_its_system_prompt_and_tools(read, tokenizer):
    (chat,) = read({"messages": CHAT, "tools": [TOOL]})
    assert text_of(chat, tokenizer) == (
        "[add]<system>You add.<user>2+2?<assistant>add(2)<tool>4<assistant>Four.<user>And 3+3?<assistant>"
    )
    assert chat.question == "And 3+3?"
    assert chat.messages[2]["tool_calls"][0]["function"]["arguments"] == '{"a": 2, "b": 2}', "as OpenAI has it"


def test_only_the_last_user_message_is_put_into_the_template_of_the_question(read, tokenizer):
    (chat,) = read({"messages": CHAT})
    assert text_of(chat, tokenizer, template="{question} Think.").endswith("<user>And 3+3? Think.<assistant>")
    assert "<user>2+2?<" in text_of(chat, tokenizer, template="{question} Think.")


def test_a_system_prompt_is_added_replaced_or_dropped(read, tokenizer):
    chat, bare = read({"messages": CHAT}, {"messages": "1+1?"})
    assert text_of(chat, tokenizer, system="Be brief.").startswith("<system>Be brief.<user>2+2?")
    assert text_of(bare, tokenizer, system="Be brief.") == "<system>Be brief.<user>1+1?<assistant>"
    assert text_of(chat, tokenizer, system="").startswith("<user>2+2?")
    assert text_of(chat, tokenizer).startswith("<system>You add.")


def test_an_answer_at_the_end_is_the_students_to_write(read):
    chat, same = read({"messages": CHAT[:2] + CHAT[4:5]}, {"messages": CHAT})
    assert [turn["role"] for turn in chat.messages] == ["system", "user"]
    assert same.messages[-1]["role"] == "user"


def test_a_conversation_may_end_with_a_tools_result(read, tokenizer):
    (chat,) = read({"messages": CHAT[:4]})
    assert text_of(chat, tokenizer).endswith("<tool>4<assistant>")


def test_a_question_is_the_same_as_text_and_as_a_chat_of_one_message(read):
    (question,) = read({"messages": "1+1?"}, {"messages": [{"role": "user", "content": "1+1?"}]})
    assert question == Conversation.of("1+1?")
    assert question.identity == "1+1?"


def test_a_chat_may_be_json_in_a_column_of_texts(read):
    (chat,) = read({"messages": json.dumps(CHAT, indent=1)})
    assert chat == read({"messages": CHAT})[0]
    texts = ['[{"role": "user"', '[{"x": 1}, {"y": 2}]', "[{1, 2}] is a set in a list?"]
    assert [question.question for question in read(*({"messages": text} for text in texts))] == texts


def test_chats_that_end_with_the_same_question_are_different(read):
    first, second = read({"messages": CHAT}, {"messages": CHAT[1:]})
    assert first.question == second.question
    assert first.identity != second.identity


def test_arguments_and_ids_come_in_the_forms_that_data_sets_have(read):
    loose = {"function": {"name": "add", "arguments": {"a": 2, "b": None}}}
    chat = [CHAT[1], {"role": "assistant", "content": "", "tool_calls": [loose, loose]},
            {"role": "tool", "content": "4", "name": "add"}, {"role": "tool", "content": "5"}]  # fmt: skip
    (read_,) = read({"messages": chat, "tools": json.dumps([TOOL["function"]])})
    calls = read_.messages[1]["tool_calls"]
    assert [call["id"] for call in calls] == ["call_1", "call_2"]
    assert [turn["tool_call_id"] for turn in read_.messages[2:]] == ["call_1", "call_2"]
    assert calls[0]["function"]["arguments"] == '{"a": 2}', "null is how Parquet writes a field that is missing"
    assert read_.tools == [TOOL]
    assert read_.for_template()[1]["tool_calls"][0]["function"]["arguments"] == {"a": 2}


USER = CHAT[1]
IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}


@pytest.mark.parametrize(
    ("chat", "line"),
    [
        ([{"role": "user", "content": [IMAGE]}], "a user message with a part of type 'image_url', which is no text"),
        ([{"role": "user", "content": 5}], "a user message whose content is a number"),
        ([{"role": "user", "content": None}], "a user message whose content is null"),
        ([USER, {"role": "critic", "content": "x"}], "a message of role 'critic'"),
        ([USER, {**CHAT[3], "tool_call_id": "c9"}], "a tool's result without the call that it answers"),
        ([USER, CHAT[2], CHAT[3], CHAT[3]], "a tool's result without the call that it answers"),
        ([USER, CHAT[0], USER], "a system message behind another turn"),
        ([USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, USER],
         "a tool call whose arguments are no JSON"),
        ([USER, {"role": "assistant", "tool_calls": [{"name": "f"}]}, USER], "a tool call without a function's name"),
        (["hello"], "a list with a text"),
    ],
)  # fmt: skip
def test_what_is_no_chat_of_texts_is_refused_with_its_row(read, chat, line):
    with pytest.raises(InputError, match=r"chats.jsonl, line 2, column 'messages': ") as caught:
        read({"messages": CHAT}, {"messages": chat})
    assert line in caught.value.problem


def test_tools_that_are_none_are_refused_with_their_row(read):
    with pytest.raises(InputError, match=r"line 1, column 'tools': a tool without a function's name"):
        read({"messages": CHAT, "tools": "a hammer"})
    assert len(read({"messages": "1+1?", "tools": "a hammer"})) == 1, "a question has no tools"


def test_a_chat_needs_a_chat_template(read, tokenizer):
    (chat,) = read({"messages": CHAT})
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="the student has no chat template to write it with"):
        render([chat], DataConfig(), tokenizer)
    (short,) = read({"messages": CHAT[:2]})
    assert text_of(short, tokenizer, system="") == "2+2?"


def test_a_template_that_writes_no_tools_or_calls_is_said(read, tokenizer, capsys):
    (chat,) = read({"messages": CHAT, "tools": [TOOL]})
    render([chat], DataConfig(), tokenizer)
    assert capsys.readouterr().err == ""
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    render([chat, chat], DataConfig(), tokenizer)
    said = capsys.readouterr().err
    assert said.count("writes no tools:") == said.count("writes no tool calls:") == 1


def test_a_chat_without_a_user_message_is_no_question(read, capsys):
    assert len(read({"messages": CHAT[:1]}, {"messages": []}, {"messages": CHAT})) == 1


def test_a_person_sees_one_turn_a_line():
    chat = Conversation.made([CHAT[0], USER, {**CHAT[2], "content": ""}, CHAT[3]])
    assert str(chat).splitlines() == [
        "system: You add.", "user: 2+2?", 'assistant: add({"a": 2, "b": 2})', "tool: 4",
    ]  # fmt: skip
    assert str(Conversation.of("1+1?")) == "1+1?"
