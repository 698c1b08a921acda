"""How long a checkpoint takes, and whether a step after it is the same step again."""

import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omniopd.store.sections import TrainConfig
from omniopd.train.checkpoint import Checkpoints, Position
from omniopd.train.objective import loss_terms
from omniopd.train.parallel import model_parallel, on_device, repeatable, world

from .learner import learner, micro_batch
from .sizes import Sizes
from .timing import DEVICE, seconds, wait


def check(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """With kernels that repeat themselves, without, and with the distributed optimizer."""
    for section in ({"deterministic": True}, {}, {"distributed_optimizer": True}):
        common = {"micro_batch": 1, "precision": "bf16", "recompute": True}
        train = on_device(TrainConfig.model_validate(common | section), DEVICE)
        with world(), repeatable(train), model_parallel(train), tempfile.TemporaryDirectory() as folder:
            row = section | _round_trip(sizes, train, Checkpoints(Path(folder, "c")))
            yield row | ({"ok": row["repeatable"]} if train.deterministic else {})


def _round_trip(sizes: Sizes, train: TrainConfig, checkpoints: Checkpoints) -> dict[str, Any]:
    made = learner(sizes.checkpoint_shape, train)
    batch, facts = micro_batch(sizes.checkpoint_shape, sizes.lengths[-1])

    def step() -> float:
        return made.update(made.gradients([batch], facts, loss_terms(train, facts, on_policy=True)), 1e-4)[0]

    step()
    checkpoints.begin({})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    checkpoints.save(made, Position(1))
    saved = time.perf_counter()
    held = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    norms: list[float] = []
    for _ in range(3):
        checkpoints.load(made, "step=000001")
        wait()
        norms.append(step())
    parameters = sum(parameter.numel() for parameter in made.policy.parameters())
    return {
        "step_s": seconds(step, 3),
        "save_s": saved - started,
        "host_bytes_a_parameter": held / parameters,
        "norms": norms,
        "repeatable": len(set(norms)) == 1,
    }
