"""Reads one HTTP/1.1 reply to a POST out of the bytes that come: status, headers, and the body without its chunks.

It does no input or output. It takes what RFC 9112 says a client must take and refuses the rest; every part that is not body is bounded,
the body is the caller's to bound.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

# Status line and headers, those of interim replies included; and once more so much for trailers.
HEAD_BYTES_MAX: Final = 64 << 10
CHUNK_LINE_BYTES_MAX: Final = 1024

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [^\r\n]*)?")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00\r\n]*?)[ \t]*")
# An empty line after others; servers that write bare newlines are understood, as RFC 9112 2.2 allows.
_HEAD_END = re.compile(rb"\n\r?\n")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r?\n")
_LENGTH = re.compile(r"[0-9]{1,15}")

_Part = Literal["head", "length", "chunk_line", "chunk", "chunk_end", "trailers", "until_close", "over"]


class ReplyGarbled(Exception):
    """What came is no HTTP reply that this client takes. Close the connection."""

    code = "reply_garbled"


@dataclass(frozen=True, slots=True)
class ReplyHead:
    """Names of headers are in lower case; of a repeated one the first is kept."""

    status: int
    headers: dict[str, str]


class ReplyReader:
    """`feed` it what was received until `is_over`."""

    __slots__ = ("_left_bytes", "_may_be_kept", "_part", "_rest", "_spent_bytes", "head")

    def __init__(self) -> None:
        self.head: ReplyHead | None = None
        self._part: _Part = "head"
        self._rest = b""
        self._left_bytes = 0
        self._spent_bytes = 0
        self._may_be_kept = False

    @property
    def is_over(self) -> bool:
        return self._part == "over"

    @property
    def may_be_kept(self) -> bool:
        """Whether another request may follow on the connection: the reply came to its own end, and nothing is behind it."""
        return self._part == "over" and self._may_be_kept and not self._rest

    def feed(self, data: bytes) -> bytes:
        """Take what was received, `b""` when the app closed; the part of the body that is in it. ReplyGarbled when it is none."""
        if not data:
            return self._closed()
        self._rest = self._rest + data if self._rest else data
        if self._part == "head":
            self._read_head()
        match self._part:
            case "head" | "over":
                return b""
            case "until_close":
                body, self._rest = self._rest, b""
                return body
            case "length":
                return self._read_length()
            case _:
                return self._read_chunks()

    def _closed(self) -> bytes:
        if self._part == "until_close":
            self._part = "over"
        elif self._part == "head" and not self._rest and self.head is None:
            raise ReplyGarbled("it closed the connection without an answer")
        elif self._part != "over":
            raise ReplyGarbled("it closed the connection in the middle of its reply")
        return b""

    def _read_head(self) -> None:
        while self._part == "head":
            end = _HEAD_END.search(self._rest)
            if end is None:
                if self._spent_bytes + len(self._rest) > HEAD_BYTES_MAX:
                    raise ReplyGarbled(f"its status line and headers have more than {HEAD_BYTES_MAX:,} bytes")
                return
            self._spend(end.end())
            version, head, repeated = _parse_head(self._rest[: end.start()])
            self._rest = self._rest[end.end() :]
            if head.status == 101:
                raise ReplyGarbled("it switches to another protocol")
            # Interim replies (100, 103) announce the one that follows.
            if head.status >= 200:
                self.head = head
                self._begin_body(version, head, repeated)

    def _begin_body(self, version: bytes, head: ReplyHead, repeated: set[str]) -> None:
        """How the body ends, by RFC 9112 6.3. What could be read in two ways is refused."""
        options = {option.strip() for option in head.headers.get("connection", "").lower().split(",")}
        self._may_be_kept = version == b"1" and "close" not in options and "connection" not in repeated
        coding, length = head.headers.get("transfer-encoding"), head.headers.get("content-length")
        if "transfer-encoding" in repeated or "content-length" in repeated or (coding is not None and length is not None):
            raise ReplyGarbled("its headers say in two ways where its body ends")
        if head.status in (204, 304):
            self._part = "over"
        elif coding is not None:
            if coding.lower() != "chunked":
                raise ReplyGarbled("it uses a transfer encoding that was not asked for")
            self._part, self._spent_bytes = "chunk_line", 0
        elif length is not None:
            if _LENGTH.fullmatch(length) is None:
                raise ReplyGarbled("its content-length is no number")
            self._left_bytes = int(length)
            self._part = "length" if self._left_bytes else "over"
        else:
            self._part = "until_close"

    def _read_length(self) -> bytes:
        body, self._rest = self._rest[: self._left_bytes], self._rest[self._left_bytes :]
        self._left_bytes -= len(body)
        if not self._left_bytes:
            self._part = "over"
        return body

    def _read_chunks(self) -> bytes:
        rest, at = self._rest, 0
        pieces: list[bytes] = []
        while at < len(rest):
            if self._part == "chunk":
                piece = rest[at : at + self._left_bytes]
                pieces.append(piece)
                at += len(piece)
                self._left_bytes -= len(piece)
                if not self._left_bytes:
                    self._part = "chunk_end"
            elif self._part == "chunk_end":
                if len(rest) - at < 2:
                    break
                if rest[at : at + 2] != b"\r\n":
                    raise ReplyGarbled("a chunk is longer than it says")
                at += 2
                self._part = "chunk_line"
            elif self._part == "chunk_line":
                line = _CHUNK_LINE.match(rest, at)
                if line is None:
                    if b"\n" in rest[at:] or len(rest) - at > CHUNK_LINE_BYTES_MAX:
                        raise ReplyGarbled("the length of a chunk can not be read")
                    break
                at = line.end()
                self._left_bytes = int(line[1], 16)
                self._part = "chunk" if self._left_bytes else "trailers"
            elif self._part == "trailers":
                newline = rest.find(b"\n", at)
                line_end = len(rest) if newline < 0 else newline + 1
                if self._spent_bytes + line_end - at > HEAD_BYTES_MAX:
                    raise ReplyGarbled(f"its trailers have more than {HEAD_BYTES_MAX:,} bytes")
                if newline < 0:
                    break
                self._spend(line_end - at)
                is_last = rest[at:line_end] in (b"\r\n", b"\n")
                at = line_end
                if is_last:
                    self._part = "over"
            else:
                break
        self._rest = rest[at:]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _spend(self, size_bytes: int) -> None:
        self._spent_bytes += size_bytes
        if self._spent_bytes > HEAD_BYTES_MAX:
            raise ReplyGarbled(f"its status line and headers have more than {HEAD_BYTES_MAX:,} bytes")


def _parse_head(text: bytes) -> tuple[bytes, ReplyHead, set[str]]:
    """The minor version, the head, and the names that came more than once."""
    first, *lines = text.split(b"\n")
    status_line = _STATUS_LINE.fullmatch(first.removesuffix(b"\r"))
    if status_line is None:
        raise ReplyGarbled("what it answers is not HTTP/1.1")
    headers: dict[str, str] = {}
    repeated: set[str] = set()
    for line in lines:
        field = _FIELD.fullmatch(line.removesuffix(b"\r"))
        if field is None:
            raise ReplyGarbled("a header of its reply can not be read")
        name = field[1].decode("ascii").lower()
        if name in headers:
            repeated.add(name)
        else:
            headers[name] = field[2].decode("latin-1")
    return status_line[1], ReplyHead(int(status_line[2]), headers), repeated
