"""Prices: the user's, the bundled table's, and what happens where nobody knows one."""

import subprocess
import sys

import pytest

from omniopd.stages.audit.price import find_rates, table_version
from omniopd.store.errors import ConfigError
from omniopd.store.ledger import NANO
from omniopd.store.sections import TeacherConfig
from omniopd.store.usage import Usage


def rates(**teacher):
    return find_rates(TeacherConfig.model_validate({"model": "m"} | teacher))


@pytest.mark.parametrize(
    "teacher",
    [
        {"kind": "anthropic", "model": "claude-haiku-4-5"},
        {"kind": "gemini", "model": "gemini-2.5-flash"},
        {"model": "gpt-4o-mini", "base_url": "https://api.openai.com/v1"},
        {"model": "deepseek-chat", "base_url": ["https://api.deepseek.com/beta"]},
    ],
)
def test_known_models_have_a_price_and_name_the_version_of_the_table(teacher):
    found = rates(**teacher, budget_usd=1.0)
    assert found.source == table_version()
    assert 0 < found.cached_input <= found.input < found.output


def test_writing_to_the_cache_costs_what_the_provider_says():
    found = rates(kind="anthropic", model="claude-haiku-4-5")
    assert found.cache_write == pytest.approx(1.25 * found.input)
    usage = Usage(1_000_000, 300_000, 0, cache_write_tokens=600_000)
    expected = 0.1 * found.input + 0.3 * found.cached_input + 0.6 * found.cache_write
    assert found.nusd(usage) == pytest.approx(expected * NANO)


def test_the_users_price_goes_before_the_table():
    found = rates(kind="anthropic", model="claude-haiku-4-5", price={"input": 7, "output": 8, "cache_write": 9})
    assert (found.input, found.output, found.cached_input, found.cache_write) == (7, 8, 7, 9)
    assert found.source == "teacher.price"


@pytest.mark.parametrize("budget", ["budget_usd", "round_budget_usd"])
def test_a_dollar_budget_for_a_model_without_a_price_says_what_to_set(budget):
    local = {"base_url": "http://127.0.0.1:8000/v1", "model": "claude-haiku-4-5"}
    assert rates(**local).source == "unknown"
    assert rates(**local).nusd(Usage(1000, 0, 1000)) == 0
    with pytest.raises(ConfigError, match=r"genai-prices .* has none for claude-haiku-4-5.*Set teacher\.price = "):
        rates(**local, **{budget: 1.0})


def test_the_table_is_not_read_before_it_is_needed():
    code = "import omniopd.stages.audit.stage, sys; print('genai_prices' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
