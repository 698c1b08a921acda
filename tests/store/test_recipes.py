"""Recipes: layers, and lists of them for the rows of the paper's tables."""

import tomllib
from pathlib import Path

import pytest

from omniopd.store import recipes
from omniopd.store.config import Config, commented_toml, load_config
from omniopd.store.errors import UsageError
from omniopd.store.recipes import layer_files, recipe, recipe_rows

HUB = {
    "qwen3-32b": "Qwen/Qwen3-32B",
    "qwen3-30b-a3b-instruct": "Qwen/Qwen3-30B-A3B-Instruct-2507",
    "claude-haiku-4.5": "claude-haiku-4-5",
    "gemini-2.5-flash": "gemini-2.5-flash",
}
OPEN, PAID = ("qwen3-32b", "qwen3-30b-a3b-instruct"), ("claude-haiku-4.5", "gemini-2.5-flash")

# (table, student, teacher, method), as the paper prints them; its base rows train nothing.
ROWS = [
    *(("table1", student, "", "grpo") for student in ("qwen3-1.7b", "qwen3-4b")),
    *(("table1", "qwen3-1.7b", "qwen3-32b", method) for method in ("sft", "opd", "omniopd")),
    *(("table1", "qwen3-4b", teacher, method) for teacher in OPEN for method in ("sft", "opd", "omniopd")),
    *(("table1", "qwen3-4b", teacher, method) for teacher in PAID for method in ("sft", "omniopd")),
    *(("table2", s, "qwen3-32b", m) for s in ("qwen3-1.7b", "qwen3-4b") for m in ("sft", "opd", "omniopd")),
]


def name_of(table, student, teacher, method):
    return "/".join(part for part in (table, student, teacher, method) if part)


def config_of(names):
    return Config.model_validate(recipe(names))


def test_every_row_of_tables_1_and_2_is_there_once():
    named = [name for name in recipe_rows() if name.startswith(("table1/", "table2/"))]
    assert sorted(named) == sorted(name_of(*row) for row in ROWS)
    assert len(ROWS) == 21
    lists = [tuple(recipe_rows()[name]) for name in named]
    assert len(set(lists)) == len(lists)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: name_of(*row))
def test_a_row_is_what_the_paper_says(row, tmp_path):
    table, student, teacher, method = row
    path = tmp_path / "config.toml"
    path.write_text(commented_toml(recipe(name_of(*row))))
    config = load_config(path)
    assert config == config_of(name_of(*row)), "init writes every key of the recipe"

    assert config.student.model == f"Qwen/Q{student[1:].replace('b', 'B')}"
    assert config.data.prompts == {
        "table1": "open-r1/DAPO-Math-17k-Processed", "table2": "PRIME-RL/Eurus-2-RL-Data"
    }[table]  # fmt: skip
    assert config.train.objective == method
    assert config.teacher.model == HUB.get(teacher, "")
    assert config.train.teacher == (HUB[teacher] if teacher in OPEN else "")
    assert (config.teacher.base_url == "http://127.0.0.1:8000/v1") == (teacher in OPEN)
    # Section 5.1.
    assert (config.train.lr, config.train.epochs, config.train.micro_batch) == (1e-6, 1, 2)
    assert (config.generate.max_new_tokens, config.generate.temperature) == (20_000, 1.0)
    if method == "omniopd":
        assert (config.select.chunks, config.select.chunk_tokens, config.teacher.rollouts) == (10, 50, 10)
        assert (config.train.beta, config.score.phi, config.score.alpha) == (0.1, "edit", 1.0)
    if method == "sft":
        assert config.teacher.rollouts == 1
    if method == "opd":
        assert config.train.forward_kl == 0.5
    if method == "grpo":
        assert config.generate.samples_per_prompt >= 2
        assert config.data.answer is not None
    if teacher in PAID:
        assert config.data.per_round is not None
        steps_a_round = config.data.per_round / config.train.global_batch
        assert steps_a_round * config.run.rounds == 50


def test_table_5_has_the_other_similarity():
    rows = [name for name in recipe_rows() if name.startswith("table5/")]
    assert len(rows) == 3
    for name in rows:
        edit = config_of(f"table1/{name.removeprefix('table5/').removesuffix('rouge1')}omniopd")
        assert config_of(name) == edit.model_copy(update={"score": edit.score.model_copy(update={"phi": "rouge1"})})


@pytest.mark.parametrize("name", list(layer_files()))
def test_a_layer_has_known_keys_only(name):
    Config.model_validate(tomllib.loads(layer_files()[name].read_text()))


def test_names_of_layers_differ_and_each_of_the_papers_is_used():
    folder = Path(recipes.__file__).parent
    assert len(list(folder.rglob("*.toml"))) == len(layer_files()) + 1
    not_the_papers = {"draft"}
    assert {layer for layers in recipe_rows().values() for layer in layers} == set(layer_files()) - not_the_papers


def test_later_layers_override_earlier_ones_key_by_key():
    assert config_of("qwen3-1.7b,qwen3-4b").student.model == "Qwen/Qwen3-4B"
    assert config_of("qwen3-4b, qwen3-1.7b").student.model == "Qwen/Qwen3-1.7B"
    both = config_of("sft,grpo")
    assert (both.train.objective, both.teacher.rollouts, both.generate.samples_per_prompt) == ("grpo", 1, 8)


def test_another_teacher_on_top_of_a_row_leaves_nothing_of_the_one_before():
    folders = {name: path.parent.name for name, path in layer_files().items()}
    teachers = [name for name, folder in folders.items() if folder == "teacher"]
    keys = [{s: set(k) for s, k in recipe(name).items()} for name in teachers]
    assert all(one == keys[0] for one in keys)
    swapped = config_of("table1/qwen3-4b/gemini-2.5-flash/omniopd,gemini-3.6-flash")
    assert swapped == config_of("successor/qwen3-4b/gemini-3.6-flash/omniopd")


@pytest.mark.parametrize(
    ("name", "before"),
    [
        (
            "dapo-math-17k",
            {"prompts": "open-r1/DAPO-Math-17k-Processed", "subset": "all", "field": "prompt"},
        ),
        (
            "prime-code",
            {"prompts": "PRIME-RL/Eurus-2-RL-Data", "field": "prompt", "filter": "ability = 'code'",
             "template": "{question}"},
        ),
    ],
)  # fmt: skip
def test_a_data_set_alone_is_a_whole_recipe(name, before):
    values = recipe(name)
    expected = {
        "student": {"model": "Qwen/Qwen3-1.7B"},
        "data": before,
        "generate": {"max_new_tokens": 20000},
        "select": {"chunks": 10, "chunk_tokens": 50},
        "teacher": {"model": "Qwen/Qwen3-32B", "rollouts": 10},
        "train": {"beta": 0.1, "lr": 1e-6, "epochs": 1},
    }
    for section, keys in expected.items():
        assert keys.items() <= values[section].items()
    config = config_of(name)
    assert (config.run.rounds, config.data.per_round, config.student.engine) == (1, None, "auto")
    assert (config.train.global_batch, config.train.processes) == (64, 1)


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("dapo", r"did you mean dapo-math-17k\?"),
        ("table1/qwen3-4b/claude-haiku/omniopd", r"did you mean table1/qwen3-4b/claude-haiku-4\.5/omniopd\?"),
        ("qwen3-4b,opdd", r"no recipe 'opdd' \(did you mean opd\?\)"),
        ("qwen3-4b,", r"no recipe ''"),
    ],
)
def test_an_unknown_name_is_one_line_that_lists_what_there_is(name, close):
    with pytest.raises(UsageError, match=close) as caught:
        recipe(name)
    assert "Recipes: dapo-math-17k, prime-code, table1/" in str(caught.value)
    assert "layers: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_docs_price_every_row_and_name_every_layer():
    text = (Path(recipes.__file__).parents[2] / "docs" / "recipes.md").read_text()
    for name in [*recipe_rows(), *layer_files()]:
        assert f"`{name}`" in text, name
