# pyright: strict
"""What a config alone tells about its teacher: kind, address, key, price, budget."""

import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from ...store.errors import ConfigError
from ...store.findings import Finding, of_error
from ...store.sections import TeacherConfig
from .price import find_rates
from .teacher import Dialect
from .teachers.registry import find_dialect


def settings(teacher: TeacherConfig, environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """Findings that need no server: kind, address, key, price and budget."""
    try:
        dialect = find_dialect(teacher.kind)
    except ConfigError as error:
        return [of_error("teacher", error)]
    findings = [finding for url in urls_of(teacher) if (finding := _wrong_address(url)) is not None]
    if (missing := _key(teacher, dialect, environment)) is not None:
        findings.append(missing)
    findings.append(_price(teacher))
    return findings


def urls_of(teacher: TeacherConfig) -> tuple[str, ...]:
    """The configured addresses, without a slash at the end; one is "" where the provider's own is meant."""
    urls = (teacher.base_url,) if isinstance(teacher.base_url, str) else teacher.base_url
    return tuple(url.rstrip("/") for url in urls)


def _wrong_address(url: str) -> Finding | None:
    parts = urlsplit(url)
    if not url or (parts.scheme in ("http", "https") and parts.hostname):
        return None
    problem = f"teacher.base_url {url!r} does not begin with http:// or https://"
    return Finding("address", "fail", problem, f'Set teacher.base_url = "http://{url.split("://")[-1]}".')


def _key(teacher: TeacherConfig, dialect: Dialect, environment: Mapping[str, str]) -> Finding | None:
    host = urlsplit(urls_of(teacher)[0]).hostname or ""
    needed = bool(teacher.api_key_env) or dialect.key_hosts is None or host in dialect.key_hosts
    variable = teacher.api_key_env or dialect.key
    if not needed or teacher.api_key_file or environment.get(variable, "").strip():
        return None
    hint = f"Put the key of {host or teacher.kind} there, or into a file that teacher.api_key_file names."
    return Finding("key", "fail", f"The environment variable {variable} is not set", hint)


def _price(teacher: TeacherConfig) -> Finding:
    try:
        rates = find_rates(teacher)
    except ConfigError as error:
        return of_error("price", error)
    if rates.source == "unknown":
        return Finding("price", "ok", "unknown, counted as free of charge")
    price = f"${rates.input:g} in and ${rates.output:g} out per million tokens ({rates.source})"
    if teacher.budget_usd is None and teacher.budget_tokens is None:
        return Finding("price", "warn", f"{price}, and no budget", "Set teacher.budget_usd to what a run may cost.")
    return Finding("price", "ok", price)
