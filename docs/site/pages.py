"""Pages that the code says better than anybody could keep up by hand: commands, config keys, tables; and the list of
decisions in the site's navigation. A hook of mkdocs."""

import atexit
import shutil
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from typer.cli import get_docs_for_click

from omniopd.cli import app
from omniopd.store.config import Config, toml_value
from omniopd.store.schema import TABLES
from omniopd.store.sql import doc_and_unit


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    folder = Path(config.docs_dir) / "decisions"
    assert config.nav is not None
    config.nav.append({"Decisions": [f"decisions/{path.name}" for path in sorted(folder.glob("*.md"))]})
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(_package(folder.parents[1]))]
    return config


def _package(root: Path) -> Path:
    """A folder with the package and nothing else. The repository's root is the package (decision 1), and whoever reads
    all that is in it reads the virtual environment too."""
    copy = Path(tempfile.mkdtemp(prefix="omniopd-site-"))
    atexit.register(shutil.rmtree, copy)
    package = copy / "omniopd"
    package.mkdir()
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    for name in project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]:
        if "/" not in name:
            (package / name).symlink_to(root / name)
    return copy


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, content in (("commands.md", commands()), ("config.md", keys()), ("tables.md", tables())):
        files.append(File.generated(config, name, content=content))
    return files


def commands() -> str:
    """What `--help` says."""
    command = typer.main.get_command(app)
    return get_docs_for_click(obj=command, ctx=typer.Context(command), name="omniopd", title="Commands")


def keys() -> str:
    """A table for each section of config.toml."""
    lines = [
        "# Config",
        "",
        "Every key of a run's `config.toml`, with its default. `--set section.key=value` overrides one for a command,",
        "and `--set section.key=none` unsets it. `omniopd init` writes the same into a new file.",
    ]
    for section, field in Config.model_fields.items():
        model: Any = field.annotation
        assert issubclass(model, BaseModel)
        lines += ["", f"## [{section}]", "", "| key | default | meaning |", "|---|---|---|"]
        for key, info in model.model_fields.items():
            default = "not set" if info.default is None else f"`{toml_value(info.default)}`"
            lines.append(f"| `{key}` | {_cell(default)} | {_cell(info.description or '')} |")
    return "\n".join(lines) + "\n"


def tables() -> str:
    """A table for each table of a run directory."""
    lines = ["# Tables", "", "The columns of a run's tables (`omniopd sql RUN` has them, and joins of them, as views)."]
    for name, spec in TABLES.items():
        lines += ["", f"## {name}", "", f"{spec.doc}.", "", "| column | type | unit | meaning |", "|---|---|---|---|"]
        for column in spec.schema:
            doc, unit = doc_and_unit(column)
            lines.append(f"| `{column.name}` | {_cell(str(column.type))} | {_cell(unit)} | {_cell(doc)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Text inside a table; what looks like markup is not."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
