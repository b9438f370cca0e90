"""What runs inside a VM: a small system of its own, in which the guest agent carries commands out.

A guest's tree lies in STATE/guests/ID/root and is made when its agent is first asked after a start: the devices that the
VM was given and its own virtual ones in /sys, its name, its system's name. Commands run as those of the host do, in
bash's environment with ROOT, LAB_STATE and a PATH that begins with the simulated lspci, uname and dmesg, and so see the
guest's hardware, not the host's.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import sys
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lab.host import run as host_run
from lab.host import sysfs
from lab.host.devices import PciDevice, load_devices
from lab.host.state import HostState
from lab.processes import Processes

from .guest_config import GuestConfig
from .guests import Guest
from .passthrough import hostpci_options, reservations

_KERNEL = "6.12.48-amd64"
_PROGRAMS = ("lspci", "uname", "dmesg", "hostname")
_OUTPUT_MAX = 1 << 20
# Where QEMU puts devices: behind a root port each on q35, on the one bus of i440fx.
_FIRST_I440FX_SLOT = 0x10


@dataclass
class _Command:
    """A command in a guest: its output so far, its exit status once it has ended."""

    vmid: int
    started: float
    exit: int | None = None
    output: list[bytes] = field(default_factory=list)
    errors: list[bytes] = field(default_factory=list)


class GuestSystems:
    """The systems inside a host's VMs.

    Args:
        processes: what runs on the host; the guests' commands end with it.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._commands: dict[int, _Command] = {}
        self._waiting: set[asyncio.Task[None]] = set()

    def forget(self) -> None:
        """The host went down, and all guests with it."""
        self._commands.clear()

    def start(self, guest: Guest, command: list[str], stdin: str) -> int:
        """Start a command in a guest and return its process id."""
        system = _prepared(guest)
        read_in, write_in = os.pipe()
        with os.fdopen(write_in, "wb") as feed:
            # agent/exec takes 64 KiB at most, which is what a pipe holds.
            feed.write(stdin.encode()[:65536])
        out, errors = os.pipe(), os.pipe()
        try:
            process, ended = self._processes.start(
                _command_line(command), _environment(system), system.root, read_in, out[1], errors[1]
            )
        finally:
            for descriptor in (read_in, out[1], errors[1]):
                os.close(descriptor)
        found = self._commands[process.pid] = _Command(guest.vmid, guest.uptime)
        for descriptor, parts in ((out[0], found.output), (errors[0], found.errors)):
            self._collect(descriptor, parts)
        task = asyncio.get_running_loop().create_task(self._wait(found, ended))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)
        return process.pid

    @staticmethod
    async def _wait(command: _Command, ended: asyncio.Future[int]) -> None:
        command.exit = await ended

    @staticmethod
    def _collect(descriptor: int, parts: list[bytes]) -> None:
        """Take a pipe's content as it comes, up to what the agent gives back."""
        loop = asyncio.get_running_loop()
        os.set_blocking(descriptor, False)

        def read() -> None:
            data = os.read(descriptor, 65536)
            if not data:
                loop.remove_reader(descriptor)
                os.close(descriptor)
            elif sum(map(len, parts)) < _OUTPUT_MAX:
                parts.append(data)

        loop.add_reader(descriptor, read)

    def status(self, guest: Guest, pid: int) -> dict[str, Any] | None:
        """Whether a command has ended, and with what output; None when the guest has no such process."""
        command = self._commands.get(pid)
        if command is None or command.vmid != guest.vmid:
            return None
        if command.exit is None:
            return {"exited": 0}
        found: dict[str, Any] = {"exited": 1}
        found |= {"exitcode": command.exit} if command.exit >= 0 else {"signal": -command.exit}
        for name, parts in (("out-data", command.output), ("err-data", command.errors)):
            if parts:
                found[name] = b"".join(parts).decode("utf-8", "replace")
        return found


def _command_line(command: list[str]) -> list[str]:
    """The command, found on the guest's PATH, whatever path it was named by."""
    return ["/usr/bin/env", "--", command[0], *command[1:]]


def _environment(system: HostState) -> dict[str, str]:
    return {
        "ROOT": str(system.root),
        "LAB_STATE": str(system.state),
        "HOME": str(system.root / "root"),
        "PATH": f"{system.state}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "USER": "root",
        "LOGNAME": "root",
    }


def _prepared(guest: Guest) -> HostState:
    """The guest's system, made anew when it isn't that of this start with these devices."""
    system = HostState(guest.host.state / "guests" / str(guest.vmid))
    config = guest.config()
    devices = guest_devices(guest.host, guest.vmid, config)
    machine = _machine(guest, config, devices)
    if not (system.state / "machine.json").exists() or system.machine != machine:
        return make_system(guest, _KERNEL, f"BOOT_IMAGE=/boot/vmlinuz-{_KERNEL} root=/dev/sda1 ro quiet")
    return system


def make_system(guest: Guest, kernel: str, cmdline: str) -> HostState:
    """The system of a guest that has just started, made anew: its devices in /sys, the kernel's answers in /proc."""
    system = HostState(guest.host.state / "guests" / str(guest.vmid))
    config = guest.config()
    machine = _machine(guest, config, guest_devices(guest.host, guest.vmid, config))
    shutil.rmtree(system.state, ignore_errors=True)
    (system.root / "root").mkdir(parents=True)
    system._machine = machine
    system.save_machine()
    sysfs.build(system, sysfs.Running(kernel, cmdline, str(uuid.uuid4()), False, False, ""))
    _fill(system, machine["node"])
    return system


def _fill(system: HostState, name: str) -> None:
    system.write("/etc/hostname", f"{name}\n")
    system.write("/etc/os-release", 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nID=debian\nVERSION_ID="13"\n')
    write_launchers(system.state / "bin", _PROGRAMS)


def write_launchers(folder: Path, programs: tuple[str, ...]) -> None:
    """A folder with simulated commands, for a guest's PATH."""
    folder.mkdir()
    runner = Path(host_run.__file__)
    for program in programs:
        path = folder / program
        start = f"exec {shlex.quote(os.path.realpath(sys.executable))} -I -S {shlex.quote(str(runner))} {program}"
        path.write_text(f'#!/bin/sh\n{start} "$@"\n', encoding="utf-8")
        path.chmod(0o755)


def _machine(guest: Guest, config: GuestConfig, devices: list[PciDevice]) -> dict[str, Any]:
    """machine.json of the guest, for the programs that it shares with hosts."""
    host = guest.host.machine
    return {
        "version": 1,
        "node": guest.name(config).replace(" ", "-"),
        "pve": host["pve"],
        "power": "on",
        "faults": {},
        "hardware": {
            "cpu": host["hardware"]["cpu"],
            "firmware": {"mode": "uefi" if config.values.get("bios") == "ovmf" else "bios", "iommu": False}
            | {"secure_boot": False},
            "devices": [asdict(device) | {"blocks": [], "nets": []} for device in devices],
            "volumes": [],
        },
        "boot": {"loader": "grub", "esps": []},
        "pools": {},
        "mounts": [],
        "guests": {},
        "nvidia": None,
    }


def guest_devices(host: HostState, vmid: int, config: GuestConfig) -> list[PciDevice]:
    """The PCI devices that a running VM sees: the machine's own, and those that it was given, at the guest's addresses."""
    q35 = "q35" in config.values.get("machine", "")
    found = [_virtual("0000:00:00.0", "8086", "29c0" if q35 else "1237", "0600", "Host bridge")]
    if config.values.get("vga", "std").partition(",")[0] != "none":
        found.append(_virtual("0000:00:01.0" if q35 else "0000:00:02.0", "1234", "1111", "0300", "QEMU Virtual Video"))
    for number, key in enumerate(k for k in sorted(config.values) if k.startswith("net")):
        found.append(
            _virtual(f"0000:06:{0x12 + number:02x}.0", "1af4", "1000", "0200", f"Virtio network device ({key})")
        )
    hidden = str(host.fault("card-invisible"))
    mine = sorted(address for address, owner in reservations(host).items() if owner == vmid)
    slots = sorted({address[:-2] for address in mine})
    options = list(hostpci_options(config.values).values())
    for number, slot in enumerate(slots):
        on_port = number < len(options) and options[number].get("pcie") == "1"
        where = f"0000:{number + 1:02x}:00" if on_port else f"0000:00:{_FIRST_I440FX_SLOT + number:02x}"
        for device in load_devices(host.machine):
            if device.address == hidden or slot == hidden:
                continue
            if device.address in mine and device.address.startswith(f"{slot}."):
                found.append(_moved(device, where + device.address[-2:]))
    return found


def _virtual(address: str, vendor: str, device: str, pci_class: str, name: str) -> PciDevice:
    return PciDevice(
        address, vendor, device, pci_class, "00", "00", "1af4:1100", name, "Red Hat, Inc.", None, None, None, (), False,
        False, False, None, (), (), (),
    )  # fmt: skip


def _moved(device: PciDevice, address: str) -> PciDevice:
    """A device as the guest sees it: no group, no bridge above, no driver yet."""
    data = asdict(device) | {"address": address, "parent": None, "group": None, "acs_group": None, "driver": None}
    return PciDevice.from_dict(data | {"boot_vga": False, "built_in": False, "blocks": (), "nets": ()})
