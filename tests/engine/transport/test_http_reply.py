"""Replies out of bytes: however they are cut they read the same, as h11 reads them, and what is odd is refused."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.transport import http_reply
from engine.transport.http_reply import ReplyGarbled, ReplyHead, ReplyReader

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def read(*pieces: bytes, closes: bool = False) -> tuple[ReplyHead | None, bytes, ReplyReader]:
    reader = ReplyReader()
    body = b"".join(reader.feed(piece) for piece in pieces)
    if closes:
        body += reader.feed(b"")
    return reader.head, body, reader


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.booleans(), st.data())
def test_a_reply_reads_the_same_however_it_is_cut_and_as_h11_reads_it(
    parts: list[bytes], chunked: bool, data: st.DataObject
) -> None:
    body = b"".join(parts)
    if chunked:
        raw = CHUNKED + b"".join(b"%X;x=y\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\nTrailer: 1\r\n\r\n"
    else:
        raw = b"HTTP/1.1 200 OK\r\nx-a:  b c \r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    cuts = sorted(data.draw(st.lists(st.integers(1, len(raw) - 1), max_size=8)))
    pieces = [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True) if end > start]
    head, found, reader = read(*pieces)
    assert found == body == _by_h11(raw) and reader.is_over and reader.may_be_kept
    assert head is not None and head.status == 200 and (chunked or head.headers["x-a"] == "b c")


def _by_h11(raw: bytes) -> bytes:
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="POST", target="/", headers=[("host", "a"), ("content-length", "0")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(raw)
    body = b""
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        if isinstance(event, h11.Data):
            body += event.data
    return body


@given(st.lists(st.binary(max_size=60), max_size=5), st.sampled_from([b"", CHUNKED, b"HTTP/1.1 200 OK\r\n"]))
def test_garbage_is_read_or_refused_and_nothing_else(pieces: list[bytes], start: bytes) -> None:
    reader = ReplyReader()
    try:
        for piece in [start, *pieces, b""]:
            reader.feed(piece)
    except ReplyGarbled:
        pass


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", "not HTTP"),
        (b"HTTP/2 200\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 099 OK\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "header"),
        (b"HTTP/1.1 200 OK\r\na: b\r\n folded\r\n\r\n", "header"),
        (b"HTTP/1.1 200 OK\r\nbad name: b\r\n\r\n", "header"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", "two ways"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", "two ways"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: +1\r\n\r\n", "no number"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n", "encoding"),
        (b"HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\n", "another protocol"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 5_000, "more than"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * http_reply.HEAD_BYTES_MAX, "more than"),
        (CHUNKED + b"xyz\r\n", "chunk"),
        (CHUNKED + b"-1\r\n", "chunk"),
        (CHUNKED + b"1" * 2_000, "chunk"),
        (CHUNKED + b"3\r\nabcdef", "chunk"),
        (CHUNKED + b"0\r\n" + b"x: y\r\n" * 20_000, "trailers"),
    ],
)
def test_what_is_odd_is_refused(raw: bytes, words: str) -> None:
    with pytest.raises(ReplyGarbled, match=words):
        read(raw)


@pytest.mark.parametrize("raw", [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc", CHUNKED + b"5\r\nabc"])
def test_a_reply_that_ends_too_soon_is_refused(raw: bytes) -> None:
    with pytest.raises(ReplyGarbled, match="closed the connection"):
        read(raw, closes=True) if raw else ReplyReader().feed(b"")


def test_interim_replies_are_skipped_and_a_body_may_end_with_the_connection() -> None:
    head, body, reader = read(b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\nHTTP/1.0 200 OK\r\n\r\nabc", b"def", closes=True)
    assert head is not None and head.status == 200 and body == b"abcdef"
    assert reader.is_over and not reader.may_be_kept


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx",
        b"HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nxHTTP/1.1 200 OK\r\n",
    ],
)
def test_a_connection_is_not_kept_when_the_app_closes_it_or_says_more_than_it_was_asked(raw: bytes) -> None:
    assert not read(raw)[2].may_be_kept


@pytest.mark.parametrize("status", [204, 304])
def test_some_statuses_have_no_body(status: int) -> None:
    head, body, reader = read(b"HTTP/1.1 %d X\r\ncontent-length: 5\r\n\r\n" % status)
    assert head is not None and body == b"" and reader.may_be_kept
