"""The process of a VM that boots from a kernel and an initramfs (`direct_boot`): what QEMU's process is on a real host.

It unpacks the initramfs and runs its /init in sh, in a tree of the guest's own (`guest_system`) whose path is in
HOMELAB_SYSROOT; what /init prints comes on the serial console, as do the kernel's own words. Commands that /init uses must be
in the initramfs; `mount` is the lab's, and brings /proc and /sys of the tree into view. The VM goes off by `o` written to
/proc/sysrq-trigger, and by a panic where the command line has panic= and QEMU -no-reboot.
"""

from __future__ import annotations

import os
import selectors
import signal
import stat
import subprocess
import time
from pathlib import Path
from typing import Literal

from lab.host import archive, launchers
from lab.host.program import ask_daemon
from lab.host.state import HostState

from .direct_boot import DirectBoot
from .guest_system import directly_booted
from .guests import BOOT_SECONDS, Guest, exclusively
from .qemu_power import ended_itself

_NO_ROOT = "VFS: Unable to mount root fs on unknown-block(0,0)"
_NO_INIT = "No working init found.  Try passing init= option to kernel. See Linux Documentation/admin-guide/init.rst for guidance."
#: How it goes on after /init: off; started again; or nothing happens any more.
End = Literal["off", "reboot", "hang"]


class _Panic(Exception):
    """The kernel gives up; the text is what it says why."""


class _Console:
    """The serial line: a file of the host, or nothing where the kernel doesn't speak there.

    Args:
        path: what -serial names; None: no serial line.
        cmdline: the guest's kernel command line, whose console= decides.
    """

    def __init__(self, path: Path | None, cmdline: str) -> None:
        self._file = os.open(path or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self._heard = any(word.split(",")[0] == "console=ttyS0" for word in cmdline.split())

    def write(self, data: bytes) -> None:
        """Send what a program wrote; the terminal makes a carriage return and a line feed of each line's end."""
        if self._heard:
            os.write(self._file, data.replace(b"\n", b"\r\n"))

    def kernel(self, seconds: float, text: str) -> None:
        """Send one of the kernel's messages."""
        self.write(f"[{seconds:12.6f}] {text}\n".encode())

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


def main(arguments: list[str]) -> None:
    """Boot the VM; arguments: the lab's folder, the VM's id. Returns when the VM hangs or is off."""
    host = HostState(Path(arguments[0]))
    guest = Guest(host, "qemu", int(arguments[1]))
    with exclusively(host):  # whoever started this has now written that it runs
        start = guest.started_at
        direct = DirectBoot.of(guest.config().values)
    if direct is None:
        return
    console = _Console(host.rooted(direct.serial) if direct.serial else None, direct.cmdline)
    end = _boot(guest, direct, console)
    if end == "hang" or (end == "reboot" and not direct.no_reboot):
        # A reboot without -no-reboot would lead here again and again: once is enough.
        signal.pause()
    with exclusively(host):
        if guest.running and guest.started_at == start:
            ended_itself(guest)
    try:
        ask_daemon(host, "guests")
    finally:
        console.close()
        os.killpg(0, signal.SIGKILL)  # the machine is off, and all that ran in it ends


def _boot(guest: Guest, direct: DirectBoot, console: _Console) -> End:
    kernel = direct.kernel.rpartition("/")[2].removeprefix("vmlinuz-")
    with exclusively(guest.host):
        system = directly_booted(guest, kernel, direct.cmdline)
    console.kernel(0, system.read("/proc/version").strip())
    console.kernel(0, f"Command line: {direct.cmdline}")
    time.sleep(BOOT_SECONDS)
    image = guest.host.rooted(direct.initrd).read_bytes() if direct.initrd else b""
    try:
        return _run_init(system, _unpacked(system, image, console), console)
    except _Panic as panic:
        console.kernel(BOOT_SECONDS, f"Kernel panic - not syncing: {panic}")
    seconds = next((w.partition("=")[2] for w in direct.cmdline.split() if w.startswith("panic=")), "0")
    return "hang" if seconds == "0" else "reboot"


def _unpacked(system: HostState, image: bytes, console: _Console) -> Path:
    """The initramfs as a folder, with an /init that a kernel can start.

    Raises:
        _Panic: there is none.
    """
    try:
        members = archive.unpack(image)
    except archive.ArchiveError:
        if image:
            console.kernel(0.1, "Initramfs unpacking failed: invalid magic at start of compressed archive")
        raise _Panic(_NO_ROOT) from None
    if "init" not in members:
        raise _Panic(_NO_ROOT)
    init = members["init"]
    interpreter = init.data.split(b"\n", 1)[0].decode(errors="replace").removeprefix("#!").strip().split(" ")[0]
    if not init.mode & 0o111 or not stat.S_ISREG(init.mode):
        console.kernel(BOOT_SECONDS, "Failed to execute /init (error -13)")
        raise _Panic(_NO_INIT)
    if not init.data.startswith(b"#!") or interpreter.lstrip("/") not in members:
        # The lab's initramfs has a script; a program in its place can't be told to stay in the guest's tree.
        console.kernel(BOOT_SECONDS, f"Failed to execute /init (error -{2 if init.data.startswith(b'#!') else 8})")
        raise _Panic(_NO_INIT)
    folder = system.state / "initramfs"
    archive.extract(members, folder)
    return folder


def _run_init(system: HostState, folder: Path, console: _Console) -> End:
    console.kernel(BOOT_SECONDS, "Run /init as init process")
    init = folder / "init"
    if b"HOMELAB_SYSROOT" not in init.read_bytes():
        console.write(
            b"lab: /init doesn't know HOMELAB_SYSROOT: it would act on the machine that the lab runs on. Not run.\n"
        )
        return "hang"
    trigger = system.root / "proc/sysrq-trigger"
    os.mkfifo(trigger)
    keys = os.open(trigger, os.O_RDWR | os.O_NONBLOCK)
    _take_out_of_view(system)
    child = subprocess.Popen(
        ["/bin/sh", str(init)],
        env=_environment(system, folder),
        cwd=system.root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert child.stdout is not None
    end = _serve(child, child.stdout.fileno(), keys, console)
    if end is None:
        raise _Panic(f"Attempted to kill init! exitcode=0x{(child.wait() & 0xFF) << 8:08x}")
    return end


def _take_out_of_view(system: HostState) -> None:
    """/proc and /sys are empty until something mounts them."""
    away = system.state / "unmounted"
    away.mkdir()
    for name, fstype in (("proc", "proc"), ("sys", "sysfs")):
        (system.root / name).rename(away / fstype)
        (system.root / name).mkdir()


def _environment(system: HostState, folder: Path) -> dict[str, str]:
    programs = system.state / "init-bin"
    launchers.write(programs, ("mount",) if _has(folder, "mount") else ())
    inside = ":".join(str(folder / name) for name in ("sbin", "usr/sbin", "bin", "usr/bin"))
    return {
        "HOMELAB_SYSROOT": str(system.root),
        "LAB_STATE": str(system.state),
        "PATH": f"{programs}:{inside}",
        "HOME": "/",
        "TERM": "linux",
    }


def _has(folder: Path, program: str) -> bool:
    return any(os.path.lexists(folder / name / program) for name in ("sbin", "usr/sbin", "bin", "usr/bin"))


def _serve(child: subprocess.Popen[bytes], output: int, keys: int, console: _Console) -> End | None:
    """Pass on what /init prints until the machine goes off, or /init ends (None)."""
    ended = os.pidfd_open(child.pid)
    with selectors.DefaultSelector() as selector:
        for descriptor in (output, keys, ended):
            selector.register(descriptor, selectors.EVENT_READ)
        while True:
            ready = {key.fd for key, _ in selector.select()}
            if output in ready:
                data = os.read(output, 65536)
                console.write(data)
                if data:
                    continue  # all that was said before the machine goes off is heard
                selector.unregister(output)
            if keys in ready:
                pressed = os.read(keys, 64).decode(errors="replace").strip()
                if pressed[:1] in ("o", "b"):
                    child.kill()
                    console.kernel(BOOT_SECONDS, "reboot: Power down" if pressed[0] == "o" else "sysrq: Resetting")
                    return "off" if pressed[0] == "o" else "reboot"
            if ended in ready:
                return None
