"""Several workers fill one table: the union is whole, nothing doubles, and nobody touches what another one writes."""

import contextlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniopd.store.errors import BusyError, ConfigChangedError, TableError, UsageError
from omniopd.store.layout import RoundDir
from omniopd.store.schema import SCORES
from omniopd.store.table import Table
from omniopd.store.worker import Worker
from support.tables import newest, undo

SETTINGS = {"score.phi": "edit"}


def worker(folder, index=0, count=1):
    table = Table(folder, SCORES, Worker(index, count))
    table.begin(SETTINGS)
    return table


def test_a_table_is_complete_when_all_its_shards_are(tmp_path, rows):
    workers = [worker(tmp_path, i, 3) for i in range(3)]
    reader = Table(tmp_path, SCORES)
    for i, table in enumerate(workers):
        assert not reader.complete
        table.append(rows(f"r{i}"))
        table.finish()
    assert reader.complete
    assert reader.existing_keys() == {("r0",), ("r1",), ("r2",)}
    assert {Worker.of_file(path.name) for path in tmp_path.glob("manifest*")} == {Worker(i, 3) for i in range(3)}


def test_an_unfinished_union_says_which_shards_are_missing(tmp_path, rows):
    for i in (0, 2):
        worker(tmp_path, i, 4).append(rows(f"r{i}"))
    worker(tmp_path, 0, 4).finish()
    with pytest.raises(TableError, match=r"holds 2 rows and is not finished \(missing: shard 1, 2, 3 of 4\)"):
        Table(tmp_path, SCORES).require("omniopd generate run")


def test_a_single_worker_keeps_the_plain_layout_and_finishes_what_shards_began(tmp_path, rows):
    worker(tmp_path, 1, 2).append(rows("a"))
    alone = worker(tmp_path)
    assert alone.existing_keys() == {("a",)}
    alone.append(rows("b"))
    alone.finish()
    assert alone.complete
    assert newest(tmp_path).name == "manifest-00000003.json"


def test_a_shard_does_not_adopt_or_delete_what_another_one_is_writing(tmp_path, rows):
    first, second = worker(tmp_path, 0, 2), worker(tmp_path, 1, 2)
    first.append(rows("a"))
    second.append(rows("b"))
    for table in (first, second):  # both were killed between the rename and the manifest
        undo(tmp_path, table.worker)
    half = tmp_path / ".part-1.shard-0001-of-0002.parquet.tmp"
    half.write_bytes(b"half a part of the other one")
    first.begin(SETTINGS)
    assert first.existing_keys() == {("a",)}
    assert half.exists()
    second.begin(SETTINGS)
    assert first.existing_keys() == {("a",), ("b",)}
    assert not half.exists()


def test_a_left_part_whose_rows_were_written_again_is_not_adopted_twice(tmp_path, rows):
    left = worker(tmp_path, 0, 3)
    left.append(rows("a", "b"))
    undo(tmp_path, left.worker)
    worker(tmp_path, 1, 2).append(rows("b"))  # another count of workers went on
    table = worker(tmp_path)
    assert sorted(table.read(["chunk_id"])["chunk_id"].to_pylist()) == ["a", "b"]


def test_other_settings_under_another_shards_rows_are_refused(tmp_path, rows):
    worker(tmp_path, 0, 2).append(rows("a"))
    with pytest.raises(ConfigChangedError, match=r"score\.phi from 'edit' to 'char'"):
        Table(tmp_path, SCORES, Worker(1, 2)).begin({"score.phi": "char"})


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3), st.booleans()), max_size=12),
    st.integers(1, 4),
)
def test_any_sequence_of_workers_and_crashes_fills_the_table_once(tmp_path_factory, rows, steps, last):
    """Each step: a worker of some count writes a part of what is missing from its share, and perhaps is killed before
    the manifest. Then a full set of workers finishes."""
    folder = tmp_path_factory.mktemp("t")
    wanted = [f"r{i:02d}" for i in range(12)]

    def missing(table):
        present = table.existing_keys()
        share = wanted[table.worker.index :: table.worker.count]
        return [key for key in share if (key,) not in present]

    for count, index, killed in steps:
        table = worker(folder, index % count, count)
        if table.append(rows(*missing(table)[:3])) and killed:
            undo(folder, table.worker)
    for index in range(last):
        table = worker(folder, index, last)
        table.append(rows(*missing(table)))
        table.finish()
    assert sorted(table.read(["chunk_id"])["chunk_id"].to_pylist()) == wanted
    assert table.complete


HOLD = """
import sys
from pathlib import Path
from omniopd.store.layout import RoundDir
from omniopd.store.worker import Worker
with RoundDir(Path(sys.argv[1]), 0).lock("generate", Worker(int(sys.argv[2]), int(sys.argv[3]))):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def running(path, worker):
    """Another process that holds a shard's lock until the `with` ends."""
    command = [sys.executable, "-c", HOLD, str(path), str(worker.index), str(worker.count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield
        process.stdin.close()


def test_shards_of_one_count_run_side_by_side_and_keep_all_others_out(tmp_path):
    round_ = RoundDir(tmp_path, 0)
    with running(tmp_path, Worker(0, 2)):
        with round_.lock("generate", Worker(1, 2)):
            pass
        for other in (Worker(0, 2), Worker(), Worker(1, 3)):
            with pytest.raises(BusyError, match="shard 0/2"), round_.lock("generate", other):
                pass
    with round_.lock("generate"):
        pass


@pytest.mark.parametrize("text", ["4/4", "1", "a/b", "-1/2", "0/0", ""])
def test_a_shard_that_does_not_exist_is_refused(text):
    with pytest.raises(UsageError, match="--shard"):
        Worker.parse(text)


def test_a_shard_is_read_back_from_the_names_it_gives():
    assert Worker.of_file(f"manifest{Worker(3, 12).suffix}.json") == Worker(3, 12)
    assert Worker.of_file("manifest.json") == Worker()
    assert Worker.parse("3/12") == Worker(3, 12)
