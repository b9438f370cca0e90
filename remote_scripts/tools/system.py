"""The system that a layer works on: its files, its programs, its lock and its log."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import Files, Planned
from remote_scripts.tools.log import Log
from remote_scripts.tools.run import Run, Stand
from remote_scripts.tools.state import LOCK_SECONDS, WRITING, Work

T = TypeVar("T")
W = TypeVar("W")
#: A run that fails may take so long to put back what it has changed, in seconds.
_UNDO_SECONDS = 600.0


class System:
    """One run on one system.

    :param root: before every path; `/` but in tests and on simulated hosts.
    :param limit: seconds until the run is killed; 0: never.
    :param proxy: for downloads; programs have it in their environment, and its password is in no log.
    :param programs: in a test, what is called in the place of programs.
    """

    def __init__(
        self, root: Path, *, limit: float = 0, proxy: str = "", programs: Mapping[str, Stand] | None = None
    ) -> None:
        self.root = root
        self.proxy = proxy
        self.log = Log(root, proxy)
        self.work = Work(root, self.log, limit)
        self.run = Run(self.log, self.work, programs)
        self._tell_proxy()
        self.files = Files(root, self.log, self.run)
        #: What a layer has set besides files, and puts back with them where the run fails.
        self.also_put_back: Callable[[], object] | None = None
        #: Whether it is a container of this host, whose kernel and cards are the host's.
        self.is_container = False

    def _tell_proxy(self) -> None:
        if self.proxy:
            self.run.environment |= {"http_proxy": self.proxy, "https_proxy": self.proxy}

    def changing(self, change: Callable[[], T]) -> T:
        """Runs `change` under the lock. After an error of any kind everything that it changed is put back, and the
        error goes on.
        """
        self.work.take_lock()
        try:
            self.files.need_folder("/run/homelab")  # of the lock; in a container it isn't there yet
            with self.work.holding(WRITING, LOCK_SECONDS):
                self.files.clear_leftovers()
            result = change()
            self.files.finish()
        except BaseException:
            self.work.extend(_UNDO_SECONDS)
            try:
                if self.also_put_back:
                    self.also_put_back()
            finally:
                self.files.undo()
            raise
        finally:
            self.work.release()
        return result

    def planning(self, change: Callable[[], None]) -> Planned:
        """What `change` would write."""
        self.files.planning = True
        change()
        return self.files.plan()

    def failure_of(self, error: Exception) -> Failure:
        """An error as a person reads it: one that isn't expected, too, whose place goes into the log."""
        if isinstance(error, Failure):
            return error
        self.log.say("".join(traceback.format_exception(error)).rstrip())
        place = traceback.extract_tb(error.__traceback__)[-1]
        message = (
            f"{error.strerror}: {error.filename}" if isinstance(error, OSError) and error.strerror else repr(error)
        )
        return Failure(
            "every step of this layer to succeed",
            f"{message} at {Path(place.filename).stem}:{place.lineno} ({place.name})",
            f"going on would leave the host half configured; {self.files.outcome}",
            "see the log above, mend it, and run `pulumi up` again",
        )


def changes(verb: Callable[[System, W], T]) -> Callable[[System, W], T]:
    """A verb of a layer that changes something: as of `System.changing`."""

    @functools.wraps(verb)
    def whole(system: System, wanted: W) -> T:
        return system.changing(lambda: verb(system, wanted))

    return whole


def plans(verb: Callable[[System, W], None]) -> Callable[[System, W], Planned]:
    """The verb `plan` of a layer: what its work would write, as of `System.planning`."""

    @functools.wraps(verb)
    def whole(system: System, wanted: W) -> Planned:
        return system.planning(lambda: verb(system, wanted))

    return whole
