"""Log-probs and entropies from a teacher-forced pass over finished responses, for any engine."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from ...likelihood import Read, Student
from ..engine import Engine, Pulse, Request, Response, Sampling, unheard

_RESPONSES_HELD = 64
"""Responses that wait for each other, to be sorted by length."""


@dataclass(frozen=True)
class Rescored:
    """An engine whose responses get their log-probs and entropies from a second pass."""

    engine: Engine
    student: Student
    """The student once more, to read what it wrote."""

    @property
    def name(self) -> str:
        return self.engine.name

    @property
    def entropy_source(self) -> str:
        return f"{self.name} rescore ({self.student.name})"

    def generate(self, requests: Sequence[Request], sampling: Sampling, pulse: Pulse = unheard) -> Iterator[Response]:
        prompts = {request.trajectory_id: request.prompt_ids for request in requests}
        sampled = self.engine.generate(requests, sampling, pulse)
        while responses := list(islice(sampled, _RESPONSES_HELD)):
            written = [Read(prompts[r.trajectory_id], r.ids_T.tolist()) for r in responses]
            for number, read in self.student.read(written):
                yield replace(responses[number], logprobs_T=read.logprobs_T, entropies_T=read.entropies_T)

    def close(self) -> None:
        self.engine.close()
        self.student.close()
