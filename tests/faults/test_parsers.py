"""Whatever the text or bytes: a parser returns or raises an error of ours, in bounded time."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.parsers import PARSERS, SEEDS, parse

_SYNTAX = [
    b"{",
    b"}",
    b"[",
    b"]",
    b": ",
    b", ",
    b"\n",
    b"- ",
    b"&a ",
    b"*a",
    b"<<: ",
    b"!!int ",
    b"!!timestamp ",
    b"'",
    b'"',
]
_VALUES = [
    b"null",
    b".inf",
    b"-.nan",
    b"1e400",
    b"9" * 30,
    b"true",
    b"0x",
    b"2001-01-99",
    b"1:1:1",
    b"\\ud800",
    b"\xff",
    b"\0",
]


@pytest.fixture(autouse=True)
def _untyped(as_users_run_it: None) -> Iterator[None]:
    yield


def changed(name: str) -> st.SearchStrategy[bytes]:
    """What the parser reads, with pieces replaced; or a few pieces; or any bytes."""
    pieces = st.lists(st.sampled_from([*_SYNTAX, *_VALUES, *SEEDS[name]]) | st.binary(max_size=4), max_size=12)

    def mutate(drawn: tuple[bytes, list[bytes], int]) -> bytes:
        data, new, seed = drawn
        draw = random.Random(seed)
        for piece in new[:4]:
            start = draw.randrange(len(data) + 1)
            data = data[:start] + piece + data[start + draw.randrange(6) :]
        return data

    mutated = st.tuples(st.sampled_from(SEEDS[name]), pieces, st.integers(0, 2**32)).map(mutate)
    return mutated | pieces.map(b"".join) | st.binary(max_size=200)


@pytest.mark.parametrize("name", PARSERS)
def test_a_parser_returns_or_raises_an_error_of_ours(name: str) -> None:
    @settings(
        max_examples=60,
        deadline=timedelta(seconds=5),
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        database=None,
    )
    @given(changed(name))
    def check(data: bytes) -> None:
        parse(name, data)

    check()
