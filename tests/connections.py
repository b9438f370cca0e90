"""The connections to hosts that a test's process has: one to each, as a run has, which lasts as long as the process."""

from __future__ import annotations

from homelab.remote import loop, ssh


def end_all() -> None:
    """Ends them, as the process's end would."""

    async def end() -> None:
        while ssh._CONNECTIONS:
            _, opening = ssh._CONNECTIONS.popitem()
            if opening.done() and not opening.exception():
                opening.result().ssh.abort()

    if ssh._CONNECTIONS:
        loop.run(end())
