"""Makes the engine's Python processes start fast. This folder is first on the engine's PYTHONPATH in tests: sitecustomize.py, pip/."""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.plain import PLAIN

FOLDER = Path(__file__).resolve().parent
#: The variable with the name of the server's socket.
SERVER = "QUICK_PYTHON"


@contextlib.contextmanager
def server() -> Iterator[None]:
    """A server (server.py) for the runs of the engine that this process starts, or its children; it ends with this process, however that ends."""
    if PLAIN or SERVER in os.environ or platform.system() != "Linux":  # abstract names of sockets
        yield
        return
    name = f"homelab-tests-{os.getpid()}-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen(128)
        command = [sys.executable, str(FOLDER / "server.py"), str(listener.fileno())]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, cwd="/", pass_fds=[listener.fileno()], start_new_session=True
        )
    os.environ[SERVER] = name
    try:
        yield
    finally:
        del os.environ[SERVER]
        process.communicate()
