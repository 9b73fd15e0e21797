"""Where calls to apps may connect: a host is resolved once, every address is checked, and the checked address is connected to.

Link-local and metadata addresses are always refused; loopback and private ones unless they are allowed (in dev, or by an operator's
networks). A name that resolves differently a moment later gains nothing.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from typing import Any

import trio

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

# For each address of a host: the first may be a dead one.
CONNECT_SECONDS_MAX = 5.0

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Where clouds give out credentials, beside the link-local one of them all.
_METADATA = frozenset(
    map(ipaddress.ip_address, ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"))
)


class TargetRefused(Exception):
    """The app's URL leads where this engine may not connect. Change the URL, or allow the network with DURABLE_ALLOWED_NETWORKS."""

    code = "target_refused"


class NotConnected(Exception):
    """No connection came about; nothing was sent. The words say why."""

    code = "not_connected"


class AddressGuard:
    """Connects only to allowed addresses. `only_listed`: to those of the allowed networks alone, for calls without TLS."""

    def __init__(self, *, allow_local: bool, allowed_networks: Sequence[str] = (), only_listed: bool = False) -> None:
        self._allow_local = allow_local
        self._only_listed = only_listed
        self._networks: list[IPNetwork] = [ipaddress.ip_network(text) for text in allowed_networks]

    async def connect(self, host: str, port: int) -> trio.SocketStream:
        """A connection to the first address of `host` that answers. NotConnected or TargetRefused say why there is none."""
        try:
            with trio.fail_after(CONNECT_SECONDS_MAX):
                found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError, trio.TooSlowError) as error:
            raise NotConnected(f"the host name does not resolve: {error or 'no answer'}") from error
        for entry in found:
            if (reason := self.refusal(str(entry[4][0]))) is not None:
                raise TargetRefused(f"{host} is {reason}")
        words = "the host name has no address"
        for family, kind, proto, _, address in dict.fromkeys(found):
            try:
                with trio.fail_after(CONNECT_SECONDS_MAX):
                    return await _connect(family, kind, proto, address)
            except trio.TooSlowError:
                words = f"no connection within {CONNECT_SECONDS_MAX:g} s"
            except OSError as error:
                words = str(error)
        raise NotConnected(words)

    def refusal(self, text: str) -> str | None:
        """Why this address may not be connected to; None when it may."""
        address = _unwrapped(ipaddress.ip_address(text.partition("%")[0]))
        if address.is_link_local or address.is_multicast or address.is_unspecified or address in _METADATA:
            return "a link-local, metadata, multicast or unspecified address, which is never called"
        if any(address.version == network.version and address in network for network in self._networks):
            return None
        if self._only_listed:
            return "called over plain http, and not in a network of DURABLE_ALLOWED_NETWORKS; outside dev its URL must be https"
        # Site-local and reserved addresses lead into networks too, though Python counts them as global.
        is_inside = not address.is_global or address.is_reserved or getattr(address, "is_site_local", False)
        if is_inside and not self._allow_local:
            return "a private or loopback address; name its network in DURABLE_ALLOWED_NETWORKS to allow it"
        return None


async def _connect(family: int, kind: int, proto: int, address: tuple[Any, ...]) -> trio.SocketStream:
    sock = trio.socket.socket(family, kind, proto)
    try:
        await sock.connect(address)
        return trio.SocketStream(sock)
    except BaseException:
        sock.close()
        raise


def _unwrapped(address: IPAddress) -> IPAddress:
    """The IPv4 address inside of a mapped, 6to4 or NAT64 one."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is not None:
            return inner
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address
