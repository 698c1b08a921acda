"""Two audits of a round, whose lock does nothing: the one that did not begin last stops buying, and loses no answer."""

import pytest

from omniopd.stages.audit import outbox
from omniopd.stages.audit.stage import audit
from omniopd.store.config import made_with
from omniopd.store.errors import BusyError


def test_an_audit_whose_table_another_process_writes_stops_buying_and_its_answers_stay(
    make_run, teacher, generated, monkeypatch
):
    monkeypatch.setattr(outbox, "_SECONDS_BETWEEN_PARTS", 0.01)
    run = generated(make_run(teacher={"base_url": teacher.base_url, "max_concurrency": 1}))

    def behave(body, number):
        if number == 4:
            run.round(0).rollouts.begin(made_with(run.config(), "rollouts"))

    teacher.behave = behave
    with pytest.raises(BusyError, match=r"Another process writes .*rollouts now") as caught:
        audit(run, 0, run.config())
    assert caught.value.exit_code == 3
    chunks = run.round(0).chunks.manifest.rows
    assert 4 < teacher.answered < chunks
    assert not run.round(0).rollouts.complete
    audit(run, 0, run.config())
    assert teacher.requests == chunks, "what was answered is not asked for again"
    assert len(run.round(0).rollouts.read()) == len(run.round(0).rollouts.existing_keys()) == 4 * chunks
