"""Which rows of a data set meet an SQL condition (Polars SQL), evaluated over exact values."""

import json
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ...store.errors import InputError, first_line
from .files import Row

if TYPE_CHECKING:
    import polars as pl

_INDEX = "\0row"
"""Column that no data set has."""


class Condition:
    """A condition over the columns of a data set.

    A column whose values do not fit exactly into one Arrow type (values of several types, integers beyond 64 bits) is
    compared as text: what is no text counts as its JSON.
    """

    def __init__(self, sql: str, name: str, all_columns: Callable[[], Collection[str]]) -> None:
        """
        Args:
            name: The data set, for messages.
            all_columns: Its columns, for messages.

        Raises:
            InputError: it is no SQL expression.
        """
        import polars as pl

        self._name = name
        self._all_columns = all_columns
        try:
            self._expression = pl.sql_expr(sql)
        except pl.exceptions.PolarsError as error:
            raise self._unfit(first_line(error)) from error
        self.columns = tuple(dict.fromkeys(self._expression.meta.root_names()))
        """Those that it names."""

    def of(self, rows: Iterator[Row]) -> Any:
        """Whether each row meets it: array of bool.

        Raises:
            InputError: it names a column that no row has, or does not fit the values.
        """
        import polars as pl

        values: dict[str, list[Any]] = {column: [] for column in self.columns}
        unseen = set(self.columns)
        count = 0
        for row in rows:
            count += 1
            for column, cells in values.items():
                cells.append(row.values.get(column))
            if unseen:
                unseen -= row.values.keys()
        if unseen and count:
            raise self._unfit(f"it has no column {min(unseen)!r}")
        frame = pl.DataFrame([pl.Series(_INDEX, np.arange(count)), *(_series(*item) for item in values.items())])
        try:
            kept = frame.filter(self._expression).get_column(_INDEX).to_numpy()
        except pl.exceptions.PolarsError as error:
            texts = [name for name, kind in frame.schema.items() if kind == pl.String]
            raise self._unfit(first_line(error), texts) from error
        mask = np.zeros(count, dtype=bool)
        mask[kept] = True
        return mask

    def _unfit(self, reason: str, texts: Collection[str] = ()) -> InputError:
        text = f" As text: {', '.join(texts)}; TRY_CAST(... AS DOUBLE) makes numbers of them." if texts else ""
        return InputError(
            f"data.filter is no condition over {self._name}: {reason}.",
            f"Write SQL over its columns: {', '.join(self._all_columns())}.{text}",
        )


def _series(name: str, values: list[Any]) -> "pl.Series":
    import polars as pl
    import pyarrow as pa

    try:
        return pl.Series(name, pa.array(values))
    except (pa.ArrowException, OverflowError):
        texts = [
            value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            for value in values
        ]
        return pl.Series(name, texts, dtype=pl.String)
