"""How the host boots: its loader, its kernel command lines, and what is there for the next boot."""

from __future__ import annotations

from remote_scripts.shared import boot, cmdline, trial
from remote_scripts.shared.boot import Loader
from remote_scripts.shared.reading.answer import CommandLines
from remote_scripts.shared.reading.source import Source, lines_of

# Their versions decide which options of cards Proxmox VE knows, and what runs in containers.
_PACKAGES = ("pve-manager", "qemu-server", "libpve-guest-common-perl", "lxc-pve")


def loader(source: Source) -> Loader:
    """Who makes the kernel command line."""
    return source.noting(boot.UUIDS, lambda: boot.find_loader(source.system), Loader(""))


def command_lines(source: Source, name: str) -> CommandLines:
    """All of them; those of the next boot empty where it can't be told what makes them.

    :param name: the loader's.
    """
    system = source.system
    running = source.text("/proc/cmdline")
    if not boot.is_configurable(system, name):
        return CommandLines(running, "", "", "")
    place = "/etc/default/grub" if name == "grub" else boot.KERNEL_CMDLINE
    nothing: dict[str, str] | None = None
    # What a trial is to bring has not drifted before that is confirmed.
    to_come = source.noting(trial.NOTE, lambda: trial.to_come(system), nothing)
    configured = source.noting(place, lambda: cmdline.configured(system, name, to_come), "")

    def without_ours() -> str:
        # The host's own files may ask programs: they are read once more only where that tells more.
        is_same = to_come is None and not any(cmdline.own(system).values())
        return configured if is_same else cmdline.configured(system, name, {})

    others = source.noting(place, without_ours, "")
    generated = ""
    if name == "grub" and not _has_esps(source) and to_come is None:
        generated = source.noting(boot.GRUB_MENU, lambda: cmdline.generated(system), "")
    return CommandLines(running, configured, others, generated)


def warnings(status: str) -> str:
    """What proxmox-boot-tool warns of."""
    return "\n".join(line for line in lines_of(status) if line.startswith("WARN: "))


def allows_unsafe_interrupts(source: Source) -> bool:
    """Whether VFIO gives cards away without interrupt remapping, as its module has it once it is loaded."""
    return source.word("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts") == "Y"


def packages(source: Source) -> dict[str, str]:
    """Versions of packages, by their names; of those that are installed whole."""
    form = "${Package} ${db:Status-Status} ${Version}\n"
    lines = lines_of(source.ask("dpkg-query", "-W", f"-f={form}", *_PACKAGES).text)
    words = (line.split() for line in lines)
    return {fields[0]: fields[2] for fields in words if len(fields) == 3 and fields[1] == "installed"}


def _has_esps(source: Source) -> bool:
    return source.noting(boot.UUIDS, lambda: len(boot.uuids(source.system)), 0) > 0
