"""A run's mirror: whole at any moment, written by one, and never wrong about the money."""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import sqlite3
import threading

import pytest

from omniopd.store import commits, files
from omniopd.store.errors import BusyError, ConfigError, InputError, MirrorError
from omniopd.store.layout import RunDir
from omniopd.store.ledger import Budget, Caps, Ledger, Reservation, Settlement
from omniopd.store.ledger_read import read_totals
from omniopd.store.mirror import background, writer
from omniopd.store.mirror.places import Folder, open_place
from omniopd.store.mirror.pull import pull
from omniopd.store.mirror.writer import Mirror, cover_of, mirror_of, newest
from omniopd.store.schema import TRAJECTORIES
from omniopd.store.usage import Usage
from support.pushes import push_and_die
from support.written_run import write_tables

CAPS = Caps(Budget(None, 100_000), round_index=0, teacher_model="scripted")


@pytest.fixture
def run(make_run):
    made = write_tables(make_run())
    policy = made.round(0).path / "policy"
    policy.mkdir()
    (policy / "model.safetensors").write_bytes(os.urandom(9_000_000))
    checkpoint = made.round(0).checkpoint / "step=000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / ".metadata").write_bytes(b"what torch calls its own")
    return made


def content(run):
    """Every file that a mirror is to hold, apart from the ledger, which is compared by what it says."""
    left_out = (".mirror/", ".lock", ".ledger.json", "ledger.sqlite", ".tmp")
    found = {path.relative_to(run.path).as_posix(): path for path in run.path.rglob("*") if path.is_file()}
    newest_only = {path: file for path, file in found.items() if "manifest" not in path or is_newest(file)}
    return {p: files.sha256(file) for p, file in newest_only.items() if not any(word in p for word in left_out)}


def is_newest(manifest):
    return manifest.name in {commit.name for commit in commits.newest(manifest.parent).values()}


def requests(run):
    with contextlib.closing(sqlite3.connect(run.ledger)) as db:
        return db.execute("SELECT request_id, state, charged_tokens FROM requests ORDER BY 1").fetchall()


def blobs(url):
    place = open_place(url)
    return {f"blobs/{i:02x}/": place.names(f"blobs/{i:02x}/") for i in range(256)}


def spend(ledger, name, tokens):
    """Buy something for so many tokens."""
    request_id = f"{ledger.run_id}-{name}"
    assert ledger.commit([Reservation(request_id, 0, "scripted", 0, tokens)], []) == [True]
    ledger.commit([], [Settlement(request_id, "settled", Usage(tokens, 0, 0))])


def test_what_is_pulled_is_the_run(run, mirror_url, tmp_path):
    sent = Mirror(run, mirror_url).push()
    assert sent.files == len(set(content(run).values())) + 1
    pulled = pull(mirror_url, tmp_path / "there" / "again")
    again = RunDir(tmp_path / "there" / "again")
    assert content(again) == content(run)
    assert requests(again) == requests(run)
    assert [table.read() for table in again.round(0).tables] == [table.read() for table in run.round(0).tables]
    for table in again.round(0).tables:
        table.verify()
    assert "verified" in str(pulled)
    assert "count as spent" not in str(pulled)
    Ledger(again.ledger).close()


def test_a_second_push_sends_nothing_and_a_third_what_changed(run, mirror_url):
    mirror = Mirror(run, mirror_url)
    first = mirror.push()
    assert (mirror.push(), Mirror(run, mirror_url).push()) == (writer.Pushed(first.number, 0, 0),) * 2
    run.config_toml.write_text("# changed\n" + run.config_toml.read_text())
    run.round(0).rollouts.finish()
    assert mirror.push() == writer.Pushed(first.number + 1, 1, run.config_toml.stat().st_size), "and a manifest's name"


def test_a_second_writer_is_refused_in_one_line_and_writes_nothing(run, mirror_url, tmp_path):
    first = Mirror(run, mirror_url)
    first.push()
    pull(mirror_url, tmp_path / "second")
    second = RunDir(tmp_path / "second")
    first.begin()
    for ask in (Mirror.begin, Mirror.push):
        with pytest.raises(MirrorError, match=r"was written by .* so this one is refused.*omniopd pull") as caught:
            ask(Mirror(second, mirror_url))
        assert "\n" not in str(caught.value)
    first.push()


def test_whoever_goes_on_from_a_pulled_copy_is_the_writer_and_the_first_is_refused(run, mirror_url, tmp_path):
    first = Mirror(run, mirror_url)
    first.push()
    pull(mirror_url, tmp_path / "second")
    Mirror(RunDir(tmp_path / "second"), mirror_url).begin()
    with pytest.raises(MirrorError, match="refused"):
        first.push()
    with pytest.raises(MirrorError, match="refused"):
        first.cover(0, "scripted")(0, 10, Budget())


def test_another_runs_mirror_is_refused_in_one_line(run, mirror_url, make_run):
    Mirror(run, mirror_url).push()
    other = write_tables(make_run("other"))
    with pytest.raises(MirrorError, match=r"is the mirror of another run.*Set run\.mirror to another place"):
        Mirror(other, mirror_url).begin()
    assert Mirror(run, mirror_url).push().files == 0


def test_of_two_runs_that_begin_a_mirror_at_once_one_is_refused(run, mirror_url, make_run):
    told = []

    def begin(run):
        try:
            Mirror(run, mirror_url).begin()
            told.append("begun")
        except MirrorError:
            told.append("refused")

    threads = [threading.Thread(target=begin, args=(r,)) for r in (run, write_tables(make_run("other")))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) == ["begun", "refused"]


def test_a_copy_of_the_directory_cannot_write_beside_the_original(run, mirror_url, tmp_path):
    Mirror(run, mirror_url).push()
    shutil.copytree(run.path, tmp_path / "copy")
    Mirror(RunDir(tmp_path / "copy"), mirror_url).begin()
    with pytest.raises(MirrorError, match="refused"):
        Mirror(run, mirror_url).begin()


def test_what_nobody_needs_any_more_is_deleted(run, mirror_url):
    mirror = Mirror(run, mirror_url)
    for i in range(6):
        (run.path / "note.txt").write_text(f"version {i}")
        mirror.push()
    place = open_place(mirror_url)
    assert len(place.names("index/")) == 2
    kept = {name for names in blobs(mirror_url).values() for name in names}
    last = newest(place, mirror_url)
    assert last is not None
    assert len(kept) == len(last.blobs) + 1, "the last two versions of the note"


def test_files_of_the_machine_and_parts_that_no_manifest_names_stay_here(run, mirror_url):
    for name in (".spill/x", ".ledger.spare", ".audit.lock", "round=000/.policy.tmp/model", "ledger-before-1.sqlite"):
        path = run.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    orphan = run.round(0).trajectories.folder / "part-1-orphan.parquet"
    orphan.write_bytes(b"x")
    Mirror(run, mirror_url).push()
    last = newest(open_place(mirror_url), mirror_url)
    assert last is not None
    assert "round=000/checkpoint/step=000001/.metadata" in last.files
    assert not [path for path in last.files if any(word in path for word in ("spill", "spare", "lock", "tmp"))]
    assert not [path for path in last.files if "orphan" in path or "before" in path or ".mirror" in path]


# -- money


def test_a_spend_after_the_last_push_is_never_forgotten(run, mirror_url, tmp_path):
    mirror = Mirror(run, mirror_url)
    mirror.push()
    spent_before = read_totals(run.ledger).charged_tokens
    with contextlib.closing(Ledger(run.ledger, CAPS, mirror.cover(0, "scripted"))) as ledger:
        for i in range(30):
            spend(ledger, f"r{i}", 100)
    truth = read_totals(run.ledger).charged_tokens
    assert truth == spent_before + 3000
    pulled = pull(mirror_url, tmp_path / "again")  # this machine is gone, and was not heard of since
    again = RunDir(tmp_path / "again")
    charged = read_totals(again.ledger).charged_tokens
    assert truth <= charged <= truth + 100_000 // 50
    assert (pulled.lost.tokens, pulled.lost.round, pulled.lost.teacher) == (charged - spent_before, 0, "scripted")
    assert f"{charged - spent_before:,} tokens and $0.0000 count as spent" in str(pulled)
    with contextlib.closing(Ledger(again.ledger, CAPS)) as ledger:
        assert ledger.left.tokens == 100_000 - charged
        assert ledger.totals(0).charged_tokens == charged
        assert ledger.totals(teacher="scripted").charged_tokens >= charged - spent_before


def test_pulled_twice_or_pushed_in_between_it_is_counted_once(run, mirror_url, tmp_path):
    mirror = Mirror(run, mirror_url)
    with contextlib.closing(Ledger(run.ledger, CAPS, mirror.cover(0, "scripted"))) as ledger:
        spend(ledger, "a", 100)
    mirror.push()
    pulled = [pull(mirror_url, tmp_path / name) for name in ("one", "two")]
    assert [p.lost.tokens for p in pulled] == [0, 0], "a push when nobody audits says exactly what was spent"
    with contextlib.closing(Ledger(run.ledger, CAPS, mirror.cover(0, "scripted"))) as ledger:
        spend(ledger, "b", 100)
    lost = [pull(mirror_url, tmp_path / name).lost.tokens for name in ("three", "four")]
    assert lost[0] == lost[1] >= 100
    one = RunDir(tmp_path / "four")
    Mirror(one, mirror_url).push()
    assert pull(mirror_url, tmp_path / "five").lost.tokens == 0
    assert read_totals(tmp_path / "five" / "ledger.sqlite").charged_tokens == read_totals(one.ledger).charged_tokens


def test_a_push_while_an_audit_goes_on_keeps_its_block(run, mirror_url, tmp_path):
    mirror = Mirror(run, mirror_url)
    with contextlib.closing(Ledger(run.ledger, CAPS, mirror.cover(0, "scripted"))) as ledger:
        spend(ledger, "a", 100)
        mirror.push()
        spend(ledger, "b", 100)  # within the block: the mirror hears nothing of it
    pull(mirror_url, tmp_path / "again")
    assert read_totals(tmp_path / "again" / "ledger.sqlite").charged_tokens >= read_totals(run.ledger).charged_tokens


def test_a_run_that_was_killed_before_its_first_push_has_its_block_too(make_run, mirror_url, tmp_path):
    run = make_run()
    mirror = Mirror(run, mirror_url)
    mirror.begin()
    with contextlib.closing(Ledger(run.ledger, CAPS, mirror.cover(0, "scripted"))) as ledger:
        spend(ledger, "a", 100)
    pull(mirror_url, tmp_path / "again")
    assert read_totals(tmp_path / "again" / "ledger.sqlite").charged_tokens >= 100


def test_nothing_is_reserved_that_the_mirror_did_not_hear_of(run, mirror_url, monkeypatch):
    mirror = Mirror(run, mirror_url)
    mirror.push()
    with contextlib.closing(Ledger(run.ledger, CAPS, mirror.cover(0, "scripted"))) as ledger:
        spend(ledger, "a", 100)
        before = requests(run)
        Mirror(run, mirror_url).begin()
        writer.write_state(run, writer.State("another"))  # as on a machine that the run was taken from
        with pytest.raises(MirrorError):
            ledger.commit([Reservation("x", 0, "scripted", 0, 50_000)], [])
        assert requests(run) == before
        assert ledger.commit([], []) == []


def test_an_audit_that_only_looks_is_not_in_the_way_of_a_push_nor_the_push_of_it(run, mirror_url):
    mirror = Mirror(run, mirror_url)
    done = threading.Event()

    def push():
        while not done.is_set():
            mirror.push()

    thread = threading.Thread(target=push)
    thread.start()
    try:
        for _ in range(30):
            Ledger(run.ledger, CAPS).close()
    except BusyError as error:  # pragma: no cover
        pytest.fail(str(error))
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_a_ledger_that_forgot_does_not_replace_its_copy(run, mirror_url, damage):
    mirror = Mirror(run, mirror_url)
    mirror.push()
    for path in run.path.glob("ledger.sqlite-*"):
        path.unlink()
    damage(run.ledger)
    with pytest.raises(MirrorError, match=r"knows of less spending than its copy.*omniopd pull"):
        mirror.push()


def test_a_key_in_the_run_directory_is_not_sent(run, mirror_url):
    key = run.path / "key.txt"
    key.write_text("the key")
    mirror = mirror_of(run, run.config((f"run.mirror={mirror_url}", f"teacher.api_key_file={key}")))
    assert mirror is not None
    mirror.push()
    last = newest(open_place(mirror_url), mirror_url)
    assert last is not None
    assert "config.toml" in last.files
    assert "key.txt" not in last.files


# -- crashes, damage, and what is in the way


@pytest.mark.parametrize("mirror_url", ["folder", pytest.param("s3", marks=pytest.mark.slow)], indirect=True)
def test_a_push_that_is_killed_anywhere_leaves_the_mirror_whole_and_the_next_one_goes_on(run, mirror_url, tmp_path):
    shutil.rmtree(run.round(0).path / "policy")
    mirror = Mirror(run, mirror_url)
    mirror.push()
    # obstore's threads do not live on in a fork.
    processes = multiprocessing.get_context("forkserver")
    for calls in range(100):
        before = content(run)
        run.round(0).rollouts.begin({})
        (run.path / "note.txt").write_text(f"version {calls}")
        process = processes.Process(target=push_and_die, args=(calls, run.path, mirror_url, dict(os.environ)))
        process.start()
        process.join(60)
        pull(mirror_url, tmp_path / f"pulled{calls}")
        assert content(RunDir(tmp_path / f"pulled{calls}")) in (before, content(run))
        mirror.push()
        pull(mirror_url, tmp_path / f"then{calls}")
        assert content(RunDir(tmp_path / f"then{calls}")) == content(run)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert 9 < calls < 99


def test_files_that_change_while_they_are_sent_are_sent_again(run, tmp_path, monkeypatch):
    log = run.path / "logs" / "train.log"
    log.parent.mkdir()
    log.write_text("one line\n")
    put, times = Folder.put, 0

    def slow(place, name, source):
        nonlocal times
        times += 1
        if times <= 3:
            log.write_text(f"{log.read_text()}another line\n")
        put(place, name, source)

    monkeypatch.setattr(Folder, "put", slow)
    Mirror(run, str(tmp_path / "mirror")).push()
    pull(str(tmp_path / "mirror"), tmp_path / "again")
    assert (tmp_path / "again" / "logs" / "train.log").read_text() == log.read_text()


def test_an_answer_that_is_on_its_way_into_the_table_is_in_the_copy(run, tmp_path, monkeypatch):
    """Between the tables and the ledger, an answer leaves the one for the other: then both are looked at again."""
    mirror, table = Mirror(run, str(tmp_path / "mirror")), run.round(0).rollouts
    connect, moved = writer.ledger_file.connect, []

    def late(path):
        if path == run.ledger and not moved:
            moved.append(table.append([dict.fromkeys(table.spec.schema.names) | {
                "chunk_id": "late", "rollout_index": 0, "teacher": "scripted", "status": "ok", "attempts": 1,
                "continuation": "completion", "latency_s": 0.1, "request_id": "late",
            }]))  # fmt: skip
        return connect(path)

    monkeypatch.setattr(writer.ledger_file, "connect", late)
    mirror.push()
    assert moved
    pull(str(tmp_path / "mirror"), tmp_path / "again")
    assert ("late", 0) in RunDir(tmp_path / "again").round(0).rollouts.existing_keys()


def test_a_damaged_or_lost_blob_is_found_and_a_pull_goes_on_where_it_stopped(run, mirror_url, tmp_path):
    Mirror(run, mirror_url).push()
    place = open_place(mirror_url)
    index = newest(place, mirror_url)
    assert index is not None
    blob = index.files["config.toml"]
    good = place.get(blob.name)
    assert good is not None
    place.put(blob.name, b"something else")
    with pytest.raises(MirrorError, match="is damaged"):
        pull(mirror_url, tmp_path / "again")
    place.delete([blob.name])
    with pytest.raises(MirrorError, match="has lost files"):
        pull(mirror_url, tmp_path / "again")
    assert not (tmp_path / "again").exists()
    place.put(blob.name, good)
    pull(mirror_url, tmp_path / "again")
    assert content(RunDir(tmp_path / "again")) == content(run)
    assert not (tmp_path / ".again.pull").exists()


def test_a_mirror_whose_table_is_not_what_its_manifest_says_is_refused(run, mirror_url, tmp_path):
    part = run.round(0).trajectories.files()[0]
    part.write_bytes(part.read_bytes()[::-1])  # damaged here before it was pushed
    Mirror(run, mirror_url).push()
    with pytest.raises(MirrorError, match="is not what its table's manifest says"):
        pull(mirror_url, tmp_path / "again")


def test_a_push_during_a_pull_is_not_in_its_way(run, mirror_url, tmp_path, monkeypatch):
    mirror = Mirror(run, mirror_url)
    mirror.push()
    seen = []

    @contextlib.contextmanager
    def meanwhile(total):
        if not seen:
            for i in range(3):
                run.config_toml.write_text(f"# {i}\n{run.config_toml.read_text()}")
                mirror.push()
        seen.append(total)
        yield lambda done, note: None

    pull(mirror_url, tmp_path / "again", meanwhile)
    assert len(seen) == 2
    assert content(RunDir(tmp_path / "again")) == content(run)


def test_a_folder_that_exists_and_a_place_without_a_run_are_one_line(run, mirror_url, tmp_path):
    with pytest.raises(MirrorError, match="There is no run at"):
        pull(mirror_url, tmp_path / "again")
    Mirror(run, mirror_url).push()
    with pytest.raises(InputError, match="exists"):
        pull(mirror_url, run.path)
    (tmp_path / "empty").mkdir()
    pull(mirror_url, tmp_path / "empty")


def test_a_place_that_holds_something_else_is_one_line(run, mirror_url, tmp_path):
    open_place(mirror_url).create("index/00000001.json", b"<html>")
    for ask in (lambda: Mirror(run, mirror_url).push(), lambda: pull(mirror_url, tmp_path / "x")):
        with pytest.raises(MirrorError, match="is no mirror") as caught:
            ask()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mirror", ["runs/mirror", "{run}/mirror", "ftp://host/x"])
def test_a_mirror_that_cannot_be_one_is_a_config_error(run, mirror):
    config = run.config((f"run.mirror={json.dumps(mirror.format(run=run.path))}",))
    with pytest.raises(ConfigError, match=r"run\.mirror"):
        mirror_of(run, config)


def test_without_a_mirror_nothing_happens(run):
    assert mirror_of(run, run.config()) is None
    assert cover_of(run, run.config(), 0) is None
    with background.pushing(None):
        pass
    assert not (run.path / ".mirror").exists()


def test_pushes_in_the_background_say_what_is_wrong_and_go_on(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(background, "SECONDS_BETWEEN_PUSHES", 0.05)
    mirror = Mirror(run, str(tmp_path / "mirror"))
    pushed, failed = threading.Event(), threading.Event()
    push = Mirror.push

    def unreliable(self, progress=writer.unseen):
        if not failed.is_set():
            failed.set()
            raise MirrorError("It is away.", "Bring it back.")
        pushed.set()
        return push(self, progress)

    monkeypatch.setattr(Mirror, "push", unreliable)
    with background.pushing(mirror):
        assert pushed.wait(10)
    assert "It is away. Bring it back." in capsys.readouterr().err
    assert pull(str(tmp_path / "mirror"), tmp_path / "again").index.files


def test_a_table_of_a_worker_that_still_writes_is_mirrored_as_far_as_it_is_committed(run, tmp_path):
    table = run.round(1).trajectories
    table.begin({})
    Mirror(run, str(tmp_path / "mirror")).push()
    pull(str(tmp_path / "mirror"), tmp_path / "again")
    assert RunDir(tmp_path / "again").round(1).trajectories.manifest == table.manifest
    assert table.spec is TRAJECTORIES
