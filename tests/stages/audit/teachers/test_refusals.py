"""What a refusal teaches a dialect: the next request has another form, which is said once, and each lesson ends."""

import asyncio

import pytest

from omniopd.stages.audit.teacher import Ask, Reply
from omniopd.stages.audit.teachers.registry import find_dialect
from omniopd.store.conversation import Conversation
from omniopd.store.errors import TeacherError
from omniopd.store.sections import CONTINUE, TeacherConfig

FOUR = Ask(Conversation.of("What is 2 + 2?"), "<s>What is 2 + 2?\n", "The sum is ", 4, 16, seed=7)
LOCAL = "http://127.0.0.1:1/v1"


class Server:
    """One that has `models` and, where it says so, `/completions`."""

    def __init__(self, models=(), completions=404):
        self.models = models
        self.completions = completions

    async def get(self, url, headers):
        return Reply(200, {"data": [{"id": model} for model in self.models]})

    async def post(self, url, headers, body):
        return Reply(self.completions, None)


def find(server=None, **config):
    values = {"model": "m", "base_url": LOCAL} | config
    dialect = find_dialect(values.get("kind", "openai"))
    return asyncio.run(dialect.find(TeacherConfig(**values), server or Server()))


def message(text, **more):
    return {"error": {"message": text, "type": "invalid_request_error", **more}}


def forbidden(field):
    """As FastAPI says it, with the request repeated under `input`."""
    entry = {"type": "extra_forbidden", "loc": ["body", field], "msg": "Extra inputs are not permitted"}
    return {"detail": [entry | {"input": {"temperature": 1.0, "seed": 7, "n": 4}}]}


N_WORDS = [
    ("'n' : number must be at most 1", 1),
    ("Only n = 1 is supported", 1),
    ("n must be 1 for this model", 1),
    ("Invalid value for \"n\": must be less than or equal to 2", 2),
    ("multiple choices are not supported", 1),
]  # fmt: skip


@pytest.mark.parametrize(("text", "most"), N_WORDS)
def test_a_limit_of_n_splits_requests_from_then_on(text, most):
    teacher = find(continuation="instruct")
    assert teacher.request(FOUR).body["n"] == 4
    assert "n = " in teacher.adapt(400, message(text))
    assert teacher.most_choices == most
    assert teacher.request(FOUR).body.get("n", 1) == most
    assert teacher.worst_case(FOUR).completion_tokens == most * 16
    if most > 1:
        teacher.adapt(400, message("n must be 1"))
    assert "n" not in teacher.request(FOUR).body, "1 is what every API does by itself"
    assert teacher.adapt(400, message(text)) is None
    assert teacher.form == (1 if most == 1 else 2)


def test_a_model_that_takes_only_the_newer_name_of_max_tokens_gets_it():
    teacher = find(continuation="instruct")
    said = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    assert "max_completion_tokens" in teacher.adapt(400, message(said, param="max_tokens"))
    body = teacher.request(FOUR).body
    assert body["max_completion_tokens"] == 16
    assert "max_tokens" not in body
    assert teacher.adapt(400, message(said)) is None


@pytest.mark.parametrize(
    "body",
    [
        message("`temperature` is deprecated for this model."),
        message(
            "Unsupported value: 'temperature' does not support 0.7 with this model. Only the default (1) value is"
            " supported.", param="temperature", code="unsupported_value",
        ),
        forbidden("temperature"),
        {"error": {"message": "Provider returned error", "metadata": {
            "raw": '{"type":"error","error":{"message":"\\"temperature\\" is not supported"}}'}}},
        [message("Invalid JSON payload received. Unknown name \"temperature\" at 'generation_config'")],
        "temperature: unsupported parameter",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["openai", "anthropic", "gemini"])
def test_a_temperature_that_is_not_taken_is_left_out(kind, body):
    teacher = find(kind=kind, continuation="instruct", temperature=0.7, model="gemini-2.0-x")
    assert "temperature" in str(teacher.request(FOUR).body)
    assert "temperature" in teacher.adapt(400, body)
    assert "temperature" not in str(teacher.request(FOUR).body)
    assert teacher.adapt(400, body) is None


def test_anthropic_is_told_no_temperature_that_is_its_own():
    assert "temperature" not in find(kind="anthropic").request(FOUR).body
    assert find(kind="anthropic", temperature=0.7).request(FOUR).body["temperature"] == 0.7


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, message("temperature: range: 0..1")),
        (400, message("This model's maximum context length is 4096 tokens; you requested 5000 in max_tokens.")),
        (400, message("property 'foo' is unsupported, did you mean 'temperature'?")),
        (422, forbidden("foo")),
        (429, message("temperature is not supported")),
        (500, message("'n' must be at most 1")),
        (400, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["openai", "anthropic", "gemini"])
def test_other_refusals_change_nothing(kind, status, body):
    teacher = find(kind=kind, model="gemini-2.0-x")
    before = teacher.request(FOUR)
    assert teacher.adapt(status, body) is None
    assert (teacher.request(FOUR), teacher.form) == (before, 0)


REFUSED_PREFILL = [
    forbidden("continue_final_message"),
    message("property 'add_generation_prompt' is unsupported"),
    message("Expected last role User or Tool (or Assistant with prefix True) for serving but got assistant"),
    message("This model does not support assistant message prefill. The conversation must end with a user message."),
    message("Please ensure that the last turn is a user turn"),
]


@pytest.mark.parametrize("body", REFUSED_PREFILL)
@pytest.mark.parametrize(
    ("kind", "model"), [("openai", "m"), ("anthropic", "claude-haiku-4-5"), ("gemini", "gemini-2.5-flash")]
)
def test_auto_falls_back_to_the_instruction_and_a_configured_prefill_does_not(kind, model, body):
    teacher = find(kind=kind, model=model)
    assert teacher.continuation == "prefill"
    assert "continuation = instruct" in teacher.adapt(422, body)
    assert teacher.continuation == "instruct"
    assert CONTINUE in str(teacher.request(FOUR).body)
    assert "continue_final_message" not in str(teacher.request(FOUR).body)
    configured = find(kind=kind, model=model, continuation="prefill")
    assert configured.adapt(422, body) is None
    assert configured.continuation == "prefill"


def test_a_model_without_raw_completions_is_asked_by_chat():
    teacher = find(Server(completions=400))
    assert teacher.continuation == "completion"
    said = "This is a chat model and not supported in the v1/completions endpoint. Did you mean v1/chat/completions?"
    assert "continuation = prefill" in teacher.adapt(404, message(said))
    assert teacher.request(FOUR).path == "/chat/completions"
    assert find(Server(completions=400)).adapt(404, message("The model `m` does not exist")) is None


def test_whitespace_at_the_end_of_an_open_message_is_held_back_once_it_is_refused():
    teacher = find()
    assert teacher.request(FOUR).body["messages"][-1]["content"] == "The sum is "
    assert teacher.adapt(400, message("final assistant content cannot end with trailing whitespace"))
    assert teacher.request(FOUR).body["messages"][-1]["content"] == "The sum is"
    assert teacher.continuation == "prefill"


@pytest.mark.parametrize(
    ("text", "thinking", "room"),
    [
        ("Budget 0 is invalid. This model only works in thinking mode.", {"thinkingBudget": 128}, 128),
        ("Thinking can't be disabled for this model. Remove 'thinking_config.thinking_budget' from your request.",
         {"thinkingBudget": 128}, 128),
        ("The model does not support setting thinking_budget to 0", {"thinkingBudget": 128}, 128),
        ("The thinking budget 0 is invalid. Choose a value between 512 and 24576.", {"thinkingBudget": 512}, 512),
        ("Use thinking_level instead of thinking_budget for this model.", {"thinkingLevel": "low"}, 1024),
        ("Thinking is not enabled for models/gemini-x", None, 0),
        ("Unknown name \"thinkingConfig\" at 'generation_config': Cannot find field.", None, 0),
    ],
)  # fmt: skip
def test_gemini_learns_how_little_a_model_may_think_and_pays_for_it(text, thinking, room):
    teacher = find(kind="gemini", model="gemini-2.5-pro")
    assert teacher.request(FOUR).body["generationConfig"]["thinkingConfig"] == {"thinkingBudget": 0}
    assert teacher.adapt(400, message(text)) is not None
    generation = teacher.request(FOUR).body["generationConfig"]
    assert generation.get("thinkingConfig") == thinking
    assert generation["maxOutputTokens"] == 16 + room
    assert teacher.worst_case(FOUR).completion_tokens == 4 * (16 + room)
    lessons = sum(teacher.adapt(400, message("thinking budget and level are invalid")) is not None for _ in range(9))
    assert lessons <= 2
    assert "thinkingConfig" not in teacher.request(FOUR).body["generationConfig"]


@pytest.mark.parametrize(
    "text",
    ["Multiple candidates is not enabled for this model", "Only one candidate can be specified",
     "Unable to submit request because candidateCount must be 1 but the entered value was 3."],
)  # fmt: skip
def test_gemini_asks_for_one_candidate_at_a_time_where_more_are_refused(text):
    teacher = find(kind="gemini", model="gemini-2.5-flash")
    assert teacher.request(FOUR).body["generationConfig"]["candidateCount"] == 4
    assert teacher.adapt(400, message(text))
    assert teacher.request(FOUR).body["generationConfig"]["candidateCount"] == teacher.most_choices == 1


def test_a_prompt_that_holds_the_first_token_gets_no_second_one_unless_the_server_has_no_switch():
    teacher = find(Server(completions=400))
    held = Ask(Conversation.of("Q"), "<s>Q\n", "A", 4, 16, holds_bos=True)
    assert "add_special_tokens" not in teacher.request(FOUR).body
    assert teacher.request(held).body["add_special_tokens"] is False
    assert teacher.adapt(400, message("Unrecognized request argument supplied: add_special_tokens"))
    assert "add_special_tokens" not in teacher.request(held).body


def test_extra_is_merged_deeply_and_may_not_set_what_other_keys_set():
    teacher = find(extra={"chat_template_kwargs": {"enable_thinking": False}, "service_tier": "flex"})
    body = teacher.request(FOUR).body
    assert (body["chat_template_kwargs"], body["service_tier"]) == ({"enable_thinking": False}, "flex")
    extra = {"generationConfig": {"topP": 0.9, "thinkingConfig": {"thinkingLevel": "low"}}}
    gemini = find(kind="gemini", model="gemini-3-pro", extra=extra)
    generation = gemini.request(FOUR).body["generationConfig"]
    assert (generation["topP"], generation["thinkingConfig"]) == (0.9, {"thinkingLevel": "low"})
    assert generation["maxOutputTokens"] == 16, "the user's switch, and the user's teacher.max_tokens"
    assert gemini.adapt(400, message("thinking budget invalid")) is None
    for kind, bad in (("openai", {"n": 9}), ("openai", {"stream": True}), ("anthropic", {"max_tokens": 9}),
                      ("gemini", {"generationConfig": {"maxOutputTokens": 9}})):  # fmt: skip
        with pytest.raises(TeacherError, match=r"teacher\.extra sets .*not its part"):
            find(kind=kind, model="gemini-3-pro", extra=bad)


def test_the_system_prompt_and_the_instruction_are_sent_and_count_in_the_worst_case():
    words = {"system": "Be brief.", "instruction": "Go on.", "continuation": "instruct"}
    plain = {"continuation": "instruct"}
    for kind, where in (
        ("openai", lambda body: body["messages"][0] == {"role": "system", "content": "Be brief."}),
        ("anthropic", lambda body: body["system"] == "Be brief."),
        ("gemini", lambda body: body["systemInstruction"]["parts"][0]["text"] == "Be brief."),
    ):
        teacher = find(kind=kind, model="gemini-3-pro", **words)
        body = teacher.request(FOUR).body
        assert where(body)
        assert "Go on." in str(body)
        assert CONTINUE not in str(body)
        without = find(kind=kind, model="gemini-3-pro", **plain).worst_case(FOUR).prompt_tokens
        assert without - teacher.worst_case(FOUR).prompt_tokens == len(CONTINUE) - len("Go on.") - len("Be brief.")


def test_a_raw_completion_has_no_place_for_a_system_prompt():
    assert find(Server(completions=400), system="Be brief.").continuation == "prefill"
    with pytest.raises(TeacherError, match=r"raw completion has no place for teacher\.system"):
        find(Server(completions=400), system="Be brief.", continuation="completion")


def test_a_list_of_models_with_a_wildcard_or_without_entries_is_advice():
    assert "does not list m by name" in find(Server(["openai/*", "anthropic/*"])).why
    assert "list" not in find(Server(["openai/*", "m"])).why
    assert find(Server([])).continuation == "prefill"
    with pytest.raises(TeacherError, match="has no model 'm'"):
        find(Server(["other"]))
