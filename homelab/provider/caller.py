"""Whose process calls the provider: on Linux, none but one of the provider's own user is answered.

The engine reaches a provider by a TCP port of 127.0.0.1, to which every user of the machine can connect; and this
provider logs in to hosts as root. The kernel knows whose the other end of a connection is: /proc/net/tcp and tcp6 have
a line for each socket of this network, with the user who made it (get_tcp4_sock in net/ipv4/tcp_ipv4.c). Three kinds of
lines name no user, and count as not known:

- of a socket that no process has any more, or of a connection that ends, the kernel says user 0 (sock_i_uid in
  net/core/sock.c, get_timewait4_sock);
- of users that this user namespace doesn't have, it says the overflow user (from_kuid_munged).

A port is used again once its connection is closed. So what is remembered of a caller is this process's own end of the
connection, and it counts as long as that very socket is connected: no other connection can have both addresses until
then.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import re
import socket
import stat
import sys
import urllib.parse
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import grpc.aio

from homelab.errors import HomelabError
from homelab.text import tell

_PROC = Path("/proc")
_ESTABLISHED = "01"
# The table is read in pieces, and a socket can be missed while others come and go.
_TRIES, _RETRY_SECONDS = 5, 0.02
# The kernel's overflowuid where it doesn't say.
_OVERFLOW = 65534


class Address(NamedTuple):
    """One end of a connection; an IPv4 address that is written as IPv6 is an IPv4 address."""

    ip: str
    port: int


class _Own(NamedTuple):
    """This process's own end of a connection. `inode`: no two sockets that are open have the same."""

    fd: int
    inode: int


def address_of(peer: str) -> Address | None:
    """What gRPC calls a peer: `ipv4:127.0.0.1:40000`, `ipv6:%5B::1%5D:40000`; None: it is no address of TCP."""
    match = re.fullmatch(r"ipv[46]:\[?([^]]+)\]?:(\d+)", urllib.parse.unquote(peer))
    return _address(match[1], int(match[2])) if match else None


def _address(ip: str, port: int) -> Address | None:
    try:
        parsed = ipaddress.ip_address(ip)
    except ValueError:
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return Address(str(mapped or parsed), port)


def user_of(peer: Address, server: Address, proc: Path = _PROC) -> int | None:
    """Who has the socket at `peer` that is connected to `server`; None: the kernel doesn't tell.

    :raises OSError: there is no table of sockets.
    """
    for words in _rows(proc):
        # Ports first: a busy machine has thousands of lines.
        ports_match = words[1].endswith(f":{peer.port:04X}") and words[2].endswith(f":{server.port:04X}")
        if ports_match and (_address_in_table(words[1]), _address_in_table(words[2])) == (peer, server):
            is_known = words[3] == _ESTABLISHED and words[9] != "0" and _is_one_user(int(words[7]), proc)
            return int(words[7]) if is_known else None
    return None


def _rows(proc: Path) -> Iterator[list[str]]:
    """The words of each socket's line: the second and third are its addresses, then come its state, its user (the
    eighth), its inode (the tenth). A kernel without IPv6 has no second table."""
    for name in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / name).read_text(encoding="ascii", errors="replace").splitlines()[1:]
        except FileNotFoundError:
            if name == "tcp":
                raise
            continue
        for line in lines:
            if len(words := line.split()) > 9:
                yield words


def _address_in_table(text: str) -> Address | None:
    """An address as the kernel's table has it: words of 32 bits in the machine's order of bytes, then the port."""
    ip, _, port = text.partition(":")
    try:
        packed = b"".join(int(ip[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(ip), 8))
        return _address(str(ipaddress.ip_address(packed)), int(port, 16))
    except (ValueError, OverflowError):
        return None


def _is_one_user(user: int, proc: Path) -> bool:
    """Is the number one user's, and not that of all of those that this user namespace has no number for?"""
    try:
        overflow = int((proc / "sys/kernel/overflowuid").read_text(encoding="ascii"))
    except (OSError, ValueError):
        overflow = _OVERFLOW
    if user != overflow:
        return True
    try:
        return (proc / "self/uid_map").read_text(encoding="ascii").split() == ["0", "0", str(2**32 - 1)]
    except OSError:
        return False


class OfThisUser(grpc.aio.ServerInterceptor):  # type: ignore[misc] # which has no types
    """Answers processes of one user; each call of another one is refused, whatever it asks for. `port`: of the server,
    once it has one."""

    def __init__(self, user: int) -> None:
        """:param user: the provider's own, in its user namespace."""
        self.port = 0
        self._user = user
        self._own_ends: dict[Address, _Own] = {}
        self._messages_told: set[str] = set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler  # no such method
        unary_method, stream_method = handler.unary_unary, handler.unary_stream

        async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            await self._refuse_others(context)
            return await unary_method(request, context)

        async def stream(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            await self._refuse_others(context)
            async for response in stream_method(request, context):
                yield response

        forms = (handler.request_deserializer, handler.response_serializer)
        if unary_method:
            return grpc.unary_unary_rpc_method_handler(answer, *forms)
        if stream_method:
            return grpc.unary_stream_rpc_method_handler(stream, *forms)
        raise NotImplementedError(handler_call_details.method)  # no provider has another form

    async def _refuse_others(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        caller = await self._other_caller(context.peer())
        if not caller:
            return
        error = HomelabError(
            wanted=f"a call of Pulumi's engine, which runs as user {self._user} as this provider does",
            found=caller,
            why="a program that gets an answer here can change hosts as root; nothing was done",
            next="find out who made the call, and run Pulumi on a machine where you trust every user. If it was "
            "Pulumi itself: run it where /proc is the one of this system, in no sandbox that hides it",
        )
        if caller not in self._messages_told:
            self._messages_told.add(caller)
            await asyncio.to_thread(tell, str(error))
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))

    async def _other_caller(self, peer: str) -> str:
        """The caller, in words, if it is no process of this user; empty: it is one."""
        address = address_of(peer)
        if address is None:
            return f"a call from {peer}, which is no address of this machine"
        own = self._own_ends.get(address)
        if own is not None and self._is_connected(own, address):
            return ""
        self._own_ends.pop(address, None)
        user = None
        for _ in range(_TRIES):
            try:
                own = await asyncio.to_thread(self._own_end, address)
                if own is None:
                    break
                user = await asyncio.to_thread(user_of, address, Address("127.0.0.1", self.port))
            except OSError as error:
                return f"a call of a process whose user isn't known: {error.filename}: {error.strerror}"
            # Connected all the time: what was read is of this connection.
            if user is not None and not self._is_connected(own, address):
                user = None
            if user is not None:
                break
            await asyncio.sleep(_RETRY_SECONDS)
        if own is None or user is None:
            return "a call of a process whose user isn't known: /proc/net/tcp doesn't have its connection"
        if user != self._user:
            return f"a call of a process of user {user}"
        self._own_ends[address] = own
        return ""

    def _own_end(self, peer: Address) -> _Own | None:
        for path in list(Path("/proc/self/fd").iterdir()):
            with contextlib.suppress(OSError):
                status = os.fstat(int(path.name))
                own = _Own(int(path.name), status.st_ino)
                if stat.S_ISSOCK(status.st_mode) and self._is_connected(own, peer):
                    return own
        return None

    def _is_connected(self, own: _Own, peer: Address) -> bool:
        """Is it still this socket, with `peer` at its other end? A connection that was cut has none."""
        try:
            number = os.dup(own.fd)
        except OSError:
            return False
        try:
            copy = socket.socket(fileno=number)
        except OSError:
            os.close(number)  # it is no socket, which then closes nothing
            return False
        with copy:
            try:
                remote, local = copy.getpeername(), copy.getsockname()
                same = os.fstat(number).st_ino == own.inode
            except (OSError, ValueError):
                return False
        is_tcp = isinstance(remote, tuple) and isinstance(local, tuple)
        return is_tcp and same and _address(*remote[:2]) == peer and local[1] == self.port
