"""Where calls to apps may go: every spelling of a forbidden address is refused, before and after resolving."""

from __future__ import annotations

from functools import partial

import pytest
import trio

from engine.transport.app_client import AppClient, NotDelivered
from engine.transport.guard import AddressGuard, NotConnected, TargetRefused
from protocol.manifest import Workspace
from protocol.signing import Key, new_key

METADATA = [
    "169.254.169.254",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "fe80::1",
    "fe80::1%eth0",
    "0.0.0.0",
    "::",
    "224.0.0.1",
]
LOCAL = ["127.0.0.1", "127.255.0.7", "::1", "10.1.2.3", "192.168.1.1", "172.16.0.1", "fd00::1", "::ffff:127.0.0.1", "100.64.0.1"]


@pytest.mark.parametrize("address", METADATA)
def test_link_local_and_metadata_addresses_are_never_called(address: str) -> None:
    everything = ("0.0.0.0/0", "::/0")
    assert AddressGuard(allow_local=True).refusal(address) is not None
    assert AddressGuard(allow_local=True, allowed_networks=everything).refusal(address) is not None


@pytest.mark.parametrize("address", LOCAL)
def test_local_addresses_are_called_in_dev_or_when_an_operator_lists_them(address: str) -> None:
    assert AddressGuard(allow_local=True).refusal(address) is None
    assert "DURABLE_ALLOWED_NETWORKS" in (AddressGuard(allow_local=False).refusal(address) or "")
    listed = ("127.0.0.0/8", "10.0.0.0/8", "192.168.0.0/16", "172.16.0.0/12", "100.64.0.0/10", "::1/128", "fd00::/8")
    assert AddressGuard(allow_local=False, allowed_networks=listed).refusal(address) is None


def test_public_addresses_are_called() -> None:
    for address in ("93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946"):
        assert AddressGuard(allow_local=False).refusal(address) is None


def test_without_tls_only_listed_networks_are_called_outside_dev() -> None:
    guard = AddressGuard(allow_local=False, allowed_networks=("93.184.0.0/16",), only_listed=True)
    assert guard.refusal("93.184.216.34") is None
    assert "https" in (guard.refusal("8.8.8.8") or "")


@pytest.mark.parametrize("host", ["localhost", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "[::1]"])
async def test_every_way_to_write_loopback_is_refused_outside_dev(host: str) -> None:
    async with AppClient(allow_local=False) as apps:
        answer = await apps.ask_manifest(f"https://{host}:1/", Workspace("a", "prod"), [Key.parse(new_key())])
    assert isinstance(answer, NotDelivered), answer
    assert "DURABLE_ALLOWED_NETWORKS" in answer.detail or "resolve" in answer.detail


async def test_the_address_that_was_checked_is_the_one_that_is_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that answers differently the second time gains nothing: there is no second time."""
    asked: list[str] = []
    connected: list[str] = []

    async def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        asked.append(host)
        address = "93.184.216.34" if len(asked) == 1 else "169.254.169.254"
        return [(2, 1, 6, "", (address, port))]

    async def connect(family: object, kind: object, proto: object, address: tuple[str, int]) -> object:
        connected.append(address[0])
        raise OSError("enough")

    monkeypatch.setattr("trio.socket.getaddrinfo", getaddrinfo)
    monkeypatch.setattr("engine.transport.guard._connect", connect)
    with pytest.raises(NotConnected, match="enough"):
        await AddressGuard(allow_local=False).connect("rebind.example", 443)
    assert asked == ["rebind.example"] and connected == ["93.184.216.34"]
    with pytest.raises(TargetRefused):
        await AddressGuard(allow_local=False).connect("rebind.example", 443)


async def test_one_forbidden_address_among_several_refuses_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        return [(2, 1, 6, "", ("93.184.216.34", port)), (2, 1, 6, "", ("10.0.0.1", port))]

    monkeypatch.setattr("trio.socket.getaddrinfo", getaddrinfo)
    with pytest.raises(TargetRefused):
        await AddressGuard(allow_local=False).connect("mixed.example", 443)


async def test_a_dead_address_is_given_up_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        return [(2, 1, 6, "", ("127.0.0.9", port)), (2, 1, 6, "", ("127.0.0.1", port))]

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, _nothing, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        monkeypatch.setattr("trio.socket.getaddrinfo", getaddrinfo)
        stream = await AddressGuard(allow_local=True).connect("two.example", port)
        assert stream.socket.getpeername()[1] == port
        stream.socket.close()
        nursery.cancel_scope.cancel()


async def _nothing(stream: trio.SocketStream) -> None:
    await stream.receive_some()
