"""The audit stage against a server that behaves, and against one that does not."""

import collections
import time

import pytest
from aiohttp import web

from omniopd.stages.audit.stage import audit
from omniopd.store.errors import BudgetReached, TeacherError
from omniopd.store.ledger import NANO
from omniopd.store.ledger_read import read_totals
from omniopd.store.table import Table


@pytest.fixture
def run(make_run, teacher, generated):
    return generated(make_run(teacher={"base_url": teacher.base_url, "max_concurrency": 4}))


def rollouts(run):
    return run.round(0).rollouts.read().to_pylist()


def assert_every_rollout_is_there_once(run, n=4):
    chunks = run.round(0).chunks.read(["chunk_id"])["chunk_id"].to_pylist()
    expected = {(chunk, i) for chunk in chunks for i in range(n)}
    keys = [(row["chunk_id"], row["rollout_index"]) for row in rollouts(run)]
    assert len(keys) == len(set(keys))
    assert set(keys) == expected


def no_pauses(monkeypatch):
    monkeypatch.setattr("omniopd.stages.audit.sender.pause_s", lambda attempt, retry_after: 0.0)


def test_each_chunk_is_asked_once_with_its_prefix_and_all_rows_add_up_to_the_bill(run, teacher):
    audit(run, 0, run.config(("teacher.price={input=1.0, cached_input=0.1, output=5.0}",)))
    assert_every_rollout_is_there_once(run)
    chunks = {c["chunk_id"]: c for c in run.round(0).chunks.read().to_pylist()}
    trajectories = {t["trajectory_id"]: t for t in run.round(0).trajectories.read().to_pylist()}
    prompts = sorted(trajectories[c["trajectory_id"]]["prompt_text"] + c["prefix_text"] for c in chunks.values())
    assert sorted(body["prompt"] for body in teacher.bodies) == prompts
    assert {(body["n"], body["max_tokens"], body["temperature"]) for body in teacher.bodies} == {(4, 12, 1.0)}
    rows = rollouts(run)
    totals = read_totals(run.ledger)
    assert totals.requests == len(chunks) == teacher.requests
    assert sum(row["prompt_tokens"] for row in rows) == totals.prompt_tokens
    assert sum(row["completion_tokens"] for row in rows) == totals.completion_tokens
    assert sum(row["cost_usd"] for row in rows) * NANO == pytest.approx(totals.charged_nusd, abs=1)
    expected = sum(1000 * (len(b["prompt"]) - 2) + 100 * 2 + 5000 * 16 for b in teacher.bodies)
    assert totals.charged_nusd == expected
    assert totals.reserved_tokens == 0


def test_chunk_texts_are_what_the_student_wrote_between_prefix_and_rest(run):
    audit(run, 0, run.config())
    trajectories = {t["trajectory_id"]: t for t in run.round(0).trajectories.read().to_pylist()}
    chunks = run.round(0).chunks.read().to_pylist()
    for chunk in chunks:
        trajectory = trajectories[chunk["trajectory_id"]]
        assert trajectory["response_text"].startswith(chunk["prefix_text"] + chunk["chunk_text"])
        assert chunk["anchor_entropy"] == trajectory["entropies"][chunk["anchor"]]
        logprobs = trajectory["logprobs"][chunk["start"] : chunk["end"]]
        assert chunk["prior"] == pytest.approx(2.718281828459045 ** (sum(logprobs) / len(logprobs)))
        spoken = len(trajectory["response_ids"]) - (trajectory["finish_reason"] == "stop")
        assert chunk["end"] <= spoken, "the stop token is never audited"
    tops = [c for c in chunks if c["rank"] == 0]
    assert len(tops) == len(trajectories)


def test_nested_prefixes_come_together_and_shortest_first(run, teacher):
    audit(run, 0, run.config(("teacher.max_concurrency=1",)))
    prompts = [body["prompt"] for body in teacher.bodies]
    turns = [i for i in range(1, len(prompts)) if not prompts[i].startswith(prompts[i - 1])]
    assert len(turns) == run.round(0).trajectories.manifest.rows - 1


def test_a_second_call_asks_nothing_and_more_rollouts_are_a_changed_config(run, teacher):
    audit(run, 0, run.config())
    before = teacher.requests
    audit(run, 0, run.config())
    assert teacher.requests == before


def test_a_server_that_ignores_n_is_asked_again_for_the_rest(run, teacher):
    teacher.most_choices = 1
    audit(run, 0, run.config())
    assert_every_rollout_is_there_once(run)
    assert teacher.requests == 4 * run.round(0).chunks.manifest.rows


def test_passing_faults_are_retried_and_only_unknown_outcomes_are_charged(run, teacher, monkeypatch):
    no_pauses(monkeypatch)
    faults = {
        0: web.json_response({"error": {"message": "slow down"}}, status=429, headers={"Retry-After": "0"}),
        3: web.json_response({"error": {"message": "oops"}}, status=500),
        5: "hang up",
        7: web.Response(text="not json", content_type="application/json"),
        9: web.json_response({"choices": "none"}),
    }
    teacher.behave = lambda body, number: faults.get(number)
    audit(run, 0, run.config())
    assert_every_rollout_is_there_once(run)
    assert {row["status"] for row in rollouts(run)} == {"ok"}
    chunks = run.round(0).chunks.manifest.rows
    totals = read_totals(run.ledger)
    assert teacher.requests == totals.requests == chunks + len(faults)
    assert teacher.answered == chunks
    assert totals.unknown == 3
    assert totals.reserved_tokens == 0


def test_refusals_filters_and_bad_requests_are_typed_rows_without_text(run, teacher):
    def behave(body, number):
        answer = teacher.answer(body)
        if number == 1:
            for choice in answer["choices"]:
                choice.update(finish_reason="content_filter")
            return web.json_response(answer)
        if number == 2:
            for choice in answer["choices"]:
                choice.update(text="", finish_reason="stop")
            return web.json_response(answer)
        if number == 3:
            return web.json_response({"error": {"message": "prompt too long"}}, status=400)
        return None

    teacher.behave = behave
    audit(run, 0, run.config(("teacher.max_concurrency=1",)))
    assert_every_rollout_is_there_once(run)
    rows = rollouts(run)
    assert collections.Counter(row["status"] for row in rows) == {
        "ok": len(rows) - 12, "filtered": 4, "empty": 4, "failed": 4,
    }  # fmt: skip
    assert all((row["text"] is None) == (row["status"] in ("filtered", "failed")) for row in rows)
    failed = [row for row in rows if row["status"] == "failed"]
    assert failed[0]["finish_reason"] == "400: prompt too long"


@pytest.mark.parametrize("concurrency", [1, 8])
def test_the_budget_is_never_exceeded_and_what_was_paid_for_is_kept(run, teacher, concurrency):
    budget = 900
    with pytest.raises(BudgetReached, match="Raise teacher") as caught:
        audit(run, 0, run.config((f"teacher.budget_tokens={budget}", f"teacher.max_concurrency={concurrency}")))
    assert caught.value.exit_code == 4
    totals = read_totals(run.ledger)
    assert 0 < totals.charged_tokens <= budget
    assert totals.reserved_tokens == 0
    assert len(rollouts(run)) == 4 * teacher.answered > 0
    assert run.round(0).rollouts.complete, "score may use what was paid for"
    # The budget is raised: only what is missing is asked for.
    audit(run, 0, run.config())
    assert_every_rollout_is_there_once(run)
    assert teacher.requests == run.round(0).chunks.manifest.rows


def test_a_budget_too_small_for_one_request_sends_none(run, teacher):
    with pytest.raises(BudgetReached):
        audit(run, 0, run.config(("teacher.budget_tokens=10",)))
    assert teacher.requests == 0


def test_a_teacher_that_goes_away_leaves_no_failed_rows_and_the_next_call_goes_on(run, teacher, monkeypatch):
    no_pauses(monkeypatch)
    teacher.behave = lambda body, number: "hang up" if number >= 10 else None
    with pytest.raises(TeacherError, match="has stopped answering"):
        audit(run, 0, run.config(("teacher.max_attempts=2",)))
    assert {row["status"] for row in rollouts(run)} == {"ok"}
    assert len(rollouts(run)) == 4 * teacher.answered == 40
    teacher.behave = lambda body, number: None
    audit(run, 0, run.config())
    assert_every_rollout_is_there_once(run)
    assert teacher.answered == run.round(0).chunks.manifest.rows


def test_a_prompt_that_the_server_cannot_stand_is_set_aside_and_the_others_go_on(run, teacher, monkeypatch):
    no_pauses(monkeypatch)
    poisoned = []

    def behave(body, number):
        poisoned.append(body["prompt"]) if number == 2 else None
        return web.json_response({"error": "crash"}, status=500) if body["prompt"] in poisoned else None

    teacher.behave = behave
    audit(run, 0, run.config(("teacher.max_concurrency=1", "teacher.max_attempts=2")))
    assert len(rollouts(run)) == 4 * (run.round(0).chunks.manifest.rows - 1)
    assert {row["status"] for row in rollouts(run)} == {"ok"}, "nothing was answered after its last turn"
    assert teacher.requests == teacher.answered + 4, "two attempts, and two more at the end"


def test_a_teacher_that_refuses_everything_ends_the_stage_soon(run, teacher):
    teacher.behave = lambda body, number: web.json_response({"error": {"message": "no n"}}, status=422)
    with pytest.raises(TeacherError, match="refuses every request: 422: no n"):
        audit(run, 0, run.config())
    assert teacher.requests < 20


def test_a_wrong_key_is_an_error_of_the_stage_not_of_a_chunk(run, teacher):
    teacher.behave = lambda body, number: web.json_response({"error": "bad key"}, status=401)
    with pytest.raises(TeacherError, match="refuses: 401"):
        audit(run, 0, run.config())
    assert rollouts(run) == []


def test_an_unreachable_teacher_is_found_before_anything_is_written(make_run, generated):
    run = generated(make_run())
    with pytest.raises(TeacherError, match=r"No teacher answers at http://127\.0\.0\.1:9/v1.*Start the server"):
        audit(run, 0, run.config())
    assert not run.round(0).chunks.folder.exists()
    assert not run.ledger.exists()


def test_a_model_that_the_server_does_not_have_is_found_before_anything_is_sent(run, teacher):
    with pytest.raises(TeacherError, match=r"has no model 'gpt' \(it has scripted\)"):
        audit(run, 0, run.config(("teacher.model=gpt",)))
    assert teacher.requests == 0


def test_the_key_is_sent_and_is_nowhere_in_the_run_directory(run, teacher, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    seen = []
    teacher.behave = lambda body, number: seen.append(number)
    config = run.config()
    run.record(config)
    audit(run, 0, config)
    assert seen
    for path in run.path.rglob("*"):
        assert not path.is_file() or b"very-secret" not in path.read_bytes(), path


def test_constant_weights_select_the_same_chunks_and_ask_nothing(make_run, run, generated):
    audit(run, 0, run.config())
    control = generated(make_run(name="control", score={"weights": "constant"}))
    audit(control, 0, control.config())
    assert control.round(0).chunks.existing_keys() == run.round(0).chunks.existing_keys()
    assert control.round(0).rollouts.complete
    assert control.round(0).rollouts.manifest.rows == 0


def test_a_server_without_completions_is_asked_to_continue_the_last_message(run, teacher):
    teacher.chat_only = True
    audit(run, 0, run.config())
    assert_every_rollout_is_there_once(run)
    assert {row["continuation"] for row in rollouts(run)} == {"prefill"}
    for body in teacher.bodies:
        roles = [message["role"] for message in body["messages"]]
        if roles == ["user"]:
            assert "continue_final_message" not in body, "an empty prefix leaves nothing to continue"
        else:
            assert roles == ["user", "assistant"]
            assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert any(len(body["messages"]) == 2 for body in teacher.bodies)


def test_parts_written_while_the_flow_runs_and_ends_hold_each_row_once(run, teacher, monkeypatch):
    monkeypatch.setattr("omniopd.stages.audit.outbox._SECONDS_BETWEEN_PARTS", 0.0)
    append = Table.append

    def slowly(table, rows):
        time.sleep(0.01)
        return append(table, rows)

    monkeypatch.setattr(Table, "append", slowly)
    audit(run, 0, run.config())
    assert_every_rollout_is_there_once(run)
    assert len(run.round(0).rollouts.manifest.parts) > 2


def test_a_seed_is_sent_with_each_request_and_differs_from_chunk_to_chunk(run, teacher):
    teacher.most_choices = 2
    audit(run, 0, run.config(("teacher.seed=7",)))
    seeds = [body["seed"] for body in teacher.bodies]
    assert len(set(seeds)) == len(seeds) == 2 * run.round(0).chunks.manifest.rows
    assert all(0 <= seed < 2**31 for seed in seeds)


def by_entropy(run):
    """Chunk ids, the most uncertain first."""
    chunks = run.round(0).chunks.read(["chunk_id", "anchor_entropy"]).to_pylist()
    return [c["chunk_id"] for c in sorted(chunks, key=lambda c: (-c["anchor_entropy"], c["chunk_id"]))]


def test_what_the_budget_does_not_reach_are_the_least_uncertain_chunks_of_the_round(run, teacher):
    with pytest.raises(BudgetReached, match=r"The (\d+) chunks of the lowest entropy are left out"):
        audit(run, 0, run.config(("teacher.budget_tokens=1500",)))
    asked = {row["chunk_id"] for row in rollouts(run)}
    order = by_entropy(run)
    assert 0 < len(asked) < len(order)
    assert asked == set(order[: len(asked)])


def test_a_rounds_budget_ends_the_round_like_the_runs(run, teacher):
    with pytest.raises(BudgetReached):
        audit(run, 0, run.config(("teacher.round_budget_tokens=900", "teacher.budget_tokens=1000000")))
    assert 0 < read_totals(run.ledger).charged_tokens <= 900


def test_a_trajectory_stays_at_one_of_several_servers(run, teacher):
    urls = [teacher.base_url, teacher.base_url.replace("127.0.0.1", "localhost")]
    hosts = collections.defaultdict(set)
    trajectories = {t["prompt_text"]: t["trajectory_id"] for t in run.round(0).trajectories.read().to_pylist()}

    def behave(body, number):
        prompt = body["prompt"].partition("\n")[0] + "\n"
        hosts[trajectories[prompt]].add(teacher.hosts[number])

    teacher.behave = behave
    audit(run, 0, run.config((f"teacher.base_url={urls}",)))
    assert_every_rollout_is_there_once(run)
    assert {len(seen) for seen in hosts.values()} == {1}
    assert len(set.union(*hosts.values())) == 2


def test_a_server_that_is_overrun_is_asked_less_at_a_time_until_it_can_follow(run, teacher, monkeypatch):
    no_pauses(monkeypatch)
    most = 2

    def behave(body, number):
        if teacher.in_flight > most:
            return web.json_response({"error": {"message": "slow down"}}, status=429, headers={"Retry-After": "0.01"})

    teacher.behave = behave
    audit(run, 0, run.config(("teacher.max_concurrency=64",)))
    assert_every_rollout_is_there_once(run)
    assert {row["status"] for row in rollouts(run)} == {"ok"}


def test_redirects_are_not_followed_with_the_key(run, teacher, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    elsewhere = {"Location": teacher.base_url + "/completions"}
    teacher.behave = lambda body, number: web.json_response({}, status=307, headers=elsewhere)
    with pytest.raises(TeacherError, match=r"is no teacher: 307: it redirects to 127\.0\.0\.1\. Set teacher\.base_url"):
        audit(run, 0, run.config())
    assert (teacher.answered, rollouts(run)) == (0, [])


def test_a_first_answer_comes_before_the_other_samples_of_a_prefix_where_n_is_ignored(run, teacher):
    teacher.most_choices = 1
    audit(run, 0, run.config(("teacher.max_concurrency=4",)))
    assert_every_rollout_is_there_once(run)
    answered_first = collections.defaultdict(list)
    for body, before in zip(teacher.bodies, teacher.answered_at, strict=True):
        answered_first[body["prompt"]].append(before)
    for times in answered_first.values():
        assert times[1] > times[0], "an answer lies between the first request of a prefix and the second"


def test_the_proxy_of_the_environment_is_used(make_run, teacher, monkeypatch, generated):
    """Plain HTTP through a proxy is a request for the whole address: the scripted server plays the proxy."""
    from omniopd.stages.audit.client import proxy_of

    monkeypatch.setenv("http_proxy", teacher.base_url.removesuffix("/v1"))
    monkeypatch.setenv("no_proxy", "internal.test")
    assert proxy_of("http://teacher.test/v1") == teacher.base_url.removesuffix("/v1")
    assert proxy_of("http://internal.test/v1") is None
    run = generated(make_run(questions=2, teacher={"base_url": "http://teacher.test/v1"}))
    audit(run, 0, run.config())
    assert_every_rollout_is_there_once(run)
    assert set(teacher.hosts) == {"teacher.test"}
