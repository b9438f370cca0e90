"""This process's logins to hosts, and their connections: one to a host, whoever asks. It is opened on first use, again
where it has ended, and ends with the process.
"""

from __future__ import annotations

import asyncio
import functools
import os
import shlex
import threading
import time
from base64 import b64encode
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import cast

import asyncssh

from homelab.errors import HomelabError, LoginRefusedError, UnreachableError
from homelab.fields.paths import resolved
from homelab.remote import loop
from homelab.settings import Host, Ssh

# How many commands run at a time on a connection, the guard's among them; sshd refuses more than its MaxSessions, by
# default 10.
COMMANDS = 8
# How many changes Proxmox VE is asked for at a time. pvedaemon has three workers (PVE::Daemon, max_workers), and each
# may wait for a lock: one stays free for the owner's web page.
CHANGES = 2
# Between two keepalives of an open connection, in seconds, as all times here.
KEEPALIVE_SECONDS = 5
# How long this machine's SSH agent may take to name its keys, in seconds: it has them in memory.
AGENT_SECONDS = 10.0
# For so long a host that has let this process in needn't be asked again before a step, in seconds: a run's steps follow
# each other.
ANSWERED_SECONDS = 5.0
# Between two attempts to reach a host that is booting; nothing on this side signals that it is back.
RETRY_SECONDS = 0.5


class _Connection:
    """An open connection. `turns`: for its commands; `changes`: for what Proxmox VE is asked to change; `commands`: how
    many commands and requests are at work, or wait; `is_left`: whoever asks next gets another one.
    """

    def __init__(self, ssh: asyncssh.SSHClientConnection) -> None:
        self.ssh = ssh
        self.turns = asyncio.Semaphore(COMMANDS)
        self.changes = asyncio.Semaphore(CHANGES)
        self.commands = 0
        self.is_left = False

    def end_if_left(self) -> None:
        """Ends it if nobody needs it any more."""
        if self.is_left and not self.commands:
            self.ssh.abort()  # not `close`, which waits for an answer that a host on its way down never gives


class Login:
    """What this process has of a login to a host; made by `login_of`. `opening`: its connection, or the one that is
    being opened; `answered`: when it last succeeded; `minting`, `ticket`: of the host's API
    (homelab/remote/proxmox/connection.py).
    """

    def __init__(self) -> None:
        self.opening: asyncio.Task[_Connection] | None = None
        self.answered = -ANSWERED_SECONDS
        self.minting, self.ticket = threading.Lock(), ""

    @property
    def connection(self) -> _Connection | None:
        """Its connection, whether it still is one; None: none was opened."""
        task = self.opening
        return task.result() if task is not None and task.done() and not task.exception() else None

    async def opened(self, host: Host, timeout: float) -> _Connection:
        """The connection; who asks while it is being opened, waits for the same one.

        :raises UnreachableError: the host doesn't answer in time.
        :raises HomelabError: it shows another host key, or refuses the login.
        """
        if self.opening is None or (self.opening.done() and (not self.connection or self.connection.ssh.is_closed())):
            self.opening = asyncio.create_task(_connected(host, timeout))
        return await asyncio.shield(self.opening)

    def leave(self, full: _Connection | None = None) -> None:
        """Whoever asks next gets a new connection; this one ends with the last command on it.

        :param full: nothing happens where there is another one by now.
        """
        connection = self.connection
        if full in (None, connection):
            self.opening = None
            if connection is not None:
                connection.is_left = True
                connection.end_if_left()


@functools.cache
def of_process() -> dict[tuple[object, ...], Login]:
    """Those of this process."""
    return {}


def login_of(host: Host) -> Login:
    """What this process has of the login to a host; what the process has that this one is a fork of isn't this one's.

    :raises HomelabError: a key can't be read.
    """
    ssh = host.ssh
    parts = os.getpid(), host.address, ssh.port, ssh.user, ssh.pinned_host_key, ssh.key, ssh.agent, ssh.password
    return of_process().setdefault(parts, Login())


async def reach(host: Host) -> None:
    """Checks that a login works, on any loop, within `timeouts.connect`; an unreachable host is tried again until then.

    :raises UnreachableError: the host doesn't answer in time.
    :raises HomelabError: it shows another host key, or refuses the login.
    """
    deadline = time.monotonic() + host.timeouts.connect
    while True:
        try:
            (await _connected(host, max(deadline - time.monotonic(), 1.0))).ssh.abort()
            return
        except UnreachableError:
            if time.monotonic() + RETRY_SECONDS > deadline:
                raise
        await asyncio.sleep(RETRY_SECONDS)


async def reach_for_a_step(host: Host) -> None:
    """The same before a step of pulumi-command's, which would wait for ever for a host that accepts a connection and
    says nothing; one that has just answered isn't asked again."""
    if time.monotonic() - login_of(host).answered >= ANSWERED_SECONDS:
        await reach(host)


async def _connected(host: Host, timeout: float) -> _Connection:
    """A new connection; only the pinned host key is accepted. Errors as of `reach`."""
    key = host.ssh.key
    try:
        pinned = asyncssh.import_public_key(host.ssh.pinned_host_key)
        keys = None if key is None else [asyncssh.import_private_key(key)]
    except ValueError as error:
        raise HomelabError(
            wanted=f"the public key of {host.address}, pinned in ssh.hostKey or hostKeyFile, and a private key without "
            "a passphrase, in OpenSSH or PEM format",
            found=f"one that is cut off or mistaken: {error}",
            why="without them the program can't tell the right host, or can't log in to it",
            next="take the whole line that `ssh-keyscan -t ed25519 ADDRESS` prints, without the address; keep the "
            "private key as a Pulumi secret (ssh.privateKey), or in an agent (ssh.agent: true)",
        ) from error
    async with AsyncExitStack() as exit_stack:
        of_agent = await _keys_of_the_agent(exit_stack, timeout) if host.ssh.agent else ()
        try:
            async with asyncio.timeout(timeout):
                connection = await asyncssh.connect(
                    host.address,
                    host.ssh.port,
                    username=host.ssh.user,
                    known_hosts=([pinned], [], []),
                    client_keys=of_agent or keys,
                    password=host.ssh.password and host.ssh.password.get_secret_value(),
                    agent_path=None,
                    config=None,
                    keepalive_interval=KEEPALIVE_SECONDS,
                )
                login_of(host).answered = time.monotonic()
                return _Connection(connection)
        except (asyncssh.HostKeyNotVerifiable, asyncssh.KeyExchangeFailed) as error:
            if "host key" not in str(error).lower():
                raise unreachable(host.address, host.ssh.port, error) from error
            raise await _wrong_host_key(host, pinned.get_fingerprint()) from error
        except asyncssh.PermissionDenied as error:
            raise _login_refused(host, error) from error
        except (OSError, TimeoutError, asyncssh.Error) as error:
            if isinstance(error, TimeoutError):
                waits = "; the SSH agent may wait for you to confirm the use of its key" if of_agent else ""
                error = TimeoutError(f"no answer within {timeout:g} s{waits}")
            if isinstance(error, asyncssh.ProtocolError) and "authentication failures" in error.reason:
                raise _login_refused(host, error, len(of_agent)) from error
            raise unreachable(host.address, host.ssh.port, error) from error


def public_half(private_key: str | None) -> str:
    """A private key's public key, as `type base64`; empty: there is none."""
    key = asyncssh.import_private_key(private_key) if private_key else None
    return " ".join(key.export_public_key().decode("ascii").split()[:2]) if key else ""


def _login_refused(host: Host, error: Exception, offered: int = 0) -> LoginRefusedError:
    return LoginRefusedError(
        wanted=f"to log in to {host.address}:{host.ssh.port} as {host.ssh.user}",
        found=f"refused: {error}",
        why="the host can be neither read nor changed",
        next=f"the SSH agent has {offered} keys, and sshd ends a login after a few wrong ones (MaxAuthTries): "
        "take the others out of the agent (`ssh-add -d FILE`), or set ssh.privateKeyFile"
        if offered
        else _way_in(host.ssh, host.address),
    )


def _way_in(login: Ssh, address: str) -> str:
    """How what the settings log in with is let in."""
    place = f"{login.user}'s authorized_keys on the host"
    if login.password:
        return f"correct ssh.password; or see whether its sshd takes passwords of {login.user} (PasswordAuthentication)"
    if login.private_key:
        return f"put this line into {place}: {public_half(login.key)}"
    file = login.private_key_file  # without one, the keys of the agent are copied
    named = f"-i {shlex.quote(f'{resolved(file)}.pub')} " if file else ""
    command = f"`ssh-copy-id {named}-p {login.port} {login.user}@{address}`"
    signs = "" if file else ", and see that the agent isn't locked (`ssh-add -X`) and you allow the key's use"
    return f"put the key into {place}: {command} (on Windows: docs/windows.md){signs}"


async def _keys_of_the_agent(exit_stack: AsyncExitStack, timeout: float) -> Sequence[asyncssh.SSHKeyPair]:
    """The keys of this machine's SSH agent: at SSH_AUTH_SOCK, or on Windows at the pipe of its OpenSSH.

    :param exit_stack: gets the connection to it.
    :raises LoginRefusedError: there is no agent, it has no key, or it doesn't answer.
    """
    seconds = min(timeout, AGENT_SECONDS)
    try:
        async with asyncio.timeout(seconds):
            agent = await exit_stack.enter_async_context(await asyncssh.connect_agent())
            keys = await agent.get_keys()
    except TimeoutError as error:
        raise _no_key_of_the_agent(
            f"an agent that has said nothing within {seconds:g} s; `ssh-add -l` would wait, too"
        ) from error
    except (OSError, ValueError) as error:
        # An OSError's text has each backslash of a path twice.
        reason = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) and error.filename else error
        raise _no_key_of_the_agent(f"no agent that answers ({reason})") from error
    if not keys:
        raise _no_key_of_the_agent("an agent without a key")
    return keys


def ask_the_agent() -> str:
    """Checks that this machine's SSH agent answers, before pulumi-command uses it, which would wait without end.
    Returns the public half of its first key, as `type base64`; empty: it has certificates alone.

    :raises LoginRefusedError: there is no agent, it has no key, or it doesn't answer.
    """

    async def ask() -> Sequence[asyncssh.SSHKeyPair]:
        async with AsyncExitStack() as exit_stack:
            return await _keys_of_the_agent(exit_stack, AGENT_SECONDS)

    plain = [key for key in loop.run(ask()) if b"-cert-" not in key.algorithm]
    return next((f"{key.algorithm.decode()} {b64encode(key.public_data).decode()}" for key in plain), "")


def _no_key_of_the_agent(problem: str) -> LoginRefusedError:
    return LoginRefusedError(
        wanted="to log in with a key of this machine's SSH agent (ssh.agent)",
        found=problem,
        why="only the agent has the key",
        next="see `ssh-add -l`; restart the agent and give it the key with `ssh-add`, or set ssh.privateKeyFile",
    )


async def shown_key(address: str, port: int, seconds: float, kinds: Sequence[str] = ()) -> asyncssh.SSHKey:
    """The key that a host shows, of one of these kinds; none: of any."""
    async with asyncio.timeout(seconds):
        key = await asyncssh.get_server_host_key(address, port, server_host_key_algs=kinds, config=None)
        return cast(asyncssh.SSHKey, key)


async def _wrong_host_key(host: Host, wanted: str) -> HomelabError:
    try:
        shown = (await shown_key(host.address, host.ssh.port, host.timeouts.connect)).get_fingerprint()
    except (OSError, TimeoutError, asyncssh.Error) as error:
        shown = f"another one ({error})"
    return HomelabError(
        wanted=f"host key {wanted} at {host.address}:{host.ssh.port}",
        found=shown,
        why="this may be another machine, or one in between: root's commands would go to it",
        next="if the host was reinstalled, compare with `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on its "
        "console and correct ssh.hostKey",
    )


def unreachable(address: str, port: int, error: Exception) -> UnreachableError:
    return UnreachableError(
        wanted=f"an SSH connection to {address}:{port}",
        found=in_words(error),
        why="the host can be neither read nor changed",
        next="see whether it is switched on and connected to this network, then run the same command again",
    )


def in_words(error: Exception) -> str:
    """What a person reads of an error of a connection: asyncio names its own call in the system's words' place."""
    if isinstance(error, OSError) and error.strerror:
        # Of a name that isn't known the number is another one on each system, and none of errno's.
        if error.errno and error.strerror.startswith("Connect call failed"):
            return os.strerror(error.errno)
        return error.strerror
    return str(error) or type(error).__name__
