"""SSH clients of a lab's host and of its VMs. `to`: how it is reached, as Lab.connection and Lab.guest have it."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import AsyncIterator
from typing import Any

import asyncssh

#: Of OpenSSH's client: nothing of this machine's user, and no key of a host is kept.
OPTIONS = ("-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null", "-oLogLevel=ERROR", "-F/dev/null")


async def connect(to: dict[str, Any], **changes: Any) -> asyncssh.SSHClientConnection:
    known = asyncssh.import_known_hosts(f"[{to['host']}]:{to['port']} {to['hostKey']}\n")
    options = {"username": "root", "client_keys": [to["privateKeyFile"]], "known_hosts": known, **changes}
    return await asyncssh.connect(to["host"], to["port"], config=None, agent_path=None, **options)


@contextlib.asynccontextmanager
async def connected(to: dict[str, Any], **changes: Any) -> AsyncIterator[asyncssh.SSHClientConnection]:
    async with await connect(to, **changes) as connection:
        yield connection


def openssh(to: dict[str, Any], command: str) -> subprocess.Popen[str]:
    """A command over OpenSSH's client; to be used in a `with`."""
    target = ["-i", to["privateKeyFile"], "-p", str(to["port"]), f"root@{to['host']}"]
    return subprocess.Popen(
        ["ssh", *OPTIONS, *target, command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
