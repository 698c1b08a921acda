"""The ledger: bills are charged in full, nothing is reserved beyond the budget, and an answer is never lost."""

import sqlite3

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from omniopd.store.errors import TableError
from omniopd.store.ledger import Budget, Caps, Ledger, Reservation, Settlement
from omniopd.store.ledger_read import read_totals
from omniopd.store.usage import Usage


def reserve(ledger, name, tokens, nusd=0):
    return ledger.commit([Reservation(name, 0, "teacher", nusd, tokens)], [])[0]


def settle(ledger, name, state="settled", usage=Usage(), nusd=0, payload=None):  # noqa: B008
    ledger.commit([], [Settlement(name, state, usage, nusd, payload)])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


def test_a_reservation_that_does_not_fit_is_refused_and_leaves_no_trace(path):
    ledger = Ledger(path, Caps(Budget(tokens=100)))
    assert reserve(ledger, "a", 60)
    assert not reserve(ledger, "b", 41)
    assert reserve(ledger, "c", 40)
    assert ledger.totals().requests == 2


def test_dollars_are_capped_as_well_as_tokens(path):
    ledger = Ledger(path, Caps(Budget.of(usd=0.000000100, tokens=None)))
    assert reserve(ledger, "a", 1, nusd=100)
    assert not reserve(ledger, "b", 1, nusd=1)


def test_settling_frees_what_was_not_used(path):
    ledger = Ledger(path, Caps(Budget(tokens=100)))
    reserve(ledger, "a", 100)
    settle(ledger, "a", usage=Usage(20, 5, 10))
    totals = ledger.totals()
    assert (totals.charged_tokens, totals.reserved_tokens, totals.cached_tokens) == (30, 0, 5)
    assert reserve(ledger, "b", 70)
    assert not reserve(ledger, "c", 1)


def test_a_refused_request_costs_nothing_and_an_unknown_one_its_worst_case(path):
    ledger = Ledger(path, Caps(Budget(tokens=100)))
    reserve(ledger, "a", 50)
    settle(ledger, "a", "released")
    reserve(ledger, "b", 60)
    settle(ledger, "b", "unknown")
    assert ledger.totals().charged_tokens == 60
    assert ledger.totals().unknown == 1


def test_a_bill_above_its_reservation_is_charged_in_full_and_nothing_more_is_reserved(path):
    ledger = Ledger(path, Caps(Budget(nusd=1000, tokens=100)))
    reserve(ledger, "a", 60, nusd=600)
    reserve(ledger, "b", 40, nusd=400)
    settle(ledger, "a", usage=Usage(90, 0, 40), nusd=1300)
    assert (ledger.totals().charged_tokens, ledger.totals().charged_nusd) == (130, 1300)
    assert ledger.left == Budget(nusd=-700, tokens=-70)
    assert not reserve(ledger, "c", 0), "the budget is exceeded, so that not even nothing fits"
    settle(ledger, "b", "released")
    assert ledger.left == Budget(nusd=-300, tokens=-30)
    ledger.close()
    again = Ledger(path, Caps(Budget(tokens=200)))
    assert again.left.tokens == 70


def test_what_bills_taught_about_the_worst_case_is_known_after_a_restart(path):
    caps = Caps(teacher_model="teacher")
    ledger = Ledger(path, caps)
    estimate = Usage(400, 0, 40)
    for name in "abcdefgh":
        ledger.commit([Reservation(name, 0, "teacher", 0, 440, estimate=estimate)], [])
        settle(ledger, name, usage=Usage(80 + ord(name) % 4, 0, 90))
    learned = ledger.worst_case.bound(estimate)
    assert (learned.prompt_tokens, learned.completion_tokens) == (125, 90)
    ledger.close()
    other = Ledger(path, Caps(teacher_model="another"))
    assert other.worst_case.bound(estimate) == estimate, "another model has another tokenizer"
    other.close()
    assert Ledger(path, caps).worst_case.bound(estimate) == learned


def test_a_reservation_that_a_dead_process_left_is_charged_in_full(path):
    ledger = Ledger(path, Caps(Budget(tokens=100)))
    reserve(ledger, "a", 80)
    ledger.close()
    again = Ledger(path, Caps(Budget(tokens=100)))
    assert again.totals().charged_tokens == 80
    assert not reserve(again, "b", 21)
    assert reserve(again, "c", 20)


def test_an_answer_stays_in_the_outbox_until_it_is_cleared(path):
    ledger = Ledger(path)
    reserve(ledger, "a", 1)
    settle(ledger, "a", payload=b"rows")
    ledger.close()
    again = Ledger(path)
    assert again.outbox(0, 10) == [("a", b"rows")]
    assert again.outbox(1, 10) == []
    again.clear_outbox(["a"])
    assert again.outbox(0, 10) == []


def test_settling_and_reserving_in_one_commit_uses_the_freed_budget(path):
    ledger = Ledger(path, Caps(Budget(tokens=100)))
    reserve(ledger, "a", 100)
    granted = ledger.commit(
        [Reservation("b", 0, "teacher", 0, 90), Reservation("c", 0, "teacher", 0, 10)],
        [Settlement("a", "settled", Usage(5, 0, 5))],
    )
    assert granted == [True, False]


def test_the_file_is_durable_and_readable_by_others_while_it_is_written(path):
    ledger = Ledger(path)
    reserve(ledger, "a", 7)
    assert read_totals(path).reserved_tokens == 7
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert ledger._db.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_damaged_ledger_is_a_clear_error(path):
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(TableError, match="is damaged"):
        Ledger(path)


class LedgerMachine(RuleBasedStateMachine):
    """Random reservations, settlements with bills below and above them, and crashes, beside a model in plain Python."""

    @initialize(budget=st.integers(0, 200))
    def start(self, budget):
        import tempfile
        from pathlib import Path

        self.path = Path(tempfile.mkdtemp()) / "ledger.sqlite"
        self.budget = budget
        self.ledger = Ledger(self.path, Caps(Budget(tokens=budget)))
        self.open = {}
        self.charged = self.overran = 0
        self.count = 0

    @rule(tokens=st.integers(0, 120))
    def reserve(self, tokens):
        name = str(self.count)
        self.count += 1
        granted = reserve(self.ledger, name, tokens)
        assert granted == (self.charged + sum(self.open.values()) + tokens <= self.budget)
        if granted:
            self.open[name] = tokens

    @rule(state=st.sampled_from(["settled", "released", "unknown"]), used=st.integers(0, 300), data=st.data())
    def settle(self, state, used, data):
        if self.open:
            name = data.draw(st.sampled_from(sorted(self.open)))
            reserved = self.open.pop(name)
            usage = Usage(used, 0, 0) if state == "settled" else Usage()
            settle(self.ledger, name, state, usage)
            self.charged += {"settled": used, "released": 0, "unknown": reserved}[state]
            self.overran += max(0, used - reserved) if state == "settled" else 0

    @rule()
    def crash_and_open_again(self):
        self.ledger.close()
        self.ledger = Ledger(self.path, Caps(Budget(tokens=self.budget)))
        self.charged += sum(self.open.values())
        self.open = {}

    @invariant()
    def never_overspent(self):
        if hasattr(self, "ledger"):
            totals = self.ledger.totals()
            assert totals.charged_tokens == self.charged
            assert totals.reserved_tokens == sum(self.open.values())
            assert totals.charged_tokens + totals.reserved_tokens <= self.budget + self.overran

    def teardown(self):
        if hasattr(self, "ledger"):
            self.ledger.close()


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(stateful_step_count=20)


def test_a_rounds_cap_holds_for_what_the_round_adds(path):
    ledger = Ledger(path, Caps(Budget(tokens=100)))
    reserve(ledger, "a", 30)
    settle(ledger, "a", usage=Usage(30, 0, 0))
    ledger.close()
    capped = Ledger(path, Caps(Budget(tokens=100), round=Budget(tokens=40), round_index=1))
    assert capped.left.tokens == 40
    assert not capped.commit([Reservation("b", 1, "teacher", 0, 41)], [])[0]
    assert capped.commit([Reservation("c", 1, "teacher", 0, 40)], [])[0]
    capped.close()
    again = Ledger(path, Caps(Budget(tokens=100), round=Budget(tokens=90), round_index=1))
    assert again.left.tokens == 30, "of the two caps the lower one holds"


def test_a_teachers_cap_counts_what_that_teacher_cost_in_all_rounds_and_no_other(path):
    ledger = Ledger(path, Caps(Budget(tokens=100)))
    ledger.commit([Reservation("a", 0, "dear", 0, 20), Reservation("b", 0, "cheap", 0, 50)], [])
    ledger.commit([], [Settlement("a", "settled", Usage(20, 0, 0)), Settlement("b", "settled", Usage(50, 0, 0))])
    ledger.close()
    capped = Ledger(path, Caps(Budget(tokens=100), teacher=Budget(tokens=45), round_index=1, teacher_model="dear"))
    assert capped.left.tokens == 25
    assert capped.commit([Reservation("c", 1, "dear", 0, 26), Reservation("d", 1, "dear", 0, 25)], []) == [False, True]
    capped.close()
    other = Ledger(path, Caps(Budget(tokens=100), teacher=Budget(tokens=90), round_index=1, teacher_model="cheap"))
    # What was reserved when the process before it ended is charged in full.
    assert other.left.tokens == 100 - 20 - 50 - 25
