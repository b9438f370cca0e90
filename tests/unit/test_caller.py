"""Who is answered at the provider's port: processes of its own user, as the kernel's table of sockets has them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from pulumi.runtime.proto import provider_pb2_grpc

from homelab.provider.caller import Address, address_of, user_of
from tests.conftest import PROJECT
from tests.engine.plugin_process import REQUESTS, Plugin
from tests.waiting import PATIENCE

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
ENGINE, PROVIDER = Address("127.0.0.1", 40000), Address("127.0.0.1", 36633)
MAPPED = "0000000000000000FFFF0000"
WHOLE_MAP, SMALL_MAP = "0 0 4294967295\n", "0 100000 65536\n"


def row(local: str, remote: str, user: int, state: str = "01", inode: int = 4711) -> str:
    """A line as get_tcp4_sock and get_tcp6_sock write it."""
    return f"   1: {local} {remote} {state} 00000000:00000000 00:00000000 00000000 {user:5}        0 {inode} 1 0 20 4 30 10 -1\n"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc of a process that has every user, whose table has nothing yet."""
    for name, text in (("net/tcp", HEAD), ("self/uid_map", WHOLE_MAP), ("sys/kernel/overflowuid", "65534\n")):
        tmp_path.joinpath(name).parent.mkdir(parents=True, exist_ok=True)
        tmp_path.joinpath(name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("table", "rows", "user"),
    [
        ("tcp", [row("0100007F:9C40", "0100007F:8F19", 1000)], 1000),
        ("tcp", [row("0100007F:9C40", "0100007F:8F19", 65534)], 65534),
        ("tcp6", [row(f"{MAPPED}0100007F:9C40", f"{MAPPED}0100007F:8F19", 1000)], 1000),
        # The same port of this machine, connected elsewhere; the provider's own end; another address.
        ("tcp", [row("0100007F:9C40", "0100007F:8F20", 1000)], None),
        ("tcp", [row("0100007F:8F19", "0100007F:9C40", 1000)], None),
        ("tcp", [row("0200007F:9C40", "0100007F:8F19", 1000)], None),
        # Closed by whoever had it: the kernel says user 0 of such a socket.
        ("tcp", [row("0100007F:9C40", "0100007F:8F19", 0, "06", 0)], None),
        ("tcp", [row("0100007F:9C40", "0100007F:8F19", 0, "05", 0)], None),
        ("tcp", [row("0100007F:9C40", "0100007F:8F19", 0, "01", 0)], None),
        ("tcp", ["   1: garbage\n", "\n", row("0100007F:9C40", "0100007F:8F19", 1000)], 1000),
        ("tcp", [], None),
    ],
)  # fmt: skip
def test_a_connection_belongs_to_who_has_its_other_end(
    proc: Path, table: str, rows: list[str], user: int | None
) -> None:
    (proc / "net" / table).write_text(HEAD + "".join(rows))
    assert user_of(ENGINE, PROVIDER, proc) == user


def test_the_overflow_user_is_somebody_only_where_all_users_are_known(proc: Path) -> None:
    (proc / "net/tcp").write_text(HEAD + row("0100007F:9C40", "0100007F:8F19", 65534))
    assert user_of(ENGINE, PROVIDER, proc) == 65534
    (proc / "self/uid_map").write_text(SMALL_MAP)
    assert user_of(ENGINE, PROVIDER, proc) is None


def test_without_a_table_nobody_is_known(proc: Path) -> None:
    (proc / "net/tcp").unlink()
    with pytest.raises(OSError, match="net/tcp"):
        user_of(ENGINE, PROVIDER, proc)


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:127.0.0.1:40000", ENGINE),
        ("ipv6:%5B::1%5D:40000", Address("::1", 40000)),
        ("ipv6:[::ffff:127.0.0.1]:40000", ENGINE),
        ("unix:/tmp/socket", None),
        ("ipv4:localhost:1", None),
        ("", None),
    ],
)
def test_a_peer_is_read_as_grpc_writes_it(peer: str, address: Address | None) -> None:
    assert address_of(peer) == address


# What a user runs: it hands on what it gets, over connections of that user's, from one port. Their end leaves nothing of them (RST).
RELAY = """
import os, socket, struct, sys, threading
user, there, port = map(int, sys.argv[1:])
os.setgroups([]), os.setgid(user), os.setuid(user)
door = socket.create_server(("127.0.0.1", 0))
print(door.getsockname()[1], flush=True)
def pump(a, b):
    try:
        while data := a.recv(65536):
            b.sendall(data)
    except OSError:
        pass
    outside.close(), inside.close(), os._exit(0)
inside = door.accept()[0]
outside = socket.socket()
outside.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
outside.bind(("127.0.0.1", port))
outside.connect(("127.0.0.1", there))
threading.Thread(target=pump, args=(inside, outside), daemon=True).start()
pump(outside, inside)
"""


def refused_over(provider: int, user: int, port: int = 0) -> dict[str, str]:
    """What is refused to a process of a user, whose connection comes from that port."""
    command = [sys.executable, "-I", "-S", "-c", RELAY, str(user), str(provider), str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as relay:
        assert relay.stdout
        return refused(int(relay.stdout.readline()))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


@pytest.fixture
def provider() -> Iterator[Plugin]:
    """The real one, as the engine starts it."""
    with Plugin(PROJECT / "provider" / "pulumi-resource-homelab", PROJECT) as process:
        yield process


def refused(port: int) -> dict[str, str]:
    """The calls of the engine that are refused, and how; what becomes of the others doesn't matter."""
    said = {}
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = provider_pb2_grpc.ResourceProviderStub(channel)
        for method, request in REQUESTS.items():
            try:
                getattr(stub, method)(request(), timeout=PATIENCE)
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.PERMISSION_DENIED:
                    said[method] = str(error.details())
    return said


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a process of another user")


def test_the_provider_answers_its_own_user(provider: Plugin) -> None:
    assert refused(provider.port) == {}


@needs_root
def test_the_provider_refuses_whatever_another_users_process_calls(provider: Plugin) -> None:
    said = refused_over(provider.port, 65534)
    assert said.keys() == REQUESTS.keys()
    (message,) = set(said.values())
    assert "found:  a call of a process of user 65534" in message and "nothing was done" in message
    # Whoever watches the run reads it, once, also at the end.
    assert [(line.message, line.ephemeral) for line in provider.log.lines()] == [(message, False)]
    assert refused(provider.port) == {}


@needs_root
def test_a_port_that_the_engine_had_is_another_users_once_that_has_it(provider: Plugin) -> None:
    port = free_port()
    assert refused_over(provider.port, 0, port) == {}
    assert refused_over(provider.port, 65534, port).keys() == REQUESTS.keys()
    assert refused_over(provider.port, 0, port) == {}
