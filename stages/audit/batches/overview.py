# pyright: strict
"""`omniopd batches`: the batches of a run, and an end to one."""

import contextlib
import time
from collections.abc import Sequence

from ....store.batch_book import BatchOverview
from ....store.config import Config
from ....store.errors import InputError, TeacherError
from ....store.layout import RunDir
from ....store.ledger import NANO, Ledger, Settlement
from ....store.ledger_read import read_batches
from ... import own_loop
from ..client import find_teacher, open_session
from ..context import caps
from .api import Refused, Unsure, open_batches

_OPEN = ("creating", "created")


def describe(batches: Sequence[BatchOverview]) -> str:
    """A line for each batch."""
    if not batches:
        return "no batches"
    lines = [f"{'round':>5}  {'batch':32}  {'at the provider':32}  {'state':8}  {'rows':>7}  {'waiting':>7}  "
             f"{'answered':>8}  {'USD':>10}  since"]  # fmt: skip
    for batch in batches:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(batch.begun_at))
        lines.append(
            f"{batch.round:>5}  {batch.key:32}  {batch.remote_id or '?':32}  {batch.state:8}  {batch.requests:>7,}"
            f"  {batch.waiting:>7,}  {batch.answered:>8,}  {batch.charged_nusd / NANO:>10.4f}  {since}"
        )
    return "\n".join(lines)


def cancel(run: RunDir, config: Config, which: str) -> str:
    """Ask the provider for no more of a batch, or of all. Returns a line about it.

    A batch whose creation the provider never confirmed is charged in full and closed: only a person can know that it
    is not there.

    Args:
        which: Its key, its id at the provider, or "all".

    Raises:
        InputError: there is no such open batch.
        TeacherError: the provider does not cancel it.
    """
    batches = [batch for batch in read_batches(run.ledger) if batch.state in _OPEN]
    chosen = [batch for batch in batches if which in ("all", batch.key, batch.remote_id)]
    if not chosen:
        raise InputError(f"{run.path} has no open batch {which!r}.", f"See omniopd batches {run.path}.")
    created = [batch.remote_id for batch in chosen if batch.remote_id is not None]
    if created:
        own_loop.run(_cancel(config, created))
    unconfirmed = [batch for batch in chosen if batch.remote_id is None]
    for batch in unconfirmed:
        _charge(run, config, batch)
    said = [f"{len(created)} cancelled: `omniopd audit` fetches what they had answered"] if created else []
    if unconfirmed:
        said.append(f"{len(unconfirmed)} that the provider never confirmed charged in full and closed")
    return "; ".join(said)


async def _cancel(config: Config, remote_ids: Sequence[str]) -> None:
    teacher = await find_teacher(config.teacher)
    async with (
        open_session(config.teacher, teacher.headers) as session,
        open_batches(config.teacher, teacher, session) as batches,
    ):
        for remote_id in remote_ids:
            try:
                await batches.cancel(remote_id)
            except (Refused, Unsure) as error:
                raise TeacherError(f"Batch {remote_id} is not cancelled ({error}).", "Try again.") from error


def _charge(run: RunDir, config: Config, batch: BatchOverview) -> None:
    with contextlib.closing(Ledger(run.ledger, caps(config.teacher, batch.round))) as ledger:
        rows = ledger.batches.unsettled(batch.key)
        ledger.commit([], [Settlement(request_id, "unknown") for request_id in rows])
        ledger.batches.mark(batch.key, "closed")
