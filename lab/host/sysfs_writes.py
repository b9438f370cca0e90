"""What is written into control files of the PCI bus, on a host that boots and on one that runs.

A control file here is a file with the sticky bit, by which a shell knows it. In the initramfs stage the boot looks after each command
(boot.py). On a running host bash itself asks for it: BASH_ENV leads to `SHELL_TEXT`, in which `echo` and `printf` do what they do, and
then, if their output was a control file, have the kernel act, wait until it has, and fail as write(2) would.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from .kernel import RunningKernel
from .program import Failure
from .state import HostState

#: The name of the program, and what each bash of the host reads.
PROGRAM = "lab-sysfs-write"
SHELL_TEXT = f"""\
# Of a lab (lab/host/sysfs_writes.py): what is written into sysfs acts before the writing command has returned.
echo() {{ builtin echo "$@" || return; [[ ! -k /dev/fd/1 ]] || lab_sysfs_write echo; }}
printf() {{ builtin printf "$@" || return; [[ ! -k /dev/fd/1 ]] || lab_sysfs_write printf; }}
lab_sysfs_write() {{
  local refused process=$BASHPID
  if refused=$("$LAB_STATE/bin/{PROGRAM}" "/proc/$process/fd/1" 2>&1 </dev/null); then return 0; fi
  builtin echo "${{BASH_SOURCE[2]:-bash}}: line ${{BASH_LINENO[1]:-0}}: $1: write error: $refused" >&2
  return 1
}}
"""
_LOOK_SECONDS = 0.05


def taken(kernel: RunningKernel, only: str | None = None) -> list[tuple[str, str]]:
    """The writes that nobody has acted on yet: file below /sys/bus/pci, and value. The files are empty then.

    Args:
        only: the one file that is looked at; others may be somebody else's.
    """
    bus, found = kernel.host.root / "sys/bus/pci", []
    files = [
        *(f"drivers/{d}/{v}" for d in list(kernel.drivers) for v in ("unbind", "new_id", "remove_id", "bind")),
        *(f"devices/{address}/reset" for address in kernel.devices),
        "drivers_probe",
    ]  # reset_method always has a content, and is looked at for whoever has written it
    for name in files if only is None else [only]:
        path = bus / name
        if not path.exists() or path.stat().st_size == 0:
            continue
        values = path.read_text(encoding="utf-8").split("\n")
        path.write_bytes(b"")
        found += [(name, value) for value in values if value]
    return found


def note_refusal(host: HostState, name: str, value: str, code: int) -> None:
    """Log a write that the kernel refused."""
    host.log_program("sysfs-write", [f"/sys/bus/pci/{name}", value], 1, f"refused: {errno.errorcode[code]}")


def main(host: HostState, name: str, arguments: list[str]) -> int:
    """The program that the shell's functions call: acts on what was written, and waits as long as the write would."""
    # Whoever writes into sysfs waits in the kernel: no signal but the last one ends that here.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    boot = host.running.get("boot_id")
    with _kernel(host, boot) as kernel:
        writes = taken(kernel, _name(str(Path(arguments[0]).readlink())) if arguments else None)
    refused = 0
    for file, value in writes:
        if code := _write(host, boot, file, value):
            note_refusal(host, file, value, code)
            refused = code
    host.drain_kmsg()
    if refused:
        raise Failure(os.strerror(refused))
    return 0


def _name(path: str) -> str:
    """The name below /sys/bus/pci of a control file that a process has open."""
    parts = path.split("/")
    if parts[-1] == "drivers_probe":
        return parts[-1]
    return "/".join(["devices" if parts[-1] in ("reset", "reset_method") else "drivers", *parts[-2:]])


def _write(host: HostState, boot: object, file: str, value: str) -> int:
    """One write, as long as it takes: a device whose driver doesn't let go of it keeps all who come after it waiting.

    Returns:
        0, or the errno with which the kernel refuses it.
    """
    address = value.strip()
    while True:
        seen = _look(host)
        with _kernel(host, boot) as kernel:
            if not kernel.is_held_up(file, address):
                if not kernel.begins_to_wait(file, address):
                    return kernel.write(file, value)
                break
        _wait(host, seen)
    while True:
        seen = _look(host)
        with _kernel(host, boot) as kernel:
            # A host that goes down takes along who waits, whenever on that way its containers let go of the card.
            if not kernel.data.get("stopping") and kernel.end_waiting(address):
                return 0
        _wait(host, seen)


def _look(host: HostState) -> list[tuple[int, int]]:
    """What is read from here on is read anew; returns by what `_wait` knows it again."""
    host.reload()
    return _signs(host)


def _wait(host: HostState, seen: list[tuple[int, int]]) -> None:
    """Until what decides how long the kernel waits has changed since `_look`, or the host is off or gone."""
    while True:
        time.sleep(_LOOK_SECONDS)
        if _signs(host) != seen:
            return


def _signs(host: HostState) -> list[tuple[int, int]]:
    """The files that say who holds which card, without what is in them: some waits last as long as the host."""
    signs = []
    for name in ("machine.json", "kernel.json"):
        try:
            about = (host.state / name).stat()
        except FileNotFoundError:
            return []
        signs.append((about.st_ino, about.st_mtime_ns))
    return signs


@contextlib.contextmanager
def _kernel(host: HostState, boot: object) -> Iterator[RunningKernel]:
    """The running kernel, to be changed.

    Raises:
        Failure: it isn't the one of the boot that is meant: the host went down, or was removed, and the waiting process with it.
    """
    if not host.root.is_dir():
        raise Failure(os.strerror(errno.EINTR))
    with host.changing_running() as running:
        if not running or running.get("boot_id") != boot:
            raise Failure(os.strerror(errno.EINTR))
        with RunningKernel.changing(host) as kernel:
            yield kernel
