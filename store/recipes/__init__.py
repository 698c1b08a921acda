# pyright: strict
"""Named beginnings of a config, in layers: what `omniopd init --recipe` writes. How to use them: docs/recipes.md."""

import difflib
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import UsageError

_FOLDER = Path(__file__).parent


@cache
def layer_files() -> dict[str, Path]:
    """The layers that there are. A layer's folder says what it is about; names differ across folders."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*/*.toml"))}


@cache
def recipe_rows() -> dict[str, list[str]]:
    """The recipes by name, such as a row of the paper's tables, and the layers that each consists of."""
    return tomllib.loads((_FOLDER / "tables.toml").read_text(encoding="utf-8"))


def recipe(names: str) -> dict[str, dict[str, Any]]:
    """Sections and keys of recipes and layers, separated by commas. Later ones override earlier ones, key by key.

    Raises:
        UsageError: there is none of that name.
    """
    values: dict[str, dict[str, Any]] = {}
    for name in names.split(","):
        for layer in _layers(name.strip()):
            for section, keys in tomllib.loads(layer_files()[layer].read_text(encoding="utf-8")).items():
                values.setdefault(section, {}).update(keys)
    return values


def _layers(name: str) -> list[str]:
    # A data set is a recipe and a layer: the recipe, which is whole, is what a user means.
    if name in recipe_rows():
        return recipe_rows()[name]
    if name in layer_files():
        return [name]
    known = [*recipe_rows(), *layer_files()]
    close = difflib.get_close_matches(name, known, n=1) or [other for other in known if name in other]
    raise UsageError(
        f"There is no recipe {name!r}{f' (did you mean {close[0]}?)' if close else ''}.",
        f"Recipes: {', '.join(recipe_rows())}; layers: {', '.join(layer_files())}.",
    )
