"""What a host does by itself where no run does: a timer of systemd's, its service, and the program that it runs
(boot_service.py). They take themselves away when it is done.
"""

from __future__ import annotations

from dataclasses import dataclass

from remote_scripts.shared import boot_service
from remote_scripts.shared.boot_service import UNITS
from remote_scripts.tools.system import System

_SYSTEMCTL_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class OwnTimer:
    """`name`: of the units; `program`: its path; `layer`: whose `program` it runs."""

    name: str
    program: str
    layer: str

    @property
    def _service(self) -> str:
        return f"{UNITS}/{self.name}.service"

    @property
    def _timer(self) -> str:
        return f"{UNITS}/{self.name}.timer"

    @property
    def _link(self) -> str:
        return f"{UNITS}/timers.target.wants/{self.name}.timer"

    def write(self, system: System, service: str, timer: str) -> None:
        """Writes all of it, enabled as `systemctl enable` does it, and starts nothing.

        :param service: the service's text, but for what it starts; its last section is [Service].
        :param timer: the timer's text, but for its [Install].
        """
        files = system.files
        # It ignores SIGTERM, and its next start goes on from wherever it is killed; that it was is no failure.
        start = f"ExecStart={boot_service.PYTHON} {self.program}\nKillSignal=SIGKILL\nSuccessExitStatus=SIGKILL\n"
        files.need_folder(self.program.rpartition("/")[0])
        files.make_folder(self._link.rpartition("/")[0])
        files.write(self.program, boot_service.program(self.layer), 0o700)
        files.write(self._service, (service + start).encode(), 0o644)
        files.write(self._timer, f"{timer}\n[Install]\nWantedBy=timers.target\n".encode(), 0o644)
        files.write_link(self._timer, self._link)

    def restart(self, system: System) -> str | None:
        """Starts the timer, so that it counts from now on. One of an earlier time that waits for the lock, or for its
        next try, would come in between: it is stopped.

        :returns: None, or the last words of what has failed.
        """
        for words in (("daemon-reload",), ("stop", f"{self.name}.service"), ("restart", f"{self.name}.timer")):
            done = system.run.do("systemctl", *words, seconds=_SYSTEMCTL_SECONDS)
            if done.status != 0:
                return done.text or f"systemctl {' '.join(words)} ended with {done.status}"
        return None

    def is_whole(self, system: System) -> bool:
        """Whether it would run."""
        return all(system.files.exists(path) for path in (self._link, self._timer, self.program))

    def remove(self, system: System, *, itself: bool) -> None:
        """Takes all of it away.

        :param itself: it is at work now, and goes on to its end.
        """
        files = system.files
        if not any(files.exists(path) for path in (self._link, self._timer, self._service, self.program)):
            return
        if files.exists(self._timer):
            self._stop(system, f"{self.name}.timer")
        if not itself:  # a try that failed waits for the next one
            self._stop(system, "--no-block", f"{self.name}.service")
        boot_service.remove(system, self.name, self._link, self._timer, self._service, self.program)

    def _stop(self, system: System, *words: str) -> None:
        done = system.run.do("systemctl", "stop", *words, seconds=_SYSTEMCTL_SECONDS)
        if done.status != 0:
            system.log.say(f"{words[-1]} could not be stopped: {done.text}")
