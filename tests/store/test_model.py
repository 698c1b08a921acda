"""Models on disk: the tokenizer is AutoTokenizer's, without what AutoTokenizer imports."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import omniopd
from omniopd.store.model import TOKENIZER_CLASSES, load_tokenizer

MODELS = Path(omniopd.__file__).parent / "demo" / "models"
TEXTS = [
    "27+58-14+35\n",
    "Then 9 plus 16, that is 25.",
    " \t\n\nAn\u0303b \u4e16\u754c \U0001f389  x",
    "<eos> 1<bos>",
    "",
]


def same(one, other):
    assert type(one) is type(other)
    assert one.backend_tokenizer.to_str() == other.backend_tokenizer.to_str()
    assert [one(text)["input_ids"] for text in TEXTS] == [other(text)["input_ids"] for text in TEXTS]
    assert one.special_tokens_map == other.special_tokens_map
    assert one.chat_template == other.chat_template
    assert (len(one), one.eos_token_id, one.model_max_length) == (
        len(other),
        other.eos_token_id,
        other.model_max_length,
    )


@pytest.mark.parametrize("name", sorted(path.name for path in MODELS.iterdir()))
def test_the_shipped_models_have_the_tokenizer_that_auto_tokenizer_gives_them(name):
    from transformers import AutoTokenizer

    same(load_tokenizer(MODELS / name), AutoTokenizer.from_pretrained(MODELS / name))


@pytest.fixture
def folder_of(tmp_path, student):
    """(model_type, tokenizer_class) -> a folder that says so."""

    def make(model_type, tokenizer_class):
        folder = tmp_path / f"{model_type}-{tokenizer_class}"
        shutil.copytree(MODELS / "worded-student", folder)
        # Some classes add special tokens of their own.
        for name, change in (
            ("config.json", {"model_type": model_type, "vocab_size": 512}),
            (
                "tokenizer_config.json",
                {"tokenizer_class": tokenizer_class, "chat_template": "{{ messages[0].content }}"},
            ),
        ):
            path = folder / name
            path.write_text(json.dumps(json.loads(path.read_text()) | change))
        return folder

    return make


@pytest.mark.parametrize(
    ("model_type", "tokenizer_class"),
    [
        (model, name + fast)
        for model, name in TOKENIZER_CLASSES
        for fast in ("", "Fast")
        if name + fast != "TokenizersBackendFast"
    ],
)
def test_each_known_class_is_the_one_that_auto_tokenizer_takes(folder_of, model_type, tokenizer_class):
    from transformers import AutoTokenizer

    folder = folder_of(model_type, tokenizer_class)
    same(load_tokenizer(folder), AutoTokenizer.from_pretrained(folder))


@pytest.mark.parametrize("broken", ["tokenizer_config.json", "tokenizer_class", "model_type"])
def test_a_folder_that_says_less_or_something_else_is_left_to_auto_tokenizer(folder_of, broken):
    from transformers import AutoTokenizer

    folder = folder_of("gpt2" if broken == "model_type" else "qwen2", "TokenizersBackend")
    if broken == "tokenizer_config.json":
        (folder / broken).unlink()
    same(load_tokenizer(folder), AutoTokenizer.from_pretrained(folder))


def test_the_tokenizer_of_a_known_folder_needs_no_torch(folder_of):
    code = """
import sys
from pathlib import Path
from omniopd.store.model import load_tokenizer
for folder in sys.argv[1:]:
    load_tokenizer(Path(folder))
    print(sorted({"torch", "sklearn", "scipy", "pandas"} & set(sys.modules)))
"""
    folders = [str(folder_of(*key)) for key in TOKENIZER_CLASSES]
    result = subprocess.run([sys.executable, "-c", code, *folders], capture_output=True, text=True)
    assert result.stdout.split("\n") == ["[]"] * len(folders) + [""], result.stdout + result.stderr
