"""The page about a run, and `omniopd report`: fill it in, and write it as one file."""

import functools
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson

from ...method.objectives.registry import objective_of
from ...store import files
from ...store.config import Config
from ...store.errors import InputError
from ...store.layout import RunDir
from ..status import read_status
from . import figures, parts
from .explorer import sha256_source
from .parts import Part

_HERE = Path(__file__).parent


def write_report(run: RunDir, config: Config, target: Path, most_trajectories: int) -> str:
    """Write the report of a run as it is now. Returns a line about it.

    Args:
        most_trajectories: Trajectories that can be searched in it; of more, this many are drawn.

    Raises:
        InputError: there is no trajectory yet.
    """
    status = read_status(run, config)
    if all(round_.stages[0].state != "damaged" and not round_.stages[0].done for round_ in status.rounds):
        raise InputError(f"{run.path} has no trajectory yet.", f"Run `omniopd generate {run.path}` first.")
    text = page(
        figures.bundle_name(run.path), who_learns(config),
        {
            "progress": parts.progress(status, live=False),
            "findings": parts.findings(run, config, status, newest=False),
            "trajectories": parts.trajectories(run, config, most_trajectories),
            "glossary": parts.glossary(),
        },
        f"on {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}. Everything is in this file; it loads nothing",
    )  # fmt: skip
    files.write_text(target, text)
    return f"wrote {target} ({len(text.encode()) / 1e6:.1f} MB); open it in a browser"


def page(
    name: str, lead: tuple[str, str] | None, filled: Mapping[str, Part], made: str, *, live: str = "",
    links: Sequence[tuple[str, str]] = (),
) -> str:  # fmt: skip
    """A page with its parts, those that come later empty. It runs its own scripts and loads nothing.

    Args:
        lead: Who learns from whom.
        live: A script that fills in the parts from the server that the page came from.
        links: Other pages of that server, as (address, name).
    """
    from markupsafe import Markup

    css, script = ((_HERE / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    scripts = [_library(), script, *([live] if live else [])]
    policy = (
        f"default-src 'none'; script-src {' '.join(map(sha256_source, scripts))}; style-src {sha256_source(css)};"
        " img-src data:; base-uri 'none'; form-action 'none'"
    ) + ("; connect-src 'self'" if live else "")
    return parts.environment().get_template("page.html.j2").render(
        policy=policy, css=Markup(css), scripts=[Markup(text) for text in scripts], name=name, lead=lead,
        parts={name: Markup(part.html) for name, part in filled.items()},
        specs=Markup(_as_script([spec for part in filled.values() for spec in part.specs])),
        data=next((part.data for part in filled.values() if part.data), ""),
        live=bool(live), links=links, version=version("omniopd"), made=made,
    )  # fmt: skip


def who_learns(config: Config) -> tuple[str, str]:
    """Student and teacher, as a page names them."""
    return _model_name(config.student.model), _teacher_name(config)


@functools.cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, out of the package vl-convert-python."""
    import vl_convert

    library = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    assert "</script" not in library.lower()
    return library


def _as_script(value: Any) -> str:
    """JSON that no text in it can end as a script (HTML Standard, 4.12.1.3)."""
    return orjson.dumps(value).decode().replace("<", "\\u003c")


def _model_name(model: str) -> str:
    """A hub id as it is, and of a folder the name: where it lies on this machine is nobody's business."""
    return Path(model).name if model.count("/") != 1 or model.startswith((".", "/")) else model


def _teacher_name(config: Config) -> str:
    objective = objective_of(config)
    if objective.graded:
        return f"rewards of {config.score.grader}"
    return _model_name(config.train.teacher) if objective.frozen == "teacher" else config.teacher.model
