"""The packages of a Proxmox VE host: those of an installation, and those that `pveversion -v` tells of."""

from __future__ import annotations

from .dpkg import installed
from .state import HostState


def is_pve9(host: HostState) -> bool:
    """Whether it is Proxmox VE 9, whose answers aren't all those of 8."""
    return int(str(host.machine["pve"]).partition(".")[0]) >= 9


def stock_packages(host: HostState) -> dict[str, str]:
    """The packages of a Proxmox host that has just been installed, besides what Debian is made of, with their versions."""
    pve = {
        "8.4": ("8.4.14", "8.4.0", "0.142+deb12u3", "2.06-13+pmx7", "8.1.1"),
        "9.1": ("9.1.2", "9.1.0", "0.148.3", "2.12-9+pmx2", "9.0.4"),
    }[host.machine["pve"]]
    found = {
        "pve-manager": pve[0],
        "proxmox-ve": pve[1],
        "initramfs-tools": pve[2],
        "grub-common": pve[3],
        "proxmox-kernel-helper": pve[4],
        "qemu-server": host.machine["qemu_server"],
        "libpve-guest-common-perl": {"8": "5.2.2", "9": "6.0.2"}[host.machine["pve"][0]],
        # 6.0.5-3 is two days older than pve-manager 9.1.2 (proxmox/lxc, debian/changelog); on 8, stable-bookworm ends there.
        "lxc-pve": {"8": "6.0.0-1", "9": "6.0.5-3"}[host.machine["pve"][0]],
        "pve-container": host.machine["pve_container"],
        "pciutils": "1:3.13.0-2",
    }
    if host.machine["hardware"]["firmware"]["mode"] == "uefi":
        found["grub-efi-amd64"] = pve[3]
    if host.machine["boot"]["loader"] == "systemd-boot":
        found["systemd-boot"] = "257.9-1~deb13u1" if host.machine["pve"].startswith("9") else "252.39-1~deb12u1"
    return found


def pve_packages(host: HostState) -> dict[str, str]:
    """The installed packages that Proxmox VE tells of, with their versions."""
    there = installed(host)
    kernels = [name for name in there if name.startswith("proxmox-kernel-")]
    return {n: p.version for n in sorted({*stock_packages(host), *kernels}) if (p := there.get(n))}
