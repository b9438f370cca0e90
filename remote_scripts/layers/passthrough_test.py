"""Proves that a card can be passed through: a small VM gets it and says on its serial console what it sees; then the VM
is removed, also after a failure. It starts the host's own kernel with an initramfs that is made of what the host has.

Changes nothing that lasts. The VM and the test's folder are gone at the end; those of a run that was killed go with the
next.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from remote_scripts import installed
from remote_scripts.boot import small_initramfs
from remote_scripts.both.passthrough_test import FOLDER, NAME, Answer, Wanted
from remote_scripts.pve.guest_conf import VMS, option_of_vm
from remote_scripts.pve.pmxcfs import guest_ids
from remote_scripts.tools import kernel
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.pci import DEVICES, driver_of, ids_of
from remote_scripts.tools.system import System, changes
from remote_scripts.tools.text import as_text

_MARK = "homelab-passthrough"  # what the lines of /init begin with
_END = re.compile(rf"^{_MARK} END \d+\r?\n".encode(), re.MULTILINE)
_CONSOLE_BYTES = 1 << 22
# An init that fails is a panic, a panic a reboot, and with QEMU's -no-reboot the end.
_APPEND = "console=ttyS0 panic=-1"
_DISKS_AND_NETWORK = re.compile(rb"^(?:ide|sata|scsi|virtio|efidisk|tpmstate|unused|net)[0-9]+:", re.MULTILINE)
_MEMORY = 0x200  # IORESOURCE_MEM
_DOING = "test VM"


@dataclass(frozen=True)
class Bar:
    """`size`: in bytes."""

    index: int
    size: int


@changes
def apply(system: System, wanted: Wanted) -> Answer:
    """Runs the test.

    :raises Failure: one of the functions isn't on vfio-pci; Proxmox VE doesn't start the VM, such as where another one
        runs with the card; or the VM doesn't see them all.
    """
    _remove_leftovers(system)
    _check_functions(system, wanted)
    vm = _Vm(system)
    system.also_put_back = vm.give_up
    _build(system)
    vm.create(wanted)
    console = vm.listen(wanted.timeout)
    system.also_put_back = None
    vm.remove()
    return _answer(system, wanted, int(vm.id), console)


def _build(system: System) -> None:
    path = f"/boot/vmlinuz-{kernel.running(system)}"
    if not system.files.at(path).is_file():
        raise Failure(
            "the running kernel's image, which the test VM starts",
            f"no {path}",
            "its package was removed since the host was started",
            "reboot the host into an installed kernel, then run `pulumi up` again",
        )
    system.files.make_work_folder(FOLDER)
    image = small_initramfs.image(system, f"{installed.TEXTS['passthrough_init']}\n".encode())
    system.files.write(f"{FOLDER}/initrd.img", image, 0o600)


class _Vm:
    """The test VM, and its folder."""

    def __init__(self, system: System) -> None:
        self._system = system
        self.id = ""

    def create(self, wanted: Wanted) -> None:
        """Makes it; it is off."""
        run = self._system.run
        slots: dict[str, list[str]] = {}
        for address in sorted(wanted.functions):
            slots.setdefault(address.rpartition(".")[0], []).append(address)
        given = []
        for number, functions in enumerate(slots.values()):
            # rombar=0: the card's option ROM must not run in SeaBIOS, where it can hang before the kernel starts.
            given += [f"--hostpci{number}", f"host={';'.join(functions)},pcie=1,rombar=0"]
        self.id = str(wanted.vmid or _next_id(self._system))
        # No OVMF: QEMU hands the kernel of -kernel over itself, which SeaBIOS is enough for. cpu host: it has the
        # host's address width, that large BARs need.
        options = (
            f"--name {NAME} --machine q35 --ostype l26 --cpu host --memory 512 --balloon 0 --tablet 0 --onboot 0 "
            "--vga none"
        ).split()
        description = ("--description", "homelab proves passthrough with this VM, and removes it.")
        boots = (
            f"-kernel /boot/vmlinuz-{kernel.running(self._system)} -initrd {FOLDER}/initrd.img "
            f"-append '{_APPEND}' -serial file:{FOLDER}/console -no-reboot"
        )
        done = run.do("qm", "create", self.id, *options, *description, *given, "--args", boots, doing=_DOING)
        if done.status != 0:
            raise Failure(
                f"a test VM with the id {self.id}",
                done.text,
                "passthrough is proved inside a VM",
                "choose another id, or correct what the message says, then run `pulumi up` again",
            )

    def listen(self, seconds: int) -> bytes:
        """Starts it, and waits until it has said all, or its time is up."""
        log = self._system.log
        log.say(f"starting a test VM with the card; it has {seconds} s to say what it sees")
        done = self._system.run.do("qm", "start", self.id, doing=_DOING)
        if done.status != 0:
            raise Failure(
                "the test VM started with the card",
                done.text,
                "what keeps it from starting would keep every VM with this card from it",
                "shut down a VM that is named there, or see `dmesg | grep -i vfio` on the host; correct the cause, and "
                "run `pulumi up` again; or take passthroughTest out of the settings",
            )

        console = b""
        for _ in self._system.work.tries(seconds, "waiting for the test VM"):
            console = self._system.files.read(f"{FOLDER}/console", _CONSOLE_BYTES) or b""
            if _END.search(console):
                return console
        log.say(f"the VM has not said all within {seconds} s, or has ended before")
        return console

    def remove(self) -> None:
        """Takes the VM and the folder away.

        :raises Failure: the VM is still there, or that can't be told.
        """
        try:
            # Under that id there may be a user's VM: then the test's could not be created.
            if self.id and option_of_vm(self._system, self.id, "name") == NAME:
                _remove(self._system, self.id)
        finally:
            self._system.files.remove_tree(FOLDER)

    def give_up(self) -> None:
        """The same after a failure, which is the one that is raised."""
        try:
            self.remove()
        except Failure as failure:
            self._system.log.say(f"{failure.wanted}: {failure.found}")


def _next_id(system: System) -> str:
    done = system.run.ask("pvesh", "get", "/cluster/nextid", "--output-format", "json")
    if done.status != 0:
        raise Failure(
            "an id for the test VM",
            done.all_text,
            "passthrough is proved inside a VM",
            "correct what the message says, then run `pulumi up` again",
        )
    return done.text.strip('"')


def _remove(system: System, vm: str) -> None:
    """A lock that an interrupted command has left is passed over. Nothing is purged: of an id that is free a backup job
    may know a VM that is to be restored.
    """
    done = system.run.do("qm", "stop", vm, "--skiplock", "1", doing=_DOING)
    if done.status == 0:
        done = system.run.do("qm", "destroy", vm, "--skiplock", "1", doing=_DOING)
    if done.status != 0:
        raise Failure(
            "the test VM removed again",
            f"VM {vm} ({NAME}) is still there: {done.text}",
            "it still has the card, and is no longer needed",
            f"run `qm stop {vm}; qm destroy {vm}` on the host",
        )


def _remove_leftovers(system: System) -> None:
    for vm in guest_ids(system, VMS):
        if option_of_vm(system, vm, "name") != NAME:
            continue
        # The test's never has one. A user's VM of this name stays.
        if _DISKS_AND_NETWORK.search(system.files.need(f"{VMS}/{vm}.conf") or b""):
            raise Failure(
                f"the name {NAME} for the test VM alone",
                f"VM {vm} has it, with disks or a network",
                "a VM of that name counts as the rest of an earlier test, and is removed",
                f"give VM {vm} another name: qm set {vm} --name NAME",
            )
        system.log.say(f"note: removing VM {vm}, which an interrupted test has left")
        _remove(system, vm)
    system.files.remove_tree(FOLDER)


# Which VM has which card.


def _check_functions(system: System, wanted: Wanted) -> None:
    for address, id in sorted(wanted.functions.items()):
        if (current := ids_of(system, address)) != id:
            raise Failure(
                f"{id} at {address}",
                ":".join(part or "none" for part in current.split(":")),
                "another device would be given to the test VM",
                "see `lspci -Dnn`; `pulumi up --refresh` looks where the card is now",
            )
        if (driver := driver_of(system, address)) != "vfio-pci":
            raise Failure(
                f"{address} on vfio-pci",
                f"its driver is {driver or 'none'}",
                "starting the test VM would take it from that driver while the host runs, which can hang it",
                "bind it at boot: `pulumi up --refresh`",
            )


# What the VM said, held against the cards on the host.


def _answer(system: System, wanted: Wanted, vmid: int | None, console: bytes) -> Answer:
    """The functions as the VM sees them, whose buses have numbers of their own. Functions with the same ids are told
    apart by their order, which hostpci keeps.

    :raises Failure: the VM doesn't see them all, or not with their memory BARs.
    """
    seen = _read_console(console, wanted.timeout)
    free, functions, problems = sorted(seen), [], []
    for address, id in sorted(wanted.functions.items()):
        guest = next((one for one in free if seen[one]["id"] == id), "")
        if not guest:
            problems.append(f"{address} ({id}): is not in the VM")
            continue
        free.remove(guest)
        problems += [
            f"{address} ({id}): BAR {bar.index} of {bar.size} bytes has no address in the VM"
            for bar in _memory_bars(system, address)
            if bar not in seen[guest]["bars"]
        ]
        functions.append({"guest": guest, "address": address, **seen[guest]})
    if problems:
        names = " ".join(f"{address}={id}" for address, id in sorted(wanted.functions.items()))
        raise Failure(
            f"every function of the card in the test VM, with its ids and memory BARs: {names}",
            "\n".join(problems),
            "a VM that is given this card could not use it",
            "see `dmesg | grep -iE 'vfio|BAR'` on the host; for BARs of many GiB, \"Above 4G decoding\" in its "
            "firmware",
        )
    return Answer(kernel.running(system), vmid, tuple(functions))


def _read_console(console: bytes, seconds: int) -> dict[str, dict[str, Any]]:
    """What it sees, by its addresses: `id`, `class` and `bars` of a function."""
    seen: dict[str, dict[str, Any]] = {}
    count = ""
    text = as_text(console, _CONSOLE_BYTES)
    for words in (line.split() for line in text.splitlines()):
        if words[:1] != [_MARK]:
            continue
        if words[1:2] == ["END"]:
            count = " ".join(words[2:])
        elif len(words) > 3:
            bars = (bar.split(":") for bar in words[4:])
            about = {"id": words[2], "class": words[3], "bars": [Bar(int(bar[0]), int(bar[1])) for bar in bars]}
            seen[words[1]] = about
    if count != str(len(seen)):
        end = re.sub(r"[^\x20-\x7e\n]", "", "\n".join(text.rstrip("\n").split("\n")[-12:]))
        raise Failure(
            f"the list of PCI functions on the test VM's console, whole, within {seconds} s",
            f"it ends with:\n{end}" if end.strip() else "nothing came on the console",
            "the VM started, but its kernel or its /init didn't get that far: with the card it may hang",
            "see `dmesg | tail` on the host, then run `pulumi up` again; or take passthroughTest out of the settings",
        )
    return seen


def _memory_bars(system: System, address: str) -> Iterator[Bar]:
    """The memory BARs that it has on the host."""
    for index, line in enumerate(system.files.text(f"{DEVICES}/{address}/resource").split("\n")[:6]):
        if line:
            start, end, flags = (int(number, 16) for number in line.split())
            if flags & _MEMORY and start:
                yield Bar(index, end - start + 1)
