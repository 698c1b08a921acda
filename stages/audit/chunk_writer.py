"""The chunks table, written as far as the trajectories are there."""

from typing import Any

import pyarrow as pa

from ...method.boundaries import clean_start_table
from ...method.objectives.registry import objective_of
from ...store.config import Config, made_with
from ...store.errors import InputError
from ...store.layout import RoundDir, RunDir
from ...store.model import bos_text, load_tokenizer, resolve_model, stop_ids
from ...store.tokens import response_decoder
from .chunks import COLUMNS, chunks_of, whole_answers

_TRAJECTORIES_AT_A_TIME = 512


class ChunkWriter:
    """The chunks table of a round, as far as its trajectories are there."""

    def __init__(self, run: RunDir, round_: RoundDir, config: Config) -> None:
        self._round = round_
        self._table = round_.chunks
        self._config = config
        self._policy = run.policy_for(round_.index, config)
        self._read: set[str] = set()
        """Parts of the trajectories whose chunks are there."""
        self._present: set[str] | None = None
        self._tools: Any = None

    @property
    def complete(self) -> bool:
        return self._table.complete

    def bos(self) -> str:
        """Text of the token that begins a sequence of the student's; "" where it has none, or where an audit that only
        asks for what is missing has no student at hand."""
        try:
            return bos_text(resolve_model(self._policy))
        except InputError:
            return ""

    def extend(self) -> bool:
        """Add the chunks of the trajectories that are new. True: all are there.

        Raises:
            InputError: there is no token to audit.
        """
        table = self._table
        if self._present is None:
            table.begin(made_with(self._config, table.spec.name))
            self._present = {key for (key,) in table.existing_keys()}
        if table.complete:
            return True
        manifest = self._round.trajectories.manifest
        names = {part.name for part in manifest.parts}
        if names - self._read:
            for batch in self._round.trajectories.batches(_TRAJECTORIES_AT_A_TIME, COLUMNS, self._read):
                rows = self._rows(batch)
                ids = rows["chunk_id"].to_pylist()
                table.append(rows.filter(pa.array([name not in self._present for name in ids], pa.bool_())))
                self._present.update(ids)
            self._read |= names
        if manifest.complete:
            if table.manifest.rows == 0:
                raise InputError(
                    f"No trajectory of {self._round.path} has a token to audit.", "Look at them with `omniopd inspect`."
                )
            table.finish()
        return manifest.complete

    def _rows(self, batch: pa.RecordBatch) -> pa.Table:
        if objective_of(self._config).asks == "answers":
            return whole_answers(batch)
        return chunks_of(batch, self._config.select, *self._tokenizer())

    def _tokenizer(self) -> Any:
        """Decoder of responses, clean starts and stop tokens of the round's policy."""
        if self._tools is None:
            folder = resolve_model(self._policy)
            tokenizer = load_tokenizer(folder)
            stops = stop_ids(folder, tokenizer, self._config)
            self._tools = response_decoder(tokenizer), clean_start_table(tokenizer, self._config.select.boundary), stops
        return self._tools
