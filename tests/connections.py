"""The connections to hosts that a test's process has: one to each, as a run has, which lasts as long as the process."""

from __future__ import annotations

from homelab.remote import host_session, loop, ssh


def end_all() -> None:
    """Ends them, as the process's end would, with all that is known of the hosts."""

    async def end() -> None:
        while ssh._LOGINS:
            _, login = ssh._LOGINS.popitem()
            if login.connection is not None:
                login.connection.ssh.abort()

    host_session._OF_PROCESS.clear()
    if ssh._LOGINS:
        loop.run(end())
