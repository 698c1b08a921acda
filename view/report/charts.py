"""The charts of a report, as Vega-Lite specifications made with Altair. Colours are names of the page's CSS variables,
so that one specification serves light and dark."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import altair as alt

from .figures import Histogram, Row

_LINE, _EARLIER = "var(--accent)", "var(--earlier)"
_HEIGHT = 170
_MOST_TICKS = 6
_PALETTE = tuple(f"var(--line-{i})" for i in range(1, 9))
_DASHES = ([1, 0], [6, 3], [2, 2], [8, 2, 2, 2])
"""Of more lines than there are colours, each eight after the first."""

CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "line": {"strokeJoin": "round"},
    "axis": {
        "labelColor": "var(--muted)", "titleColor": "var(--muted)", "gridColor": "var(--grid)", "domain": False,
        "tickColor": "var(--grid)", "labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal",
        "titlePadding": 8, "tickCount": 5,
    },
    "axisX": {"grid": False},
    "legend": {
        "labelColor": "var(--ink)", "titleColor": "var(--muted)", "orient": "top", "title": None, "labelFontSize": 11,
        "symbolType": "square", "offset": 4,
    },
}  # fmt: skip


def by_step(name: str, steps: list[Row], column: str, title: str, unit: str) -> dict[str, Any] | None:
    """A training metric over the optimizer steps of all rounds; a thin rule where a round begins. None: no values."""
    points = [{"step": row["step"], "round": row["round"], "value": row[column]} for row in steps
              if row[column] is not None]  # fmt: skip
    if not points:
        return None
    begins = [{"step": b["step"] - 0.5} for a, b in pairwise(points) if b["round"] != a["round"]]
    axis = _whole(point["step"] for point in points)
    x = alt.X("step:Q", title="optimizer step", axis=axis, scale=alt.Scale(nice=False))
    line = alt.Chart(alt.Data(values=points)).mark_line(color=_LINE, strokeWidth=2, point=_dots(len(points))).encode(
        x=x, y=alt.Y("value:Q", title=unit, scale=alt.Scale(zero=False)),
        tooltip=[alt.Tooltip("step:Q", title="step"), alt.Tooltip("round:Q"),
                 alt.Tooltip("value:Q", title=f"{title}, {unit}", format=".4~g")],
    )  # fmt: skip
    rules = alt.Chart(alt.Data(values=begins)).mark_rule(color="var(--grid)", strokeDash=[3, 3]).encode(x=x)
    return _spec(rules + line if begins else line, name, title)


def by_round(name: str, values: list[Row], column: str, title: str, unit: str, band: str = "") -> dict[str, Any] | None:
    """A mean over the trajectories of each round; `band` names columns `<band>_low` and `<band>_high` around it."""
    points = [row for row in values if row[column] is not None]
    if not points:
        return None
    percent = unit.endswith("(%)")
    kept = ["round", column, *([f"{band}_low", f"{band}_high"] if band else [])]
    data = alt.Data(values=[{key: _scaled(row[key], percent and key != "round") for key in kept} for row in points])
    x = alt.X("round:Q", title="round", axis=_whole(row["round"] for row in points))
    # Where nothing was cut off in any round, the axis still goes up to 1 %.
    flat = percent and all(100 * row[column] < 1 for row in points)
    y = alt.Y(
        f"{column}:Q", title=unit, scale=alt.Scale(zero=percent or bool(band), domainMax=1 if flat else alt.Undefined)
    )
    chart: Any = alt.Chart(data).mark_line(color=_LINE, strokeWidth=2, point=_dots(len(points))).encode(
        x=x, y=y, tooltip=[alt.Tooltip("round:Q"), alt.Tooltip(f"{column}:Q", title=f"{title}, {unit}", format=".4~g")],
    )  # fmt: skip
    if band:
        edge = alt.Y(f"{band}_low:Q", title=unit)
        area = alt.Chart(data).mark_area(color=_LINE, opacity=0.15).encode(x=x, y=edge, y2=f"{band}_high:Q")
        chart = area + chart
    return _spec(chart, name, title)


def histogram(histogram: Histogram, title: str, x_title: str) -> dict[str, Any] | None:
    """Shares of the bins: the last round filled, the first as a line over it. None: nothing to count."""
    if not histogram.values:
        return None
    rounds = sorted({row["round"] for row in histogram.values})
    values = [{**row, "which": f"round {row['round']}", "percent": 100 * row["share"]} for row in histogram.values]
    names = [f"round {r}" for r in rounds]
    colours = [_EARLIER, _LINE] if len(rounds) > 1 else [_LINE]
    colour = alt.Color("which:N", scale=alt.Scale(domain=names, range=colours))
    low = values[0]["low"]
    high = values[-1]["high"]
    plain = alt.X("low:Q", title=x_title, scale=alt.Scale(domain=[low, high], nice=False))
    x = alt.X("low:Q", bin="binned", title=x_title, scale=alt.Scale(domain=[low, high], nice=False))
    y = alt.Y("percent:Q", title="share (%)")
    tooltip = [
        alt.Tooltip("which:N", title="of"),
        alt.Tooltip("low:Q", title=f"from, {x_title}", format=".3~g"),
        alt.Tooltip("high:Q", title=f"to, {x_title}", format=".3~g"),
        alt.Tooltip("percent:Q", title="share, %", format=".2~f"),
    ]
    bars = (
        alt.Chart(alt.Data(values=[row for row in values if row["round"] == rounds[-1]]))
        .mark_bar(opacity=0.85, binSpacing=1)
        .encode(x=x, x2="high:Q", y=y, color=colour, tooltip=tooltip)
    )
    if len(rounds) == 1:
        return _spec(bars.encode(color=alt.value(_LINE)), histogram.name, title)
    earlier = [row for row in values if row["round"] == rounds[0]]
    outline = (
        alt.Chart(alt.Data(values=[*earlier, {**earlier[-1], "low": high}]))
        .mark_line(interpolate="step-after", strokeWidth=2)
        .encode(x=plain, y=y, color=colour)
    )
    return _spec(bars + outline, histogram.name, title)


def accuracy(rows: list[Row], steps: list[Row]) -> dict[str, Any] | None:
    """Pass@1 over the optimizer steps (Fig. 3, right), a line a benchmark and grader. None: nothing was evaluated."""
    values = _measured(rows, steps)
    return _accuracy(values, sorted({value["line"] for value in values})) if values else None


def _measured(rows: list[Row], steps: list[Row]) -> list[Row]:
    last_step = {0: 0}
    for step in steps:
        last_step[step["round"] + 1] = step["step"]
    several = len({row["grader"] for row in rows}) > 1
    return [
        {"step": last_step.get(row["rounds"], 0), "percent": 100 * row["accuracy"], "answers": row["answers"],
         "low": 100 * row["low"], "high": 100 * row["high"], "rounds": row["rounds"],
         "line": f"{row['benchmark']}, {row['grader']}" if several else row["benchmark"]}
        for row in rows
    ]  # fmt: skip


def _accuracy(values: list[Row], lines: list[str], title: str = "Accuracy") -> dict[str, Any]:
    base = alt.Chart(alt.Data(values=values)).encode(
        x=alt.X("step:Q", title="optimizer step", axis=_whole(value["step"] for value in values)),
        color=_colours(lines),
        tooltip=[alt.Tooltip("line:N", title="benchmark"), alt.Tooltip("rounds:Q", title="after rounds"),
                 alt.Tooltip("percent:Q", title="Pass@1, %", format=".1~f"),
                 alt.Tooltip("low:Q", title="95 % from, %", format=".1~f"),
                 alt.Tooltip("high:Q", title="to, %", format=".1~f"),
                 alt.Tooltip("answers:Q", format=",")],
    )  # fmt: skip
    y = alt.Scale(zero=False)
    intervals = base.mark_rule(strokeWidth=1.5, opacity=0.5).encode(
        y=alt.Y("low:Q", title="Pass@1 (%)", scale=y), y2="high:Q"
    )
    line = base.mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=28)).encode(
        y=alt.Y("percent:Q", title="Pass@1 (%)", scale=y), **_dashes(lines)
    )
    return _spec(intervals + line, "accuracy", title)


def accuracy_of_runs(
    runs: dict[str, list[Row]], steps: dict[str, list[Row]], benchmark: str, grader: str
) -> dict[str, Any] | None:
    """Pass@1 of several runs by one benchmark and grader, a line a run. None: nothing was evaluated."""
    values = [
        value | {"line": name}
        for name, rows in runs.items()
        for value in _measured(
            [row for row in rows if (row["benchmark"], row["grader"]) == (benchmark, grader)], steps[name]
        )
    ]
    return _accuracy(values, list(runs), f"Accuracy, {benchmark}") if values else None


def of_runs(name: str, runs: dict[str, list[Row]], column: str, title: str, unit: str) -> dict[str, Any] | None:
    """A training metric of several runs over their optimizer steps, a line a run. None: no values."""
    values = [{"step": row["step"], "value": row[column], "line": run}
              for run, steps in runs.items() for row in steps if row[column] is not None]  # fmt: skip
    if not values:
        return None
    chart = alt.Chart(alt.Data(values=values)).mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=20)).encode(
        x=alt.X("step:Q", title="optimizer step", axis=_whole(value["step"] for value in values)),
        y=alt.Y("value:Q", title=unit, scale=alt.Scale(zero=False)), color=_colours(list(runs)), **_dashes(list(runs)),
        tooltip=[alt.Tooltip("line:N", title="run"), alt.Tooltip("step:Q", title="step"),
                 alt.Tooltip("value:Q", title=f"{title}, {unit}", format=".4~g")],
    )  # fmt: skip
    return _spec(chart, name, title)


def _colours(lines: list[str]) -> Any:
    colours = [_PALETTE[i % len(_PALETTE)] for i in range(len(lines))]
    return alt.Color("line:N", scale=alt.Scale(domain=lines, range=colours), legend=_names(lines))


def _dashes(lines: list[str]) -> dict[str, Any]:
    """The encoding that tells lines of one colour apart; {} where each has its own."""
    if len(lines) <= len(_PALETTE):
        return {}
    dashes = [_DASHES[i // len(_PALETTE) % len(_DASHES)] for i in range(len(lines))]
    return {"strokeDash": alt.StrokeDash("line:N", scale=alt.Scale(domain=lines, range=dashes), legend=_names(lines))}


def _names(lines: list[str]) -> Any:
    """The legend: the same for colours and dashes, so that Vega makes one of both."""
    symbol = alt.Undefined if len(lines) <= len(_PALETTE) else "stroke"  # a dash shows in a line, not in a square
    # One below the other: names of runs are long.
    return alt.Legend(columns=1, labelLimit=280, symbolType=symbol, symbolOpacity=1)


def _whole(values: Iterable[int]) -> Any:
    """An axis of whole numbers. Vega's own ticks of a short axis are fractions, which as whole numbers come twice."""
    present = sorted(set(values))
    low, high = present[0], present[-1]
    sizes = (size * 10**power for power in range(20) for size in (1, 2, 5))
    size = next(size for size in sizes if (high - low) / size < _MOST_TICKS)
    return alt.Axis(values=list(range(-(-low // size) * size, high + 1, size)) or [low], format="d")


def _dots(count: int) -> Any:
    return alt.OverlayMarkDef(size=28, color=_LINE) if count <= 40 else False


def _scaled(value: Any, percent: bool) -> Any:
    return 100 * value if percent and value is not None else value


def _spec(chart: Any, name: str, title: str) -> dict[str, Any]:
    described = chart.properties(
        width="container",
        height=_HEIGHT,
        description=title,
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
    ).configure(**CONFIG)
    return {**described.to_dict(), "name": name}
