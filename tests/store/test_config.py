"""The config tree: defaults < file < overrides, and errors that name the cure."""

import re

import pytest

from omniopd.store.config import Config, commented_toml, load_config, made_with
from omniopd.store.errors import ConfigError

MINIMAL = """
[student]
model = "student"
[data]
prompts = "prompts.jsonl"
[teacher]
model = "teacher"
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(MINIMAL)
    return path


def test_overrides_win_over_the_file_and_the_file_over_defaults(path):
    path.write_text(MINIMAL + "rollouts = 7\n[train]\nlr = 1e-4\n")
    config = load_config(path, ["train.lr=2e-4", "student.model=Qwen/Qwen3-1.7B", "data.template='a {question}\\n'"])
    assert (config.train.lr, config.teacher.rollouts, config.score.alpha) == (2e-4, 7, 1.0)
    assert config.student.model == "Qwen/Qwen3-1.7B"
    assert config.data.template == "a {question}\\n"


def test_none_unsets_a_key_whose_default_is_unset_and_is_a_word_elsewhere(path):
    sections = {"student": 'model = "s"', "data": 'prompts = "p"\nlimit = 3\nanswer = "a"', "teacher": 'model = "t"'}
    sections["score"] = 'centre = "batch_mean"'
    path.write_text("".join(f"[{section}]\n{keys}\n" for section, keys in sections.items()))
    config = load_config(path, ["data.limit=none", "data.answer=none", "score.centre=none"])
    assert (config.data.limit, config.data.answer, config.score.centre) == (None, None, "none")
    assert load_config(path, ["teacher.model=none"]).teacher.model == "none"


def test_a_nested_override_reaches_its_table(path):
    config = load_config(path, ["teacher.price.input=1", "teacher.price.output=5.0", "teacher.budget_usd=2"])
    assert config.teacher.price is not None
    assert config.teacher.price.output == 5.0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.learning_rate=1", r"Unknown config key train\.learning_rate"),
        ("train.bata=1", r"Unknown config key train\.bata \(did you mean beta\?\)"),
        ("trainer.lr=1", r"Unknown config key trainer \(did you mean train\?\)"),
        ("train.lr=fast", r"train\.lr: .*number"),
        ("train.lr=-1", r"train\.lr: .*greater than 0"),
        ("lr", r"not of the form section\.key=value"),
        ("data.template=Solve", r"template has no \{question\}: put it where"),
        ("student.model=", r"student\.model is not set"),
    ],
)
def test_a_wrong_key_or_value_is_one_line_that_names_it(path, override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path, [override])
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_missing_file_and_broken_toml_say_so(tmp_path, path):
    with pytest.raises(ConfigError, match="omniopd init"):
        load_config(tmp_path / "nowhere" / "config.toml")
    path.write_text("[student\n")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_config(path)


def test_a_byte_order_mark_is_no_content_and_another_encoding_is_named(path):
    text = '[student]\nmodel = "caf\u00e9"\n[data]\nprompts = "p"\n[teacher]\nmodel = "t"\n'
    path.write_text(text, encoding="utf-8-sig")
    assert load_config(path).student.model == "caf\u00e9"
    for encoding in ("utf-16", "latin-1"):
        path.write_text(text, encoding=encoding)
        with pytest.raises(ConfigError, match=r"config\.toml is not UTF-8: .* at byte \d+\. Save it as UTF-8"):
            load_config(path)


def test_the_commented_file_documents_every_key_and_parses_to_the_defaults(path):
    text = commented_toml({"student": {"model": "s"}, "data": {"prompts": "p"}, "teacher": {"model": "t"}})
    path.write_text(text)
    assert load_config(path) == Config.model_validate(
        {"student": {"model": "s"}, "data": {"prompts": "p"}, "teacher": {"model": "t"}}
    )
    for section, field in Config.model_fields.items():
        for key, info in field.annotation.model_fields.items():
            assert info.description, f"{section}.{key} has no docstring"


def test_the_commented_defaults_are_valid_when_uncommented(path):
    lines = commented_toml(
        {"student": {"model": "s"}, "data": {"prompts": "p"}, "teacher": {"model": "t"}}
    ).splitlines()
    bare = [re.sub(r"^# (?=\w+ = )", "", line) for line in lines]
    path.write_text("\n".join(line for line in bare if not line.startswith("#")))
    assert load_config(path).train == Config().train


def test_settings_that_do_not_change_a_table_are_not_in_its_fingerprint():
    base = Config()
    faster = base.model_copy(update={"generate": base.generate.model_copy(update={"batch_size": 1, "part_rows": 3})})
    hotter = base.model_copy(update={"generate": base.generate.model_copy(update={"temperature": 0.5})})
    assert made_with(base, "trajectories") == made_with(faster, "trajectories")
    assert made_with(base, "trajectories") != made_with(hotter, "trajectories")
