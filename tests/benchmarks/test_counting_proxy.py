"""The counting proxy passes on every byte, and its records say how many went through until when."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.counting_proxy import RECORD, Counts, read_counts
from tests.system.processes import free_ports, wait_until

SENT = b"x" * 3_000_000


@pytest.fixture
def echo_port() -> Iterator[int]:
    """A server that sends back what it got, once the sender has finished."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                got = bytearray()
                while chunk := connection.recv(65536):
                    got += chunk
                connection.sendall(got)

        thread = threading.Thread(target=serve)
        thread.start()
        yield int(listener.getsockname()[1])
        thread.join()


def test_every_byte_passes_and_is_counted_in_both_directions(echo_port: int, tmp_path: Path) -> None:
    [port] = free_ports(1)
    counts = tmp_path / "counts"
    proxy = subprocess.Popen([sys.executable, "-m", "benchmarks.counting_proxy", counts, f"{port}:{echo_port}"])
    try:
        client = connect(port)
        with client:
            sender = threading.Thread(target=send_all, args=(client,))
            sender.start()
            got = bytearray()
            while chunk := client.recv(65536):
                got += chunk
            sender.join()
        assert bytes(got) == SENT
        found = read_counts(counts)
        assert found.between(0, found.times[-1]) == 2 * len(SENT)
        assert found.times == sorted(found.times)
    finally:
        proxy.terminate()
        proxy.wait()


def test_counts_are_taken_between_two_instants() -> None:
    counts = Counts([1.0, 2.0, 3.0], [10, 30, 70])
    assert counts.between(1.0, 2.5) == 20
    assert counts.between(0.0, 9.0) == 70
    assert counts.between(3.0, 9.0) == 0


def test_a_record_that_is_half_written_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "counts"
    path.write_bytes(RECORD.pack(1.0, 10) + RECORD.pack(2.0, 20)[:7])
    assert read_counts(path) == Counts([1.0], [10])


def connect(port: int) -> socket.socket:
    connected: list[socket.socket] = []

    def is_up() -> bool:
        try:
            connected.append(socket.create_connection(("127.0.0.1", port)))
        except OSError:
            return False
        return True

    wait_until("the proxy listens", is_up, 20)
    return connected[0]


def send_all(client: socket.socket) -> None:
    client.sendall(SENT)
    client.shutdown(socket.SHUT_WR)
