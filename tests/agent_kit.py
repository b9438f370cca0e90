"""An SSH agent for tests, which misbehaves as agents do (draft-ietf-sshm-ssh-agent): of Python alone, so that it can."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import asyncssh

_FAILURE, _IDENTITIES, _KEYS, _SIGN, _SIGNATURE = 5, 11, 12, 13, 14


def _text(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


@contextlib.contextmanager
def agent(path: Path, key: asyncssh.SSHKey | None, fault: str = "") -> Iterator[None]:
    """Listens at ``path`` with one key or none.

    :param fault: silent: it answers nothing; silent-signing, refuses, gone: asked for a signature it answers nothing, says no, or ends.
    """
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    open_ones: list[socket.socket] = []

    def serve(one: socket.socket) -> None:
        with contextlib.suppress(OSError, struct.error):
            while True:
                (length,) = struct.unpack(">I", one.recv(4, socket.MSG_WAITALL))
                asked = one.recv(length, socket.MSG_WAITALL)
                if fault == "silent" or (fault == "silent-signing" and asked[0] == _SIGN):
                    continue
                if fault == "gone" and asked[0] == _SIGN:
                    _close(listener)
                    path.unlink()
                    one.close()
                    return
                one.sendall(_text(_answer(asked, key, fault)))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                open_ones.append(listener.accept()[0])
                threading.Thread(target=serve, args=(open_ones[-1],), daemon=True).start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield
    finally:
        _close(listener)
        accepting.join()  # what it accepts at the last moment is closed, too
        for one in open_ones:
            _close(one)


def _close(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()


def _answer(asked: bytes, key: asyncssh.SSHKey | None, fault: str) -> bytes:
    if asked[0] == _IDENTITIES:
        keys = [] if key is None else [key]
        listed = b"".join(_text(one.public_data) + _text(b"a key of a test") for one in keys)
        return bytes([_KEYS]) + struct.pack(">I", len(keys)) + listed
    if asked[0] == _SIGN and key is not None and fault != "refuses":
        (length,) = struct.unpack_from(">I", asked, 1)
        (size,) = struct.unpack_from(">I", asked, 5 + length)
        data = asked[9 + length : 9 + length + size]
        return bytes([_SIGNATURE]) + _text(key.sign(data, key.algorithm))
    return bytes([_FAILURE])
