# pyright: strict
"""What a request costs: the user's price, or that of the table which the package genai-prices brings along."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from ...store.errors import ConfigError
from ...store.ledger import NANO
from ...store.sections import TeacherConfig
from ...store.usage import Usage
from .teachers.registry import find_dialect

_HOUR_WRITE = 2.0
"""What a token costs that is written to Anthropic's cache for an hour, in input prices; no table has it.
https://docs.anthropic.com/en/docs/build-with-claude/prompt-caching"""


@dataclass(frozen=True)
class Rates:
    """USD per million tokens, and who says so."""

    input: float
    output: float
    cached_input: float
    cache_write: float
    source: str

    def nusd(self, usage: Usage) -> int:
        """Price of a request in whole nano-dollars, rounded up."""
        plain = usage.prompt_tokens - usage.cached_tokens - usage.cache_write_tokens
        dollars_per_million = (
            plain * self.input
            + usage.cached_tokens * self.cached_input
            + usage.cache_write_tokens * self.cache_write
            + usage.cache_write_1h_tokens * max(0, _HOUR_WRITE * self.input - self.cache_write)
            + usage.completion_tokens * self.output
        )
        return max(0, math.ceil(dollars_per_million * NANO / 1_000_000))

    def batch(self) -> "Rates":
        """What the providers' batch APIs charge: half."""
        half = (rate / 2 for rate in (self.input, self.output, self.cached_input, self.cache_write))
        return Rates(*half, source=self.source if self.source == "unknown" else f"{self.source}, batch at half")


def find_rates(config: TeacherConfig) -> Rates:
    """Rates of the configured model: teacher.price goes before the table. A model without a price is free.

    Raises:
        ConfigError: there is a budget in dollars, and nobody knows the price; or there is no such kind of teacher.
    """
    if config.price is not None:
        price = config.price
        cached = price.input if price.cached_input is None else price.cached_input
        written = price.input if price.cache_write is None else price.cache_write
        return Rates(price.input, price.output, cached, written, "teacher.price")
    rates = _from_table(config)
    if rates is not None:
        return rates
    if (config.budget_usd, config.round_budget_usd, config.model_budget_usd) != (None, None, None):
        raise ConfigError(
            f"A budget in dollars needs a price, and {table_version()} has none for {config.model} at this address.",
            "Set teacher.price = { input = ..., output = ... } in USD per million tokens.",
        )
    return Rates(0, 0, 0, 0, "unknown")


def table_version() -> str:
    """The price table and its version, as the ledger and `plan` name it."""
    from importlib.metadata import version

    return f"genai-prices {version('genai-prices')}"


def _from_table(config: TeacherConfig) -> Rates | None:
    """Rates of the bundled table; None where it does not know the provider or the model."""
    # Nearly half a second, which only the commands that spend or predict money need.
    from genai_prices.data_snapshot import get_snapshot

    url = config.base_url if isinstance(config.base_url, str) else config.base_url[0]
    provider = None if url else find_dialect(config.kind).price_provider
    if not url and provider is None:
        return None
    try:
        _, model = get_snapshot().find_provider_model(config.model, None, provider, url or None)
    except LookupError:
        return None
    # Some prices depend on the hour; a budget has to stand at any of them.
    now = datetime.now(UTC)
    hourly = [model.get_prices(now + timedelta(hours=hour)) for hour in range(24)]
    values = {name: _dearest(getattr(price, name, None) for price in hourly) for name in _FIELDS}
    input_, output, cached, written = (values[name] for name in _FIELDS)
    if input_ is None or output is None:
        return None
    return Rates(
        input_, output, input_ if cached is None else cached, input_ if written is None else written, table_version()
    )


_FIELDS = ("input_mtok", "output_mtok", "cache_read_mtok", "cache_write_mtok")


def _dearest(prices: Iterable[Any]) -> float | None:
    # Tiers begin at prompts of some 200k tokens, which no chunk's prefix reaches: the base price holds.
    numbers = [float(getattr(price, "base", price)) for price in prices if price is not None]
    return max(numbers, default=None)
