"""A study as one picture, made with Altair and drawn by vl-convert, which need no browser and no network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt

from ..store.config import Config
from .arms import REFERENCE, Arm, Kind
from .results import BEFORE
from .table import Line, Row

_PASS = "Pass@1 (%)"
_WIDTH, _HEIGHT = 320, 240


def plot(kind: Kind, lines: Sequence[Line], rows: Sequence[Row], arms: Sequence[Arm], base: Config, path: Path) -> Path:
    """compare and ablation: Pass@1 and its cost; learning curves where there are any. sensitivity: a panel a key."""
    if kind == "sensitivity":
        panels = _panels(lines, arms, base)
    else:
        names = [line.arm for line in lines]
        panels = [_bars(lines, names), _frontier(lines, names)]
        if len({row["rounds"] for row in rows}) > 2:
            panels.append(_curves(rows, names))
    chart = alt.concat(*panels, columns=3).resolve_scale(color="independent")
    chart.configure_view(stroke=None).save(str(path), scale_factor=2)
    return path


def _points(lines: Sequence[Line]) -> list[dict[str, Any]]:
    return [
        {
            "arm": line.arm,
            "tokens": line.teacher_tokens,
            "pass": 100 * line.pass_at_1.value,
            "low": 100 * line.pass_at_1.low,
            "high": 100 * line.pass_at_1.high,
        }
        for line in lines
    ]


def _bars(lines: Sequence[Line], names: Sequence[str]) -> Any:
    chart = alt.Chart(alt.Data(values=_points(lines)), title="95 % intervals over seeds", width=_WIDTH, height=_HEIGHT)
    arm = alt.Y("arm:N", sort=None, title=None, axis=alt.Axis(labelLimit=200))
    bars = chart.mark_point(filled=True, size=60, opacity=1).encode(
        y=arm, x=alt.X("pass:Q", title=_PASS, scale=alt.Scale(zero=False)), color=_colour(names, legend=False)
    )
    return chart.mark_rule().encode(y=arm, x="low:Q", x2="high:Q", color=_colour(names, legend=False)) + bars


def _frontier(lines: Sequence[Line], names: Sequence[str]) -> Any:
    """Pass@1 over what the teacher read and wrote for it. The upper left is better."""
    chart = alt.Chart(alt.Data(values=_points(lines)), title="accuracy and its cost", width=_WIDTH, height=_HEIGHT)
    x = alt.X("tokens:Q", title="teacher tokens, all rounds", axis=alt.Axis(format="~s"))
    y = alt.Y("pass:Q", title=_PASS, scale=alt.Scale(zero=False))
    colour = _colour(names, legend=True)
    return chart.mark_rule().encode(x=x, y="low:Q", y2="high:Q", color=colour) + chart.mark_point(
        filled=True, size=60, opacity=1
    ).encode(x=x, y=y, color=colour)


def _colour(names: Sequence[str], legend: bool) -> Any:
    shown = alt.Legend(title=None) if legend else None
    scheme = "tableau10" if len(names) <= 10 else "tableau20"
    return alt.Color("arm:N", sort=names, scale=alt.Scale(domain=names, scheme=scheme), legend=shown)


def _curves(rows: Sequence[Row], names: Sequence[str]) -> Any:
    """Pass@1 after each round; all arms begin at the initial student."""
    arms = [arm for arm in dict.fromkeys(row["arm"] for row in rows) if arm != BEFORE]
    start = {"rounds": 0, "pass": _mean_of(rows, BEFORE, 0)}
    points = [{"arm": arm, **start} for arm in arms]
    for arm in arms:
        after = sorted({row["rounds"] for row in rows if row["arm"] == arm})
        points += [{"arm": arm, "rounds": k, "pass": _mean_of(rows, arm, k)} for k in after]
    chart = alt.Chart(alt.Data(values=points), title="mean over seeds", width=_WIDTH, height=_HEIGHT)
    return chart.mark_line(point=True).encode(
        x=alt.X("rounds:Q", title="rounds", axis=alt.Axis(values=sorted({row["rounds"] for row in rows}), format="d")),
        y=alt.Y("pass:Q", title=_PASS, scale=alt.Scale(zero=False)),
        color=_colour(names, legend=False),
    )


def _mean_of(rows: Sequence[Row], arm: str, rounds: int) -> float:
    values = [row["pass_at_1"] for row in rows if row["arm"] == arm and row["rounds"] == rounds]
    return 100 * sum(values) / len(values)


def _panels(lines: Sequence[Line], arms: Sequence[Arm], base: Config) -> list[Any]:
    """Pass@1 over the values of each key; the base's own value is the reference arm's."""
    by_arm = {point["arm"]: point for point in _points(lines)}
    keys = list(dict.fromkeys(key for arm in arms for key in arm.changes))
    panels: list[Any] = []
    for key in keys:
        section, _, name = key.partition(".")
        own = getattr(getattr(base, section), name)
        points = [{**by_arm[REFERENCE], "value": own, "base": True}]
        points += [{**by_arm[arm.name], "value": arm.changes[key], "base": False} for arm in arms if key in arm.changes]
        words = any(isinstance(point["value"], str) for point in points)
        points.sort(key=lambda point: str(point["value"]) if words else point["value"])
        x = alt.X("value:O", sort=None, title=key, axis=alt.Axis(labelAngle=0))
        chart = alt.Chart(alt.Data(values=points), width=_WIDTH * 0.7, height=_HEIGHT * 0.8)
        y = alt.Y("pass:Q", title=_PASS, scale=alt.Scale(zero=False))
        marks = chart.mark_point(filled=True, size=60, opacity=1).encode(
            x=x, y=y, shape=alt.Shape("base:N", legend=None)
        )
        layers = chart.mark_rule().encode(x=x, y="low:Q", y2="high:Q") + marks
        panels.append(layers if words else chart.mark_line(opacity=0.4).encode(x=x, y=y) + layers)
    return panels
