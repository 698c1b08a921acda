"""Slots: the places of a cluster at which an engine or a rank of the trainer runs."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..store.layout import RoundDir, Stage

CUSTOM = "slot"
"""The resource that a machine without GPUs offers: `ray start --resources='{"slot": 1}'`."""


@dataclass(frozen=True)
class Slots:
    """What one engine or rank takes, on one machine."""

    resource: str
    amount: int

    def have(self) -> int:
        """How many the machines that are there now have room for, taken ones included."""
        import ray

        machines = (node["Resources"] for node in ray.nodes() if node["Alive"])
        return sum(int(resources.get(self.resource, 0)) // self.amount for resources in machines)

    @property
    def resources(self) -> dict[str, float]:
        """As Ray is asked for one."""
        return {self.resource: float(self.amount)}

    @property
    def gpu(self) -> bool:
        return self.resource == "GPU"

    @property
    def of_actor(self) -> dict[str, Any]:
        """One as the options of an actor, which takes no CPU beside it."""
        return {"num_cpus": 0, **({"num_gpus": self.amount} if self.gpu else {"resources": self.resources})}


def slots_of(gpus: int) -> Slots:
    """GPUs, so many of one machine; or what stands for them on a cluster that has none."""
    import ray

    there = ray.cluster_resources()
    return Slots(CUSTOM, 1) if CUSTOM in there and "GPU" not in there else Slots("GPU", gpus)


class Watch:
    """Says that a stage waits for slots, to whoever looks on and to `status`, while Ray waits for them."""

    def __init__(self, round_: RoundDir, stage: Stage, slots: Slots, need: int, note: Callable[[str], None]) -> None:
        """
        Args:
            need: How many the stage would use.
            note: Told of a wait, and "" when it is over.
        """
        self._round, self._stage, self._slots, self._need, self._note = round_, stage, slots, need, note
        self._have = need

    def look(self) -> None:
        """See how many slots there are now."""
        if (have := min(self._slots.have(), self._need)) != self._have:
            self._say(have)

    def over(self) -> None:
        """The stage has ended, one way or another."""
        if self._have < self._need:
            self._say(self._need)

    def _say(self, have: int) -> None:
        self._have = have
        self._round.wait(self._stage, have, self._need)
        waiting = self._round.waiting(self._stage)
        self._note("" if waiting is None else str(waiting))
        if waiting is not None and not sys.stderr.isatty():
            sys.stderr.write(f"{self._stage}: {waiting}\n")
