"""The lines of a chart can be told apart: by as many people as possible, and however many there are."""

import re
from pathlib import Path

import pytest

from omniopd.view.report import charts
from support.colours import OKABE_ITO, VISION, ciede2000, contrast, least_difference

CSS = Path(charts.__file__).with_name("report.css").read_text(encoding="utf-8")
LIGHT, *DARK = re.findall(r"\{\s+(--paper:[^}]*)\}", CSS)


def colours(theme):
    return tuple(re.findall(r"--line-\d: (#[0-9a-f]{6});", theme))


def drawn(count):
    runs = {f"run {i}": [{"step": step, "kl_mean": float(i)} for step in (1, 2)] for i in range(count)}
    spec = charts.of_runs("kl", runs, "kl_mean", "KL", "nats")
    assert spec is not None
    return spec["encoding"]


@pytest.mark.parametrize(
    ("one", "other", "difference"),
    [
        ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
        ((50.0, 2.5, 0.0), (73.0, 25.0, -18.0), 27.1492),
        ((50.0, 2.5, 0.0), (58.0, 24.0, 15.0), 19.4535),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_the_difference_of_two_colours_is_the_published_one(one, other, difference):
    # Sharma, Wu and Dalal 2005, table 1.
    assert ciede2000(one, other) == pytest.approx(difference, abs=1e-4)


@pytest.mark.parametrize("theme", [LIGHT, DARK[0]], ids=["light", "dark"])
@pytest.mark.parametrize("vision", VISION)
def test_eight_lines_differ_at_least_as_much_as_okabe_and_itos_colours(theme, vision):
    assert len(colours(theme)) == 8
    assert least_difference(colours(theme), vision) >= least_difference(OKABE_ITO, vision) > 10


@pytest.mark.parametrize("theme", [LIGHT, *DARK], ids=["light", "dark by the system", "dark by choice"])
def test_every_line_stands_out_from_its_background(theme):
    paper = re.search(r"--paper: (#[0-9a-f]{6})", theme)[1]
    assert min(contrast(colour, paper) for colour in colours(theme)) >= 3  # WCAG 2.2, 1.4.11


def test_dark_is_the_same_by_the_system_and_by_choice():
    assert len(DARK) == 2
    assert colours(DARK[0]) == colours(DARK[1])


def test_eight_runs_have_a_colour_each_and_more_are_told_apart_by_dashes():
    eight, nine, many = drawn(8), drawn(9), drawn(32)
    assert len(set(eight["color"]["scale"]["range"])) == 8
    assert "strokeDash" not in eight
    assert nine["strokeDash"]["scale"]["range"][:8] == [[1, 0]] * 8 != nine["strokeDash"]["scale"]["range"][1:]
    assert nine["strokeDash"]["scale"]["domain"] == nine["color"]["scale"]["domain"], "one legend"
    assert nine["strokeDash"]["legend"] == nine["color"]["legend"], "one legend"
    looks = zip(many["color"]["scale"]["range"], map(tuple, many["strokeDash"]["scale"]["range"]), strict=True)
    assert len(set(looks)) == 32
