"""The real provider's port: who calls is told by the kernel, and no process of another user is answered."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import grpc
import pytest
from pulumi.runtime.proto import provider_pb2_grpc

from tests.conftest import PROJECT
from tests.engine.plugin_process import REQUESTS, Plugin
from tests.waiting import PATIENCE

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
