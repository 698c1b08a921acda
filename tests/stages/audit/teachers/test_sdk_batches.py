"""Batches against the typed models of the official SDKs: rows that they take, results and states that they know."""

import json
import typing

import pytest
from pydantic import TypeAdapter

from omniopd.stages.audit.batches import anthropic, gemini, openai
from omniopd.stages.audit.teacher import HttpRequest

BODY = {"model": "claude", "max_tokens": 16, "messages": [{"role": "user", "content": "Q"}]}


def test_a_row_for_anthropic_is_its_request_type():
    from anthropic.types.messages.batch_create_params import Request

    row = json.loads(anthropic.AnthropicBatches("", None).row("id1", HttpRequest("/messages", BODY)))
    adapter = TypeAdapter(Request)
    assert json.loads(adapter.dump_json(adapter.validate_python(row))) == row


def results_of_anthropic():
    usage = {"input_tokens": 3, "output_tokens": 2}
    message = {"id": "m", "type": "message", "role": "assistant", "model": "claude", "stop_reason": "end_turn",
               "stop_sequence": None, "content": [{"type": "text", "text": "4"}], "usage": usage}  # fmt: skip
    yield {"type": "succeeded", "message": message}, ("answered", True)
    for kind, retried in (("invalid_request_error", False), ("overloaded_error", True), ("api_error", True)):
        error = {"type": "error", "request_id": None, "error": {"type": kind, "message": "no"}}
        yield {"type": "errored", "error": error}, ("refused", retried)
    yield {"type": "canceled"}, ("unsent", True)
    yield {"type": "expired"}, ("unsent", True)


@pytest.mark.parametrize(("result", "expected"), results_of_anthropic())
def test_every_result_that_anthropic_s_sdk_knows_is_understood(result, expected):
    from anthropic.types.messages import MessageBatchIndividualResponse

    response = MessageBatchIndividualResponse.model_validate({"custom_id": "id1", "result": result}, strict=True)
    outcome = anthropic._outcome(response.model_dump(mode="json")["result"])
    assert outcome.kind == expected[0]
    assert outcome.kind == "answered" or outcome.worth_retrying == expected[1]


def test_every_state_that_the_sdks_know_is_running_or_ends():
    from anthropic.types.messages import MessageBatch
    from google.genai.types import JobState
    from openai.types import Batch

    assert set(typing.get_args(MessageBatch.model_fields["processing_status"].annotation)) == {
        "in_progress", "canceling", "ended",
    }  # fmt: skip
    of_openai = set(typing.get_args(Batch.model_fields["status"].annotation))
    assert of_openai == {"validating", "in_progress", "finalizing", "cancelling", *openai._STATES}
    running = {"UNSPECIFIED", "QUEUED", "PENDING", "RUNNING", "CANCELLING", "PAUSED", "UPDATING"}
    assert {state.value.removeprefix("JOB_STATE_") for state in JobState} == running | set(gemini._STATES)


def test_the_counts_that_results_are_held_against_are_fields_of_the_sdks():
    from anthropic.types.messages import MessageBatchRequestCounts
    from openai.types.batch_request_counts import BatchRequestCounts

    assert "succeeded" in MessageBatchRequestCounts.model_fields
    assert "completed" in BatchRequestCounts.model_fields
