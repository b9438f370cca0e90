"""A QEMU process with one emulated host: its devices, its power, its snapshots, and how it is reached.

The processor is emulated as well (TCG): no KVM is needed, and what is seen doesn't depend on the processor underneath. A machine ends with
the process that started it, also when that is killed.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lab import ports
from tests.host import BOOT_SECONDS, HostError, SshHost
from tests.metal import prerequisites
from tests.metal.image import FIRST_BOOT, Image
from tests.metal.prerequisites import call

# Resets that are told of in so short a time are one: no boot is that fast.
_ONE_RESET_SECONDS = 5

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


class Machine(SshHost):
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
        with ports.bind(0) as free:
            super().__init__("127.0.0.1", free.getsockname()[1], image.key, folder / "known_hosts")
        folder.mkdir(parents=True, exist_ok=True)
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {image.host_key}\n")
        self._disk = disk or folder / "disk.qcow2"
        self._format = "raw" if disk else "qcow2"
        if disk is None:
            self._disk.unlink(missing_ok=True)
            call("qemu-img", "create", "-q", "-f", "qcow2", "-b", str(image.disk), "-F", "raw", str(self._disk))
        self._firmware: list[str] = []
        if uefi:
            self._firmware = self._flashed("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd")
        self._process: subprocess.Popen[bytes] | None = None
        self._monitor: _Monitor | None = None

    def _flashed(self, code: str, template: str) -> list[str]:
        """UEFI: its code, and a copy of its variables that is the machine's own."""
        variables = self.folder / "variables.qcow2"
        # As qcow2, since a snapshot of a machine takes in all its disks, and raw ones hold none.
        call("qemu-img", "convert", "-O", "qcow2", f"/usr/share/OVMF/{template}", str(variables))
        return [
            "-drive", f"if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/{code}",
            "-drive", f"if=pflash,format=qcow2,file={variables}",
        ]  # fmt: skip

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
        ours, theirs = socket.socketpair()
        command = [
            # Whatever becomes of the tests, the machine goes with them.
            "setpriv", "--pdeathsig", "KILL",
            "qemu-system-x86_64", "-name", "homelab-metal", "-machine", "q35,kernel-irqchip=split", "-accel", "tcg,thread=multi,tb-size=512",
            # One processor: of two that are emulated in threads, one may run into the breakpoint (int3) by which the kernel changes code under the
            # other, after it is gone. Two of some ninety stock boots died of it.
            "-smp", "1", "-m", "2560", "-nodefaults", "-vga", "none", "-display", "none", *self.devices, *self._firmware,
            "-drive", f"file={self._disk},if=none,id=disk,format={self._format},cache=unsafe,discard=unmap",
            "-device", "virtio-blk-pci,drive=disk,bus=pcie.0,addr=0x8,bootindex=1",
            "-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{self.port}-:22",
            "-device", "virtio-net-pci,netdev=net,id=nic,bus=pcie.0,addr=0x9,romfile=",
            "-device", "virtio-rng-pci,bus=pcie.0,addr=0xa",
            "-serial", f"file:{console}", "-rtc", "base=utc",
            "-chardev", f"socket,id=monitor,fd={theirs.fileno()}", "-mon", "chardev=monitor,mode=control",
            *(["-loadvm", snapshot] if snapshot else []),
        ]  # fmt: skip
        with theirs, (self.folder / "qemu.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=prerequisites.environment(),
                pass_fds=[theirs.fileno()],
            )
        self._monitor = _Monitor(ours, self.folder / "qemu.log")
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
            raise self.error(f"it is still on after {BOOT_SECONDS} s") from None
        self.stop()

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
            raise self.error(f"{command}: {answer.strip()}")

    def _wait(self, enough: Callable[[str], bool], seconds: float, otherwise: str) -> None:
        def enough_or_over(boot_id: str) -> bool:
            if not self.running:
                raise self.error("QEMU has ended")
            return enough(boot_id)

        super()._wait(enough_or_over, seconds, otherwise)

    def last_words(self) -> str:
        """The end of its serial console and of what QEMU has said."""
        said = []
        for name in ("console.log", "qemu.log"):
            path = self.folder / name
            if path.exists():
                said.append(f"-- {name} --\n" + path.read_text(errors="replace")[-3000:])
        return "\n".join(said)


class _Monitor:
    """QEMU's monitor (QMP), at the other end of a socket that it was started with.

    :param log: what QEMU says.
    """

    def __init__(self, connection: socket.socket, log: Path) -> None:
        self._connection = connection
        self._connection.settimeout(300)
        self._events: list[str] = []
        self._reset_at = 0.0
        self._lines = self._connection.makefile("rb")
        if not self._lines.readline():  # its greeting
            raise HostError(f"QEMU has not started: {log.read_text()[-2000:]}")
        self.execute("qmp_capabilities")

    def execute(self, command: str, arguments: dict[str, Any] | None = None) -> str:
        """What the command returns; events in between are kept.

        :raises HostError: it failed.
        """
        self._connection.sendall(json.dumps({"execute": command, "arguments": arguments or {}}).encode() + b"\n")
        while line := self._lines.readline():
            answer = json.loads(line)
            if "error" in answer:
                raise HostError(f"{command}: {answer['error']['desc']}")
            self._note(answer)
            if "return" in answer:
                return answer["return"] if isinstance(answer["return"], str) else ""
        raise HostError(f"{command}: QEMU has ended")

    def wait_for(self, event: str, seconds: float) -> None:
        """Until QEMU has told of the event once more than it was waited for.

        :raises HostError: it has not.
        """
        deadline = time.monotonic() + seconds
        while event not in self._events:
            self._connection.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                line = self._lines.readline()
            except TimeoutError:
                raise HostError(f"no {event} within {seconds} s") from None
            if not line:
                raise HostError(f"QEMU ended before {event}")
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
