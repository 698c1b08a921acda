"""Tables: what a reader sees is always whole, and nothing that was written is lost."""

import errno
import json
import pickle
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniopd.store.errors import ConfigChangedError, TableError
from omniopd.store.schema import SCORES, TABLES
from omniopd.store.table import Table
from support.tables import edit, newest, undo

SETTINGS = {"score.phi": "edit"}


@pytest.fixture
def table(tmp_path):
    table = Table(tmp_path / "scores", SCORES)
    table.begin(SETTINGS)
    return table


def test_parts_are_read_back_with_docs_and_units_in_the_file(table, rows):
    table.append(rows("b", "a"))
    table.append(rows("c"))
    table.finish()
    assert table.read(["chunk_id"])["chunk_id"].to_pylist() == ["a", "b", "c"]
    written = pq.read_schema(table.files()[0])
    assert written.equals(SCORES.schema, check_metadata=False)
    assert written.field("k_sem").metadata[b"doc"] == b"sum of the similarities (Eq. 3)"
    assert table.complete


def test_a_file_that_no_manifest_names_is_not_read(table, rows):
    table.append(rows("a"))
    pq.write_table(pa.Table.from_pylist(rows("zzz"), schema=SCORES.schema), table.folder / "part-foreign.parquet")
    assert table.read().num_rows == 1


def test_a_part_that_a_crash_left_without_a_manifest_entry_is_adopted(table, rows):
    table.append(rows("a"))
    table.append(rows("b"))
    undo(table.folder)
    (table.folder / ".part-x.parquet.tmp").write_bytes(b"half a part")
    table.begin(SETTINGS)
    assert table.existing_keys() == {("a",), ("b",)}
    assert not list(table.folder.glob("*.tmp"))


def test_a_truncated_part_is_one_clear_error(table, rows):
    table.append(rows("a"))
    path = table.files()[0]
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(TableError, match=r"is damaged: \d+ bytes instead of \d+"):
        table.read()


def test_a_part_whose_bytes_changed_is_found_by_its_hash(table, rows):
    table.append(rows("a"))
    table.finish()
    path = table.files()[0]
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)
    with pytest.raises(TableError, match="its content changed"):
        table.require("omniopd score run")


def test_a_missing_part_is_an_error(table, rows):
    table.append(rows("a"))
    table.files()[0].unlink()
    with pytest.raises(TableError, match="is missing"):
        table.read()


def test_an_unfinished_input_names_the_command_to_run(table, rows):
    table.append(rows("a"))
    with pytest.raises(TableError, match=r"holds 1 rows and is not finished\. Run `omniopd score run` first"):
        table.require("omniopd score run")


def test_other_settings_under_existing_rows_are_refused_and_nothing_is_lost(table, rows):
    table.append(rows("a"))
    with pytest.raises(ConfigChangedError, match=r"score\.phi from 'edit' to 'jaccard'.*Set it back"):
        table.begin({"score.phi": "jaccard"})
    assert table.read().num_rows == 1
    assert table.manifest.made_with == SETTINGS


def test_other_settings_are_fine_while_there_are_no_rows(table):
    table.begin({"score.phi": "jaccard"})
    assert table.manifest.made_with == {"score.phi": "jaccard"}


def test_replacing_a_table_removes_the_old_parts(table, rows):
    table.append(rows("a", "b"))
    table.replace(iter([pa.Table.from_pylist(rows("c"), schema=SCORES.schema)]), {"score.phi": "x"})
    assert table.existing_keys() == {("c",)}
    assert len(list(table.folder.glob("part-*"))) == 1


def test_a_newer_schema_and_a_damaged_manifest_are_clear_errors(table):
    edit(table.folder, {"schema_version": 99})
    with pytest.raises(TableError, match="newer than"):
        table.read()
    newest(table.folder).write_text("{")
    with pytest.raises(TableError, match="damaged"):
        table.read()


def test_a_column_that_an_older_version_did_not_write_is_null(table, rows):
    old = pa.Table.from_pylist(rows("a"), schema=SCORES.schema).drop_columns(["phi_var"])
    table.append(rows("a"))
    path = table.files()[0]
    pq.write_table(old, path)
    parts = json.loads(newest(table.folder).read_bytes())["parts"]
    edit(table.folder, {"parts": [parts[0] | {"bytes": path.stat().st_size}]})
    assert table.read()["phi_var"].to_pylist() == [None]


def test_every_column_of_every_table_is_documented():
    for spec in TABLES.values():
        for field in spec.schema:
            assert field.metadata.get(b"doc"), (spec.name, field.name)
        assert set(spec.key) <= set(spec.schema.names)


@given(st.lists(st.lists(st.text(min_size=1, max_size=4), max_size=5), max_size=5))
def test_batches_hold_all_rows_and_are_no_larger_than_asked(tmp_path_factory, rows, parts):
    table = Table(tmp_path_factory.mktemp("t") / "scores", SCORES)
    table.begin(SETTINGS)
    for part in parts:
        table.append(rows(*part))
    batches = list(table.batches(2, ["chunk_id"]))
    assert all(batch.num_rows <= 2 for batch in batches)
    assert sorted(i for batch in batches for i in batch["chunk_id"].to_pylist()) == sorted(i for p in parts for i in p)


@pytest.mark.parametrize("hard_links", [True, False])
def test_a_linked_table_is_whole_without_its_source_and_apart_from_it(table, rows, tmp_path, monkeypatch, hard_links):
    if not hard_links:  # from one file system to another
        link = Path.hardlink_to

        def refuse(path, target):
            if path.parent != target.parent:
                raise OSError(errno.EXDEV, "Invalid cross-device link")
            link(path, target)

        monkeypatch.setattr(Path, "hardlink_to", refuse)
    table.append(rows("a"))
    table.append(rows("b"))
    table.finish()
    linked = Table(tmp_path / "other", SCORES)
    linked.link(table)
    linked.link(table)  # as after a crash before the manifest
    linked.append(rows("c"))
    assert table.existing_keys() == {("a",), ("b",)}
    shutil.rmtree(table.folder)
    linked.verify()
    assert linked.complete
    assert dict(linked.manifest.made_with) == SETTINGS
    assert linked.existing_keys() == {("a",), ("b",), ("c",)}


def test_an_error_of_another_process_is_the_same_error():
    error = pickle.loads(pickle.dumps(TableError("It is gone.", "Bring it back.")))
    assert (type(error), error.problem, error.hint) == (TableError, "It is gone.", "Bring it back.")
    assert str(error) == "It is gone. Bring it back."
