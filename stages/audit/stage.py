"""`omniopd audit`: trajectories in, the chunks and rollouts tables out."""

import asyncio
import contextlib
import functools
import signal
import sys
import time
from collections.abc import Callable, Iterator

import aiohttp
import polars as pl

from ...method.objectives.registry import objective_of
from ...method.stopping import stopping_rule
from ...store.config import Config, made_with
from ...store.errors import BudgetReached
from ...store.layout import RoundDir, RunDir
from ...store.ledger import Budget, Ledger
from ...store.mirror.background import pushing
from ...store.mirror.writer import cover_of, mirror_of
from ...store.storage import Spare, allow_open_files
from ...store.table import Table
from .. import own_loop
from ..progress import progress
from . import failures
from .batches.api import open_batches
from .batches.flow import BatchFlow
from .chunk_writer import ChunkWriter
from .client import find_teacher, open_session
from .context import AuditContext, budget_reached, caps
from .draft_length import draft_tokens
from .flow import Flow
from .forecast import as_row, forecast
from .group_commit import GroupCommit
from .lessons import recall
from .outbox import Outbox
from .price import Rates, find_rates
from .teacher import max_tokens_for
from .todo import Longest, Todo, keys_present, open_todo, prefixes_of, shape_of

_POLL_INTERVAL_S = 1.0
"""Of trajectories that are still being written."""

_SPARE_BYTES = 4 << 20
_SPARE_BYTES_PER_REQUEST = 64 << 10
"""Kept on the ledger's disk, so that the answers in flight can be stored when it is full: some 20 kB each."""

_LEAST_WAVE = 0.25
"""Of the chunks of the largest wave: what bills leave of a budget is spent on further batches down to this size."""

_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

OpenTodo = Callable[[], contextlib.AbstractContextManager[Todo]]


def audit(
    run: RunDir,
    index: int,
    config: Config,
    follow: bool = False,
    retry_failed: bool = False,
    before: Callable[[], None] = lambda: None,
) -> str:
    """Select a round's chunks and get the rollouts that are missing. Returns a line about the tables.

    A chunk may be a whole answer (sft), and there are none where the objective asks nobody (opd, grpo).

    Args:
        follow: Begin with the trajectories that are there, and go on until `generate` has finished.
        retry_failed: Ask once more for the rollouts that are recorded as failed.
        before: Called before the first request, unless a run before this one asked for everything; may refuse.

    Raises:
        TableError: the round's trajectories are not complete.
        TeacherError: the teacher cannot be reached; nothing was written.
        BudgetReached: the budget ended first; what was paid for is in the table, which is as good as complete.
        StorageError: the disk is full, say. What was paid for is in the table or in the ledger.
    """
    round_ = run.round(index)
    if not follow:
        round_.trajectories.require(f"omniopd generate {run.path} --round {index}")
    with round_.lock("audit"):
        if objective_of(config).asks == "nobody":
            for table in (round_.chunks, round_.rollouts):
                table.begin(made_with(config, table.spec.name))
                table.finish()
            return f"{config.train.objective}: no teacher is asked"
        chunks, rollouts = ChunkWriter(run, round_, config), round_.rollouts
        if config.score.weights == "constant":
            while not chunks.extend():
                time.sleep(_POLL_INTERVAL_S)
            rollouts.begin(made_with(config, "rollouts"))
            rollouts.finish()
            return f"{round_.chunks.manifest.rows} chunks, and constant weights: the teacher is not asked"
        if retry_failed or not rollouts.complete:
            before()
        try:
            with pushing(mirror_of(run, config)):
                own_loop.run(_audit(run, round_, config, chunks, rollouts, follow, retry_failed))
        except BudgetReached:
            rollouts.finish()
            raise
        rollouts.finish()
    return summary(round_, config)


async def _audit(
    run: RunDir, round_: RoundDir, config: Config, chunks: ChunkWriter, table: Table, follow: bool, retry_failed: bool
) -> None:
    rates = find_rates(config.teacher)
    shown = rates.batch() if config.teacher.mode == "batch" else rates
    rule = stopping_rule(config)
    allow_open_files()
    teacher = await find_teacher(config.teacher)
    sys.stderr.write(
        f"teacher {config.teacher.model}: continuation = {teacher.continuation} ({teacher.why}); {_priced(shown)}\n"
    )
    settings = made_with(config, table.spec.name)
    if failures.holds_nothing_else(table):
        failures.forget(table, settings)  # they would pin the settings that may be what is wrong
    table.begin(settings)
    cover = cover_of(run, config, round_.index)
    spare_bytes = max(_SPARE_BYTES, _SPARE_BYTES_PER_REQUEST * config.teacher.max_concurrency)
    with (
        contextlib.closing(Ledger(run.ledger, caps(config.teacher, round_.index), cover)) as ledger,
        Spare(run.ledger, spare_bytes) as spare,
    ):
        recall(ledger, config.teacher, teacher)
        at_once = follow and ledger.left == Budget() and config.teacher.mode == "live"
        while not chunks.extend() and not at_once:
            await asyncio.sleep(_POLL_INTERVAL_S)
        commit = GroupCommit(ledger, spare)
        outbox = Outbox(table, round_.index, commit)
        # What a crash left in the outbox goes into the table first, so that it counts as present.
        await outbox.drain(lambda chunk_ids: keys_present(round_, chunk_ids))
        if retry_failed:
            failures.forget(table, settings)
        longest = functools.partial(max_tokens_for, config, paying=draft_tokens(run, round_.index, config))
        todo = functools.partial(open_todo, round_, config, longest, rule, run.spill)
        total = round_.chunks.manifest.rows * rule.most if chunks.complete else None
        with progress("audit", total, table.manifest.rows) as advance:
            bos = chunks.bos() if teacher.continuation == "completion" else ""
            context = AuditContext(outbox, round_.index, config.teacher, rule, teacher, rates, commit, advance, bos)
            if chunks.complete:
                _predict(context, round_, config, longest)
            async with open_session(config.teacher, teacher.headers) as session:
                # Whatever the mode is now: the rollouts of an open batch must not be asked for a second time.
                if config.teacher.mode == "batch" or ledger.batches.open(round_.index):
                    await _ask_by_batches(context, session, round_, config, todo)
                if config.teacher.mode == "live":
                    await _ask_live(context, session, round_, config, chunks, todo, longest)


def _predict(context: AuditContext, round_: RoundDir, config: Config, longest: Longest) -> None:
    """Keep what the round should cost, to be compared with the bill."""
    continuation = context.teacher.continuation
    prediction = forecast(shape_of(round_, longest), config, context.rates, config.teacher.mode, continuation)
    context.commit.ledger.note_forecast(round_.index, as_row(prediction))


async def _ask_by_batches(
    context: AuditContext, session: aiohttp.ClientSession, round_: RoundDir, config: Config, todo: OpenTodo
) -> None:
    """Fetch what open batches bring; ask for the rest by batches if that is the mode."""
    async with open_batches(config.teacher, context.teacher, session) as batches:
        flow = BatchFlow(context, batches, functools.partial(prefixes_of, round_))
        with _interruptible(flow, "leaving the batches to the provider"):
            await flow.collect()
            if config.teacher.mode == "batch":
                await _ask_within_budget(context, config, flow, todo)


async def _ask_live(
    context: AuditContext,
    session: aiohttp.ClientSession,
    round_: RoundDir,
    config: Config,
    chunks: ChunkWriter,
    todo: OpenTodo,
    longest: Longest,
) -> None:
    """Ask request by request, beginning with what `generate` has committed so far."""
    flow = Flow(context, session)
    sent = "waiting for the requests that were sent; Ctrl-C again drops them (they stay charged)"
    with _interruptible(flow, sent):
        if not chunks.complete:
            await _ask_as_they_come(flow, chunks, todo)
            _predict(context, round_, config, longest)
        await _ask_within_budget(context, config, flow, todo)
    if flow.held.said:
        sys.stderr.write(f"{flow.held.said}\n")


async def _ask_as_they_come(flow: Flow, chunks: ChunkWriter, open_todo: OpenTodo) -> None:
    """Ask for what `generate` has committed, part after part, until it has finished."""
    while not chunks.complete:
        await asyncio.to_thread(chunks.extend)
        with open_todo() as todo:
            missing = todo.chunks
            await flow.run(todo.most_uncertain(missing))
        if missing <= len(flow.held.chunk_ids):
            await asyncio.sleep(_POLL_INTERVAL_S)


async def _ask_within_budget(
    context: AuditContext, config: Config, flow: Flow | BatchFlow, open_todo: OpenTodo
) -> None:
    """Ask for the chunks of the highest entropy in the whole round that the budget covers at their worst case; then for
    those that it covers with what the bills have left of it, and so on: what the budget does not reach are the chunks
    of the lowest entropy.

    Raises:
        BudgetReached: chunks are left out.
    """
    before, largest = None, 0
    while True:
        with open_todo() as todo:
            missing = todo.chunks
            if missing == 0:
                return
            left = context.commit.ledger.left
            covered = missing if left == Budget() else todo.affordable(left, flow.worst_case)
            # What is covered and still missing after it was asked for is held.
            if covered == 0 or (isinstance(flow, Flow) and (missing, covered) == before):
                answers, rest = objective_of(config).asks == "answers", missing - covered
                raise budget_reached(left, f"{rest} prompts" if answers else f"{rest} chunks of the lowest entropy")
            if isinstance(flow, BatchFlow) and covered < missing and covered < _LEAST_WAVE * largest:
                # Each wave may take a day, and the next ones would be smaller still.
                raise budget_reached(
                    left, f"{missing} chunks of the lowest entropy ({covered} of them fit: the same command sends them)"
                )
            before, largest = (missing, covered), max(largest, covered)
            try:
                await flow.run(todo.most_uncertain(covered))
            except BudgetReached:
                if not isinstance(flow, Flow):
                    raise
                before = None
                continue  # bills taught that these chunks cost more than was thought: see what is covered now
        if covered == missing and isinstance(flow, Flow):
            return


def _priced(rates: Rates) -> str:
    if rates.source == "unknown":
        return "price unknown, counted as free of charge (teacher.price sets it)"
    return f"${rates.input:g} in and ${rates.output:g} out per million tokens ({rates.source})"


@contextlib.contextmanager
def _interruptible(flow: Flow | BatchFlow, said: str) -> Iterator[None]:
    """The first Ctrl-C lets the flow end; the second leaves at once. SIGTERM and SIGHUP too: so a scheduler and a
    closed terminal stop what is paid for."""
    loop = asyncio.get_running_loop()
    asked = own_loop.interruption()
    # nohup ignores SIGHUP, and so do we then. Where somebody asks for us, signals reach another thread.
    heard = [number for number in _INTERRUPTS if asked is None and signal.getsignal(number) is not signal.SIG_IGN]

    def release() -> None:
        for number in heard:
            loop.remove_signal_handler(number)

    def interrupt() -> None:
        release()
        # A closed terminal takes no line.
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{said}\n")
        flow.interrupt()

    if asked is not None:
        asked.calls(lambda: loop.call_soon_threadsafe(interrupt))
    for number in heard:
        loop.add_signal_handler(number, interrupt)
    try:
        yield
    finally:
        release()


def summary(round_: RoundDir, config: Config) -> str:
    """One line about a round's rollouts."""
    frame = pl.DataFrame(round_.rollouts.read(["status", "cost_usd", "prompt_tokens", "completion_tokens"]))
    by_status = dict(sorted(frame["status"].value_counts().iter_rows()))
    chunks = f"{round_.chunks.manifest.rows} {'prompts' if objective_of(config).asks == 'answers' else 'chunks'}"
    expected = round_.chunks.manifest.rows * config.teacher.most_rollouts
    most = "at most " if config.teacher.rollouts == "adaptive" else ""
    states = ", ".join(f"{count} {status}" for status, count in by_status.items()) or "none"
    return (
        f"{chunks}, {len(frame)} of {most}{expected} rollouts ({states}),"
        f" {frame['prompt_tokens'].sum()} + {frame['completion_tokens'].sum()} tokens, ${frame['cost_usd'].sum():.2f}"
    )
