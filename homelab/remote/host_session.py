"""What this process has of a host of the settings: what was found of it, and the guard. It ends with the process.

All resources of a run share it: a host is held, read and reported once, whichever of them comes first.

The guard: one run (`pulumi up` or `pulumi destroy`) at a time on a host, whichever machine it comes from (ADR 15). Two
stacks with states of their own, on two machines, know nothing of each other; the backend's lock is for one stack.
So on the connection of a run that is about to change a host the agent holds a lock (layers/run_guard.py) until that
connection ends: with the process, whatever ends it. Nothing has to be cleaned up after a run that was killed.
"""

from __future__ import annotations

import asyncio
import functools
import getpass
import os
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from homelab.errors import HomelabError, RefusedError
from homelab.facts.host import HostFacts
from homelab.remote import loop, ssh
from homelab.settings import Host
from homelab.text import tell
from remote_scripts.both.run_guard import Wanted

# How long the agent of a connection that was cut may go on holding the host for this run.
GHOST_SECONDS = 90.0
# Between two signs of life to the agent, which gives up after six times that.
BEAT_SECONDS = 10.0


@functools.cache
def on_loss() -> list[Callable[[str, Host], None]]:
    """What is called with a host's name and settings when this process has lost it: the connection has ended."""
    return []


@dataclass
class HostSession:
    """A host in this process; made by `of`.

    `name`: its own in the settings; `facts`: what a refresh has read of it, or why it can't be read; None: nothing yet;
    `is_out_of_reach`: it could not be reached to be held; `is_silence_told`, `is_reboot_told`: this run has said that
    it doesn't answer, and why it is rebooted; `lock`: for whoever reads it, takes its guard, or speaks of it, as
    several resources are at work at the same time; `guard`: the latest one, which may have ended.
    """

    name: str
    facts: HostFacts | HomelabError | None = None
    is_out_of_reach: bool = False
    is_silence_told: bool = False
    is_reboot_told: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    guard: Guard | None = None

    @property
    def is_held(self) -> bool:
        """Whether this process holds it."""
        return self.guard is not None and not self.guard.ended.is_set()

    def hold(self, host: Host) -> None:
        """Holds it for this process, unless it does already. Asked before each change: one that was held may be lost
        since (its machine slept, the network was cut), and another run at work there.

        :param host: its settings.
        :raises RefusedError: another run is at work on it.
        :raises HomelabError: it can't be reached.
        """
        with self.lock:
            if self.is_held:
                return
            deadline = time.monotonic() + GHOST_SECONDS
            while True:
                taken = Guard(self.name, host)
                taken.begin()
                taken.answered.wait()
                is_refused = isinstance(taken.error, RefusedError)
                # The lock is still this run's own: the host hasn't noticed yet that the earlier connection is gone.
                is_own = is_refused and _this_run() in str(taken.error)
                if not is_own or time.monotonic() > deadline:
                    break
            if taken.error is not None:
                raise taken.error
            self.guard = taken


@functools.cache
def of_process() -> dict[str, HostSession]:
    """Those of this process, by the hosts' names in the settings."""
    return {}


def of(name: str) -> HostSession:
    """What this process has of a host, by its name in the settings."""
    return of_process().setdefault(name, HostSession(name))


def cancel() -> None:
    """Tells every host that is held that this run was cancelled: its layers there end where they wait. The hosts stay
    held until this process ends.
    """
    for session in of_process().values():
        if session.guard is not None:
            session.guard.say("cancelled")


@functools.cache
def _this_run() -> str:
    """This run's user, machine, start and process, for the error of another run: the same text as long as this process
    lives, by which a run recognises itself."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):
        user = "an unknown user"  # an id without a name, as in a container; Windows without its variables
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return f"{user} on {platform.node()}, since {since} (process {os.getpid()})"  # several may begin in one second


class Guard:
    """Holds a host until the process or the connection ends. `answered`: set once the agent has the lock or refused it;
    `ended`: set once it holds nothing any more; `error`: the reason.
    """

    def __init__(self, host_name: str, host: Host) -> None:
        """:param host_name: in the settings."""
        self._host_name, self._host = host_name, host
        self._words: asyncio.Queue[str] = asyncio.Queue()
        self.answered, self.ended = threading.Event(), threading.Event()
        self.error: Exception | None = None

    def begin(self) -> None:
        """Notes of the host are shown as those of the resource for which this is called."""
        self._work = loop.submit(self._run())

    def say(self, word: str) -> None:
        """Sends a word to the agent that holds the host, if it still does."""
        loop.of_process().call_soon_threadsafe(self._words.put_nowait, word)

    async def _run(self) -> None:
        try:
            session, wanted = ssh.Session(self._host), Wanted(who=_this_run())
            await session.keep("run_guard", wanted, self.answered.set, BEAT_SECONDS, self._words, self._tell_note)
        except Exception as error:
            self.error = error  # before the answer: why there is none; after it: the connection has ended
        is_lost = self.answered.is_set()
        self.ended.set()
        self.answered.set()
        for act in on_loss() if is_lost else ():
            act(self._host_name, self._host)

    def _tell_note(self, note: str) -> None:
        """Shows a note that a layer on the host has for the user."""
        if note.strip():
            tell(f"{self._host_name}: {note.strip()}")
