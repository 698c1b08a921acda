"""What the rows of a round say of its student and its teacher, in a number each."""

from ..store.layout import RoundDir


def of_student(round_: RoundDir) -> tuple[float | None, float | None]:
    """Share cut off at the limit, and mean repetition: what indicates a degenerating student. None where the student
    wrote nothing, or repetition was not measured."""
    import pyarrow.compute as pc

    table = round_.trajectories.read(["finish_reason", "repetition"])
    reasons = table["finish_reason"].to_pylist()
    if all(reason == "none" for reason in reasons):
        return None, None
    repetition = pc.mean(table["repetition"]).as_py()  # pyright: ignore[reportAttributeAccessIssue]
    return reasons.count("length") / table.num_rows, repetition


def accepted_share(round_: RoundDir) -> float | None:
    """Share of the drafts' tokens that the policy accepted; None without drafts."""
    if round_.drafts.manifest.rows == 0:
        return None
    import pyarrow.compute as pc

    drafts = round_.drafts.read(["ids", "accepted"])
    tokens = pc.sum(pc.list_value_length(drafts["ids"])).as_py()  # pyright: ignore[reportAttributeAccessIssue]
    accepted = pc.sum(drafts["accepted"]).as_py()  # pyright: ignore[reportAttributeAccessIssue]
    return accepted / tokens if tokens else None


def distinct_rollouts(round_: RoundDir) -> float | None:
    """Mean number of different texts among a chunk's rollouts; None where no chunk has two answers."""
    if round_.rollouts.manifest.rows == 0:
        return None
    import pyarrow.compute as pc

    # Only usable rollouts have a text, and both counts leave nulls out.
    rows = round_.rollouts.read(["chunk_id", "text"])
    counts = rows.group_by("chunk_id").aggregate([("text", "count"), ("text", "count_distinct")])
    several = counts.filter(pc.greater(counts["text_count"], 1))  # pyright: ignore[reportAttributeAccessIssue]
    return pc.mean(several["text_count_distinct"]).as_py()  # pyright: ignore[reportAttributeAccessIssue]
