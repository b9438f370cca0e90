"""A QEMU process with one emulated host: its devices, its power, its snapshots, and how it is reached.

The processor is emulated as well (TCG): no KVM is needed, and what is seen doesn't depend on the processor underneath. A machine ends with
the process that started it, also when that is killed.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.metal import prerequisites
from tests.metal.image import FIRST_BOOT, Image
from tests.metal.prerequisites import call

#: How long an emulated host on a busy machine may take from its power button to SSH, in seconds.
BOOT_SECONDS = 900
#: For one command on it.
COMMAND_SECONDS = 1200
# Resets that are told of in so short a time are one: no boot is that fast.
_ONE_RESET_SECONDS = 5

# One processor: of two that are emulated in threads, one may run into the breakpoint (int3) by which the kernel changes code under the other,
# after it is gone. Two of some ninety stock boots died of it.
CHIPSET = [
    "-machine",
    "q35,kernel-irqchip=split",
    "-smp",
    "1",
    "-m",
    "2560",
    "-nodefaults",
    "-vga",
    "none",
    "-display",
    "none",
]

# Processors with few features: what the guest uses of them is emulated, too.
INTEL = ["-cpu", "qemu64,vendor=GenuineIntel", "-device", "intel-iommu,intremap=on,caching-mode=on"]
AMD = ["-cpu", "qemu64,vendor=AuthenticAMD", "-device", "amd-iommu,intremap=on"]
#: A machine whose firmware offers no IOMMU, as one with VT-d switched off.
NO_IOMMU = ["-cpu", "qemu64,vendor=GenuineIntel"]

#: The host's own screen, on which firmware and kernel show.
SCREEN = ["-device", "cirrus-vga,bus=pcie.0,addr=0x2"]


def card(number: int, *, isolated: bool = True) -> list[str]:
    """A graphics card with its audio function behind a root port of its own: 0000:NN:00.0 and .1, NN the number.

    :param isolated: whether the root port has Access Control Services; without, it shares its IOMMU group with its neighbours.
    """
    return [
        *_port(number, isolated=isolated),
        "-device", f"VGA,bus=rp{number},addr=0.0,multifunction=on",
        "-device", f"ich9-intel-hda,bus=rp{number},addr=0.1",
    ]  # fmt: skip


def nvme(number: int, disk: Path, *, isolated: bool = True) -> list[str]:
    """An NVMe disk behind a root port of its own."""
    return [
        *_port(number, isolated=isolated),
        "-drive", f"file={disk},if=none,id=nvme{number},format=raw,cache=unsafe",
        "-device", f"nvme,bus=rp{number},drive=nvme{number},serial=nvme{number}",
    ]  # fmt: skip


def second_disk(disk: Path, options: str = "") -> list[str]:
    """One more virtio disk.

    :param options: for its drive: `readonly=on`.
    """
    return [
        "-drive", f"file={disk},if=none,id=second,format=raw,cache=unsafe{options and f',{options}'}",
        "-device", "virtio-blk-pci,drive=second,bus=pcie.0,addr=0xb",
    ]  # fmt: skip


def _port(number: int, *, isolated: bool) -> list[str]:
    # Ports are functions of one slot, as in a processor; the kernel numbers buses in their order.
    place = f"addr=0x4.{number - 1}" + (",multifunction=on" if number == 1 else "")
    return [
        "-device",
        f"pcie-root-port,id=rp{number},chassis=1,slot={number},{place},disable-acs={'off' if isolated else 'on'}",
    ]


class MachineError(Exception):
    """The emulated machine didn't do what was asked; with the end of its serial console."""


@dataclass(frozen=True)
class Firmware:
    """UEFI: its code, and a copy of its variables that is the machine's own."""

    code: Path
    variables: Path

    @property
    def arguments(self) -> list[str]:
        return [
            "-drive", f"if=pflash,format=raw,readonly=on,file={self.code}",
            "-drive", f"if=pflash,format=qcow2,file={self.variables}",
        ]  # fmt: skip


class Machine:
    """One emulated host.

    :param devices: what QEMU is told of processor, IOMMU and cards.
    :param folder: for its overlay, sockets and console.
    :param disk: written to itself; by default an overlay of the image's, in ``folder``.
    """

    def __init__(
        self, image: Image, devices: Sequence[str], folder: Path, *, disk: Path | None = None, uefi: bool = False
    ) -> None:
        self.image = image
        self.folder = folder
        self.devices = list(devices)
        self.port = _free_port()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {image.host_key}\n")
        self._disk = disk or folder / "disk.qcow2"
        self._format = "raw" if disk else "qcow2"
        if disk is None:
            _create(self._disk, "-b", str(image.disk), "-F", "raw")
        self._firmware: list[str] = []
        if uefi:
            self._firmware = self._flashed("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd")
        self._process: subprocess.Popen[bytes] | None = None
        self._monitor: _Monitor | None = None

    def _flashed(self, code: str, template: str) -> list[str]:
        variables = self.folder / "variables.qcow2"
        # As qcow2, since a snapshot of a machine takes in all its disks, and raw ones hold none.
        call("qemu-img", "convert", "-O", "qcow2", f"/usr/share/OVMF/{template}", str(variables))
        return Firmware(Path(f"/usr/share/OVMF/{code}"), variables).arguments

    def secure_boot(self) -> None:
        """From its next start on, its firmware starts only what Microsoft has signed."""
        guarded = ["-global", "driver=cfi.pflash01,property=secure,value=on"]
        self._firmware = [*self._flashed("OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.ms.fd"), *guarded]

    # -- power -----------------------------------------------------------------------------------------------------------
    def start(self, snapshot: str | None = None) -> None:
        """Switches it on; or goes on from a snapshot, with the clock set."""
        self.stop()
        console = self.folder / "console.log"
        console.unlink(missing_ok=True)
        command = [
            # Whatever becomes of the tests, the machine goes with them.
            "setpriv", "--pdeathsig", "KILL",
            "qemu-system-x86_64", "-name", "homelab-metal", *CHIPSET, "-accel", "tcg,thread=multi,tb-size=512", *self.devices, *self._firmware,
            "-drive", f"file={self._disk},if=none,id=disk,format={self._format},cache=unsafe,discard=unmap",
            "-device", "virtio-blk-pci,drive=disk,bus=pcie.0,addr=0x8,bootindex=1",
            "-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{self.port}-:22",
            "-device", "virtio-net-pci,netdev=net,id=nic,bus=pcie.0,addr=0x9,romfile=",
            "-device", "virtio-rng-pci,bus=pcie.0,addr=0xa",
            "-serial", f"file:{console}", "-qmp", f"unix:{self._socket},server=on,wait=off", "-rtc", "base=utc",
            *(["-loadvm", snapshot] if snapshot else []),
        ]  # fmt: skip
        self._socket.unlink(missing_ok=True)
        with (self.folder / "qemu.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=prerequisites.environment(),
            )
        self._monitor = _Monitor(self._socket, self._process)
        if snapshot:
            self.wait_for_ssh()
            self.run(f"date --utc --set=@{time.time():.0f}")

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """QEMU's."""
        assert self._process is not None
        return self._process.pid

    def stop(self) -> None:
        """The power is cut. Nothing happens if it is off."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._monitor is not None:
            self._monitor.close()
        self._process = self._monitor = None

    def wait_for_end(self) -> None:
        """Until it has switched itself off."""
        assert self._process is not None
        try:
            self._process.wait(BOOT_SECONDS)
        except subprocess.TimeoutExpired:
            raise self._error(f"it is still on after {BOOT_SECONDS} s") from None
        self.stop()

    def reboot(self) -> None:
        """As a person would, on the host; returns when it is back."""
        before = self.boot_id()
        self.run("systemd-run --quiet --on-active=1 --timer-property=AccuracySec=100ms systemctl reboot")
        self.wait_for_boot(before)

    # -- the monitor -----------------------------------------------------------------------------------------------------
    def save(self, snapshot: str) -> None:
        """Keeps all of it, memory and disk, under that name."""
        self.run("sync")
        self._human(f"savevm {snapshot}")

    def connect_network(self, connected: bool) -> None:
        """Plugs the network cable in or pulls it out."""
        self._human(f"set_link nic {'on' if connected else 'off'}")

    def reset(self) -> None:
        """As its reset button does."""
        self._human("system_reset")

    def wait_for_reset(self, seconds: float = BOOT_SECONDS) -> None:
        """Until it has begun a boot once more, seen from outside."""
        assert self._monitor is not None
        self._monitor.wait_for("RESET", seconds)

    def _human(self, command: str) -> None:
        assert self._monitor is not None
        answer = self._monitor.execute("human-monitor-command", {"command-line": command})
        if answer.strip():
            raise self._error(f"{command}: {answer.strip()}")

    @property
    def _socket(self) -> Path:
        return self.folder / "qmp"

    # -- inside ----------------------------------------------------------------------------------------------------------
    @property
    def settings(self) -> dict[str, Any]:
        """How the program reaches it."""
        ssh = {"port": self.port, "hostKey": self.image.host_key, "privateKeyFile": str(self.image.key)}
        return {"address": "127.0.0.1", "ssh": ssh}

    def ssh(self, *options: str) -> list[str]:
        """The command line of OpenSSH's client, to which a command is added."""
        given = {
            "BatchMode": "yes", "UserKnownHostsFile": self.folder / "known_hosts", "IdentitiesOnly": "yes", "ConnectTimeout": 5,
            # A host that goes down may keep the connection open and say nothing any more.
            "ServerAliveInterval": 5, "ServerAliveCountMax": 6, "LogLevel": "ERROR",
        }  # fmt: skip
        arguments = [part for key, value in given.items() for part in ("-o", f"{key}={value}")]
        return [
            "ssh",
            "-F",
            "none",
            "-i",
            str(self.image.key),
            "-p",
            str(self.port),
            *arguments,
            *options,
            "root@127.0.0.1",
        ]

    def run(self, command: str, *, input: str = "", check: bool = True, seconds: float = COMMAND_SECONDS) -> str:
        """What the command, run by root's shell, prints.

        :raises MachineError: it fails (with ``check``), or takes too long.
        """
        try:
            done = subprocess.run(
                [*self.ssh(), f"export LC_ALL=C; {command}"],
                input=input,
                capture_output=True,
                text=True,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            raise self._error(f"`{command}` took longer than {seconds} s") from None
        if check and done.returncode:
            raise self._error(f"`{command}` ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def wait_for_ssh(self) -> None:
        self._wait(bool, BOOT_SECONDS, "it can't be reached")

    def wait_for_boot(self, before: str, seconds: float = BOOT_SECONDS) -> None:
        """Until it answers with another boot id than ``before``."""
        self._wait(lambda boot_id: boot_id not in ("", before), seconds, "it has not come back from its reboot")

    def _wait(self, enough: Any, seconds: float, otherwise: str) -> None:
        # Nothing outside tells when its sshd listens: QEMU takes connections for it from the start.
        deadline = time.monotonic() + seconds
        while True:
            if not self.running:
                raise self._error("QEMU has ended")
            if enough(self.boot_id()):
                return
            if time.monotonic() > deadline:
                raise self._error(f"{otherwise} after {seconds} s")
            time.sleep(0.3)

    def boot_id(self) -> str:
        """Empty: nobody answers."""
        try:
            done = subprocess.run(
                [*self.ssh(), "cat /proc/sys/kernel/random/boot_id"], capture_output=True, text=True, timeout=15
            )
        except subprocess.TimeoutExpired:
            return ""
        return done.stdout.strip()

    def _error(self, text: str) -> MachineError:
        return MachineError(f"{text}\n{self.last_words()}")

    def last_words(self) -> str:
        """The end of its serial console and of what QEMU has said."""
        said = []
        for name in ("console.log", "qemu.log"):
            path = self.folder / name
            if path.exists():
                said.append(f"-- {name} --\n" + path.read_text(errors="replace")[-3000:])
        return "\n".join(said)


class _Monitor:
    """QEMU's monitor (QMP) on a socket of its own."""

    def __init__(self, path: Path, process: subprocess.Popen[bytes]) -> None:
        self._connection = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + 60
        while True:
            try:
                self._connection.connect(str(path))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise MachineError(
                        f"QEMU has not started: {(path.parent / 'qemu.log').read_text()[-2000:]}"
                    ) from None
                time.sleep(0.02)
        self._connection.settimeout(300)
        self._events: list[str] = []
        self._reset_at = 0.0
        self._lines = self._connection.makefile("rb")
        self._lines.readline()  # its greeting
        self.execute("qmp_capabilities")

    def execute(self, command: str, arguments: dict[str, Any] | None = None) -> str:
        """What the command returns; events in between are kept.

        :raises MachineError: it failed.
        """
        self._connection.sendall(json.dumps({"execute": command, "arguments": arguments or {}}).encode() + b"\n")
        while line := self._lines.readline():
            answer = json.loads(line)
            if "error" in answer:
                raise MachineError(f"{command}: {answer['error']['desc']}")
            self._note(answer)
            if "return" in answer:
                return answer["return"] if isinstance(answer["return"], str) else ""
        raise MachineError(f"{command}: QEMU has ended")

    def wait_for(self, event: str, seconds: float) -> None:
        """Until QEMU has told of the event once more than it was waited for.

        :raises MachineError: it has not.
        """
        deadline = time.monotonic() + seconds
        while event not in self._events:
            self._connection.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                line = self._lines.readline()
            except TimeoutError:
                raise MachineError(f"no {event} within {seconds} s") from None
            if not line:
                raise MachineError(f"QEMU ended before {event}")
            self._note(json.loads(line))
        self._events.remove(event)
        self._connection.settimeout(300)

    def _note(self, message: dict[str, Any]) -> None:
        if "event" not in message:
            return
        # That a snapshot is loaded is told as a reset, too; one that the guest asked for is a boot. It is told of twice, by the
        # kernel's request and by the firmware's.
        if message["event"] == "RESET":
            if not message["data"]["guest"]:
                return
            before, self._reset_at = self._reset_at, message["timestamp"]["seconds"]
            if self._reset_at - before < _ONE_RESET_SECONDS:
                return
        self._events.append(message["event"])

    def close(self) -> None:
        self._lines.close()
        self._connection.close()


def first_boot(image: Image) -> None:
    """What an image needs a running kernel for."""
    machine = Machine(image, [*INTEL, *SCREEN], image.folder.parent / "first-boot", disk=image.disk)
    machine.start()
    try:
        machine.wait_for_ssh()
        machine.run(FIRST_BOOT)
        machine.run("systemd-run --quiet --on-active=1 systemctl poweroff")
        machine.wait_for_end()
    finally:
        machine.stop()


def _create(path: Path, *arguments: str) -> None:
    path.unlink(missing_ok=True)
    call("qemu-img", "create", "-q", "-f", "qcow2", *arguments, str(path))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
