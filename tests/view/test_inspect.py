"""`omniopd inspect`: what a person sees of a trajectory, a fork, a row; and which rows."""

import re
from itertools import pairwise

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniopd.method.similarity.units import WORD_PATTERN
from omniopd.store.errors import UsageError
from omniopd.view.agreement import agreement, share
from omniopd.view.decoder import find_decoder
from omniopd.view.inspect import Selection, inspect
from omniopd.view.token_texts import pieces
from support.tokenizers import metaspace
from support.written_run import score_again, write_tables


def shown(run, table, width=120, colour=False, **selection):
    from rich.console import Console

    console = Console(width=width, highlight=False, force_terminal=colour, color_system="truecolor" if colour else None)
    with console.capture() as captured:
        for block in inspect(run, run.config(), table, Selection(**selection)):
            console.print(block)
    return captured.get()


# -- agreement


def test_words_that_agree_are_told_from_those_that_do_not():
    pieces = agreement("wait, I know sin A", "Wait, I know cos A = 3/5", "word")
    assert pieces == [("Wait", "other"), (", I know", "same"), (" cos ", "other"), ("A", "same"), (" = 3/5", "beyond")]
    assert share(pieces) == pytest.approx(len(",IknowA") / len("Wait,IknowcosA"))


def test_characters_agree_where_the_unit_is_the_character():
    assert agreement("107", "37+", "char") == [("3", "other"), ("7", "same"), ("+", "other")]


def test_wording_agrees_with_nothing_where_digits_alone_count():
    expected = [(" makes ", "other"), ("85", "same"), ("; ", "other"), ("7", "beyond")]
    assert agreement(" is 85,", " makes 85; 7", "digit") == expected


@given(st.text(max_size=30), st.text(max_size=30), st.sampled_from(["word", "char", "digit", "token"]))
def test_the_pieces_are_the_rollout_and_as_many_units_agree_as_the_edit_distance_says(chunk, rollout, unit):
    pieces = agreement(chunk, rollout, unit)
    assert "".join(text for text, _ in pieces) == rollout
    assert all(a[1] != b[1] for a, b in pairwise(pieces))
    pattern = {"char": r"(?s).", "digit": "[0-9]"}.get(unit, WORD_PATTERN)

    def units(text):
        return pl.Series([text]).str.extract_all(pattern).to_list()[0]

    wanted = units(chunk)
    judged = units(rollout)[: len(wanted)]
    kept = [unit_ for text, kind in pieces if kind == "same" for unit_ in units(text)]
    # What agrees is a common subsequence, and all of it when the texts are equal.
    rest = iter(wanted)
    assert all(unit_ in rest for unit_ in kept)
    if wanted == judged:
        assert kept == wanted


# -- pieces


@given(st.text(alphabet="aé漢👩\n ", max_size=20), st.data())
def test_pieces_are_the_text_with_the_highest_entropy_of_each(text, data):
    """Tokens of one byte each: the worst that a tokenizer does to a character."""
    ids = list(text.encode())
    entropies = [float(i) for i in range(len(ids))]
    found = pieces(text, ids, entropies, lambda held: bytes(held).decode(errors="replace"))
    assert "".join(piece for piece, _ in found) == text
    assert [piece for piece, _ in found] == list(text)
    ends = [len(text[: i + 1].encode()) - 1.0 for i in range(len(text))]
    assert [entropy for _, entropy in found] == ends


def test_without_a_tokenizer_or_with_another_ones_tokens_the_text_is_still_there():
    assert pieces("abc", [1, 2], [0.5, 0.6], None) == [("abc", 0.0)]
    assert pieces("abc", [97, 120], [0.5, 0.6], lambda ids: bytes(ids).decode()) == [("a", 0.5), ("bc", 0.0)]


def test_a_sentencepiece_students_tokens_keep_their_spaces(make_run, tmp_path):
    tokenizer = metaspace()
    tokenizer.save_pretrained(tmp_path / "student")
    run = make_run(student={"model": str(tmp_path / "student")})
    ids = tokenizer("x so it", add_special_tokens=False)["input_ids"][-6:]
    found = pieces(" so it", ids, [0.1 * i for i in range(6)], find_decoder(run, run.config()))
    assert [piece for piece, _ in found] == list(" so it")


def test_the_students_tokenizer_decodes_what_it_wrote(make_run, student):
    from transformers import AutoTokenizer

    run = make_run(name="d")
    decode = find_decoder(run, run.config())
    ids = AutoTokenizer.from_pretrained(student).encode("12+34=46\n")
    assert decode(ids) == "12+34=46\n"
    assert "".join(decode([id_]) for id_ in ids) == "12+34=46\n"
    assert find_decoder(run, run.config(("student.model=/nowhere/at/all",))) is None


# -- what is shown


def test_a_trajectory_has_its_chunks_in_brackets_and_the_rollouts_in_their_boxes(written_run):
    text = shown(written_run, "trajectories", where="trajectory_id = 't0'")
    assert "trajectory t0  round 0  sample 0  43 tokens" in text
    assert "question 0" in text
    flat = re.sub(r"[\s│]+", " ", text)
    assert "L⟦1: et me ⟧count. But wai⟦2: t, I k⟧now sin A = 3/5." in flat
    assert "rank 1 tokens 1-7 entropy 1.000 prior 0.500 weight 0.250 [0.10, 0.90] from 2 rollouts" in flat
    assert "2x" in text
    assert "1x failed: http 500" in flat
    assert "trajectories: 1-1 of 1" in text


def test_a_fork_is_shown_as_the_papers_case_studies_do(written_run):
    text = shown(written_run, "chunks", where="chunk_id = 't0c0'")
    flat = re.sub(r"\s+", " ", text)
    assert "Fork #2 (Pos: 21, Entropy: 2.00)" in flat
    assert "Let me count. But wai || t, I k" in flat
    assert "from 2 rollouts" in flat


def test_a_chunk_with_too_few_answers_is_said_to_be_left_out(written_run):
    score_again(written_run, **{"score.min_rollouts": 3})
    assert "left out: 2 rollouts with an answer are too few for a weight" in " ".join(
        shown(written_run, "chunks", limit=1).split()
    )


def test_the_start_of_a_long_prefix_is_left_out(make_run):
    run = write_tables(make_run(name="long"), ["x" * 900 + "END" + "y" * 903])
    line = next(line for line in shown(run, "chunks", width=1000, where="rank = 0").splitlines() if "||" in line)
    assert line.startswith("  ...x")
    assert len(line) < 300


def test_colour_says_entropy_and_never_comes_from_the_text(make_run):
    run = write_tables(make_run(name="evil"), ["[bold]a[/bold]\x1b[2J" + "b" * 20], rollout="[red]\x1b]0;t\x07")
    for table in ("trajectories", "chunks", "rollouts"):
        plain = shown(run, table, limit=9)
        assert "\x1b" not in plain
        assert "\x07" not in plain
        assert "␛]0;t␇" in plain
    text = shown(run, "trajectories")
    assert "[bold]" in text.replace("⟦1: ", "")
    assert "\x1b[2J" not in shown(run, "trajectories", colour=True)
    assert "\x1b[" in shown(run, "trajectories", colour=True)


def test_other_tables_are_a_line_a_column(written_run):
    text = shown(written_run, "scores", where="chunk_id = 't1c0'")
    assert re.search(r"pi_teacher +0\.5000", text)
    assert "chunk_loss" in shown(written_run, "train_metrics", limit=1)


# -- which rows


def ids(run, **selection):
    return re.findall(r"chunk_id +(\w+)", shown(run, "scores", **selection))


def test_rows_are_filtered_sorted_and_paged(written_run):
    assert ids(written_run, limit=9) == ["t0c0", "t0c1", "t1c0", "t1c1"]
    assert ids(written_run, limit=9, where="pi_teacher > 0.3") == ["t1c0", "t1c1"]
    assert ids(written_run, limit=9, sort="pi_teacher DESC, chunk_id DESC") == ["t1c1", "t1c0", "t0c1", "t0c0"]
    assert ids(written_run, limit=1, offset=2) == ["t1c0"]
    assert "scores: 3-3 of 4; --offset 3 shows more" in shown(written_run, "scores", limit=1, offset=2)
    assert "scores: none of 0" in shown(written_run, "scores", where="false")
    # A comment must not swallow what comes after the condition.
    assert ids(written_run, limit=9, where="true -- all of them") == ["t0c0", "t0c1", "t1c0", "t1c1"]


def test_a_sample_is_the_same_for_the_same_seed_and_pages_within_itself(written_run):
    samples = [tuple(ids(written_run, limit=9, sample=2, seed=seed)) for seed in range(8)]
    assert all(len(set(sample)) == 2 for sample in samples)
    assert len(set(samples)) > 1
    assert tuple(ids(written_run, limit=9, sample=2, seed=3)) == samples[3]
    assert ids(written_run, limit=1, offset=1, sample=2, seed=3) == [samples[3][1]]


def test_filters_reach_the_chunks_of_a_trajectory_and_the_answers_of_a_chunk(written_run):
    assert "trajectory t1" in shown(written_run, "trajectories", where="min_weight > 0.4 AND tokens < 30")
    assert "Fork" in shown(written_run, "chunks", where="failed = 1 AND fork = 2")


def test_what_is_no_condition_is_one_line_and_changes_nothing(written_run, tmp_path):
    for where in ("nonsense", "true) TO 'x", f"true); COPY chunks TO '{tmp_path}/x.csv'; SELECT (true"):
        with pytest.raises(UsageError) as caught:
            shown(written_run, "chunks", where=where)
        assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "x.csv").exists()
    with pytest.raises(UsageError, match="no table 'nonsense'"):
        shown(written_run, "nonsense")
