# pyright: strict
"""What refusals have taught a run about the form of its requests, kept in the ledger: the next audit sends and pays for
nothing in a form that was refused before. The refusals themselves are kept, and the teacher hears them once more."""

import hashlib
import sys

import orjson

from ...store.errors import without_credentials
from ...store.ledger import Ledger
from ...store.sections import TeacherConfig
from .client import Outcome, redacted
from .group_commit import GroupCommit
from .teacher import Teacher
from .teachers.refusal import words


def remember(commit: GroupCommit, config: TeacherConfig, teacher: Teacher, refusal: Outcome) -> None:
    """Keep a refusal that has changed the form of the teacher's requests."""
    said = redacted(words(refusal.status, refusal.body), teacher.headers)
    commit.note(commit.ledger.note_lesson, _digest(config), refusal.status, said)


def recall(ledger: Ledger, config: TeacherConfig, teacher: Teacher) -> None:
    """Let a teacher learn once more what it was taught in earlier audits of the run; what it learns is said again."""
    for status, said in ledger.lessons(_digest(config)):
        if (line := teacher.adapt(status, said)) is not None:
            sys.stderr.write(f"{line}\n")


def _digest(config: TeacherConfig) -> str:
    """Of who is asked, and in what form at first: under other settings nothing is learned yet."""
    asked = config.model_dump(include={"kind", "model", "base_url", "continuation", "extra"})
    return hashlib.blake2b(without_credentials(orjson.dumps(asked).decode()).encode(), digest_size=16).hexdigest()
