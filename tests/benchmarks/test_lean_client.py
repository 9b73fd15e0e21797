"""The load client takes an answer when all of it is there, however it is cut."""

from __future__ import annotations

import pytest

from benchmarks.lean_client import _whole_body


@pytest.mark.parametrize(
    ("headers", "rest", "body"),
    [
        ({"content-length": "3"}, b"abc", b"abc"),
        ({"content-length": "3"}, b"ab", None),
        ({"content-length": "0"}, b"", b""),
        ({"transfer-encoding": "chunked"}, b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", b"abcde"),
        ({"transfer-encoding": "chunked"}, b"3\r\nabc\r\n2\r\nd", None),
        # The end of a chunk may look like the end of the body.
        ({"transfer-encoding": "chunked"}, b"a\r\nxxxxx0\r\n\r\n", None),
    ],
)
def test_body_is_taken_when_it_is_whole(headers: dict[str, str], rest: bytes, body: bytes | None) -> None:
    assert _whole_body(headers, rest) == body
