"""Places: what is created once is created once, on a folder and on a server that we did not write."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from omniopd.store.errors import ConfigError, MirrorError
from omniopd.store.mirror.places import open_place


@pytest.fixture
def place(mirror_url):
    return open_place(mirror_url)


def test_objects_come_back_and_go(place, tmp_path):
    assert (place.get("a/b"), place.has("a/b"), place.names("a/")) == (None, False, [])
    assert not place.fetch("a/b", tmp_path / "b")
    place.put("a/b", b"small")
    source = tmp_path / "source"
    source.write_bytes(os.urandom(11_000_000))  # in more than one part
    place.put("a/c", source)
    assert (place.get("a/b"), place.has("a/c"), place.names("a/")) == (b"small", True, ["a/b", "a/c"])
    assert place.fetch("a/c", tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == source.read_bytes()
    place.delete(["a/b", "a/none"])
    assert place.names("a/") == ["a/c"]


def test_an_object_is_created_once_by_one_of_many(place):
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(lambda i: place.create("index/1", f"{i}".encode()), range(16)))
    assert created.count(True) == 1
    assert place.get("index/1") == f"{created.index(True)}".encode()


def test_a_bucket_that_is_not_there_is_one_line(s3):
    for ask in (lambda place: place.names("index/"), lambda place: place.create("x", b""), lambda p: p.put("x", b"")):
        with pytest.raises(MirrorError, match=r"s3://nowhere/x cannot be used: .*404.*address is right") as caught:
            ask(open_place("s3://nowhere/x"))
        assert "\n" not in str(caught.value)


def test_a_server_that_is_not_there_is_one_line(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(MirrorError, match=r"cannot be used: Generic S3 error: .*127\.0\.0\.1:9"):
        open_place(s3).names("index/")


def test_missing_credentials_are_one_line(s3, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    # Where a machine in a cloud would answer; here nobody does.
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(MirrorError, match="no credentials are set, and this machine has none by itself"):
        open_place(s3).names("index/")


def test_a_missing_extra_and_another_scheme_are_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ConfigError, match=r"needs the package obstore\. Install it: pip install 'omniopd\[mirror\]'"):
        open_place("s3://bucket/x")
    with pytest.raises(ConfigError, match="is none of s3://, gs://, az:// or a folder"):
        open_place("ftp://host/x")


def test_a_folder_needs_no_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "obstore", None)
    assert open_place(str(tmp_path)).create("a", b"")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MirrorError, match="cannot be used"):
        open_place(str(tmp_path / "file")).create("a", b"")
