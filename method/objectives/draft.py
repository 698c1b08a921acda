"""draft: the likelihood of what the teacher writes from the student's own prefix, as far as the student follows.

    L = -(1 / Z) sum_i c_i sum_{j accepted} log pi_theta(r_ij | prefix, r_i<j),    Z = sum_i c_i |accepted_i|

r_i is a draft: the teacher's continuation from a trajectory's fork, the earliest of its entropy peaks. Accepted are its
tokens before the first that the round's policy would hardly ever say, and c_i is how far the drafts of the fork agree.
It is not the paper's: docs/decisions/0026-draft.md.
"""

from typing import TYPE_CHECKING, Any

from ...store.objectives import Refusal
from .record import ENDED, Answers, Objective, no_constant_weights

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

    from ...store.config import Config
    from ...store.sections import ScoreConfig

_ACCEPTED = """
SELECT trajectory_id, chunk_id, rollout_index, prompt_ids, response_ids[:start] AS prefix_ids, ids[:accepted] AS ids,
    consensus
FROM drafts JOIN chunks USING (chunk_id) JOIN trajectories USING (trajectory_id)
WHERE accepted > 0 AND consensus > 0
ORDER BY trajectory_id, chunk_id, rollout_index
"""

_SUMMARY = f"""
SELECT
    (SELECT count(*) FROM rollouts), count(*), sum(len(ids)), sum(accepted), count(*) FILTER (accepted = 0),
    count(*) FILTER (len(ids) = 0), avg(consensus),
    (SELECT avg({ENDED}::INTEGER) FROM rollouts WHERE status = 'ok'),
    (SELECT sum(len(ids)) FROM ({_ACCEPTED}))
FROM drafts
"""


def accepted_sequences(drafts: "pa.Table", tokenizer: "PreTrainedTokenizerBase", stop_id: int | None) -> "pa.Table":
    """One training sequence a draft: prompt, response up to the fork, accepted tokens.

    Args:
        drafts: Rows of `Answers.sql`.

    Returns:
        Rows of the shards table, in the same order.
    """
    import numpy as np
    import pyarrow as pa

    from ...store.schema import SHARDS

    def sequence(row: dict[str, Any]) -> dict[str, Any]:
        ids = [*row["prompt_ids"], *row["prefix_ids"], *row["ids"]]
        at_S = np.arange(len(ids))
        accepted_S = at_S >= len(ids) - len(row["ids"])
        return {
            "trajectory_id": row["trajectory_id"],
            "input_ids": ids,
            "loss_weight": accepted_S * np.float32(row["consensus"]),
            "audited": accepted_S,
            "response_mask": at_S >= len(row["prompt_ids"]),
            # The loss has no importance ratio, so nobody reads them.
            "behaviour_logprobs": np.zeros(len(ids), dtype=np.float32),
            "chunk_id": row["chunk_id"],
            "rollout_index": row["rollout_index"],
        }

    return pa.Table.from_pylist([sequence(row) for row in drafts.to_pylist()], schema=SHARDS.schema)


def _summary(row: tuple[Any, ...], score: "ScoreConfig") -> str:
    rollouts, drafts, tokens, accepted, rejected, untold, consensus, ended, trained = row
    notes = [
        (rollouts - drafts, "without a text"),
        (untold, "without tokens of the student's to learn"),
        (rejected - untold, "rejected at their first token"),
    ]
    rest = "".join(f", {count} {what}" for count, what in notes if count)
    if not drafts:
        return f"0 of {rollouts} drafts{rest}"
    share = f"{accepted or 0:,} of {tokens or 0:,} tokens accepted ({(accepted or 0) / max(1, tokens or 0):.0%})"
    trained = "" if trained == accepted else f", {trained or 0:,} trained"
    agreed = "" if consensus == 1 else f", mean consensus {consensus:.3f}"
    ends = f"{ended:.0%} ended by themselves"
    if not ended:
        ends = "none ended by itself (it learns no ending: raise teacher.max_tokens or draft_tokens)"
    return f"{drafts:,} drafts{rest}: {share}{trained}, {ends}{agreed}"


def _shown(config: "Config") -> list[tuple[str, str]]:
    select, score, train = config.select, config.score, config.train
    return [
        ("objective", train.objective), ("fork", f"{select.keep} of M = {select.chunks}"),
        ("drafts N", f"{config.teacher.rollouts}"), ("accepted", f"{score.accept} {score.threshold:g}"),
        ("epochs", f"{train.epochs}"), ("β", f"{train.beta:g}"), ("lr", f"{train.lr:g}"),
        ("batch", f"{train.global_batch}"),
    ]  # fmt: skip


DRAFT = Objective(
    name="draft",
    required=("teacher.model",),
    refused=(
        no_constant_weights("draft"),
        Refusal(
            "teacher.rollouts",
            "adaptive",
            "draft learns from the drafts themselves, and no weight of a chunk says when there are enough;"
            " teacher.rollouts is adaptive.",
            "Set teacher.rollouts to the number of drafts at each fork.",
        ),
    ),
    defaults={
        "select.keep": "earliest",
        "teacher.rollouts": 1,
        "teacher.temperature": 0.5,
        "train.epochs": 2,
        "train.beta": 0.0,
    },
    own_tables=("rollouts",),
    asks="chunks",
    weights_from="drafts",
    learns=Answers(_ACCEPTED, accepted_sequences),
    summary_sql=_SUMMARY,
    summary=_summary,
    frozen="initial",
    anchored="unaudited",
    divided_by="weights",
    shown=_shown,
)
