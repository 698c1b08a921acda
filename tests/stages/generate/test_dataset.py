"""Data files: every row counts, values are the file's, and what is wrong is one line with file, row and column."""

import contextlib
import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st
from typer.testing import CliRunner

from omniopd.cli import app
from omniopd.stages.generate.conversations import last_question_of
from omniopd.stages.generate.dataset import Source, answer_of, open_dataset
from omniopd.stages.generate.files import DataFile
from omniopd.stages.generate.stage import generate
from omniopd.store.config import load_config
from omniopd.store.errors import InputError
from omniopd.store.sections import DataConfig
from support.questions import read_problems, read_questions


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def source(*names: str | Path, split: str = "train", subset: str | None = None, folder: Path = Path()) -> Source:
    return Source(tuple(map(str, names)), subset, split, "data.prompts", "prompt", "", folder)


def values(*names: str | Path, columns: tuple[str, ...] = (), **about: Any) -> list[dict[str, Any]]:
    return [row.values for row in open_dataset(source(*names, **about)).rows(dict.fromkeys(columns, ("", "")))]


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


# -- values


LATE = [{"question": f"q{i}", "answer": i} for i in range(150)]


@pytest.mark.parametrize(
    ("rows", "last"),
    [
        ([*LATE, {"question": "late", "answer": "1/2"}], "1/2"),
        ([*LATE, {"question": "late", "answer": 3.5}], "3.5"),
        ([*LATE, {"question": "late", "answer": [1, "x"]}], "1, x"),
        ([*({"question": row["question"]} for row in LATE), {"question": "late", "answer": "7"}], "7"),
        ([*(row | {"answer": None} for row in LATE), {"question": "late", "answer": "7"}], "7"),
    ],
    ids=["text", "float", "list", "key", "not null"],
)
def test_what_appears_after_150_rows_counts_as_much_as_what_came_first(tmp_path, rows, last):
    problems = read_problems(DataConfig(prompts=write(tmp_path / "p.jsonl", lines(*rows)), answer="answer"))
    assert len(problems) == 151
    assert problems["late"] == last
    assert problems["q149"] == ("149" if rows[149].get("answer") else "")


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\n \n\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", [True, False])
def test_byte_order_marks_line_ends_and_blank_lines_are_no_content(tmp_path, newline, mark, end):
    text = mark + newline.join(['{"question": "a\u2028b"}', '{"question": "b"}']) + newline * end
    assert read_questions(DataConfig(prompts=write(tmp_path / "p.jsonl", text))) == ["a\u2028b", "b"]
    text = mark + newline.join(["question,answer", "a,025", "b,1/2"]) + newline * end
    if " " not in newline:  # in a CSV that is a cell
        problems = read_problems(DataConfig(prompts=write(tmp_path / "p.csv", text), answer="answer"))
        assert problems == {"a": "025", "b": "1/2"}


def test_json_values_are_exactly_those_of_the_file(tmp_path):
    line = (
        '{"big": 123456789012345678901234567890, "edge": [18446744073709551616, -9223372036854775809],'
        ' "one": 1, "float": 1.0, "mixed": [3, "x", null, true, {"a": 1.5}], "nan": NaN, "inf": [-Infinity],'
        ' "twice": 1, "twice": 2, "text": "1234567890123456789012"}'
    )
    (row,) = values(write(tmp_path / "p.jsonl", line))
    assert json.dumps(row) == json.dumps(json.loads(line))
    assert row["edge"] == [2**64, -(2**63) - 1]
    assert (type(row["one"]), type(row["float"]), row["twice"]) == (int, float, 2)
    # The same where nothing needs the slower reader.
    short = '{"one": 1, "float": 1.0, "twice": 1, "twice": 2, "mixed": [3, "x", null, true]}'
    assert json.dumps(values(write(tmp_path / "q.jsonl", short))[0]) == json.dumps(json.loads(short))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"), (1.0, "1.0"), (0.5, "0.5"), (" 7 ", "7"), ("025", "025"), (2**70, str(2**70)), (True, "true"),
        ([3, "x"], "3, x"), ([[1, 2], [3]], "[[1, 2], [3]]"), (None, ""), ("", ""),
        ({"a": 1, "b": [1.0, None]}, '{"a": 1, "b": [1.0, null]}'),
    ],
)  # fmt: skip
def test_an_answer_keeps_its_value(tmp_path, value, text):
    (row,) = open_dataset(source(write(tmp_path / "p.jsonl", lines({"a": value})))).rows({})
    assert answer_of(row, "a") == text


def test_whole_numbers_of_a_contest_lose_their_zeros_and_nothing_else(tmp_path):
    given = ["025", 27.0, "27.0", 10**20 + 1, "x"]
    rows = open_dataset(source(write(tmp_path / "p.jsonl", lines(*({"a": a} for a in given))))).rows({})
    assert [answer_of(row, "a", integers=True) for row in rows] == ["25", "27", "27", str(10**20 + 1), "x"]


def test_a_chat_arrives_as_it_was_written_with_its_file_and_line(tmp_path):
    chat = [
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"arguments": "{}"}}]},
        {"role": "tool", "content": "7", "tool_call_id": "1"},
    ]
    path = write(tmp_path / "p.jsonl", "\n" + lines({"prompt": chat, "tools": []}))
    (row,) = open_dataset(source(path)).rows({"prompt": ("data.field", "question")})
    assert row.values == {"prompt": chat, "tools": []}
    assert row.where == f"{path}, line 2"


def test_lines_of_megabytes_and_cells_beyond_the_csv_modules_limit_are_read(tmp_path):
    text = "x" * 3_000_000
    assert values(write(tmp_path / "p.jsonl", lines({"question": text})))[0] == {"question": text}
    assert values(write(tmp_path / "p.csv", f'question\n"{text}"\n'))[0] == {"question": text}


def test_csv_cells_are_text_with_their_commas_quotes_and_line_breaks(tmp_path):
    text = 'question,answer\r\n"a, ""b""\nc",007\r\nd,\r\n'
    rows = list(open_dataset(source(path := write(tmp_path / "p.csv", text))).rows({}))
    assert [row.values for row in rows] == [
        {"question": 'a, "b"\nc', "answer": "007"},
        {"question": "d", "answer": None},
    ]
    assert [row.where for row in rows] == [f"{path}, line 2", f"{path}, line 4"]


def test_parquet_values_keep_their_types_and_only_needed_columns_are_read(tmp_path):
    table = pa.table({"q": ["a", "b"], "n": [1, None], "s": [{"x": 1.0}, None], "other": ["o", "o"]})
    pq.write_table(table, tmp_path / "p.parquet", row_group_size=1)
    rows = list(open_dataset(source(tmp_path / "p.parquet")).rows(dict.fromkeys(("q", "n", "s.x"), ("", ""))))
    assert [row.values for row in rows] == [{"q": "a", "n": 1, "s": {"x": 1.0}}, {"q": "b", "n": None, "s": None}]
    assert [row.number for row in rows] == [1, 2]


# -- names


@pytest.mark.parametrize("name", ["a[1]", "*", "what?", "{a,b}", "100%25#x", "x y"])
def test_a_file_name_is_a_name_not_a_pattern(tmp_path, name):
    write(tmp_path / "a1.jsonl", lines({"question": "decoy"}))
    pq.write_table(pa.table({"question": ["decoy"]}), tmp_path / "a1.parquet")
    paths = [tmp_path / f"{name}.jsonl", tmp_path / f"{name}.csv", tmp_path / f"{name}.parquet"]
    write(paths[0], lines({"question": "right"}))
    write(paths[1], "question\nright\n")
    pq.write_table(pa.table({"question": ["right"]}), paths[2])
    assert [read_questions(DataConfig(prompts=str(path))) for path in paths] == [["right"]] * 3


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".zst", zstd)])
def test_compressed_lines_are_read_and_a_truncated_file_is_refused(tmp_path, suffix, compress):
    text = lines(*({"question": f"q{i}"} for i in range(20_000))).encode()
    # Concatenated parts are one file, as both formats say.
    path = tmp_path / f"p.jsonl{suffix}"
    write(path, compress(text[:1000]) + compress(text[1000:]))
    assert [row["question"] for row in values(path)] == [f"q{i}" for i in range(20_000)]
    write(path, compress(text)[:-40])
    with pytest.raises(InputError, match=rf"p\.jsonl\{suffix} cannot be read: .*Replace the file"):
        values(path)
    write(path, text)
    with pytest.raises(InputError, match="cannot be read"):
        values(path)


def test_a_folder_is_its_files_and_several_names_are_read_in_turn(tmp_path):
    folder = tmp_path / "set"
    (folder / "more").mkdir(parents=True)
    pq.write_table(pa.table({"question": ["b"]}), folder / "1.parquet")
    pq.write_table(pa.table({"question": ["a"]}), folder / "0.parquet")
    pq.write_table(pa.table({"question": ["c"]}), folder / "more" / "2.parquet")
    write(folder / ".hidden.parquet", "no such file")
    write(folder / "README.md", "text")
    path = write(tmp_path / "p.jsonl", lines({"question": "d"}))
    assert read_questions(DataConfig(prompts=(str(folder), path))) == ["a", "b", "c", "d"]
    with pytest.raises(InputError, match=r"p\.jsonl has no column 'x' \(it has question\)"):
        values(path, columns=("x",))


def test_a_folder_that_tells_splits_apart_gives_the_one_that_is_asked_for(tmp_path):
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        write(tmp_path / f"{name}.jsonl", lines({"question": name}))
    assert [row["question"][:7] for row in values(tmp_path)] == ["train-0", "train-0"]
    assert [row["question"] for row in values(tmp_path, split="test")] == ["test-00000-of-00001"]
    with pytest.raises(InputError, match="files of other splits than 'validation'"):
        values(tmp_path, split="validation")
    with pytest.raises(InputError, match=r"files of other splits than 'train\[:1\]'"):
        values(tmp_path, split="train[:1]")
    write(tmp_path / "train.csv", "question\nx\n")
    with pytest.raises(InputError, match=r"several formats \(\.csv, \.jsonl\)"):
        values(tmp_path)


def test_prompts_in_a_config_are_one_name_or_a_list(make_run, tmp_path):
    paths = [write(tmp_path / f"{name}.jsonl", lines({"question": name})) for name in "ab"]
    run = make_run(data={"prompts": paths})
    assert read_questions(run.config().data) == ["a", "b"]
    assert run.config().data.prompts_label == ", ".join(paths)
    assert read_questions(run.config((f"data.prompts={paths[0]}",)).data) == ["a"]


def test_init_stores_an_absolute_path_and_a_hub_id_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "here" / "folder").mkdir(parents=True)
    write(tmp_path / "here" / "p.jsonl", lines({"question": "a"}))
    monkeypatch.chdir(tmp_path / "here")
    for given, stored in (
        ("p.jsonl", str(tmp_path / "here" / "p.jsonl")),
        ("folder", str(tmp_path / "here" / "folder")),
        ("later.csv", str(tmp_path / "here" / "later.csv")),
        ("open-r1/DAPO-Math-17k-Processed", "open-r1/DAPO-Math-17k-Processed"),
    ):
        run = tmp_path / f"run-{Path(given).name}"
        result = CliRunner().invoke(app, ["init", str(run), "--student", "s", "--prompts", given, "--teacher", "t"])
        assert result.exit_code == 0, result.output
        assert load_config(run / "config.toml").data.prompts == stored


def test_a_relative_path_is_looked_for_here_and_then_in_the_run_directory(tmp_path, monkeypatch):
    run, here = tmp_path / "run", tmp_path / "here"
    run.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    write(run / "p.jsonl", lines({"question": "of the run"}))
    assert read_questions(DataConfig(prompts="p.jsonl"), run) == ["of the run"]
    write(here / "p.jsonl", lines({"question": "here"}))
    assert read_questions(DataConfig(prompts="p.jsonl"), run) == ["here"]


# -- what is wrong


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question": "a"}\n\n{"question": "b"\n', r"line 3, column 17: not JSON: Expecting ',' delimiter"),
        ('{"question": "a"}\n{"question": "b",}\n', r"line 2, column \d+: not JSON"),
        ('[{"question": "a"}]\n', "line 1: a list where an object belongs"),
        ('{"question": "a"}\n3\n', "line 2: a number where an object belongs"),
        (b'{"question": "\xc3\xa9\xe9"}\n', "line 1, column 16: byte 0xe9 is not UTF-8"),
        ('{"question": "a"}\n{"question": "\\ud83d"}\n', r"line 2, column 'question': \\ud83d is half of a surrogate"),
        ('{"question": 1e400}\n', r"line 1: 1e400 is beyond a 64-bit float"),
        ('{"question": ' + "1" * 5000 + "}\n", r"line 1: Exceeds the limit \(4300 digits\)"),
        ('{"question": ' + "[" * 3000 + "]" * 3000 + "}\n", "line 1: values are nested too deeply"),
        ("\n \n", "is empty"),
        ("\ufeff", "is empty"),
        ('{"question": {"a": 1}}\n', r"line 1, column 'question': an object\. Write a text there"),
        ('{"question": "a"}\n{"question": ["b"]}\n', "line 2, column 'question': a list with a text"),
        (
            '{"question": [{"role": "user", "content": ["b"]}]}\n',
            "line 1, column 'question': a user message with a part of type",
        ),
        ('{"question": true}\n', "line 1, column 'question': true or false"),
    ],
)
def test_a_bad_line_is_named_by_file_row_and_column_and_nothing_is_sampled(make_run, tmp_path, content, message):
    run = make_run(data={"prompts": write(tmp_path / "bad.jsonl", content)})
    with pytest.raises(InputError, match=rf"bad\.jsonl(, | ){message}") as error:
        generate(run, 0, run.config())
    assert "\n" not in str(error.value)
    assert not run.round(0).path.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("question,answer\na,1\n\nb\n", "line 4: 1 cells under a header of 2"),
        ('question,answer\n"a\nb",1\nc,d,e\n', "line 4: 3 cells under a header of 2"),
        ('question,answer\n"a"b,1\n', "line 2: not CSV"),
        ('question,answer\n"a\nb\n', "line 2: not CSV: unexpected end of data"),
        (b"question\n\xe9\n", "line 2, column 1: byte 0xe9 is not UTF-8"),
        ("question,question\na,b\n", "has two columns 'question'"),
        ("", "is empty"),
        ("question\n", "holds no question"),
    ],
)
def test_a_damaged_csv_is_named_by_its_line(tmp_path, content, message):
    with pytest.raises(InputError, match=rf"bad\.csv(, | ){message}") as error:
        read_questions(DataConfig(prompts=write(tmp_path / "bad.csv", content)))
    assert "\n" not in str(error.value)


def test_a_damaged_parquet_binary_text_and_unknown_formats_are_one_line(tmp_path):
    with pytest.raises(InputError, match=r"bad\.parquet cannot be read as Parquet: .*Replace") as error:
        values(write(tmp_path / "bad.parquet", "PAR1 and no more"), columns=("question",))
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"empty\.parquet is empty"):
        values(write(tmp_path / "empty.parquet", ""), columns=("question",))
    pq.write_table(pa.table({"question": ["x", "a"], "b": [b"", b"ab"]}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet, row 1, column 'b': a value of type bytes\. Write a text"):
        read_questions(DataConfig(prompts=str(tmp_path / "b.parquet"), field="b"))
    with pytest.raises(InputError, match=r"b\.parquet, row 1, column 'b': a value of type bytes"):
        read_problems(DataConfig(prompts=str(tmp_path / "b.parquet"), answer="b"))
    with pytest.raises(InputError, match=r"p\.txt is of no known format\. Known: \.jsonl"):
        read_questions(DataConfig(prompts=write(tmp_path / "p.txt", "x")))


def test_a_column_that_no_row_has_is_refused_with_those_there_are(tmp_path):
    path = write(tmp_path / "p.jsonl", lines({"question": "a", "meta": {"x": 1}}, {"id": 2, "question": "b"}))
    with pytest.raises(InputError, match=r"no column 'problem' \(it has question, meta, id\).*data\.field"):
        read_questions(DataConfig(prompts=path, field="problem"))
    with pytest.raises(InputError, match=r"has no 'meta\.answer' in any row\. Set data\.answer to the answer's column"):
        read_problems(DataConfig(prompts=path, answer="meta.answer"))
    assert read_problems(DataConfig(prompts=path, answer="meta.x")) == {"a": "1", "b": ""}


def test_what_is_left_out_and_rounds_that_want_more_than_there_is_are_said_once(tmp_path, capsys):
    rows = [("a", 1), ("b", 2), ("a", 1), ("a", 3), (" ", 4), (None, 5)]
    path = write(tmp_path / "p.jsonl", lines(*({"question": q, "answer": a} for q, a in rows)))
    data = DataConfig(prompts=path, answer="answer", per_round=5)
    for _ in range(2):
        assert read_problems(data) == {"a": "1", "b": "2"}
    assert capsys.readouterr().err.splitlines() == [
        f"1 row left out, which has a question that an earlier row has: {path}, line 3",
        f"1 row left out, which has a question that an earlier row has with another answer: {path}, line 4",
        f"2 rows left out, which have no question: the first is {path}, line 5",
        "data.per_round is 5, and there are 2 questions: every round takes all of them",
    ]
    said: list[str] = []
    read_problems(data.model_copy(update={"per_round": 2, "limit": 1}), say=said.append)
    assert said[-1] == "data.per_round is 2, and there are 1 questions: every round takes all of them"


# -- filters


def kept(path: str | Path, condition: str) -> list[str]:
    rows = open_dataset(source(path)).rows({"q": ("data.field", "question")}, condition)
    return [last_question_of(row, "q") for row in rows]


def test_a_filter_sees_exact_values_of_all_rows(tmp_path):
    rows = [
        {"q": "a", "n": 2**53 + 1, "m": 1, "meta": {"level": 1}, "tags": ["x"], "late": None},
        {"q": "b", "n": 2**53, "m": "1/2", "meta": {"level": 2, "late": True}, "tags": ["y", "x"]},
        {"q": "c", "n": 2**70, "m": [1, "x"], "meta": {"level": 3}, "tags": [], "late": "here"},
    ]
    path = write(tmp_path / "p.jsonl", lines(*rows))
    assert kept(path, "n = '9007199254740993'") == ["a"], "integers beyond 64 bits are text, and exact"
    assert kept(path, "m = '1/2' OR m = '1'") == ["a", "b"]
    assert kept(path, "m = '[1, \"x\"]'") == ["c"]
    assert kept(path, "meta.level > 1") == ["b", "c"]
    assert kept(path, "meta.late") == ["b"]
    assert kept(path, "meta.level > avg(meta.level)") == ["c"]
    assert kept(path, "tags[1] = 'y'") == ["b"]
    assert kept(path, "late IS NOT NULL") == ["c"]
    assert kept(path, "length(q) = 1 AND 1 = 1") == ["a", "b", "c"]
    assert kept(path, "1 = 1") == ["a", "b", "c"]
    assert kept(path, "q = 'z'") == []


def test_a_filter_over_a_csv_compares_text_and_can_make_numbers_of_it(tmp_path):
    path = write(tmp_path / "p.csv", "q,level\na,3\nb,025\nc,x\nd,\n")
    assert kept(path, "level = '025'") == ["b"]
    assert kept(path, "TRY_CAST(level AS DOUBLE) >= 3") == ["a", "b"]
    assert kept(path, "level IS NULL") == ["d"]
    assert kept(path, "length(level) = 3") == ["b"]
    with pytest.raises(InputError, match=r"cannot compare string .*As text: level; TRY_CAST") as error:
        kept(path, "level > 3")
    assert "\n" not in str(error.value)


def test_a_filter_over_parquet_and_several_files_is_over_all_their_rows(tmp_path):
    pq.write_table(pa.table({"q": ["a", "b"], "n": [1, 5]}), tmp_path / "a.parquet")
    path = write(tmp_path / "b.jsonl", lines({"q": "c", "n": 9}, {"q": "d", "n": 0.5}))
    both = open_dataset(source(tmp_path / "a.parquet", path))
    assert [row.values["q"] for row in both.rows({"q": ("", "")}, "n > avg(n)")] == ["b", "c"]
    with pytest.raises(InputError, match=r"no condition over .*has no column 'm'.*columns: q, n"):
        list(both.rows({"q": ("", "")}, "m > 1"))
    with pytest.raises(InputError, match=r"data\.filter is no condition over"):
        list(both.rows({"q": ("", "")}, "n >"))


# -- what Python's json writes is read back


_SCALARS = (
    st.none() | st.booleans() | st.integers() | st.integers(-(2**80), 2**80) | st.floats() | st.text(max_size=20)
    | st.sampled_from([2**63, -(2**63) - 1, 2**64, 10**18, 10**19, -0.0, 1.0, 1e308, 5e-324, "\u2028", "0" * 19])
)  # fmt: skip
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
_ROWS = st.lists(st.dictionaries(st.text(max_size=8), _VALUES, max_size=5), min_size=1, max_size=6)


@dataclass(frozen=True)
class Style:
    """A way to write a file."""

    newline: str
    mark: str
    ascii_only: bool
    separators: tuple[str, str] | None
    ends: bool
    suffix: str

    def write(self, folder: Path, rows: list[dict[str, Any]]) -> Path:
        written = [json.dumps(row, ensure_ascii=self.ascii_only, separators=self.separators) for row in rows]
        content = (self.mark + self.newline.join(written) + self.newline * self.ends).encode()
        path = folder / f"f.jsonl{self.suffix}"
        path.write_bytes({"": bytes, ".gz": gzip.compress, ".zst": zstd}[self.suffix](content))
        return path


_STYLES = st.builds(
    Style,
    newline=st.sampled_from(["\n", "\r\n", "\n\n", "\n \t\r\n"]),
    mark=st.sampled_from(["", "\ufeff"]),
    ascii_only=st.booleans(),
    separators=st.sampled_from([None, (",", ":"), (" ,\t", " : ")]),
    ends=st.booleans(),
    suffix=st.sampled_from(["", "", "", ".gz", ".zst"]),
)


def check_read_back(folder: Path, rows: list[dict[str, Any]], styles: list[Style]) -> None:
    for style in styles:
        read = list(DataFile(style.write(folder, rows)).rows(()))
        # As text, since 1 == 1.0 == True and NaN != NaN.
        assert json.dumps([row.values for row in read]) == json.dumps(rows)
        step = style.newline.count("\n")
        assert [row.number for row in read] == list(range(1, 1 + step * len(rows), step))


@hypothesis.given(_ROWS, st.lists(_STYLES, min_size=4, max_size=4))
def test_what_pythons_json_writes_is_read_back_equal(tmp_path_factory, rows, styles):
    check_read_back(tmp_path_factory.getbasetemp(), rows, styles)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@hypothesis.settings(max_examples=2_500)
@hypothesis.given(_ROWS, st.lists(_STYLES, min_size=4, max_size=4))
def test_what_pythons_json_writes_is_read_back_equal_in_10000_files(tmp_path_factory, rows, styles):
    check_read_back(tmp_path_factory.getbasetemp(), rows, styles)


@hypothesis.given(st.binary(max_size=60), st.sampled_from([".jsonl", ".csv", ".jsonl.gz", ".jsonl.zst", ".parquet"]))
def test_arbitrary_bytes_are_read_or_refused_in_one_line(tmp_path_factory, content, suffix):
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(content)
    with contextlib.suppress(InputError):
        for row in DataFile(path).rows(("a",)):
            json.dumps(row.values, ensure_ascii=False).encode()
