"""Kept connections to the engine for plain code, from any thread: see `connections`, whose rules hold here too."""

import os
import socket
import threading
import time
from typing import Final

from durable.connections import (
    CONNECT_SECONDS_MAX,
    IDLE_CONNECTIONS_MAX,
    IDLE_SECONDS_MAX,
    SILENCE_SECONDS_MAX,
    tls,
)
from durable.http_exchange import Address, ConnectionWasClosed, Exchange, ExchangeFailed, Reply

_RECEIVE_BYTES: Final = 1 << 18


class SyncConnections:
    """Safe to use from any thread, and after a fork: a child does not write into its parent's connections."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[tuple[int, str], list[SyncConnection]] = {}

    def ask(self, url: str, method: str, path: str, headers: dict[str, str], body: bytes, *, is_fresh: bool = False) -> Reply:
        """See `Connections.ask`."""
        connection = None if is_fresh else self._take_idle(url)
        if connection is None:
            connection = SyncConnection(Address.of(url))
        is_whole = False
        try:
            connection.send(method, path, headers, body)
            reply = None
            while reply is None:
                reply = connection.receive()
            is_whole = connection.exchange.is_reusable
        finally:
            if is_whole:
                self._put_idle(url, connection)
            else:
                connection.close()
        return reply

    def close(self) -> None:
        """Close what is idle. It may be used again afterwards."""
        with self._lock:
            idle_of, self._idle = self._idle, {}
        for (pid, _), idle in idle_of.items():
            # To say goodbye on a parent's connection of TLS would end the parent's.
            for connection in idle if pid == os.getpid() else ():
                connection.close()

    def _take_idle(self, url: str) -> "SyncConnection | None":
        with self._lock:
            idle = self._idle.get((os.getpid(), url))
            while idle:
                connection = idle.pop()
                if time.monotonic() - connection.used_at < IDLE_SECONDS_MAX:
                    connection.is_kept = True
                    return connection
                connection.close()
            return None

    def _put_idle(self, url: str, connection: "SyncConnection") -> None:
        connection.used_at = time.monotonic()
        with self._lock:
            idle = self._idle.setdefault((os.getpid(), url), [])
            idle.append(connection)
            if len(idle) > IDLE_CONNECTIONS_MAX or idle[0].used_at < connection.used_at - IDLE_SECONDS_MAX:
                idle.pop(0).close()


class SyncConnection:
    """One connection. `send` and `receive` block for SILENCE_SECONDS_MAX at most; ExchangeFailed ends it."""

    def __init__(self, address: Address) -> None:
        self.exchange = Exchange(address)
        self.used_at = time.monotonic()
        self.is_kept = False
        try:
            plain = socket.create_connection((address.host, address.port), CONNECT_SECONDS_MAX)
        except (OSError, UnicodeError) as error:
            raise ExchangeFailed(str(error) or type(error).__name__) from error
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.socket = tls().wrap_socket(plain, server_hostname=address.host) if address.is_tls else plain
            self.socket.settimeout(SILENCE_SECONDS_MAX)
        except (OSError, UnicodeError, ValueError) as error:
            plain.close()
            raise ExchangeFailed(str(error) or type(error).__name__) from error

    def send(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        data = self.exchange.ask(method, path, headers, body)
        try:
            self.socket.sendall(data)
        except TimeoutError:
            raise ExchangeFailed(f"the request could not be sent within {SILENCE_SECONDS_MAX:g} s") from None
        except OSError:
            pass  # the other side may have answered before it closed: `receive` tells

    def receive(self) -> Reply | None:
        """Take what is there or comes next; the answer when it is complete."""
        try:
            data = self.socket.recv(_RECEIVE_BYTES)
        except TimeoutError:
            raise ExchangeFailed(f"nothing came for {SILENCE_SECONDS_MAX:g} s") from None
        except OSError:
            data = b""
        try:
            return self.exchange.take(data)
        except ConnectionWasClosed as error:
            if self.is_kept:
                raise
            raise ExchangeFailed(str(error)) from None

    def close(self) -> None:
        self.socket.close()
