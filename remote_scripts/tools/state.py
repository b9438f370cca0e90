"""Who is at work on this system, how long a run may take, and the lock that one run at a time has.

The lock is flock(2)'s, on /run/homelab/lock; that of a container is on /run/homelab/inside-ID. In it stands the run
(`pulumi up`, `pulumi destroy`) that has started the run that holds it, as layers/run_guard.py notes it in
/run/homelab/up. Changes of containers' cards share the host's.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from remote_scripts.tools import disk
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.log import Log

with contextlib.suppress(ImportError):  # on Windows, where the program has the types of layers alone
    import fcntl

#: In it stands the run of a client's that holds this system, by its lock (layers/run_guard.py).
UP = "/run/homelab/up"
#: The lock of what is written below /var/lib/homelab without the host's lock (notes/owed.py).
WRITING = "owed"
#: Stands in a guest's lock while its change has the host's lock, too, which is waited for instead.
STEP = "a step that has this host"
#: How long the lock is waited for: a run whose client was killed goes on to its end.
LOCK_SECONDS = 900.0
#: Between two lines for a person that something is waited for.
PROGRESS_SECONDS = 5.0
#: Between two tries of what is waited for.
_TRY_SECONDS = 1.0
# What of a run's limit is for its error and for undoing: this part of it, and so many seconds.
_END_PART, _END_SECONDS = 0.1, 3


def limit_of(seconds: float) -> int:
    """The limit of a run whose work may take so long.

    :param seconds: without its error and undoing.
    """
    return math.ceil((seconds + _END_SECONDS) / (1 - _END_PART))


@dataclass
class Wait:
    """`what`: is waited for, for a person."""

    what: str


class Work:
    """One run on this system: its time, its lock, and the run of the client that has started it.

    :param root: before every path.
    :param limit: seconds until this process is killed; 0: never. The last tenth is for its error and for undoing.
    :param lock: the name of the lock's file in /run/homelab.
    :param whose: whose lock it is, for a person.
    """

    def __init__(self, root: Path, log: Log, limit: float = 0, lock: str = "lock", whose: str = "this host") -> None:
        self.root = root
        self._lock = lock
        self._whose = whose
        self.folder = root / "run/homelab"
        self._log = log
        self.limit = limit
        self._killed = time.monotonic() + limit if limit else float("inf")
        self.ends = self._killed - limit * _END_PART - _END_SECONDS
        #: The lock's descriptor, while this run has it.
        self.lock: int | None = None
        self.client = self._at_work() if limit else ""
        self.lock_seconds = LOCK_SECONDS

    def time_for(self, seconds: float) -> float:
        """As long, but no longer than this run may take, and at least a second."""
        return max(1.0, min(seconds, self.ends - time.monotonic()))

    def time_to_look(self, seconds: float) -> float:
        """As long, or a fifth of what this run may still take by the settings: a host that is slow gives an answer."""
        return max(seconds, (self.ends - time.monotonic()) / 5) if self.limit else seconds

    def extend(self, seconds: float) -> None:
        """A run that fails has so long to put back what it has changed, but for its limit."""
        self.ends = min(time.monotonic() + seconds, self._killed - 1)

    def go_on(self, what: str = "") -> None:
        """Called wherever a run waits, and so may end.

        :param what: what it waits for.
        :raises Failure: its time is up, or the run that has started it has ended or was cancelled.
        """
        if time.monotonic() >= self.ends:
            raise Failure(
                f"this step done within {self.limit:g} s",
                f"it is still {what or 'waiting'}",
                "it ends here, so that the next run finds it ended; what it had not finished is put back",
                "see what it waits for, then run `pulumi up` again. What takes longer by nature: timeouts.step",
            )
        if self.client and self._at_work() != self.client:
            self.client = ""
            raise Failure(
                "the run at work that has started this step",
                "it has ended, or was cancelled",
                "another run may begin now, so this step ends; what it had not finished is put back",
                "run `pulumi up` again, which starts it again",
            )

    def tries(self, seconds: float, what: str = "") -> Iterator[Wait]:
        """Once, and again each second until so many have passed; a caller that has what it waits for breaks off.

        :param what: it waits for, for a person; each try may set another one.
        :raises Failure: as of `go_on`.
        """
        wait = Wait(what)
        began = told_at = time.monotonic()
        while True:
            yield wait
            now = time.monotonic()
            if now - began >= seconds:
                return
            self.go_on(wait.what)
            if now - told_at >= PROGRESS_SECONDS:
                told_at = now
                self._log.say(f"{wait.what}: {now - began:.0f} s{f', at most {seconds:.0f}' * math.isfinite(seconds)}")
            time.sleep(_TRY_SECONDS)

    @contextlib.contextmanager
    def holding(self, name: str, seconds: float, *, shared: bool = False) -> Iterator[bool]:
        """Has the lock /run/homelab/NAME meanwhile; False: another process still has it after so many seconds.

        :param shared: others may have it so, too, and nobody may have it alone.
        :raises Failure: as of `go_on`.
        """
        descriptor = self._opened(name)
        try:
            yield self._locked_within(descriptor, seconds, f"waiting for /run/homelab/{name}", shared=shared)
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def alone(self, name: str, seconds: float, wanted: str, *, shared: bool = False) -> Iterator[None]:
        """As `holding`.

        :param wanted: what is done meanwhile, for a person.
        :raises Failure: another process still has the lock; or as of `go_on`.
        """
        with self.holding(name, seconds, shared=shared) as is_alone:
            if not is_alone:
                raise _still_held(wanted, name, seconds)
            yield

    def write(self, name: str, text: str, *, at_end: bool = False) -> None:
        """Writes into /run/homelab/NAME itself, whose lock another process may have; no boot keeps it.

        :param at_end: what is there stays.
        :raises OSError: it can't be written.
        """
        path, data = self.folder / name, text.encode("utf-8", "replace")
        if at_end:
            disk.append(path, data, 0o600)
            return
        with disk.create(path, 0o600) as descriptor:
            disk.write(descriptor, data, path)

    def is_held(self) -> bool:
        """Whether a run of a client's (`pulumi up`) holds this system: it has the lock of /run/homelab/up
        (layers/run_guard.py).
        """
        return self.is_locked(UP)

    def is_locked(self, path: str) -> bool:
        """Whether a process has a file's lock (flock(2)); a file that isn't there has none.

        :raises OSError: that can't be told.
        """
        try:
            with disk.opened(self.root / path.lstrip("/"), os.O_RDONLY) as descriptor:
                # Shared: several may ask at once. A run that comes meanwhile waits for this moment.
                return not locked(descriptor, shared=True)
        except FileNotFoundError:
            return False

    def take_lock(self) -> None:
        """Makes this run the only one that changes this system.

        :raises Failure: another one has the lock still after `lock_seconds`, or as of `go_on`.
        """
        descriptor = self._opened(self._lock)
        if not self._locked_within(descriptor, self.lock_seconds, f"waiting for another run on {self._whose}"):
            os.close(descriptor)
            raise _still_held(f"to be the only one changing {self._whose}", self._lock, self.lock_seconds)
        self.lock = descriptor
        with contextlib.suppress(OSError):  # /run is full: the lock is held all the same
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, self.client.encode() + b"\n", 0)

    def release(self) -> None:
        """Gives the lock back, if this run has it; a process that ends does so by itself."""
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def _locked_within(self, descriptor: int, seconds: float, what: str, *, shared: bool = False) -> bool:
        return any(locked(descriptor, shared=shared) for _ in self.tries(seconds, what))

    def _opened(self, name: str) -> int:
        self.need_folder()
        return os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def _at_work(self) -> str:
        """The run that is noted in /run/homelab/up; empty: none."""
        try:
            return (self.folder / "up").read_text(encoding="utf-8", errors="replace").partition("\n")[0]
        except OSError:
            return ""

    def need_folder(self) -> None:
        """The folder of the lock and of logs, for root alone. Root alone may write in /run, so nobody else can hold the
        lock for ever, or lead elsewhere what is written.
        """
        self.folder.mkdir(0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)  # an earlier version's may let everybody read it


def _still_held(wanted: str, name: str, seconds: float) -> Failure:
    return Failure(
        wanted,
        f"another run still holds /run/homelab/{name} after {seconds:g} s",
        "two runs at once would write over each other",
        f"wait until it has ended (`fuser -v /run/homelab/{name}` shows it), then run the same again",
    )


def locked(descriptor: int, *, shared: bool = False) -> bool:
    """Takes the lock of an open file; False: another process has it.

    :param shared: others may have it by that, too.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
