"""VMs that start without a disk: from a kernel and an initramfs that their `args` name, as QEMU's -kernel and -initrd.

Here is what the option says, what QEMU refuses, and how the VM's process is started and ended; what happens inside is
`guest_kernel`'s. QEMU's words are those of 7.2 (hw/i386/x86.c, chardev/char-fd.c).
"""

from __future__ import annotations

import itertools
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lab.host.state import HostState
from lab.state import kill_group, process_start_time, start_quietly

from .errors import Died
from .guest_config import GuestConfig
from .guests import Guest

_PROJECT = Path(__file__).parents[2]


@dataclass(frozen=True)
class DirectBoot:
    """What `args` says of a VM's start; paths are the host's own."""

    kernel: str
    initrd: str | None
    cmdline: str
    serial: str | None
    no_reboot: bool

    @classmethod
    def of(cls, values: dict[str, str]) -> DirectBoot | None:
        """Read it from a configuration; None for a VM that starts from its disks.

        Raises:
            ApiError: 500, the option can't be taken apart into words.
        """
        try:
            words = shlex.split(values.get("args", ""))
        except ValueError as error:
            raise Died(f"unable to parse args: {error}") from error

        def value(option: str) -> str | None:
            found = [after for word, after in itertools.pairwise(words) if word in (option, f"-{option}")]
            return found[-1] if found else None

        kernel = value("-kernel")
        if kernel is None:
            return None
        serial = value("-serial")
        return cls(
            kernel,
            value("-initrd"),
            value("-append") or "",
            serial.removeprefix("file:") if serial and serial.startswith("file:") else None,
            "-no-reboot" in words or "--no-reboot" in words,
        )


def boots_directly(config: GuestConfig) -> bool:
    """Whether a VM starts so; `args` that can't be taken apart have started none."""
    try:
        return DirectBoot.of(config.values) is not None
    except Died:
        return False


def require_files(host: HostState, direct: DirectBoot, log: Callable[[str], None]) -> None:
    """Refuse a start for which QEMU would miss a file.

    Raises:
        ApiError: 500; QEMU's own words are in the task's log.
    """
    problem = _problem(host, direct)
    if problem:
        log(problem)
        raise Died("start failed: QEMU exited with code 1")


def _problem(host: HostState, direct: DirectBoot) -> str | None:
    missing = "No such file or directory"
    if not host.rooted(direct.kernel).is_file():
        return f"qemu: could not open kernel file '{direct.kernel}': {missing}"
    if direct.initrd is not None and not host.rooted(direct.initrd).is_file():
        return f"qemu: error reading initrd {direct.initrd}: Failed to open file “{direct.initrd}”: open() failed: {missing}"
    if direct.serial is not None and not host.rooted(direct.serial).parent.is_dir():
        return f"kvm: -serial file:{direct.serial}: Could not open '{direct.serial}': {missing}"
    return None


def power_on(guest: Guest) -> None:
    """Let a VM that has just been set running boot, in a process of its own, if its `args` name a kernel.

    The process outlives whoever starts it, as QEMU does, and ends when the VM or the host goes off.
    """
    direct = DirectBoot.of(guest.config().values)
    if direct is None:
        return
    if guest.has_fault("guest-boot-hangs"):
        # The console is opened, and nothing comes.
        if direct.serial:
            guest.host.rooted(direct.serial).write_bytes(b"")
        return
    start = f"import sys; sys.path.append({str(_PROJECT)!r}); from lab.api.guest_kernel import main; main(sys.argv[1:])"
    pid = start_quietly(
        [os.path.realpath(sys.executable), "-I", "-S", "-c", start, str(guest.host.state), str(guest.vmid)],
        # By LAB_STATE the process is known as this lab's, should its daemon be killed.
        {"LAB_STATE": str(guest.host.state), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
    )
    started = process_start_time(pid)
    with guest.host.changing() as machine:
        # None: it has ended already, and there is nothing to be ended any more.
        machine["guests"][str(guest.vmid)]["process"] = None if started is None else [pid, started]


def power_off(guest: Guest) -> None:
    """End the process of a VM, and all that runs in it."""
    with guest.host.changing() as machine:
        process = machine["guests"].get(str(guest.vmid), {}).pop("process", None)
    if process:
        kill_group(*process)
