"""Reads what is decided upon before a host is changed, and what is verified after its reboot. Changes nothing.

What can't be read is in the answer (`unreadable`), and isn't taken for "nothing there"; texts of programs are passed on
as they are and parsed by the program (homelab/facts/host.py).
"""

from __future__ import annotations

import re

from remote_scripts.boot import boot as boot_files
from remote_scripts.boot.loaders.loader import Loader
from remote_scripts.both.read_host import Wanted
from remote_scripts.cards import host_nodes
from remote_scripts.reading import (
    boot,
    cards,
    devices,
    drm,
    guests,
    handover,
    holders,
    iommu,
    nvidia,
    own_files,
    reboot_required,
    vital,
)
from remote_scripts.reading.answer import Answer
from remote_scripts.reading.source import Source, head_and_tail, lines_of
from remote_scripts.tools.system import System

# Of the kernel's log so many lines are passed on.
_SIGNS = 1000
# Whether VFIO gives cards away without interrupt remapping, as its module has it once it is loaded.
_UNSAFE = "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
_CARDS_ENABLED = "/etc/systemd/system/multi-user.target.wants/homelab-card-nodes.service"


def read(system: System, wanted: Wanted) -> Answer:
    """Reads the host."""
    source = Source(system)
    found = boot.loader(source)
    cmdline = boot.command_lines(source, found.loader)
    # Where a user overrides what devices say of Access Control Services, the groups of the next boot depend on it.
    acs = wanted.acs or "pcie_acs_override=" in f"{cmdline.running} {cmdline.configured}"
    set_values = cards.records(source)
    minors, drm_nodes = nvidia.minors(source), drm.drm(source)
    packages = boot.packages(source)
    return Answer(
        boot_id=source.files.text("/proc/sys/kernel/random/boot_id"),
        kernel=source.word("/proc/sys/kernel/osrelease") or "",
        pve=packages.get("pve-manager", "unknown") if source.run.has("pveversion") else "",
        packages=packages,
        cpu_vendor=source.first("/proc/cpuinfo", r"vendor_id.*: (.*)$"),
        loader=found.loader.name if found.loader else "",
        loader_clues=found.clues,
        cmdline=cmdline,
        iommu=iommu.iommu(source),
        vfio_files=devices.vfio_files(source),
        vfio_mentions=devices.vfio_mentions(source),
        module_lines=devices.module_lines(source),
        modules=devices.modules(source),
        devices=devices.devices(source, acs=acs),
        card_states=cards.card_states(source, set_values),
        lost_values=cards.lost_values(source, set_values),
        # The program of NVIDIA's licensed vGPU driver that looks after its guests.
        vgpu_manager=source.files.exists("/usr/bin/nvidia-vgpu-mgr"),
        framebuffers=cards.framebuffers(source),
        lspci=source.ask("lspci", "-Dnn").text,
        disks=source.ask("lsblk", "-nro", "NAME,PKNAME,FSTYPE,MOUNTPOINT").text,
        vital=vital.vital(source),
        holders=holders.holders(source, minors, drm_nodes),
        kernel_log=_signs(source, wanted.signs),
        lost=cards.lost(source),
        unsafe_interrupts=source.word(_UNSAFE) == "Y",
        boot_warnings="\n".join(line for line in lines_of(found.status) if line.startswith("WARN: ")),
        managed=own_files.managed(source),
        stale_initramfs=boot_files.stale_kernels(system),
        rolled_back=own_files.rolled_back(source),
        rolling_back=own_files.is_rolling_back(source),
        pending=own_files.pending(source),
        boot_lacks=_boot_lacks(source, found.loader),
        next_boot=boot.next_boot(source),
        drm=drm_nodes,
        nodes=host_nodes.devices(system),
        cards_enabled=source.files.is_link(_CARDS_ENABLED),
        nvidia_minors=minors,
        nvidia=nvidia.nvidia(source),
        ledger=own_files.ledger(source),
        edits=own_files.edits(source),
        agents=own_files.agents(source),
        handover=handover.handed_over(source),
        owed=own_files.owed_starts(source),
        guests=guests.guests(source, running=wanted.guests),
        cluster=guests.cluster(source, asked=wanted.guests),
        # The last: all else is read by then.
        unreadable=[f"{path}: {why}" for path, why in source.unreadable.items()],
    )


def _signs(source: Source, pattern: str) -> str:
    sign = re.compile(pattern, re.IGNORECASE | re.ASCII)
    lines = (line for line in source.kernel_says if sign.search(line)) if pattern else ()
    return head_and_tail(lines, _SIGNS)


def _boot_lacks(source: Source, loader: Loader | None) -> list[str] | None:
    system = source.system
    if not loader or not loader.is_configurable(system):
        return None

    def reasons() -> list[str] | None:
        wanted = reboot_required.noted(system)
        return None if wanted is None else [one.said for one in reboot_required.check(system, wanted, loader)]

    return source.noting(reboot_required.NOTE.path, reasons, None)
