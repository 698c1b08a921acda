"""Trajectories: entropies and log-probs are those of the model, and a response is its own whatever the batch."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from omniopd.stages.generate.engine import Request, Sampling
from omniopd.stages.generate.engines.sampling import sample, uniforms
from omniopd.stages.generate.engines.transformers_engine import TransformersEngine
from omniopd.stages.generate.prompts import questions_of_round
from omniopd.stages.generate.stage import generate
from omniopd.stages.likelihood import log_probs_and_entropy
from omniopd.store.errors import ConfigChangedError, InputError
from omniopd.store.sections import DataConfig
from support.questions import read_questions

SAMPLING = Sampling(max_new_tokens=56, temperature=1.0, top_p=1.0, stop_ids=frozenset({2}))


@pytest.fixture
def rows(make_run):
    run = make_run(generate={"samples_per_prompt": 2, "max_new_tokens": 56, "batch_size": 5, "part_rows": 7})
    generate(run, 0, run.config())
    return run.round(0).trajectories.read().to_pylist()


def test_entropies_and_logprobs_equal_an_independent_forward_pass_in_float64(rows, student):
    """One sequence at a time, without cache or padding, softmax in float64: to 1e-4 nats."""
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32).eval()
    assert len(rows) == 24
    for row in rows:
        ids = torch.tensor([[*row["prompt_ids"], *row["response_ids"]]])
        with torch.no_grad():
            logits = model(ids).logits[0, len(row["prompt_ids"]) - 1 : -1].double()
        probs = torch.softmax(logits, dim=-1)
        entropy = -(probs * probs.log()).sum(dim=-1)
        logprob = probs.log().gather(1, torch.tensor(row["response_ids"])[:, None]).squeeze(1)
        assert np.abs(np.array(row["entropies"]) - entropy.numpy()).max() < 1e-4
        assert np.abs(np.array(row["logprobs"]) - logprob.numpy()).max() < 1e-4


def test_rows_are_whole_and_the_text_has_no_stop_token(rows):
    assert len({row["trajectory_id"] for row in rows}) == len(rows)
    for row in rows:
        assert len(row["response_ids"]) == len(row["logprobs"]) == len(row["entropies"]) <= 56
        assert row["prompt_text"] == row["question"]
        assert "<" not in row["response_text"]
        assert row["finish_reason"] in ("stop", "length")


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_response_does_not_depend_on_the_batch_it_is_sampled_in(student, batch_size):
    requests = [Request(f"{i:032x}", tuple(range(5, 8 + i % 4))) for i in range(9)]
    responses = {}
    for size in (batch_size, 4):
        engine = TransformersEngine(str(student), "float32", size)
        responses[size] = {r.trajectory_id: r for r in engine.generate(requests, SAMPLING)}
    for name, response in responses[4].items():
        other = responses[batch_size][name]
        assert response.ids_T.tolist() == other.ids_T.tolist()
        assert np.abs(response.entropies_T - other.entropies_T).max() < 1e-4


def test_sampling_follows_the_distribution():
    """A chi-square test against the exact probabilities, at temperature and nucleus."""
    logits = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0])
    log_probs, _ = log_probs_and_entropy(logits.expand(20_000, -1))
    draws = torch.from_numpy(uniforms("ab" * 16).random(20_000))
    for temperature, top_p in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.8)):
        expected = torch.softmax(logits.double() / temperature, dim=-1)
        if top_p < 1:
            expected[2:] = 0  # 0.63 + 0.23 reach 0.8
            expected /= expected.sum()
        counts = torch.bincount(sample(log_probs, draws, temperature, top_p), minlength=5).double()
        mass = expected > 0
        chi2 = ((counts - 20_000 * expected) ** 2)[mass] / (20_000 * expected[mass])
        assert counts[~mass].sum() == 0
        assert chi2.sum() < 20


def test_entropy_is_finite_where_tokens_are_masked_out():
    log_probs, entropy = log_probs_and_entropy(torch.tensor([[0.0, 0.0, float("-inf")]]))
    assert entropy.item() == pytest.approx(np.log(2))
    assert sample(log_probs, torch.tensor([0.999999]), 1.0, 1.0).item() == 1


def test_a_second_call_does_nothing_and_other_settings_are_refused(make_run):
    run = make_run()
    generate(run, 0, run.config())
    manifest = run.round(0).trajectories.manifest
    generate(run, 0, run.config(("generate.batch_size=3",)))
    assert run.round(0).trajectories.manifest == manifest
    with pytest.raises(ConfigChangedError, match=r"generate\.temperature from 1\.0 to 0\.7"):
        generate(run, 0, run.config(("generate.temperature=0.7",)))
    assert run.round(0).trajectories.manifest == manifest


def test_prompts_or_weights_that_changed_under_a_round_are_refused(make_run, student, tmp_path):
    import shutil

    own = tmp_path / "own"
    shutil.copytree(student, own)
    run = make_run(student={"model": str(own)})
    generate(run, 0, run.config())
    prompts = tmp_path / "run.jsonl"
    before = prompts.read_text()
    prompts.write_text(before.replace("+", "-", 1))
    with pytest.raises(ConfigChangedError, match="questions from"):
        generate(run, 0, run.config())
    prompts.write_text(before)
    weights = own / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ConfigChangedError, match="policy from"):
        generate(run, 0, run.config())


def test_the_same_prompts_and_weights_in_another_place_go_on_with_the_round(make_run, student, tmp_path):
    """A run that was moved to another machine, where both lie elsewhere."""
    import shutil

    run = make_run(questions=4)
    generate(run, 0, run.config())
    before = run.round(0).trajectories.manifest
    shutil.copytree(student, tmp_path / "student")
    (tmp_path / "run.jsonl").rename(tmp_path / "elsewhere.jsonl")
    moved = run.config((f"student.model={tmp_path / 'student'}", f"data.prompts={tmp_path / 'elsewhere.jsonl'}"))
    generate(run, 0, moved)
    assert run.round(0).trajectories.manifest.parts == before.parts
    (tmp_path / "elsewhere.jsonl").write_text('{"question": "1+1+1+1"}\n')
    with pytest.raises(ConfigChangedError, match=r"data\.prompts from .* questions from"):
        generate(run, 0, moved)


def test_rounds_deal_out_the_prompts_in_turn():
    questions = [str(i) for i in range(10)]
    data = DataConfig(per_round=4, seed=3)
    dealt = [q for k in range(5) for q in questions_of_round(questions, data, k)]
    assert sorted(dealt) == sorted(questions * 2)
    assert questions_of_round(questions, data, 0) == questions_of_round(questions, data, 5)
    assert questions_of_round(questions, DataConfig(per_round=4, seed=4), 0) != dealt[:4]
    assert len(questions_of_round(questions, DataConfig(limit=3), 7)) == 3


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv"])
def test_prompts_come_from_files_without_doubles_and_empty_rows(tmp_path, suffix):
    import polars as pl

    frame = pl.DataFrame({"id": [1, 2, 3, 4], "question": ["a?", "b?", "a?", " "]})
    path = tmp_path / f"p.{suffix}"
    {"jsonl": frame.write_ndjson, "parquet": frame.write_parquet, "csv": frame.write_csv}[suffix](path)
    assert read_questions(DataConfig(prompts=str(path))) == ["a?", "b?"]
    with pytest.raises(InputError, match=r"no column 'problem' \(it has id, question\).*data\.field"):
        read_questions(DataConfig(prompts=str(path), field="problem"))


def test_prompts_come_from_a_data_set_folder_through_datasets(tmp_path):
    import datasets

    folder = tmp_path / "set"
    folder.mkdir()
    datasets.Dataset.from_dict({"question": ["a?", "b?"]}).to_parquet(folder / "train-00000-of-00001.parquet")
    assert read_questions(DataConfig(prompts=str(folder))) == ["a?", "b?"]
    with pytest.raises(InputError, match="no column 'x'"):
        read_questions(DataConfig(prompts=str(folder), field="x"))


def test_prompts_come_from_what_datasets_has_saved(tmp_path):
    """A data set, as `save_to_disk` leaves it after a `select`; and a dictionary of splits."""
    import datasets

    data = datasets.Dataset.from_dict({"question": ["a?", "b?", "c?"]}).select([2, 0])
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=data, test=data.select([0])).save_to_disk(tmp_path / "splits")
    assert sorted(read_questions(DataConfig(prompts=str(tmp_path / "one")))) == ["a?", "c?"]
    assert read_questions(DataConfig(prompts=str(tmp_path / "splits"), split="test")) == ["c?"]


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "is empty"), ("{not json\n", "line 1, column 2: not JSON"), ('{"question": null}\n', "holds no question")],
)
def test_an_unusable_prompt_file_is_a_clear_error(tmp_path, content, message):
    path = tmp_path / "p.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_questions(DataConfig(prompts=str(path)))
    with pytest.raises(InputError, match="does not exist"):
        read_questions(DataConfig(prompts=str(tmp_path / "nowhere.jsonl")))


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(make_run, student, tmp_path):
    import shutil

    folder = tmp_path / "student"
    shutil.copytree(student, folder)
    raw = json.loads((folder / "tokenizer.json").read_text())
    first = max(entry["id"] for entry in raw["added_tokens"]) + 1000
    for i in range(5):
        raw["added_tokens"].append({**raw["added_tokens"][0], "id": first + i, "content": f"<extra{i}>"})
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    config = json.loads((folder / "config.json").read_text())
    run = make_run(student={"model": str(folder)})
    with pytest.raises(InputError, match=rf"has \d+ tokens, and its model {config['vocab_size']}"):
        generate(run, 0, run.config())
    assert not run.round(0).trajectories.folder.exists()


def test_a_prompt_longer_than_the_context_is_refused(student):
    engine = TransformersEngine(str(student), "float32", 4)
    with pytest.raises(InputError, match=r"A prompt has 5000 tokens, and the student's context is \d+"):
        list(engine.generate([Request("0" * 32, (5,) * 5000)], SAMPLING))


def test_a_model_that_is_not_there_is_refused(make_run, tmp_path):
    run = make_run(student={"model": str(tmp_path / "nowhere")})
    with pytest.raises(InputError, match="does not exist"):
        generate(run, 0, run.config())
