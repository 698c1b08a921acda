"""The true probability of a chunk, from a server that returns the log-probs of a prompt (`echo` with `logprobs`).

Only for a teacher that costs nothing: what is asked here does not go through the ledger.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from ...stages.audit.client import find_teacher, open_session, post
from ...stages.audit.teacher import HttpRequest
from ...store.errors import InputError, TeacherError
from ...store.sections import TeacherConfig
from .oracle import Text, Truth


class EchoServer:
    """The config's own teacher, if its server answers a completion with the log-probs of the prompt, as vLLM does."""

    def __init__(self, config: TeacherConfig) -> None:
        """Check that no money is at stake.

        Raises:
            InputError: the teacher has a price.
        """
        if config.price is not None:
            raise InputError(
                "The study would ask a teacher that costs money, past the ledger.",
                "Give `--teacher` the folder or hub id of its weights instead.",
            )
        self._config = config

    def truths(self, texts: Sequence[Text]) -> list[Truth]:
        """Log-probabilities of the chunks, each given what stood before it.

        Raises:
            TeacherError: the server does not answer.
            InputError: it answers without the prompt's log-probs.
        """
        return asyncio.run(self._ask_all(texts))

    async def _ask_all(self, texts: Sequence[Text]) -> list[Truth]:
        slots = asyncio.Semaphore(self._config.max_concurrency)
        teacher = await find_teacher(self._config)
        async with open_session(self._config, teacher.headers) as session:

            async def ask(text: Text) -> Truth:
                body = {"model": self._config.model, "prompt": text.before + text.chunk, "max_tokens": 1,
                        "temperature": 0, "echo": True, "logprobs": 1}  # fmt: skip
                async with slots:
                    outcome = await post(session, teacher.base_urls[0], HttpRequest("/completions", body))
                if outcome.kind == "refused":
                    raise _without_logprobs(self._config, outcome.problem)
                if outcome.kind != "answered":
                    raise TeacherError(
                        f"The teacher at {self._config.base_url} does not answer: {outcome.problem}.", "Try again."
                    )
                try:
                    return read_truth(text, outcome.body["choices"][0]["logprobs"])
                except (KeyError, IndexError, TypeError) as error:
                    raise _without_logprobs(self._config, f"{type(error).__name__} {error}") from error

            return list(await asyncio.gather(*map(ask, texts)))


def read_truth(text: Text, logprobs: Mapping[str, Sequence[Any]]) -> Truth:
    """Sum the log-probs of the tokens that begin inside the chunk. A token across its beginning cannot be shared out:
    it is left out, and said."""
    first, last = len(text.before), len(text.before) + len(text.chunk)
    offsets = list(logprobs["text_offset"])
    inside = [i for i, offset in enumerate(offsets) if first <= offset < last]
    values = [float(logprobs["token_logprobs"][i]) for i in inside]
    return Truth(sum(values), len(values), straddled=first not in offsets)


def _without_logprobs(config: TeacherConfig, reason: str) -> InputError:
    return InputError(
        f"The teacher at {config.base_url} does not return the log-probs of a prompt ({reason}).",
        "Give `--teacher` the folder or hub id of its weights instead.",
    )
