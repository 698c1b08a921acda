"""What is handed over: the card, the exported folder, the data set, and the hub that they are pushed to."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from huggingface_hub import DatasetCard, ModelCard

from omniopd.store.errors import InputError, UsageError
from omniopd.view.card import markdown, read_card
from omniopd.view.handover import export_dataset, export_policy
from support.hub import Hub
from support.written_run import add_evaluation


@pytest.fixture
def trained_run(written_run, student):
    """The written run with a policy, which are the student's weights, and two evaluations."""
    shutil.copytree(student, written_run.round(0).policy)
    add_evaluation(written_run, 0, [True, False, False, False]).finish()
    add_evaluation(written_run, 1, [True, True, True, False]).finish()
    return written_run


def test_the_card_says_where_the_policy_comes_from_how_good_it_is_and_what_it_cost(trained_run):
    text = markdown(read_card(trained_run, trained_run.config()))
    for said in (
        "**student** distilled from", "| aime24 | 25.0 [", "| 75.0 [", "| 4 | math_verify |", "| 180 | $0.01 |",
        "4 times ($0.01): 120 prompt tokens and 60 written ones", "generate.", "Sampled by: test.",
    ):  # fmt: skip
        assert said in text, said


def test_model_hubs_read_its_metadata(trained_run):
    card = ModelCard(markdown(read_card(trained_run, trained_run.config())))
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    assert "omniopd" in card.data.tags
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("aime24", "pass@1", 75.0)
    assert card.data.base_model is None, "a folder of this machine is no model that a hub knows"
    card = read_card(trained_run, trained_run.config()).model_copy(update={"student": "Qwen/Qwen3-1.7B"})
    assert ModelCard(markdown(card)).data.base_model == "Qwen/Qwen3-1.7B"


def test_neither_a_key_nor_an_address_nor_a_folder_of_this_machine_is_in_it(trained_run):
    secrets = (
        "teacher.base_url=https://user:pass@inside.example/v1", "teacher.api_key_env=SECRET_VARIABLE",
        f"data.prompts={trained_run.path / 'prompts.jsonl'}",
    )  # fmt: skip
    text = markdown(read_card(trained_run, trained_run.config(secrets)))
    for secret in ("inside.example", "SECRET_VARIABLE", str(trained_run.path.parent)):
        assert secret not in text


def test_a_run_without_a_policy_has_no_card(written_run):
    with pytest.raises(InputError, match="no trained policy yet") as caught:
        read_card(written_run, written_run.config())
    assert "omniopd run" in caught.value.hint


def test_an_exported_policy_loads_and_has_its_card_under_its_own_name(trained_run, tmp_path):
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "my-student"
    export_policy(trained_run, trained_run.config(), None, folder, "bfloat16")
    card = ModelCard.load(folder / "README.md")
    assert card.data.model_name == "my-student"
    assert "# my-student" in card.text
    assert AutoModelForCausalLM.from_pretrained(folder).config.dtype is not None


def test_the_data_set_is_loaded_by_its_card(trained_run, tmp_path):
    from datasets import load_dataset

    folder = tmp_path / "data"
    said = export_dataset(trained_run, folder)
    assert said.startswith("2 trajectories, 4 chunks, 12 rollouts")
    for name in ("trajectories", "chunks", "rollouts"):
        table = getattr(trained_run.round(0), name).read()
        loaded = load_dataset(str(folder), name, split="train", cache_dir=str(tmp_path / "cache"))
        assert loaded.to_list() == table.to_pylist()
    card = DatasetCard.load(folder / "README.md")
    assert [config["config_name"] for config in card.data.configs] == ["trajectories", "chunks", "rollouts"]
    assert "| `anchor_entropy` | entropy at the anchor [nats] |" in card.text
    with pytest.raises(UsageError, match="exists"):
        export_dataset(trained_run, folder)


# -- the hub


def export(run, folder, hub, *words, token="hf_test"):
    env = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(folder.parent), "HF_TOKEN": token}
    command = [sys.executable, "-m", "omniopd", "export", run.path, folder, "--push-to-hub", "me/student", *words]
    # Not forked: where the hub is, its client reads when it is imported.
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=120)


def test_a_policy_and_its_card_are_pushed(trained_run, tmp_path):
    with Hub() as hub:
        done = export(trained_run, tmp_path / "out", hub)
        assert done.returncode == 0, done.stderr
        assert hub.created == [{"type": "model", "name": "student", "organization": "me", "visibility": "private"}]
        assert hub.tokens == {"Bearer hf_test"}
        for name in ("README.md", "config.json", "model.safetensors"):
            assert hub.files[name] == (tmp_path / "out" / name).read_bytes()
    assert f"pushed to {hub.url}/me/student" in done.stdout


def test_a_data_set_is_pushed_as_one(trained_run, tmp_path):
    with Hub() as hub:
        done = export(trained_run, tmp_path / "out", hub, "--dataset", "--public")
        assert done.returncode == 0, done.stderr
        assert (hub.created[0]["type"], hub.created[0]["visibility"]) == ("dataset", "public")
        assert {"README.md", "rollouts/round-000.parquet"} <= set(hub.files)


def test_without_a_token_nothing_is_written(trained_run, tmp_path):
    with Hub() as hub:
        done = export(trained_run, tmp_path / "out", hub, token="")
    assert done.returncode == 3
    assert done.stderr.strip().splitlines()[-1].startswith("omniopd: No token of the Hugging Face hub is here. Run")
    assert not (tmp_path / "out").exists()


def test_a_hub_that_refuses_is_one_line(trained_run, tmp_path):
    with Hub(refuse=403) as hub:
        done = export(trained_run, tmp_path / "out", hub)
    assert done.returncode == 3
    assert "omniopd: The hub refuses me/student: 403: " in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out" / "README.md").is_file(), "what was exported stays"


def test_programs_read_the_card(trained_run):
    card = json.loads(read_card(trained_run, trained_run.config()).model_dump_json())
    assert set(card) == {
        "version", "name", "student", "teacher", "data", "policy", "rounds", "evaluations", "spend", "settings", "chat",
        "engine",
    }  # fmt: skip
