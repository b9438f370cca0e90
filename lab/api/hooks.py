"""Guests' hookscripts: a script of a storage's snippets that a node runs at a guest's start and end.

As PVE::GuestHelpers and qemu-server have it (facts 1, 11-26 of ../shared/facts/handover.md, named where they count): `FILE VMID PHASE` as root, without
a time limit, its output in the task's log. Only pre-start's exit status counts. A VM's lock is held in every phase (fact 23), so
that `qm` on the same VM is refused meanwhile; `pct`, and `qm` on others, work: nothing of this lab is held while a script runs.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lab.host.pve_packages import pve_packages
from lab.host.state import HostState, host_environment
from lab.host.versions import holds
from lab.state import start_quietly

from .errors import ApiError, Died
from .guests import Guest, exclusively, hold_config
from .storage import Storages
from .tasks import Work

#: From this version of qemu-server on, whoever stops a VM runs its post-stop; before it, `qm cleanup` does (facts 12, 14).
_BY_THE_STOP_SINCE = "9.1.13"
_LOOK_SECONDS = 0.02
_FAILED_TO_EXECUTE, _BY_SIGNAL = 126, 128


def require(host: HostState, volume: str, *, content: bool = False) -> Path:
    """The script that a hookscript option names (PVE::GuestHelpers::check_hookscript; fact 18).

    Args:
        content: whether the storage must have snippets among its content types, as when the option is set.

    Raises:
        ApiError: 500, it isn't among a storage's snippets, isn't there, or can't be executed.
    """
    name, _, rest = volume.partition(":")
    if not rest.startswith("snippets/"):
        raise Died(f"'{volume}' is not in the snippets directory")
    storages = Storages(host)
    storage = storages.get(name)
    if content and "snippets" not in storage.content:
        raise Died(f"storage '{name}' does not support content-type 'snippets'")
    if not storages.has_file(volume):
        raise Died(f"script '{volume}' does not exist")
    path = host.rooted(f"{storage.settings['path']}/{rest}")
    if not os.access(path, os.X_OK):
        raise Died(f"script '{volume}' is not executable")
    return path


def run(guest: Guest, values: dict[str, str], phase: str, log: Callable[[str], None]) -> Work:
    """Run a guest's hookscript for a phase, if it has one.

    Args:
        values: the configuration with which the start or stop began; what the script changes is for the next one.
        phase: pre-start, post-start, pre-stop or post-stop.

    Raises:
        ApiError: pre-start failed (facts 22, 24); what is wrong in other phases is in the log, and nothing else.
    """
    if "hookscript" not in values:
        return
    try:
        path = require(guest.host, values["hookscript"])
        yield from _execute(guest, path, phase, log)
    except ApiError as error:
        # Perl's newline, and one more of whoever calls.
        text = f"hookscript error for {guest.vmid} on {phase}: {error.text}\n"
        if phase == "pre-start":
            raise Died(text) from error
        log(text.rstrip("\n"))


def _execute(guest: Guest, path: Path, phase: str, log: Callable[[str], None]) -> Work:
    shown = f"command '{guest.host.unrooted(path)} {guest.vmid} {phase}' failed"
    with tempfile.TemporaryDirectory(prefix="hook-", dir=guest.host.state) as folder:
        output, status = Path(folder, "output"), Path(folder, "status")
        with output.open("wb") as said:
            # The daemon may be told of this process's end before this is: its status comes in a file.
            process = subprocess.Popen(
                ["/bin/sh", "-c", 'file=$1; shift; "$@"; echo "$?" >"$file"', "sh", status, *_started(path), str(guest.vmid), phase],
                env=host_environment(guest.host.state), cwd=guest.host.root, stdin=subprocess.DEVNULL, stdout=said,
                stderr=said, start_new_session=True,
            )  # fmt: skip
        heard = 0
        ended = False
        while not ended:
            ended = process.poll() is not None  # before the last look at what it said
            heard += _pass_on(output, heard, log, whole=ended)
            if not ended:
                yield _LOOK_SECONDS
        code = int(status.read_text() or _BY_SIGNAL + 9) if status.exists() else _BY_SIGNAL + 9
    if code > _BY_SIGNAL:
        raise Died(f"{shown}: got signal {code - _BY_SIGNAL}")
    if code == _FAILED_TO_EXECUTE:
        raise Died(f"{shown}: failed to execute")
    if code:
        raise Died(f"{shown}: exit code {code}")


def _started(path: Path) -> list[str]:
    """How a script is started: of one in sh, what stands for the host's programs by their paths is bash's functions."""
    is_sh = path.read_bytes().startswith(b"#!/bin/sh\n") and os.access(path, os.X_OK)
    return ["bash", str(path)] if is_sh else [str(path)]


def _pass_on(output: Path, heard: int, log: Callable[[str], None], *, whole: bool) -> int:
    """Log what a script has said since; returns how many bytes. A line that isn't whole yet waits, unless it is the last."""
    with output.open("rb") as file:
        file.seek(heard)
        data = file.read()
    data = data if whole else data[: data.rfind(b"\n") + 1]
    for line in data.decode(errors="replace").splitlines():
        log(line)
    return len(data)


@contextlib.contextmanager
def locked(guest: Guest, values: dict[str, str]) -> Iterator[None]:
    """Hold the guest's lock over all phases of a start or a stop, as a node does (fact 23).

    Only where there is a script to meet it: nobody else finds a guest half-way here, and requests needn't wait for nothing.

    Raises:
        ApiError: 500, somebody holds it.
    """
    if "hookscript" not in values:
        yield
        return
    with hold_config(guest):
        yield


# -- after a VM's end --------------------------------------------------------------------------------------------
def of_the_stop(host: HostState) -> bool:
    """Whether post-stop belongs to the stop, under the VM's lock and in its task's log, as from qemu-server 9.1.13 on (facts 12-14)."""
    return holds(pve_packages(host).get("qemu-server", "0"), ">=", _BY_THE_STOP_SINCE)


def begin_cleanup(guest: Guest, values: dict[str, str]) -> None:
    """Start `qm cleanup`, as qmeventd does when QEMU is gone: it runs post-stop, and its output goes nowhere near a task."""
    if "hookscript" not in values:
        return
    state = guest.host.state
    start_quietly([f"{state}/bin/qm", "cleanup", str(guest.vmid), "1", "1"], host_environment(state))


def cleanup(guest: Guest, log: Callable[[str], None], seconds: float = 60.0) -> Work:
    """What `qm cleanup` does for a hookscript: post-stop under the VM's lock, for which it waits 60 s and no longer (fact 12)."""
    values = guest.config().values
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(guest, values))
            except ApiError:
                if time.monotonic() > deadline:
                    raise
            else:
                if not guest.running:
                    yield from run(guest, values, "post-stop", log)
                return
        yield _LOOK_SECONDS


def reboot_request(guest: Guest) -> Path:
    """The file that is there from `qm reboot` until the VM's next start, by which a script can keep what it would give back (fact 15)."""
    return guest.host.rooted(f"/run/qemu-server/{guest.vmid}.reboot")


def drive(host: HostState, work: Work, tell: Callable[[], object] = lambda: None) -> None:
    """Do a task's work to its end, waiting where it waits; others go on in between, and `tell` is called."""
    drive_all([(host, work)], tell)


def drive_all(works: list[tuple[HostState, Work]], tell: Callable[[], object] = lambda: None) -> None:
    """Do the works of several tasks side by side until the list is empty. One that a work adds meanwhile is done, too."""
    due: dict[int, float] = {}
    while works:
        host, work = min(works, key=lambda entry: due.get(id(entry[1]), 0.0))
        time.sleep(max(0.0, due.get(id(work), 0.0) - time.monotonic()))
        with exclusively(host):
            seconds = next(work, None)
        tell()
        if seconds is None:
            works.remove((host, work))
        else:
            due[id(work)] = time.monotonic() + seconds
