"""Prompts for students of several kinds: chats, thinking on and off, filters, and the named recipes."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from omniopd.stages.generate.prompts import asked, read_questions, render
from omniopd.store import recipes
from omniopd.store.config import Config
from omniopd.store.conversation import Conversation
from omniopd.store.errors import ConfigError, InputError
from omniopd.store.sections import DataConfig

THINKING_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""The end of Qwen3's own template."""


def write(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def tokenizer(student):
    return AutoTokenizer.from_pretrained(student)


@pytest.mark.parametrize(
    ("thinking", "ending"), [(None, "assistant\n"), (True, "assistant\n"), (False, "</think>\n\n")]
)
def test_thinking_is_a_switch_of_the_chat_template(tokenizer, thinking, ending):
    tokenizer.chat_template = THINKING_TEMPLATE
    (prompt,) = render([Conversation.of("2+2")], DataConfig(enable_thinking=thinking), tokenizer)
    assert prompt.text.startswith("<|im_start|>user\n2+2<|im_end|>")
    assert prompt.text.endswith(ending)
    assert prompt.question == "2+2"


def test_a_base_model_reads_the_template_alone(tokenizer):
    tokenizer.chat_template = None
    (prompt,) = render(
        [Conversation.of("2+2")], DataConfig(template="Q: {question}\nA:", enable_thinking=True), tokenizer
    )
    assert prompt.text == "Q: 2+2\nA:"
    with pytest.raises(InputError, match="has no chat template"):
        render([Conversation.of("2+2")], DataConfig(chat_template="on"), tokenizer)


def test_long_prompts_are_dropped_by_their_tokens(tokenizer):
    kept = render(
        [Conversation.of("2+2"), Conversation.of("2+2+2+2+2+2+2")], DataConfig(max_prompt_tokens=5), tokenizer
    )
    assert [prompt.question for prompt in kept] == ["2+2"]
    with pytest.raises(InputError, match=r"No prompt has at most 1 tokens.*max_prompt_tokens"):
        render([Conversation.of("2+2")], DataConfig(max_prompt_tokens=1), tokenizer)


def test_a_filter_is_sql_over_the_columns(tmp_path):
    rows = [{"question": "a", "ability": "code"}, {"question": "b", "ability": "math"}]
    path = write(tmp_path / "p.jsonl", rows)
    assert read_questions(DataConfig(prompts=path, filter="ability = 'code'")) == [Conversation.of("a")]
    with pytest.raises(InputError, match=r"no condition over .*columns: question, ability"):
        read_questions(DataConfig(prompts=path, filter="abilty = 'code'"))
    with pytest.raises(InputError, match=r"holds no question in column 'question' after data\.filter"):
        read_questions(DataConfig(prompts=path, filter="ability = 'art'"))


def test_the_papers_template_is_that_of_table_7(tokenizer):
    data = Config.model_validate(recipes.recipe("dapo-math-17k")).data
    assert data.template == (
        "Solve the following math problem step by step. The last line of your response should be of the form Answer:"
        " $Answer (without quotes) where $Answer is the answer to the problem.\n\n{question}"
    )


def test_the_recipes_read_data_of_their_shape(tmp_path):
    """The hub's own files cannot be reached from a test: rows of the same columns stand in for them."""
    math = write(tmp_path / "math.jsonl", [{"prompt": "1+1?", "solution": "2"}, {"prompt": "1+1?", "solution": "2"}])
    chat = [{"role": "system", "content": "[ASSESS]"}, {"role": "user", "content": "two sum"}]
    code = write(tmp_path / "code.jsonl", [{"prompt": chat, "ability": a} for a in ("code", "math")])
    for name, path, expected in (("dapo-math-17k", math, ["1+1?"]), ("prime-code", code, ["two sum"])):
        data = DataConfig(**recipes.recipe(name)["data"]).model_copy(update={"prompts": path})
        questions = read_questions(data)
        assert [question.question for question in questions] == expected
        assert all(asked(question, data).is_question for question in questions), "as the paper asks it"


def test_a_template_without_a_place_for_the_question_is_refused(make_run):
    run = make_run()
    with pytest.raises(ConfigError, match=r"template has no \{question\}"):
        run.config(("data.template=Solve it",))
