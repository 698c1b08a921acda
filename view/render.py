"""Rows as rich text: a trajectory, a fork, a plain record. All of it can be read without colour."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ..store.conversation import Conversation
from ..store.tokens import Decode
from .agreement import agreement, share
from .sanitize import one_line, printable
from .token_texts import pieces

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

_HEAT = ((2.0, "bold red"), (1.0, "dark_orange"), (0.5, "yellow"), (0.1, "cyan"))
"""Colour of a token from this entropy on, nats."""
_CHUNK = "underline"
_CONTEXT = 200
"""Characters of the prefix that a fork is shown with."""
_ITEMS = 12
"""Of a list, shown in a record."""


def trajectory(
    row: Mapping[str, Any], chunks: Sequence[Mapping[str, Any]], rollouts: Mapping[str, Sequence[Mapping[str, Any]]],
    decode: Decode | None,
) -> "RenderableType":  # fmt: skip
    """Prompt, response with its chunks in numbered brackets and tokens coloured by entropy, and the chunks' boxes."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    head = Text.assemble(
        ("trajectory ", "bold"), (one_line(row["trajectory_id"]), "bold"),
        f"  round {row['round']}  sample {row['sample_index']}  {row['tokens']} tokens"
        f"  {one_line(row['finish_reason'])}"
        + ("" if row["mean_entropy"] is None else f"  mean entropy {row['mean_entropy']:.3f} nats")
        + ("" if row["repetition"] is None else f"  repetition {row['repetition']:.1%}"),
    )  # fmt: skip
    asked = Conversation.read(row["messages"], row["tools"], row["question"])
    # A chat is easier to read without the marks of its template.
    read = row["prompt_text"].rstrip("\n") if asked.is_question else str(asked)
    prompt = Padding.indent(Text(printable(read), "dim"), 2)
    if chunks and is_whole(chunks[0]):
        answers = whole_answers(rollouts[chunks[0]["chunk_id"]])
        return Group(
            head, Text("prompt", "bold dim"), prompt, Text("answers of the teacher", "bold dim"), *answers, Text()
        )
    response = Padding.indent(_response(row, chunks, decode), 2)
    boxes = [_box(number, chunk, rollouts[chunk["chunk_id"]], decode) for number, chunk in enumerate(chunks, 1)]
    heading = Text.assemble(("response  ", "bold dim"), _legend())
    return Group(head, Text("prompt", "bold dim"), prompt, heading, response, *boxes, Text())


def is_whole(chunk: Mapping[str, Any]) -> bool:
    """Whether the teacher was asked for a whole answer here (sft), not for what it would write in place of a chunk."""
    return chunk["start"] == chunk["end"]


def whole_answers(rollouts: Sequence[Mapping[str, Any]]) -> list["RenderableType"]:
    """Each distinct answer, with how often it came."""
    from rich.padding import Padding
    from rich.text import Text

    lines: list[RenderableType] = []
    for rollout in rollouts:
        if rollout["text"] is None:
            said = Text(f"{rollout['status']}: {one_line(rollout['why'] or 'no text')}", "red")
        else:
            said = Text(printable(rollout["text"]))
        lines += [Text(f"{rollout['times']:>3}x", "dim"), Padding.indent(said, 2)]
    return lines


def fork(row: Mapping[str, Any], rollouts: Sequence[Mapping[str, Any]], decode: Decode | None) -> "RenderableType":
    """A chunk as the paper's case studies show it (section 11.1): `||` marks its start."""
    from rich.console import Group
    from rich.text import Text

    if is_whole(row):
        head = Text.assemble(("Whole answers", "bold"), (f"  trajectory {one_line(row['trajectory_id'])}", "dim"))
        return Group(head, *whole_answers(rollouts), Text())
    head = Text.assemble(
        (f"Fork #{row['fork']} (Pos: {row['anchor']}, Entropy: {row['anchor_entropy']:.2f})", "bold"),
        (f"  trajectory {one_line(row['trajectory_id'])}  round {row['round']}", "dim"),
    )
    prefix = row["prefix_text"]
    before = ("..." if len(prefix) > _CONTEXT else "") + prefix[-_CONTEXT:]
    text = Text.assemble("  ", printable(before), (" || ", "bold red"), (printable(row["chunk_text"]), "bold"))
    return Group(head, Text(f"  {_facts(row)}", "dim"), text, *_answers(row, rollouts, decode), Text())


def record(row: Mapping[str, Any]) -> "RenderableType":
    """A line a column."""
    from rich.text import Text

    width = max(len(name) for name in row)
    return Text("\n".join(f"{name:>{width}}  {_short(value)}" for name, value in row.items()) + "\n")


def _response(row: Mapping[str, Any], chunks: Sequence[Mapping[str, Any]], decode: Decode | None) -> "Text":
    from rich.text import Text

    text = row["response_text"]
    spans = [(len(c["prefix_text"]), len(c["prefix_text"]) + len(c["chunk_text"])) for c in chunks]
    opens = {start: number for number, (start, _) in enumerate(spans, 1)}
    closes = {end for _, end in spans}
    out, at = Text(), 0
    for piece, entropy in pieces(text, row["response_ids"], row["entropies"], decode):
        heat = next((style for least, style in _HEAT if entropy >= least), "")
        # A chunk may begin or end inside a piece, where the text has no boundary between tokens.
        edges = sorted({at, at + len(piece), *(e for span in spans for e in span if at < e < at + len(piece))})
        for start, end in pairwise(edges):
            if start in opens:
                out.append(f"⟦{opens[start]}: ", "bold")
            inside = any(first <= start < last for first, last in spans)
            out.append(printable(text[start:end]), f"{heat} {_CHUNK}".strip() if inside else heat)
            if end in closes:
                out.append("⟧", "bold")
        at += len(piece)
    return out


def _legend() -> "Text":
    from rich.text import Text

    parts = [(f" {least:g}+", style) for least, style in reversed(_HEAT)]
    return Text.assemble(("colour: entropy in nats", "dim"), *parts, ("; ⟦n: audited chunk⟧", "dim"))


def _box(
    number: int, chunk: Mapping[str, Any], rollouts: Sequence[Mapping[str, Any]], decode: Decode | None
) -> "RenderableType":
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    # Not in the title: it would be cut off on a narrow terminal.
    facts = Text(_facts(chunk), "dim")
    text = Text.assemble(("student    ", "dim"), (one_line(chunk["chunk_text"]), "bold"))
    return Panel.fit(
        Group(facts, text, *_answers(chunk, rollouts, decode)),
        title=f"⟦{number}⟧",
        title_align="left",
        border_style="dim",
    )


def _facts(chunk: Mapping[str, Any]) -> str:
    weight = "not scored"
    if chunk["pi_teacher"] is not None:
        interval = "" if chunk["pi_low"] is None else f" [{chunk['pi_low']:.2f}, {chunk['pi_high']:.2f}]"
        weight = f"weight {chunk['pi_teacher']:.3f}{interval} from {chunk['n']} rollouts"
    elif chunk["n"] is not None:
        weight = f"left out: {chunk['n']} rollouts with an answer are too few for a weight (score.min_rollouts)"
    elif chunk["accepted"] is not None:
        weight = f"accepted {chunk['accepted']} of {chunk['draft_tokens']} tokens  consensus {chunk['consensus']:.3f}"
    return (
        f"rank {chunk['rank']}  tokens {chunk['start']}-{chunk['end']}  entropy {chunk['anchor_entropy']:.3f}"
        f"  prior {chunk['prior']:.3f}  {weight}"
    )


def _answers(chunk: Mapping[str, Any], rollouts: Sequence[Mapping[str, Any]], decode: Decode | None) -> list["Text"]:
    """A line for each distinct rollout, what agrees with the chunk between ‹ and ›; of a draft, where it was cut."""
    from rich.text import Text

    lines: list[Text] = []
    for rollout in rollouts:
        times = f"{rollout['times']:>3}x "
        if rollout["text"] is None:
            lines.append(Text(f"{times}      {rollout['status']}: {one_line(rollout['why'] or 'no text')}", "red"))
            continue
        if rollout["accepted"] is not None:
            lines.append(Text.assemble((times, "dim"), _draft(rollout, decode)))
            continue
        parts = agreement(chunk["chunk_text"], rollout["text"], chunk["unit"] or "word")
        line = Text.assemble((times, "dim"), (f"{share(parts):4.0%}  ", "dim"))
        for text, kind in parts:
            body = text.lstrip()
            line.append(one_line(text[: len(text) - len(body)]))
            if kind == "same" and body:
                line.append("‹", "dim")
                line.append(one_line(body), "green")
                line.append("›", "dim")
            else:
                line.append(one_line(body), "dim strike" if kind == "beyond" else "")
        lines.append(line)
    return lines


def _draft(rollout: Mapping[str, Any], decode: Decode | None) -> "Text":
    """A draft with ✂ before the first token that the policy rejects, and what of it was accepted."""
    from rich.text import Text

    text, ids, accepted = rollout["text"], rollout["ids"], rollout["accepted"]
    out = Text(f"{accepted}/{len(ids)} accepted  ", "dim")
    if decode is None or accepted == len(ids):
        return out.append(one_line(text), "green" if accepted == len(ids) else "")
    kept = len(decode(ids[:accepted]))
    return out.append(one_line(text[:kept]), "green").append(" ✂ ", "bold red").append(one_line(text[kept:]), "dim")


def _short(value: Any) -> str:
    if isinstance(value, list):
        shown = ", ".join(_short(item) for item in value[:_ITEMS])
        return f"[{shown}{f', ... {len(value)} in all' if len(value) > _ITEMS else ''}]"
    return f"{value:.4f}" if isinstance(value, float) else one_line(str(value))
