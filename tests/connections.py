"""The connections to hosts that a test's process has: one to each, as a run has, which lasts as long as the process."""

from __future__ import annotations

from homelab.remote import host_session, logins, loop


def end_all() -> None:
    """Ends them, as the process's end would, with all that is known of the hosts."""

    async def end() -> None:
        while logins.of_process():
            _, login = logins.of_process().popitem()
            if login.connection is not None:
                login.connection.ssh.abort()

    host_session.of_process().clear()
    if logins.of_process():
        loop.run(end())
