# pyright: strict
"""Is the teacher as a run needs it? What the server says, and what two small requests do.

The requests are in the ledger like any other, of the kind `check`: a few hundred tokens.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast
from urllib.parse import urlsplit

import aiohttp

from ...method.stopping import stopping_rule
from ...store.config import Config
from ...store.conversation import Conversation
from ...store.errors import TeacherError
from ...store.findings import Finding, of_error
from ...store.layout import RunDir
from ...store.ledger import Ledger, Settlement
from ...store.mirror.writer import cover_of
from ...store.sections import TeacherConfig
from ...store.usage import Usage
from .client import NobodyAnswers, Outcome, find_teacher, get_json, open_session, post
from .context import AuditContext, caps
from .group_commit import GroupCommit
from .lessons import recall
from .outbox import Outbox
from .price import find_rates
from .setup import urls_of
from .teacher import Answer, Ask, Reply, Teacher
from .teachers.openai import headers_of
from .teachers.reply import THINKING

_QUESTION = "Write 40 random digits from 0 to 9, separated by commas, and nothing else."
_SHORT, _LONG = "7, 2, 9, 4, 0, 4, 1,", "7, 2, 9, 4, 0, 4, 1, 8, 8, 3, 5, 2,"
"""Two prefixes of one response, so that the second finds the first in a prefix cache. Digits that are sampled differ
from one continuation to the next."""
_TOKENS = 12
_CHOICES = 2
_ATTEMPTS = 6
_PAUSE_S = 0.5


async def server(run: RunDir, config: Config) -> list[Finding]:
    """Findings about the server: there, with the model, continuing a prefix. Sends two small requests. Where nobody
    answers there is one finding, named server."""
    missing = await _missing_v1(config.teacher)
    if missing is not None:
        return [missing]
    try:
        teacher = await find_teacher(config.teacher)
    except TeacherError as error:
        return [of_error("server" if isinstance(error, NobodyAnswers) else "teacher", error)]
    said = f"{config.teacher.model}: continuation = {teacher.continuation} ({teacher.why})"
    findings = [Finding("teacher", "ok", said)]
    if (length := await _context_length(config)) is not None:
        findings.append(length)
    answers = await _two_answers(run, config, teacher)
    if isinstance(answers, Finding):
        return [*findings, answers]
    return [*findings, *judge(answers, config.teacher, teacher.thinking_off)]


async def _two_answers(run: RunDir, config: Config, teacher: Teacher) -> list[Answer] | Finding:
    """The answers to the short and to the long prefix, charged in the ledger; or why one did not come."""
    index = max((round_.index for round_ in run.rounds()), default=0)
    cover = cover_of(run, config, index)
    with contextlib.closing(Ledger(run.ledger, caps(config.teacher, index), cover)) as ledger:
        recall(ledger, config.teacher, teacher)
        commit = GroupCommit(ledger)
        context = AuditContext(
            Outbox(run.round(index).rollouts, index, commit), index, config.teacher, stopping_rule(config), teacher,
            find_rates(config.teacher), commit, lambda done, said: None,
        )  # fmt: skip
        answers: list[Answer] = []
        async with open_session(config.teacher, teacher.headers) as session:
            for prefix in (_SHORT, _LONG):
                got = await _ask(context, session, prefix)
                if isinstance(got, Finding):
                    return got
                answers.append(got)
    return answers


async def _ask(context: AuditContext, session: aiohttp.ClientSession, prefix: str) -> Answer | Finding:
    """One small request through the ledger; again where a refusal taught another form, and where no answer came, as
    from a kept connection that the server had closed."""
    teacher = context.teacher
    result: Outcome | None = None
    for _ in range(_ATTEMPTS):
        choices = min(_CHOICES, context.most_choices)
        ask = Ask(
            Conversation.of(_QUESTION), f"{_QUESTION}\n", prefix, choices, _TOKENS, context.config.seed, (len(_SHORT),)
        )
        request, form, request_id = teacher.request(ask), teacher.form, context.new_id()
        reservation = replace(context.reservation(request_id, teacher.worst_case(ask)), kind="check")
        if not await context.commit.reserve(reservation):
            problem = f"the budget does not cover the check's {reservation.tokens} tokens"
            return Finding("budget", "fail", problem, "Raise teacher.budget_*.")
        answer = context.read(await post(session, teacher.base_urls[0], request), ask)
        if isinstance(answer, Answer):
            usage, state = answer.usage or Usage(), "unknown" if answer.usage is None else "settled"
            await context.commit.settle(Settlement(request_id, state, usage, context.rates.nusd(usage)))
            return answer
        result = answer
        await context.commit.settle(Settlement(request_id, "released" if result.known else "unknown"))
        if context.adapted(form, result):
            continue
        if not result.worth_retrying:
            break
        await asyncio.sleep(_PAUSE_S)
    assert result is not None
    return refused(result, teacher.base_urls[0])


def refused(outcome: Outcome, url: str) -> Finding:
    """What a request that brought no answer says of the teacher."""
    if outcome.about_account:
        return Finding("account", "fail", f"{url} refuses the account: {outcome.problem}", "Top up or fix the account.")
    if outcome.worth_retrying:
        return Finding("answer", "warn", f"{url} did not answer ({outcome.problem})", "Try again; audit keeps trying.")
    return Finding("answer", "fail", f"{url} refuses: {outcome.problem}", "Fix [teacher], then check again.")


def judge(answers: Sequence[Answer], teacher: TeacherConfig, thinking_off: str) -> list[Finding]:
    """What the answers to the short and the long prefix say. Pure."""
    findings = [_continues(answers, thinking_off)]
    if teacher.most_rollouts > 1 and any(len(answer.rollouts) < _CHOICES for answer in answers):
        problem = "one continuation comes, whatever is asked for"
        findings.append(Finding("n", "warn", problem, "It works; each rollout sends its prefix anew."))
    texts = [[rollout.text for rollout in answer.rollouts if rollout.text] for answer in answers]
    if teacher.temperature > 0 and all(len(some) > 1 and len(set(some)) == 1 for some in texts):
        problem = "both continuations of a request are alike, though digits were to be random"
        findings.append(Finding("temperature", "warn", problem, "If the server ignores it, one rollout is enough."))
    usage = answers[-1].usage
    if usage is None:
        problem = "the answers do not say what they cost"
        findings.append(Finding("usage", "warn", problem, "Every request is charged its worst case."))
    else:
        read = f"{usage.cached_tokens} of {usage.prompt_tokens} prompt tokens were read from a prefix cache"
        findings.append(Finding("cache", "ok", read))
    return findings


def _continues(answers: Sequence[Answer], thinking_off: str) -> Finding:
    rollouts = [rollout for answer in answers for rollout in answer.rollouts]
    texts = [rollout.text for rollout in rollouts if rollout.text]
    if any((rollout.finish_reason or "").startswith(THINKING) for rollout in rollouts):
        return Finding("thinking", "fail", "It spends its tokens on thinking and writes nothing else", thinking_off)
    if not texts:
        said = f"no text came ({rollouts[0].status}, {rollouts[0].finish_reason})"
        return Finding("continues", "warn", said, "Try a prompt of yours by hand.")
    if any(_SHORT[:12] in text for text in texts):
        hint = "Set teacher.continuation = completion, or reword teacher.instruction."
        return Finding("continues", "warn", "it repeats the prefix instead of going on with it", hint)
    return Finding("continues", "ok", f"{_SHORT[-6:]!r} goes on with {texts[0][:24]!r}")


# -- looking at the server itself


async def _missing_v1(teacher: TeacherConfig) -> Finding | None:
    """Whether the address lacks the /v1 under which the server has its API."""
    for url in urls_of(teacher):
        if teacher.kind != "openai" or not url or urlsplit(url).path:
            continue
        try:
            plain = await get_json(teacher, f"{url}/models", headers_of(teacher))
            versioned = await get_json(teacher, f"{url}/v1/models", headers_of(teacher))
        except NobodyAnswers:
            return None  # said where the teacher is looked for
        if plain.status == 404 and versioned.status != 404:
            return Finding(
                "address", "fail", f"{url} has no /models, and {url}/v1 has", f'Set teacher.base_url = "{url}/v1".'
            )
    return None


async def _context_length(config: Config) -> Finding | None:
    """The model's context, where the server says it (vLLM, SGLang), beside the longest prefix."""
    url = urls_of(config.teacher)[0]
    if config.teacher.kind != "openai" or not url:
        return None
    reply = await get_json(config.teacher, f"{url}/models", headers_of(config.teacher))
    longest, needed = _length_of(reply, config.teacher.model), config.generate.max_new_tokens
    if longest is None:
        return None
    if longest < needed:
        problem = f"{longest:,} tokens, and a prefix may have {needed:,} of the student's"
        return Finding("context", "warn", problem, "Serve it with a longer one, or lower generate.max_new_tokens.")
    return Finding("context", "ok", f"{longest:,} tokens")


def _length_of(reply: Reply, model: str) -> int | None:
    body: Any = reply.body
    data = cast("dict[str, Any]", body).get("data") if isinstance(body, dict) else None
    for entry in cast("list[Any]", data) if isinstance(data, list) else []:
        if isinstance(entry, dict) and cast("dict[str, Any]", entry).get("id") == model:
            length = cast("dict[str, Any]", entry).get("max_model_len")
            return length if isinstance(length, int) else None
    return None
