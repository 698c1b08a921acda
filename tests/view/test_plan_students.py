"""`plan` refuses a student that the trainer could not take, with the line that `generate` has, and imports no torch."""

import json
import shutil

import pytest

from omniopd.store.architecture import check_config_json, check_student
from omniopd.store.errors import InputError
from omniopd.view.plan import plan
from support.runs import STUDENT, change_student


@pytest.fixture
def student(tmp_path):
    return shutil.copytree(STUDENT, tmp_path / "model")


MISTRAL = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "layer_types": None}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"tie_word_embeddings": False}, "has no weight lm_head.weight"),
        ({"model_type": "gpt2"}, "does not support the architecture gpt2"),
        ({"attention_bias": True}, "does not support attention_bias"),
        ({"hidden_act": "gelu"}, "does not support hidden_act = gelu"),
        (MISTRAL | {"sliding_window": 8}, "does not support sliding_window = 8"),
    ],
)
def test_plan_and_the_whole_check_refuse_with_the_same_line(make_run, student, changes, line):
    run = make_run(student={"model": str(student)})
    change_student(student, **changes)
    with pytest.raises(InputError, match=line) as planned:
        plan(run, run.config())
    with pytest.raises(InputError) as whole:
        check_student(student)
    assert str(planned.value) == str(whole.value)


def test_plan_refuses_weights_that_are_cut_off(make_run, student):
    run = make_run(student={"model": str(student)})
    (student / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(InputError, match="cannot be read"):
        plan(run, run.config())


def test_plan_refuses_a_folder_with_two_models(make_run, student):
    run = make_run(student={"model": str(student)})
    (student / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "a.safetensors"}}))
    with pytest.raises(InputError, match="holds two models"):
        plan(run, run.config())


@pytest.mark.parametrize("key", ["rope_type", "type"])
def test_rope_scaling_as_older_folders_write_it(student, key):
    change_student(student, rope_parameters=None, rope_scaling={key: "yarn", "factor": 4.0})
    check_config_json(student)
    change_student(student, rope_scaling={key: "dynamic", "factor": 4.0})
    with pytest.raises(InputError, match="does not support rope_parameters"):
        check_config_json(student)
