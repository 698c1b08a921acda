"""Errors of other libraries, quoted in one line."""

import pytest

from omniopd.store.errors import first_line


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("no such file"), "no such file"),
        (ValueError("first.\nsecond."), "first"),
        (ValueError("first\r\nsecond"), "first"),
        (ValueError("\n  \n  the reason \nwhere"), "the reason"),
        (KeyError("name"), "'name'"),
        (RuntimeError(), "RuntimeError"),
        (RuntimeError(" \n\n"), "RuntimeError"),
        ("said by a server.\nmore", "said by a server"),
        ("", ""),
    ],
    ids=repr,
)
def test_the_first_line_is_the_first_that_says_something_without_its_full_stop(error, said):
    assert first_line(error) == said


def test_a_very_long_line_is_cut_and_shows_that_it_is():
    assert first_line(ValueError("x" * 500)) == "x" * 500
    assert first_line(ValueError("x" * 100_000)) == "x" * 500 + "…"
