"""What an index says, and how much is reserved at a time."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniopd.store.ledger import NANO, Budget
from omniopd.store.mirror.index import Blob, Block, Index

amounts = st.integers(0, 10**15)
caps = st.none() | amounts


@given(st.dictionaries(st.text("ab/", min_size=1).filter(lambda path: path[0] != "/"), st.binary()), amounts)
def test_an_index_is_read_back_from_its_json(contents, tokens):
    files = {path: Blob.of(content) for path, content in contents.items()}
    index = Index("run", 7, "nonce", "host", files, Block(3, tokens, 1, "teacher"))
    assert Index.of_json(index.to_json()) == index


@pytest.mark.parametrize("path", ["/etc/passwd", "../other/config.toml", "round=000/../../x"])
def test_an_index_that_names_a_file_outside_of_the_run_is_refused(path):
    with pytest.raises(ValueError, match="no file of a run directory"):
        Index.of_json(Index("run", 1, files={path: Blob.of(b"")}).to_json())


@pytest.mark.parametrize("sha256", ["", "../../x", "A" * 64, "0" * 63])
def test_an_index_with_something_else_than_a_hash_is_refused(sha256):
    with pytest.raises(ValueError, match="is no hash"):
        Index.of_json(Index("run", 1, files={"config.toml": Blob(sha256, 1)}).to_json())


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"version": 1}', b'"text"', b"null", b"\xff"])
def test_what_is_no_index_is_a_value_error(content):
    with pytest.raises(ValueError):  # noqa: PT011
        Index.of_json(content)


def test_a_newer_index_is_refused_with_the_way_out():
    raw = json.loads(Index("run", 1).to_json()) | {"version": 2, "more": 1}
    with pytest.raises(ValueError, match="newer than 1: upgrade omniopd"):
        Index.of_json(json.dumps(raw).encode())


@given(amounts, amounts, st.builds(Budget, caps, caps), st.builds(Block, amounts, amounts))
def test_a_block_covers_what_it_is_grown_for_and_never_shrinks(nusd, tokens, budget, before):
    block = before.grown(nusd, tokens, budget, 1, "teacher")
    assert block.covers(nusd, tokens)
    assert block.covers(before.nusd, before.tokens)
    assert (block.round, block.teacher) == (1, "teacher")


@given(st.integers(1, 10**9), amounts)
def test_a_block_is_within_the_budget_and_a_fiftieth_of_it(needed, cap):
    block = Block().grown(0, needed, Budget(None, cap), 0, "")
    assert block.tokens <= max(needed, cap)
    assert block.tokens <= needed + cap // 50
    assert block.nusd == 0, "what costs nothing is not reserved"


def test_the_blocks_of_a_budget_are_few():
    block, blocks = Block(), 0
    for tokens in range(0, 1_000_001, 100):
        if not block.covers(0, tokens):
            block, blocks = block.grown(0, tokens, Budget(None, 1_000_000), 0, ""), blocks + 1
    assert blocks <= 51


def test_without_a_budget_blocks_grow_with_what_was_spent():
    assert Block().grown(1, 1, Budget(), 0, "").nusd == NANO + 1
    assert Block().grown(0, 10**9, Budget(), 0, "").tokens == 11 * 10**8


def test_the_next_index_differs_in_what_is_said_only():
    index = Index("run", 7, "a", "host", {"x": Blob.of(b"")})
    after = index.next("b", "other")
    assert dataclasses.replace(after, number=7, nonce="a", host="host") == index
    assert (after.number, after.name) == (8, "index/00000008.json")
