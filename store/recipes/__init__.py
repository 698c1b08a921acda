"""Named beginnings of a config: what `omniopd init --recipe` writes."""

import tomllib
from pathlib import Path
from typing import Any

from ..errors import UsageError

_FOLDER = Path(__file__).parent


def recipe_names() -> list[str]:
    """The recipes that there are."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def recipe(name: str) -> dict[str, dict[str, Any]]:
    """Sections and keys of a recipe.

    Raises:
        UsageError: there is none of that name.
    """
    path = _FOLDER / f"{name}.toml"
    if not path.is_file():
        raise UsageError(f"There is no recipe {name!r}.", f"Recipes: {', '.join(recipe_names())}.")
    return tomllib.loads(path.read_text(encoding="utf-8"))
