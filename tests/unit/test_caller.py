"""Who is answered at the provider's port: processes of its own user, as the kernel's table of sockets has them."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

import pytest

from homelab.provider.caller import Address, OfThisUser, address_of, user_of

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


@pytest.mark.skipif(sys.platform != "linux", reason="by Linux's /proc")
def test_asking_who_calls_leaves_nothing_open() -> None:
    """Else every new connection doubles what the provider has open, until its own user isn't known either."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        there, _ = server.accept()
        with there:
            callers = OfThisUser(os.geteuid())
            callers.port = server.getsockname()[1]
            asyncio.run(callers._other_caller("ipv4:127.0.0.1:1"))  # what asyncio opens once is open
            before = len(list(Path("/proc/self/fd").iterdir()))
            assert asyncio.run(callers._other_caller(f"ipv4:127.0.0.1:{client.getsockname()[1]}")) == ""
            assert len(list(Path("/proc/self/fd").iterdir())) == before
