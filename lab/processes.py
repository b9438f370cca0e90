"""The processes that run on the simulated host: started, waited for, and killed with all they started.

The daemon is a child subreaper (prctl(2)): whatever a script leaves behind, also with setsid or nohup, stays
its descendant, and so ends when the host goes down, as on a real one.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from lab.host.command_server import MARK
from lab.state import LabError, process_start_time

T = TypeVar("T")

_PR_SET_CHILD_SUBREAPER = 36  # include/uapi/linux/prctl.h
KILL_SECONDS = 300.0  # how long one that was sent SIGKILL may take to be gone, on a busy machine
TERMINATE_SECONDS = 2.0  # how long processes may take to end at SIGTERM before SIGKILL; systemd gives 90


class Processes:
    """The host's processes, as children of the daemon. To be used in its event loop only."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Become subreaper and watch for ended children."""
        self._loop = loop
        self._ended: dict[subprocess.Popen[bytes], asyncio.Future[int]] = {}
        self._foreign_children = 0
        #: Children that aren't the host's, nor a guest's, and stay when it goes down: what runs below them does end.
        self.spared: set[int] = set()
        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
        loop.add_signal_handler(signal.SIGCHLD, self._reap)

    def start(
        self,
        arguments: list[str],
        environment: dict[str, str],
        folder: Path,
        stdin: int,
        stdout: int,
        stderr: int,
    ) -> tuple[subprocess.Popen[bytes], asyncio.Future[int]]:
        """Start a process in a session of its own, as sshd does without a terminal (setsid).

        Returns:
            The process, and a future of its exit status as subprocess has it (negative: the signal).
        """
        process = subprocess.Popen(
            arguments,
            env=environment,
            cwd=folder,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        ended: asyncio.Future[int] = self._loop.create_future()
        self._ended[process] = ended
        return process, ended

    async def with_children_of_its_own(self, work: Callable[[], T]) -> T:
        """Run work in a thread that starts and waits for children itself: none is reaped here meanwhile."""
        self._foreign_children += 1
        try:
            return await asyncio.to_thread(work)
        finally:
            self._foreign_children -= 1
            self._reap()

    def _reap(self) -> None:
        for process in list(self._ended):
            status = process.poll()
            if status is not None:
                self._ended.pop(process).set_result(status)
        while not self._foreign_children and self._reap_orphan():
            pass

    def _reap_orphan(self) -> bool:
        """Reap one process that was left to the daemon by one that ended; return whether there was one."""
        try:
            peek = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        if peek is None or any(process.pid == peek.si_pid for process in self._ended):
            return False
        os.waitpid(peek.si_pid, os.WNOHANG)
        return True

    async def kill_all(self) -> None:
        """End every process of the host, its guests' too: SIGTERM, and SIGKILL for those that stay."""
        found = lambda: {(pid, started) for pid, started in descendants(os.getpid()) if pid not in self.spared}  # noqa: E731
        await self._kill(found, (signal.SIGTERM, signal.SIGKILL))

    async def kill_system(self, state: Path, *, at_once: bool) -> None:
        """End every process of one guest.

        Args:
            state: the guest's own LAB_STATE.
            at_once: SIGKILL, as to a machine whose power is cut; otherwise SIGTERM first.
        """
        signals = (signal.SIGKILL,) if at_once else (signal.SIGTERM, signal.SIGKILL)
        await self._kill(lambda: of_system(state), signals)

    async def _kill(self, find: Callable[[], set[tuple[int, int]]], signals: Iterable[signal.Signals]) -> None:
        known: set[tuple[int, int]] = set()
        for number in signals:
            deadline = time.monotonic() + TERMINATE_SECONDS
            signalled: set[tuple[int, int]] = set()
            # Also those that aren't found any more, since who made them the host's has ended before them.
            while (alive := find() | _alive(known)) and time.monotonic() < deadline:
                send_signal(alive - signalled, number)
                signalled |= alive
                known |= alive
                await asyncio.sleep(0.01)  # SIGCHLD doesn't come for grandchildren
                self._reap()
            if not alive:
                return


def send_signal(processes: Iterable[tuple[int, int]], number: signal.Signals) -> None:
    """Send a signal to processes, given as (pid, start time); one that has ended meanwhile is left out."""
    for pid, started in processes:
        if process_start_time(pid) == started:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue  # ended between the look and the signal, which is what was wanted


def _alive(processes: Iterable[tuple[int, int]]) -> set[tuple[int, int]]:
    return {(pid, started) for pid, started in processes if process_start_time(pid) == started}


def _all_processes() -> dict[int, tuple[int, int]]:
    """Return pid -> (parent, start time) of every process that isn't a zombie.

    A command that runs in a command server counts as a child of the process that asked for it, which its name tells.
    """
    found = {}
    for pid in os.listdir("/proc"):  # noqa: PTH208  # a hundred times a second, of hundreds of processes
        if not pid.isdigit():
            continue
        try:
            with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:  # noqa: PTH123
                stat = file.read(4096).decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended while we looked
        name, _, rest = stat.partition("(")[2].rpartition(")")
        fields, asked = rest.split(), name.removeprefix(MARK)
        if fields[0] not in "ZX":
            parent = int(asked) if asked != name and asked.isdigit() else int(fields[1])
            found[int(pid)] = (parent, int(fields[19]))
    return found


def descendants(pid: int) -> set[tuple[int, int]]:
    """Return (pid, start time) of the living children of a process, their children, and so on."""
    return _below(pid, _all_processes())


def _below(pid: int, processes: dict[int, tuple[int, int]]) -> set[tuple[int, int]]:
    children: dict[int, list[int]] = {}
    for child, (parent, _) in processes.items():
        children.setdefault(parent, []).append(child)
    found: set[int] = set()
    pending = [pid]
    while pending:
        new = [child for child in children.get(pending.pop(), []) if child not in found]
        found.update(new)
        pending.extend(new)
    return {(child, processes[child][1]) for child in found}


def of_system(state: Path) -> set[tuple[int, int]]:
    """Return the daemon's descendants that belong to one guest, and theirs.

    A guest's processes have its folder as LAB_STATE in their environment, or, when they cleared that, work in its tree.

    Args:
        state: the guest's own LAB_STATE.
    """
    mark, processes = f"\0LAB_STATE={state}\0".encode(), _all_processes()
    found: set[tuple[int, int]] = set()
    for pid, started in _below(os.getpid(), processes):
        if mark in _environment(pid) or _folder(pid).is_relative_to(state / "root"):
            found |= {(pid, started)} | _below(pid, processes)
    return found


def _environment(pid: int) -> bytes:
    """A process's environment, each variable between zero bytes; nothing when it has ended, or is another user's, and so not ours."""
    try:
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:  # noqa: PTH123  # as above
            return b"\0" + file.readall()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def _folder(pid: int) -> Path:
    """The folder in which a process works; / when it has ended, or is another user's."""
    try:
        return Path(f"/proc/{pid}/cwd").readlink()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return Path("/")


def _left_behind(state: Path) -> set[tuple[int, int]]:
    """Return the processes that a killed daemon left: those with LAB_STATE of its host, or of a guest, in their environment."""
    host, guests = f"\0LAB_STATE={state}\0".encode(), f"\0LAB_STATE={state}/guests/".encode()
    found = set()
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):  # noqa: PTH208
        environment = _environment(pid)
        if (
            (host in environment or guests in environment)
            and pid != os.getpid()
            and (started := process_start_time(pid))
        ):
            found.add((pid, started))
    return found


def end_left_behind(state: Path) -> None:
    """Kill what a killed daemon left, and wait until it is gone: nobody must go on in a system that is started anew.

    Raises:
        LabError: something is still there after `KILL_SECONDS`.
    """
    deadline = time.monotonic() + KILL_SECONDS
    while found := _left_behind(state):
        send_signal(found, signal.SIGKILL)
        while any(process_start_time(pid) == started for pid, started in found):
            if time.monotonic() > deadline:
                raise LabError(
                    f"Unable to start or stop the lab in {state}: wanted the processes that a killed one left to end, "
                    f"found {sorted(pid for pid, _ in found)} alive {KILL_SECONDS:g} s after SIGKILL."
                )
            time.sleep(0.005)  # they are nobody's children here: nothing tells of their end
