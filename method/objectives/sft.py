"""sft: the likelihood of the teacher's whole answers (Eq. 1). The student is not sampled."""

from typing import TYPE_CHECKING, Any

from ...store.objectives import Refusal
from .record import ENDED, Answers, Objective, no_constant_weights, shown_of_all

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from ...store.config import Config
    from ...store.sections import ScoreConfig

_ANSWERS = f"""
SELECT trajectory_id, chunk_id, rollout_index, prompt_ids, text, {ENDED} AS ended
FROM rollouts JOIN chunks USING (chunk_id) JOIN trajectories USING (trajectory_id)
WHERE status = 'ok'
ORDER BY trajectory_id, rollout_index
"""

_SUMMARY = f"SELECT count(*), avg(ended::INTEGER), (SELECT count(*) FROM rollouts) FROM ({_ANSWERS})"


def answer_sequences(answers: "pa.Table", tokenizer: "PreTrainedTokenizerBase", stop_id: int | None) -> "pa.Table":
    """One training sequence an answer, in the student's tokens: prompt, answer, and the stop token where the teacher
    ended by itself.

    Args:
        answers: Rows of `Answers.sql`.
        stop_id: What ends a turn of the student's; None: it has no such token.

    Returns:
        Rows of the shards table, in the same order.
    """
    import numpy as np
    import pyarrow as pa

    from ...store.schema import SHARDS

    # What looks like a special token in the teacher's text is text: an end of turn would end the sequence early.
    encoded: Any = tokenizer(
        answers["text"].to_pylist(), add_special_tokens=False, split_special_tokens=True, verbose=False
    )["input_ids"]
    end = [] if stop_id is None else [stop_id]
    sequences: list[NDArray[np.int32]] = []
    prompt_B = np.zeros(len(answers), dtype=np.int64)
    columns = answers["prompt_ids"].to_pylist(), encoded, answers["ended"].to_pylist()
    for row, (prompt, answer, ended) in enumerate(zip(*columns, strict=True)):
        prompt_B[row] = len(prompt)
        sequences.append(np.array([*prompt, *answer, *(end if ended else [])], dtype=np.int32))
    length_B = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(length_B)]).astype(np.int32)
    position_T = np.arange(offsets[-1]) - np.repeat(offsets[:-1], length_B)
    answer_T = position_T >= np.repeat(prompt_B, length_B)

    def lists(values_T: "NDArray[np.generic]") -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values_T))

    return pa.table(
        {
            "trajectory_id": answers["trajectory_id"],
            "input_ids": lists(np.concatenate(sequences)),
            "loss_weight": lists(answer_T.astype(np.float32)),
            "audited": lists(answer_T),
            "response_mask": lists(answer_T),
            # Nobody sampled these tokens from the student.
            "behaviour_logprobs": lists(np.zeros(len(answer_T), dtype=np.float32)),
            "chunk_id": answers["chunk_id"],
            "rollout_index": answers["rollout_index"],
        }
    ).cast(SHARDS.schema)


def _summary(row: tuple[Any, ...], score: "ScoreConfig") -> str:
    answers, ended, rollouts = row
    rest = f" ({rollouts - answers} of {rollouts} without a text left out)" if answers < rollouts else ""
    return f"{answers:,} answers{rest}" + ("" if ended is None else f", {ended:.0%} ended by themselves")


def _shown(config: "Config") -> list[tuple[str, str]]:
    return [*shown_of_all(config), ("answers N", f"{config.teacher.rollouts}")]


SFT = Objective(
    name="sft",
    required=("teacher.model",),
    refused=(
        no_constant_weights("sft"),
        Refusal(
            "teacher.rollouts",
            "adaptive",
            "sft asks for whole answers, which tell nothing about how many more are wanted; teacher.rollouts is"
            " adaptive.",
            "Set teacher.rollouts to the number of answers to each prompt.",
        ),
    ),
    own_tables=("trajectories", "chunks", "rollouts"),
    samples_student=False,
    asks="answers",
    learns=Answers(_ANSWERS, answer_sequences),
    summary_sql=_SUMMARY,
    summary=_summary,
    shown=_shown,
)
