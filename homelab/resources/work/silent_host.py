"""Ends a run whose host has fallen silent while pulumi-command waits for it.

pulumi-command has no limit while a command runs or a handshake lasts, and doesn't heed the engine's Cancel. Where a
host's kernel keeps a connection and nothing answers any more (all programs wait for a dead disk), it would wait for
ever. The connection by which this run holds the host ends then, as nothing answers its keepalives. This run's provider
then tries to log in. If that fails for as long as a step may take, it sends the engine what a person would: Ctrl-C,
twice. It waits while one of its own resources is at work, on any host: these have limits of their own.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from homelab.errors import HomelabError, UnreachableError
from homelab.remote import host_session, logins, loop
from homelab.resources import limits
from homelab.settings import Host
from homelab.text import tell

# Before each login that is tried, in seconds.
TRY_SECONDS = 10.0
# Between the two, in seconds: steps on other hosts end where they wait.
CANCEL_SECONDS = 20.0
# The engine: it starts this process itself, by a launcher that becomes this process.
_ENGINE = os.getppid()


@functools.cache
def _at_work() -> set[object]:
    # A member for each resource of this provider that is at work.
    return set()


@contextmanager
def at_work() -> Iterator[None]:
    """A resource of this provider is at work meanwhile."""
    member = object()
    _at_work().add(member)
    try:
        yield
    finally:
        _at_work().remove(member)


def watch(name: str, host: Host) -> None:
    """Watches a host that this run has lost, until it answers, in a thread of its own.

    :param name: of the host in the settings.
    """
    threading.Thread(target=_watch, args=(name, host), daemon=True, name=f"watch of {name}").start()


def _watch(name: str, host: Host) -> None:
    began, limit = time.monotonic(), limits.of_step(host)
    while True:
        time.sleep(TRY_SECONDS)
        if host_session.of(name).is_held:
            return
        try:
            loop.run(logins.reach(host))
            return
        except UnreachableError as error:
            found = error.found
        except HomelabError:
            return  # it answers: what waits for it gets to hear that its connection is gone
        if _at_work():
            began = time.monotonic()
        elif time.monotonic() - began > limit:
            _end_run(name, limit, found)
            return


def _end_run(name: str, limit: int, found: str) -> None:
    error = HomelabError(
        wanted=f"{name} to answer within {limit} s, as long as a step may take (timeouts.step)",
        found=f"logging in fails ({found}), and this run's connection to {name} has ended",
        why="pulumi-command would wait for the step there for ever; so this run ends now, as by Ctrl-C",
        next=f"look at {name}'s console and mend it, or restart it; then `pulumi refresh --clear-pending-creates "
        "--yes`, and the same again, which finishes what is half done",
    )
    tell(str(error))
    _interrupt()
    time.sleep(CANCEL_SECONDS)
    _interrupt()


def _interrupt() -> None:
    if sys.platform == "win32":
        os.kill(0, signal.CTRL_C_EVENT)  # to each process of this console
    elif os.getppid() == _ENGINE:  # else it has ended, and this process is about to
        os.kill(_ENGINE, signal.SIGINT)


host_session.on_loss().append(watch)
