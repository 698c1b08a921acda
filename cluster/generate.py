"""`generate` on a cluster: Ray Data hands shares of the round to engines, and hands them on when a machine is lost.

A share is what `omniopd generate --shard i/n` fills, so what a lost machine had committed stays, and what it had not is
sampled again, with the same random streams.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..method.objectives.registry import objective_of
from ..stages.generate import stage
from ..stages.generate.engines.kept import KeptEngine
from ..stages.generate.workers import one_process
from ..stages.progress import progress
from ..store.config import Config
from ..store.layout import RunDir
from ..store.worker import Worker
from .connection import connected, quiet
from .driver import prints_to, watched
from .place import PATIENCE_S, Place, shared
from .slots import Slots, Watch, slots_of


def generate(run: RunDir, index: int, config: Config, before: Callable[[], None]) -> str:
    """Sample the trajectories of a round that are not there yet. Returns a line about the table.

    Args:
        before: Called where there is something to sample, may refuse.

    Raises:
        OmniopdError: as `stages.generate.stage.generate`, on whatever machine.
    """
    round_ = run.round(index)
    if round_.trajectories.complete or not objective_of(config).samples_student:
        return stage.generate(run, index, config, before=before)
    rows = stage.inputs(run, index, config).rows
    # Outermost: Ray is still printing when the connection ends.
    with prints_to(run.ray_log), connected(config.cluster), shared(run) as place:
        before()
        slots = slots_of(config.generate.tensor_parallel)
        engines = config.cluster.engines or max(1, slots.have())
        units = engines * config.cluster.units_per_engine
        shown = round_.trajectories.manifest.rows
        with progress("generate", rows, shown) as advance:
            watch = Watch(round_, "generate", slots, engines, lambda note: advance(0, note))

            def look() -> None:
                nonlocal shown
                done = round_.trajectories.manifest.rows
                if done > shown:
                    advance(done - shown, f"{min(slots.have(), engines)} engines")
                    shown = done
                watch.look()

            try:
                watched(lambda: _fill(place, index, config, slots, engines, units), look)
            finally:
                watch.over()
    return stage.summary(run, index)


def _fill(place: Place, index: int, config: Config, slots: Slots, engines: int, units: int) -> None:
    import ray.data

    quiet("ray.data")
    # An actor has the GPUs of one engine.
    alone = one_process(config)
    filled = ray.data.from_items([{"unit": unit} for unit in range(units)], override_num_blocks=units).map_batches(
        Filler,  # pyright: ignore[reportArgumentType]
        fn_constructor_args=(place, index, alone, units),
        batch_size=1,
        # One unit at a time: a second one would wait for an engine whose machine is gone.
        compute=ray.data.ActorPoolStrategy(size=engines, max_tasks_in_flight_per_actor=1),
        **slots.of_actor,
    )
    context = filled.context
    context.enable_progress_bars = context.print_on_execution_start = False
    context.raise_original_map_exception = True
    context.execution_no_progress_timeout_s = -1  # a unit may take hours
    filled.materialize()


class Filler:
    """An actor on a slot: fills units one after the other, with one engine."""

    def __init__(self, place: Place, index: int, config: Config, units: int) -> None:
        # Nothing that can fail: Ray Data has no patience with an actor that does not begin.
        self._place, self._index, self._config, self._units = place, index, config, units
        self._engine = KeptEngine()

    def __call__(self, batch: dict[str, NDArray[np.int64]]) -> dict[str, Any]:
        run = self._place.enter()
        for unit in batch["unit"].tolist():
            stage.generate(
                run, self._index, self._config, Worker(unit, self._units), engine_of=self._engine,
                patience_s=PATIENCE_S,
            )  # fmt: skip
        return batch
