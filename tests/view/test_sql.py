"""`omniopd sql` answers, in several formats, and can neither change the run nor read anything else."""

import csv
import io
import json

import pyarrow.parquet as pq
import pytest

from omniopd.run import Run
from omniopd.store.errors import UsageError
from omniopd.store.reader import columns, open_reader, views
from omniopd.view.sanitize import one_line, printable
from omniopd.view.shell import shell
from omniopd.view.sql import query, write_answer
from support.written_run import add_evaluation, score_again


@pytest.fixture
def outside(tmp_path):
    path = tmp_path / "secret.csv"
    path.write_text("a\nsecret\n")
    return path


def statements(run, outside):
    part = run.round(0).chunks.files()[0]
    return [
        f"COPY chunks TO '{outside.parent}/out.csv'",
        f"COPY chunks TO '{part}'",
        f"EXPLAIN ANALYZE COPY chunks TO '{part}' (FORMAT parquet)",
        f"WITH x AS (SELECT 1) SELECT * FROM read_csv('{outside}')",
        f"SELECT * FROM '{outside}'",
        f"SELECT content FROM read_text('{outside}')",
        f"SELECT * FROM glob('{outside.parent}/*')",
        f"ATTACH '{outside.parent}/new.db'",
        f"ATTACH '{run.ledger}' (TYPE sqlite)",
        f"CREATE TABLE t (a TEXT); COPY t FROM '{outside}'",
        f"EXPORT DATABASE '{outside.parent}/exported'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET lock_configuration = false",
        f"SET allowed_directories = ['{outside.parent}']",
        f"PRAGMA profiling_output = '{outside.parent}/profile.json'",
        f"CALL enable_logging(storage = 'file', storage_path = '{outside.parent}/logs')",
        "SELECT * FROM __import__",
    ]


def everything_below(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_no_statement_changes_or_reads_a_file(written_run, outside):
    for statement in statements(written_run, outside):
        before = everything_below(outside.parent)
        with pytest.raises(UsageError):
            query(written_run, statement)
        assert everything_below(outside.parent) == before, statement


def test_variables_of_this_program_are_no_tables(written_run):
    import pyarrow as pa

    run = pa.table({"a": [1]})  # noqa: F841
    with pytest.raises(UsageError, match="does not exist"):
        query(written_run, "SELECT * FROM run")


def test_files_can_be_read_when_asked_for(written_run, outside, capsys):
    write_answer(written_run, f"SELECT * FROM read_csv('{outside}')", "jsonl", None, allow_files=True)
    assert json.loads(capsys.readouterr().out) == {"a": "secret"}


def test_every_column_of_every_view_says_what_it_is(written_run):
    with open_reader(written_run) as db:
        names = [name for name, _ in views(db)]
        assert {"chunks", "rollouts", "scores", "chunks_scored", "trajectories_scored", "evaluations"} <= set(names)
        undocumented = [(name, row) for name in names if name != "train_metrics" for row in columns(db, name)
                        if not row[2]]  # fmt: skip
        assert not undocumented
        assert ("anchor_entropy", "FLOAT", "entropy at the anchor [nats]") in columns(db, "chunks_scored")
        # DuckDB's own way to ask.
        (comment,) = db.execute("SELECT comment FROM duckdb_columns() WHERE table_name = 'rollouts'"
                                " AND column_name = 'cost_usd'").fetchone()  # fmt: skip
        assert comment.endswith("[USD]")


def test_derived_views_count_what_the_tables_hold(written_run):
    with open_reader(written_run) as db:
        ask = "SELECT rollouts, failed, n, pi_teacher, teacher_tokens FROM chunks_scored WHERE chunk_id = 't1c0'"
        assert db.execute(ask).fetchone() == (3, 1, 2, 0.5, 45)
        ask = "SELECT tokens, chunks, mean_weight, cost_usd FROM trajectories_scored WHERE trajectory_id = 't0'"
        tokens, chunks, weight, cost = db.execute(ask).fetchone()
        assert (tokens, chunks, weight) == (43, 2, 0.25)
        assert cost == pytest.approx(0.006)
        assert db.execute("SELECT round, step, chunk_loss FROM train_metrics ORDER BY step").fetchall() == [
            (0, 0, 0.3), (0, 1, pytest.approx(0.2))
        ]  # fmt: skip


def test_a_chunk_that_score_left_out_has_no_weight(written_run):
    score_again(written_run, **{"score.min_rollouts": 3})
    with open_reader(written_run) as db:
        ask = "SELECT DISTINCT n, pi_freq, pi_teacher, pi_low, pi_high FROM chunks_scored"
        assert db.execute(ask).fetchall() == [(2, 0.5, None, None, None)]
        assert db.execute("SELECT count(pi_teacher) FROM scores").fetchone() == (4,)


def test_evaluations_are_a_view_of_verdicts_with_their_responses(written_run):
    for after, correct in ((0, [True, False]), (1, [True, True])):
        add_evaluation(written_run, after, correct, benchmark="o'brien").finish()
    with open_reader(written_run) as db:
        ask = "SELECT rounds, benchmark, grader, avg(correct::INT), sum(response_tokens) FROM evaluations GROUP BY ALL"
        assert sorted(db.execute(ask).fetchall()) == [
            (0, "o'brien", "math_verify", 0.5, 10), (1, "o'brien", "math_verify", 1.0, 10)
        ]  # fmt: skip


def test_a_run_without_tables_has_empty_views(make_run):
    assert "0" in query(make_run(name="empty"), "SELECT count(*) FROM trajectories_scored")


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl", "parquet"])
def test_an_answer_goes_into_a_file_whose_name_tells_the_format(written_run, tmp_path, suffix):
    target = tmp_path / f"answer.{suffix}"
    text = "SELECT chunk_id, rank, [rank, 1] AS pair FROM chunks ORDER BY chunk_id"
    write_answer(written_run, text, None, target)
    expected = [{"chunk_id": f"t{t}c{c}", "rank": c, "pair": [c, 1]} for t in (0, 1) for c in (0, 1)]
    content = target.read_bytes()
    if suffix == "csv":
        rows = list(csv.DictReader(io.StringIO(content.decode())))
        assert [(row["chunk_id"], int(row["rank"]), json.loads(row["pair"])) for row in rows] == [
            tuple(row.values()) for row in expected
        ]
    elif suffix == "json":
        assert json.loads(content) == expected
    elif suffix == "jsonl":
        assert [json.loads(line) for line in content.splitlines()] == expected
    else:
        assert pq.read_table(target).to_pylist() == expected
    assert [path.name for path in tmp_path.iterdir() if "answer" in path.name] == [target.name]


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl", "parquet"])
def test_columns_of_the_same_name_keep_their_values(written_run, tmp_path, suffix):
    """As a join of two tables has them."""
    target = tmp_path / f"answer.{suffix}"
    text = "SELECT 1 AS id, 2 AS n, 3 AS id, 4 AS id_1"
    write_answer(written_run, text, None, target)
    names, values = ["id", "n", "id_2", "id_1"], [1, 2, 3, 4]
    content = target.read_bytes()
    if suffix == "csv":
        assert list(csv.reader(io.StringIO(content.decode()))) == [names, [str(value) for value in values]]
    elif suffix == "parquet":
        assert pq.read_table(target).to_pylist() == [dict(zip(names, values, strict=True))]
    else:
        assert json.loads(content) in (wanted := dict(zip(names, values, strict=True)), [wanted])
    assert Run(written_run.path).sql(text).rows() == [(1, 2, 3, 4)]


def test_an_answer_never_goes_into_the_run_and_a_failed_one_leaves_no_file(written_run, tmp_path):
    with pytest.raises(UsageError, match="inside the run"):
        write_answer(written_run, "SELECT 1", None, written_run.round(0).chunks.files()[0])
    with pytest.raises(UsageError, match="does not tell a format"):
        write_answer(written_run, "SELECT 1", None, tmp_path / "x.xlsx")
    target = tmp_path / "x.csv"
    target.write_text("old")
    with pytest.raises(UsageError, match="not found"):
        write_answer(written_run, "SELECT nonsense FROM chunks", None, target)
    assert target.read_text() == "old"
    assert not (tmp_path / ".x.csv.tmp").exists()


def test_the_shell_reads_until_the_semicolon_and_survives_mistakes(written_run, capsys):
    lines = iter([".tables", "SELECT count(*) AS many", "FROM chunks;", "SELECT nonsense;", ".schema scores", ".what",
                  "CREATE TEMP TABLE mine AS SELECT 7 AS seven;", "FROM mine;", ".quit"])  # fmt: skip
    shell(written_run, lambda prompt: next(lines))
    out = capsys.readouterr().out
    assert "trajectories_scored" in out
    assert "many" in out
    assert "nonsense" in out
    assert "prior strength" in out
    assert "Ctrl-D" in out
    assert "seven" in out


def test_an_empty_line_ends_a_statement_too_and_words_of_other_shells_are_understood(written_run, capsys):
    lines = iter(["WITH c AS (", "", "FROM chunks)", "FROM c SELECT 40 + count(*)", "", "", "help", "exit;"])
    shell(written_run, lambda prompt: next(lines))
    text = capsys.readouterr().out
    assert "44" in text.split()
    assert "Statements end" in text
    assert next(lines, None) is None


def test_the_shell_ends_with_the_input(written_run):
    def read(prompt):
        raise EOFError

    shell(written_run, read)


def test_what_a_model_wrote_cannot_act_on_a_terminal(written_run, monkeypatch, capsys):
    text = "a\x1b[31m\x9b2J\x07\r\x7f\u202eb\ud800\u200b\n\tc"
    assert printable(text) == "a␛[31m‹U+009B›2J␇␍␡‹U+202E›b‹U+D800›‹U+200B›\n\tc"
    assert one_line("a\n\tb") == "a⏎⇥b"
    assert printable("ﷺ 漢字 é 👩‍👧") == "ﷺ 漢字 é 👩‍👧"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    for format_ in ("table", "csv", "json", "jsonl"):
        write_answer(written_run, "SELECT chr(27) || '[2J' || chr(155) AS a, chr(27) || 'b' AS b", format_, None)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x9b" not in out
    with pytest.raises(UsageError, match="terminal"):
        write_answer(written_run, "SELECT 1", "parquet", None)
