"""A chat template that refuses says so in one line."""

import pytest

from omniopd.store.chat_template import render_chat
from omniopd.store.errors import InputError
from support import tokenizers as kit

USER = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("template", "line"),
    [
        ("{{ raise_exception('A system message\nis required') }}", "refuses the conversation: A system message is"),
        ("{{ messages[0].content + 1 }}", "refuses the conversation: can only concatenate"),
        ("{{ messages[0].content", "refuses the conversation: unexpected end of template"),
        ({"rag": "{{ documents }}", "tool_use": "{{ tools }}"}, r"no default .* names are \['rag', 'tool_use'\]"),
    ],
)
def test_a_template_that_raises_is_one_line(template, line):
    tokenizer = kit.byte_level()
    tokenizer.chat_template = template
    with pytest.raises(InputError, match=line) as caught:
        render_chat(tokenizer, USER)
    assert "\n" not in str(caught.value)
    assert 'data.chat_template = "off"' in caught.value.hint


def test_options_reach_the_template_and_what_it_does_not_know_is_ignored():
    tokenizer = kit.byte_level()
    tokenizer.chat_template = "{{ messages[0].content }}{% if add_generation_prompt %}>{% endif %}"
    assert render_chat(tokenizer, USER, add_generation_prompt=True, enable_thinking=False) == "hi>"
    assert render_chat(tokenizer, USER) == "hi"
