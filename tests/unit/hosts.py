"""Hosts as facts, for tests of what is decided: a desktop with an RTX 5090, and what can be changed about it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from homelab.errors import HomelabError
from homelab.facts.host import HostFacts, parse
from homelab.host import gates
from homelab.judged import text
from homelab.judged.tree import Settings, Tree, judged
from homelab.settings import Container, Host, Vm
from remote_scripts.both.read_system import Answer as SystemReading
from remote_scripts.notes.container_note import Cards, ContainerNote, Given
from remote_scripts.notes.guest_note import Note, identity
from remote_scripts.pve.vm_conf import options
from remote_scripts.tools.device import Device
from remote_scripts.tools.plain import to_plain

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"


# What a stock host has nothing of.
_NOTHING: dict[str, Any] = {
    "packages": {}, "vfio_files": {}, "vfio_mentions": [], "module_lines": [], "vital": [],
    "holders": [], "rolling_back": False, "pending": [], "boot_lacks": None, "next_boot": {}, "cards_enabled": False, "drm": {},
    "nvidia": {}, "nodes": {}, "handover": {}, "owed": [], "ledger": {}, "agents": {},
    "edits": [], "kernel_log": "", "lost": [], "card_states": {}, "vgpu_manager": False, "lost_values": [],
    "framebuffers": {}, "unsafe_interrupts": False, "boot_warnings": "", "cluster": {}, "unreadable": [],
}  # fmt: skip


#: What a VM's cards are told, as a state has it.
VM_CARDS: dict[str, Any] = {
    "host": "pve", "node": "pve", "vm": "sandbox", "vmid": 103, "shutdown": {"timeout": 1, "otherwise": "fail"}, "cards": [],
    "display": "keep", "power": "keep", "instance": "", "goes_away": False, "boot": {"id": "b", "stopped": [103], "at": 7},
}  # fmt: skip
#: What NVIDIA's stack of any system is told.
SYSTEM: dict[str, Any] = {"host": "pve", "nvidia": {}, "after": "", "passed": [], "stays": True}
#: What the probe of a host puts out of which nothing is wanted, but for its generation.
NO_PLAN: dict[str, Any] = {
    "iommu_words": "",
    "vfio_words": "",
    "functions": {},
    "by_hand": [],
    "gpus": {},
    "stale": False,
}


def device(address: str, ids: str, code: str, group: int | None = None, **changes: Any) -> dict[str, Any]:
    vendor, _, number = ids.partition(":")
    parent = changes.pop("parent", "")
    path = f"../../../devices/pci0000:00/{parent + '/' if parent else ''}{address}"
    return {
        "address": address, "vendor": vendor, "device": number, "subsystem": "1043:88e2", "class_code": code, "boot_vga": 0,
        "driver": "", "group": group, "acs": False, "path": path, "behind": "", "physfn": "", "vfs": 0, "removable": False,
        "express": "", **changes,
    }  # fmt: skip


def conf(kind: str, guest: int, lines: str) -> dict[str, Any]:
    """A guest's configuration, as a reading of the host has it."""
    return {"kind": kind, "id": guest, "lines": lines}


def gpu(slot: str = "0000:01:00", group: int | None = 16, parent: str = "0000:00:01.1") -> list[dict[str, Any]]:
    return [
        device(f"{slot}.0", "10de:2b85", "030000", group, driver="nouveau", parent=parent),
        device(f"{slot}.1", "10de:22e8", "040300", group, driver="snd_hda_intel", parent=parent),
    ]


def desktop(*more: dict[str, Any], **changes: Any) -> HostFacts:
    """An AMD desktop: an iGPU that is the console, an RTX 5090 alone in group 16, an NVMe disk and a network card elsewhere.

    :param changes: what else it has; of its guests, what isn't named stays as usual.
    """
    usual = [
        device("0000:00:00.0", "1022:14d8", "060000", 0),
        device("0000:00:01.1", "1022:14db", "060400", 1, driver="pcieport", acs=True),
        device("0000:00:02.1", "1022:14db", "060400", 2, driver="pcieport", acs=True),
        *gpu(),
        device("0000:02:00.0", "144d:a80c", "010802", 17, driver="nvme", behind="nvme0n1", parent="0000:00:02.1"),
        device("0000:0b:00.0", "1002:164e", "030000", 20, driver="amdgpu", boot_vga=1),
    ]
    devices = changes.pop("devices", usual)
    values: dict[str, Any] = {
        "boot_id": "1", "kernel": "6.17.13-2-pve", "pve": "9.1.1", "cpu_vendor": "AuthenticAMD", "loader": "grub",
        "loader_clues": "",
        "cmdline": {"running": "BOOT_IMAGE=/boot/vmlinuz root=/dev/mapper/pve-root ro quiet", "configured": "quiet",
                    "others": "quiet", "generated": "root=/dev/mapper/pve-root ro quiet"},
        "iommu": {"tables": ["IVRS"], "groups": 21, "kernel_log": "", "interrupts": "remapped"},
        "modules": [], "devices": [*devices, *more], "managed": [], "stale_initramfs": [], "rolled_back": "",
        "lspci": "",
        "disks": "nvme0n1   \nnvme0n1p3 nvme0n1 LVM2_member \npve-root nvme0n1p3 ext4 /", "nvidia_minors": {},
        "guests": {"unlisted": "", "running": [103], "configs": [], "mappings": "", "reservations": ""},
    }  # fmt: skip
    return parse(_NOTHING | values | changes | {"guests": values["guests"] | changes.get("guests", {})})


def one_in_vm(**changes: Any) -> HostFacts:
    """The desktop with a second card of NVIDIA's, which the host's driver has. This program has bound the first one for
    VM 103, which runs with it."""
    word = "homelab.vfio=0000:01:00.0=10de:2b85,0000:01:00.1=10de:22e8"
    second = [
        device("0000:05:00.0", "10de:2684", "030000", 19, driver="nvidia", parent="0000:00:02.1"),
        device("0000:05:00.1", "10de:22ba", "040300", 19, driver="snd_hda_intel", parent="0000:00:02.1"),
    ]
    entry = "id=10de:2b85,iommugroup=16,node=pve,path=0000:01:00,subsystem-id=1043:88e2"
    lines = "machine: q35\nname: gaming\nbios: ovmf\nhostpci0: mapping=rtx5090,pcie=1"
    values: dict[str, Any] = {
        "devices": [*driven("vfio-pci"), *second],
        "cmdline": cmdline(f"quiet amd_iommu=on iommu=pt {word}", others="quiet"),
        "nvidia": {"version": "580.105.08", "installed": True},
        "nvidia_minors": {"0000:05:00.0": 0},
        "guests": {
            "configs": [conf("vm", 103, lines), conf("lxc", 901, "hostname: ai\nostype: debian")],
            "mappings": f"rtx5090\n\tmap {entry}\n",
        },
        "cluster": {"node": "pve"},
    }
    return desktop(**values | changes)


def driven(driver: str, at: str = "0000:01:00") -> list[dict[str, Any]]:
    """The desktop's devices, of which those whose address begins so are this driver's."""
    return [asdict(one) | ({"driver": driver} if one.address.startswith(at) else {}) for one in desktop().devices]


def cmdline(
    running: str = "quiet", configured: str | None = None, others: str | None = None, generated: str = ""
) -> dict[str, str]:
    """A host's kernel command lines; what is configured, and by others, is by default what runs."""
    configured = running if configured is None else configured
    others = configured if others is None else others
    return {"running": running, "configured": configured, "others": others, "generated": generated}


def reasons(facts: HostFacts, host: Host) -> list[str]:
    """Why the host's settings are refused."""
    return [error.found for error in gates.check(facts, host)[1]]


#: A host's device nodes: names below /dev -> major and minor (hexadecimal), and mode.
NODES = {
    "nvidia0": "c3 0 666", "nvidiactl": "c3 ff 666", "nvidia-uvm": "1fc 0 666", "nvidia-uvm-tools": "1fc 1 666",
    "nvidia-caps/nvidia-cap1": "1ff 1 400",
}  # fmt: skip


def seen(**changes: Any) -> SystemReading:
    """A reading of a system without anything of NVIDIA's, with changes."""
    unknown = dict.fromkeys(("distribution", "version", "secure_boot", "mok_enrolled", "host_driver"))
    none = dict.fromkeys(("kernels", "cards", "steps", "drift"), ())
    texts = {"boot_id": "1", "running": "", "loaded": ""}
    bare: dict[str, Any] = {**unknown, **none, **texts, "nouveau": False, "runtimes": ("docker",)}
    return SystemReading(**(bare | changes))


def device_nodes(nodes: dict[str, str]) -> dict[str, Device]:
    """As a reading has them."""
    numbers = {f"/dev/{name}": text.split() for name, text in nodes.items()}
    return {
        path: Device(int(major, 16), int(minor, 16), int(mode, 8)) for path, (major, minor, mode) in numbers.items()
    }


def vm_note(vmid: int, lines: str, *keys: str, **more: Any) -> dict[str, str]:
    """The ledger with a note, as a run leaves it that has set these options of a VM's configuration.

    :param lines: the VM's.
    :param more: the note's other fields.
    """
    config = dict(options(lines.splitlines()))
    note: dict[str, Any] = {
        "identity": identity(config),
        "owner": "p/s/sandbox",
        "values": {key: (config[key],) for key in keys},
        "originals": dict.fromkeys(keys),
    }
    return {f"qemu-{vmid}": json.dumps(to_plain(Note(**note | more)))}


def container_note(ctid: int, cards: Cards, *dev: str, **more: Any) -> dict[str, str]:
    """The ledger with a note, as a run leaves it that has given a container these cards.

    :param dev: values of dev0, dev1, …, which its configuration has from this program.
    :param more: the note's other fields.
    """
    values = {f"dev{number}": (value,) for number, value in enumerate(dev)}
    note: dict[str, Any] = {
        "owner": "p/s/phoenix",
        "values": values,
        "originals": dict.fromkeys(values),
        "given": Given(cards=cards),
    }
    return {f"lxc-{ctid}": json.dumps(to_plain(ContainerNote(**note | more)))}


def values(gpus: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A host, as the settings have it."""
    cards = {"rtx5090": {"match": "10de:2b85"}} if gpus is None else gpus
    return {"address": "192.168.0.202", "ssh": {"hostKey": KEY, "agent": True}, "gpus": cards} | changes


def settings(gpus: dict[str, Any] | None = None, **changes: Any) -> Host:
    return Host.model_validate(values(gpus, **changes))


def tree(
    facts: HostFacts,
    host: Host,
    vms: dict[str, Vm] | None = None,
    containers: dict[str, Container] | None = None,
    stack: str = "",
) -> Tree:
    """What is judged of a host and these guests."""
    return judged(facts, Settings("pve", host, vms or {}, containers or {}, stack))


def told(
    facts: HostFacts,
    host: Host,
    vms: dict[str, Vm],
    containers: dict[str, Container] | None = None,
    stack: str = "",
) -> tuple[str, list[HomelabError]]:
    """A plan's lines of VMs and containers, and what is refused of them."""
    found = tree(facts, host, vms, containers, stack)
    errors = {str(error): error for part in found.parts() for error in part.refusals}
    return "\n".join(text.of_guests(found)), [*errors.values()]
