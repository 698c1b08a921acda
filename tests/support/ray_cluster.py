"""A Ray cluster of several nodes on this machine: a head without slots, and nodes with one slot each."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Ray asks for a token where the user has one. Said before it is imported, and to every process a test starts.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import psutil
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from omniopd.store.journal import StageRun

_OBJECT_STORE = 80 * 2**20
"""Bytes: the least that Ray takes."""


class Nodes:
    """The nodes of a cluster, which a test can take away and bring back."""

    def __init__(self, cluster: Cluster, count: int) -> None:
        self._cluster, self._count = cluster, count
        self._nodes: list[Any] = []
        self.restore()

    @property
    def address(self) -> str:
        return self._cluster.address

    @property
    def words(self) -> tuple[str, ...]:
        """What a command needs to run on it."""
        return "--on", "ray", "--set", f"cluster.address={self.address}"

    def add(self) -> None:
        node = self._cluster.add_node(num_cpus=1, resources={"slot": 1}, object_store_memory=_OBJECT_STORE)
        self._nodes.append(node)

    def restore(self) -> None:
        """As many nodes as at first."""
        while len(self._nodes) < self._count:
            self.add()

    def node_of(self, run: StageRun) -> Any:
        """The node on which a stage runs: its worker is a child of the node's raylet."""
        parent = psutil.Process(run.pid).ppid()
        return next(node for node in self._nodes if node.all_processes["raylet"][0].process.pid == parent)

    def announce_loss(self, node: Any, seconds: int) -> None:
        """What an autoscaler does that hears from the provider that a spot machine goes away."""
        reason = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
        deadline_ms = int(1000 * (time.time() + seconds))
        accepted, why = GcsClient(address=self.address).drain_node(node.node_id, reason, "a test", deadline_ms)
        assert accepted, why

    def kill(self, node: Any) -> None:
        """All its processes at once, as when a machine is gone."""
        self._nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)


@contextmanager
def ray_cluster(count: int) -> Iterator[Nodes]:
    """A cluster with so many nodes of one slot."""
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": _OBJECT_STORE, "include_dashboard": False},
    )
    try:
        yield Nodes(cluster, count)
    finally:
        cluster.shutdown()


def until(condition: Callable[[], Any], deadline_s: float = 200) -> Any:
    """What a condition comes to once it is met."""
    deadline = time.monotonic() + deadline_s
    while not (met := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return met
