"""Table 3 as a picture, made with Altair and drawn by vl-convert, which need no browser and no network."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt

_WIDTH, _HEIGHT = 150, 160
_MEASURES = {"mse": "mean squared error", "corr": "Pearson correlation"}
_ESTIMATORS = {"freq": "frequentist", "bayes": "Bayesian"}


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Error and correlation of both estimators over N, a column for each φ, with 95 % bands."""
    chart(rows).save(str(path), scale_factor=2)
    return path


def chart(rows: Sequence[Mapping[str, Any]]) -> alt.VConcatChart:
    """The same as a Vega-Lite chart: a row of panels for each measure that is defined, all on one scale."""
    data = {title: points(rows, measure) for measure, title in _MEASURES.items()}
    panels = [_panels(values, title) for title, values in data.items() if values]
    return alt.vconcat(*panels).configure_view(stroke=None)


def points(rows: Sequence[Mapping[str, Any]], measure: str) -> list[dict[str, Any]]:
    """One point for each row and estimator; none where the measure is not defined."""
    return [
        {
            "phi": row["phi"],
            "n": row["n"],
            "estimator": name,
            "value": row[key],
            "low": row[f"{key}_low"],
            "high": row[f"{key}_high"],
        }
        for row in rows
        for key, name in ((f"{measure}_{estimator}", name) for estimator, name in _ESTIMATORS.items())
        if not math.isnan(row[key])
    ]


def _panels(data: Sequence[Mapping[str, Any]], title: str) -> alt.FacetChart:
    budgets = sorted({point["n"] for point in data})
    x = alt.X(
        "n:Q", title="rollouts N", scale=alt.Scale(type="log", nice=False), axis=alt.Axis(values=budgets, format="d")
    )
    names = list(_ESTIMATORS.values())
    legend = alt.Legend(title=None, symbolOpacity=1)
    colour = alt.Color("estimator:N", scale=alt.Scale(domain=names, scheme="tableau10"), legend=legend)
    base = alt.Chart(width=_WIDTH, height=_HEIGHT)
    band = base.mark_area(opacity=0.2).encode(x=x, y=alt.Y("low:Q", title=title), y2="high:Q", color=colour)
    line = base.mark_line(point=True).encode(
        x=x, y=alt.Y("value:Q", title=title, scale=alt.Scale(zero=False)), color=colour
    )
    return alt.layer(band, line, data=alt.Data(values=list(data))).facet(
        column=alt.Column("phi:N", title=None, sort=list(dict.fromkeys(point["phi"] for point in data)))
    )
