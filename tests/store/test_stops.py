"""Where a student's responses end."""

import json

import pytest

from omniopd.store.config import Config
from omniopd.store.model import stop_ids, unheard_end_of_turn
from support import tokenizers as kit
from support.tokenizers import EOS, TURN

CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}END{% endfor %}"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, {EOS}),
        ({"config.json": 7}, {EOS, 7}),
        ({"generation_config.json": [7, 8], "config.json": 9}, {EOS, 7, 8, 9}),
        ({"generation_config.json": None, "config.json": [9]}, {EOS, 9}),
    ],
)
def test_stop_tokens_are_those_of_both_configs_the_tokenizer_and_the_user(tmp_path, files, expected):
    for name, eos in files.items():
        (tmp_path / name).write_text(json.dumps({"eos_token_id": eos}))
    assert stop_ids(tmp_path, kit.byte_level(), Config()) == expected
    mine = Config.model_validate({"generate": {"stop_token_ids": [3]}})
    assert stop_ids(tmp_path, kit.byte_level(), mine) == expected | {3}


@pytest.mark.parametrize(
    ("end", "stops", "found"),
    [
        ("<|im_end|>", {EOS}, ("<|im_end|>", TURN)),
        ("<|im_end|>\n", {EOS}, ("<|im_end|>", TURN)),
        ("<|im_end|>", {EOS, TURN}, None),
        ("</s>", {EOS}, None),
        ("\n", {EOS}, None),
        ("", {EOS}, None),
    ],
)
def test_a_template_whose_end_of_turn_stops_nothing_is_noticed(end, stops, found):
    tokenizer = kit.byte_level()
    tokenizer.chat_template = CHAT.replace("END", end)
    assert unheard_end_of_turn(tokenizer, frozenset(stops)) == found
