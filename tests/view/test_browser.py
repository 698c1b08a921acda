"""The report in a real browser: it draws, filters, says nothing on the console, and runs no text of a model.

These tests need Chromium (Debian: `apt-get install chromium`) and skip, saying so, where none is installed; what the
page consists of is tested without one in test_report.py.
"""

import re
import subprocess

import pytest

from omniopd.view.report.build import write_report
from support.browser import CHROMIUM
from support.written_run import write_tables

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: the report was not opened in a browser"),
]

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


def command(path):
    """A browser of its own for each test: root in a container needs --no-sandbox."""
    return [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"),
        *("--virtual-time-budget=10000", f"--user-data-dir={path.parent}/profile"),
    ]


def opened(path, address=""):
    """The DOM when the page is ready, scripts apart, and what it said on the console."""
    result = subprocess.run(
        [*command(path), "--enable-logging=stderr", "--dump-dom", f"file://{path}#{address}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    console = [line for line in result.stderr.splitlines() if ":CONSOLE" in line]
    assert result.returncode == 0, result.stderr
    return re.sub(r"<script.*?</script>", "", result.stdout, flags=re.S), console


@pytest.fixture
def report(make_run, tmp_path):
    run = write_tables(make_run(name="r"), ["A plain response of some length.", HOSTILE], rollout=HOSTILE)
    write_report(run, run.config(), tmp_path / "report.html", 100)
    return tmp_path / "report.html"


def test_it_draws_every_chart_and_lists_the_trajectories_without_a_word_on_the_console(report):
    dom, console = opened(report)
    assert console == []
    assert 'data-ready="yes"' in dom
    places = re.findall(r'<div id="chart-([\w-]+)"', dom)
    assert len(places) >= 12
    assert dom.count("<svg") >= len(places)
    assert "2 of 2 trajectories" in dom


def test_what_a_model_wrote_stays_text(report):
    dom, console = opened(report, "open=2")
    assert console == []
    assert "<title>owned" not in dom
    assert "<img" not in dom
    # It is there to be read, in the open trajectory and in its rollouts.
    assert "&lt;img src=x onerror=" in dom.partition('id="list"')[2]


@pytest.mark.parametrize(
    ("address", "count"), [("q=PLAIN%20response", 1), ("q=onerror", 2), ("max=0.3&finish=length", 0)]
)
def test_it_filters(report, address, count):
    dom, console = opened(report, address)
    assert console == []
    assert f"{count} of 2 trajectories" in dom
    assert dom.count('<details class="trajectory"') == count


def test_it_sorts(report):
    dom, _ = opened(report, "sort=tokens&desc=1")
    assert re.findall(r"question (\d)", dom.partition('id="list"')[2].partition("<nav")[0]) == ["1", "0"]


def test_it_has_a_light_and_a_dark_side(report, tmp_path):
    from PIL import Image

    brightness = {}
    for theme in ("light", "dark"):
        picture = tmp_path / f"{theme}.png"
        subprocess.run(
            [*command(report), f"--screenshot={picture}", f"file://{report}#theme={theme}"],
            capture_output=True,
            timeout=120,
            check=True,
        )
        with Image.open(picture) as image:
            histogram = image.convert("L").histogram()
        brightness[theme] = sum(value * count for value, count in enumerate(histogram)) / sum(histogram)
    assert brightness["light"] > 200
    assert brightness["dark"] < 60
