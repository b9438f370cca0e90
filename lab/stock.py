"""The stock tree: the files of a freshly installed Proxmox VE host, as far as this project and its users touch
them. Contents follow the packages (pve-manager, proxmox-kernel-helper, grub2, initramfs-tools, kmod) in shape.
"""

from __future__ import annotations

from pathlib import Path

from lab.host.cluster import Cluster, share_keys
from lab.host.installed import fetch_lists, install_base, install_driver
from lab.host.kernel_files import Build, write_kernel
from lab.host.pve_packages import is_pve9, stock_packages
from lab.host.state import HostState
from lab.scenario import File, Scenario

TEMPLATES = Path(__file__).parent / "stock_files"

#: Those in which nothing is written below, on one host or on all.
_FOLDERS = (
    "etc/alternatives",
    "etc/initramfs-tools/hooks",
    "etc/initramfs-tools/conf.d",
    "etc/initramfs-tools/scripts/init-top",
    "etc/initramfs-tools/scripts/init-premount",
    "etc/initramfs-tools/scripts/local-top",
    "etc/initramfs-tools/scripts/init-bottom",
    "etc/systemd/system/timers.target.wants",
    "etc/systemd/system/multi-user.target.wants",
    "etc/systemd/system/getty.target.wants",
    "etc/apt/sources.list.d",
    "etc/udev/rules.d",
    "usr/lib/modules-load.d",
    "usr/lib/systemd/system",
    "usr/local/sbin",
    "usr/local/bin",
    "usr/sbin",
    "usr/bin",
    "usr/share/initramfs-tools/hooks",
    "usr/share/kvm",
    "var/lib/vz",
    "var/tmp",
    "tmp",
    "opt",
    "proc",
    "sys",
    "dev",
    "run",
    "mnt",
)
_OS = {
    "8.4": ("12", "bookworm", "12.11"),
    "9.1": ("13", "trixie", "13.2"),
}
# GRUB 2.12 (Debian 13) tells its name and partition to the system in EFI variables.
_BLI = """#!/bin/sh
set -e

echo 'if [ "$grub_platform" = "efi" ]; then
  insmod bli
fi'
"""
_GRUB_SETTINGS = {
    "8.4": "GRUB_DISTRIBUTOR=`lsb_release -i -s 2> /dev/null || echo Debian`",
    "9.1": "GRUB_DISTRIBUTOR=`( . /etc/os-release && echo ${NAME} )`",
}


def write_stock_tree(host: HostState, scenario: Scenario) -> None:
    """Write root/ and the ESPs' folders; boot configuration and initramfs images are generated afterwards."""
    for folder in _FOLDERS:
        (host.root / folder).mkdir(parents=True, exist_ok=True)
    (host.root / "root/.ssh").mkdir(parents=True)
    (host.root / "root/.ssh").chmod(0o700)
    for name, target in (("lib", "usr/lib"), ("bin", "usr/bin"), ("sbin", "usr/sbin"), ("var/run", "../run")):
        host.symlink(f"/{name}", target)
    _templates(host)
    _identity(host, scenario)
    _network(host, scenario)
    _grub_defaults(host, scenario)
    _modules_config(host)
    _pve(host, scenario)
    for kernel in scenario.kernels:
        write_kernel(host, kernel)
    _packages(host, scenario)
    _esps(host, scenario)
    for path, content in scenario.files.items():
        file = content if isinstance(content, File) else File(content=content)
        host.write(path, file.content, int(file.mode, 8))


def _templates(host: HostState) -> None:
    """The shell scripts of grub.d, the kernel hooks and initramfs-tools: stock_files/ holds them by path."""
    for path in sorted(TEMPLATES.rglob("*")):
        if path.is_file():
            content = path.read_text(encoding="utf-8")
            host.write(f"/{path.relative_to(TEMPLATES)}", content, 0o755 if content.startswith("#!") else 0o644)


def _identity(host: HostState, scenario: Scenario) -> None:
    number, codename, point = _OS[scenario.pve]
    host.write(
        "/etc/os-release",
        (
            f'PRETTY_NAME="Debian GNU/Linux {number} ({codename})"\nNAME="Debian GNU/Linux"\nVERSION_ID="{number}"\n'
            f'VERSION="{number} ({codename})"\nVERSION_CODENAME={codename}\nID=debian\n'
            'HOME_URL="https://www.debian.org/"\n'
        ),
    )
    host.write("/etc/debian_version", point + "\n")
    host.write("/etc/hostname", scenario.node + "\n")
    host.write("/etc/passwd", "root:x:0:0:root:/root:/bin/bash\n")
    host.write(
        "/etc/hosts",
        f"127.0.0.1 localhost.localdomain localhost\n192.168.0.202 {scenario.node}.lan {scenario.node}\n",
    )
    host.write("/etc/machine-id", scenario.stable_uuid("machine").replace("-", "") + "\n", 0o444)


def _network(host: HostState, scenario: Scenario) -> None:
    ports = [n.name for f in scenario.functions() for n in f.nets if n.bridge == "vmbr0"]
    host.write(
        "/etc/network/interfaces",
        (
            "auto lo\niface lo inet loopback\n\n"
            + "".join(f"iface {p} inet manual\n\n" for p in ports)
            + "auto vmbr0\niface vmbr0 inet static\n\taddress 192.168.0.202/24\n\tgateway 192.168.0.1\n"
            f"\tbridge-ports {' '.join(ports) or 'none'}\n\tbridge-stp off\n\tbridge-fd 0\n"
        ),
    )
    fstab = "# <file system> <mount point> <type> <options> <dump> <pass>\n"
    for mount in host.machine["mounts"]:
        if mount["fstype"] in ("ext4", "vfat", "xfs"):
            fstab += f"{mount['source']} {mount['target']} {mount['fstype']} defaults 0 1\n"
    host.write("/etc/fstab", fstab + "proc /proc proc defaults 0 0\n")


def _grub_defaults(host: HostState, scenario: Scenario) -> None:
    linux = "root=" + scenario.boot.root + " boot=zfs" if scenario.boot.is_zfs else ""
    host.write(
        "/etc/default/grub",
        (
            "# If you change this file, run 'update-grub' afterwards to update\n# /boot/grub/grub.cfg.\n"
            "# For full documentation of the options in this file, see:\n#   info -f grub -n 'Simple configuration'\n\n"
            f"GRUB_DEFAULT=0\nGRUB_TIMEOUT=5\n{_GRUB_SETTINGS[scenario.pve]}\n"
            f'GRUB_CMDLINE_LINUX_DEFAULT="{scenario.boot.cmdline}"\nGRUB_CMDLINE_LINUX="{linux}"\n\n'
            "# If your computer has multiple operating systems installed, then you\n"
            "# probably want to run os-prober. However, if your computer is a host\n"
            "# for guest OSes installed via LVM or raw disk devices, running\n"
            "# os-prober can cause damage to those guest OSes as it mounts\n"
            "# filesystems to look for things.\n#GRUB_DISABLE_OS_PROBER=false\n\n"
            '# Uncomment to disable generation of recovery mode menu entries\n#GRUB_DISABLE_RECOVERY="true"\n'
        ),
    )
    host.write("/etc/default/grub.d/proxmox-ve.cfg", 'GRUB_DISTRIBUTOR="Proxmox VE"\nGRUB_DISABLE_OS_PROBER=true\n')
    if scenario.pve.startswith("9"):
        host.write("/etc/grub.d/25_bli", _BLI, 0o755)
    if scenario.boot.loader == "systemd-boot":
        host.write(
            "/etc/kernel/cmdline",
            f"root={scenario.boot.root} boot=zfs\n"
            if scenario.boot.is_zfs
            else f"root={scenario.boot.root} ro {scenario.boot.cmdline}\n",
        )
    if scenario.boot.esps:
        host.write(
            "/etc/kernel/proxmox-boot-uuids",
            "".join(f"{uuid}\n" for uuid in sorted(scenario.boot.esps)),
        )


def _modules_config(host: HostState) -> None:
    host.write(
        "/etc/modules",
        (
            "# /etc/modules: kernel modules to load at boot time.\n#\n"
            "# This file contains the names of kernel modules that should be loaded\n"
            '# at boot time, one per line. Lines beginning with "#" are ignored.\n'
            "# Parameters can be specified after the module name.\n\n"
        ),
    )
    host.symlink("/etc/modules-load.d/modules.conf", "../modules")
    host.write(
        "/etc/modprobe.d/pve-blacklist.conf",
        (
            "# This file contains a list of modules which are not supported by Proxmox VE \n\n"
            "# nvidiafb see bugreport https://bugzilla.proxmox.com/show_bug.cgi?id=701\nblacklist nvidiafb\n"
        ),
    )
    host.write("/usr/lib/modprobe.d/aliases.conf", "alias net-pf-3 off\n")
    host.write("/usr/lib/modprobe.d/fbdev-blacklist.conf", "blacklist nvidiafb\nblacklist radeonfb\n")
    if host.machine["nvidia"]:
        host.write(
            "/etc/modprobe.d/nvidia-graphics-drivers.conf",
            "blacklist nouveau\nblacklist nova_core\noptions nvidia-drm modeset=1\n"
            + ("" if host.machine["nvidia"]["loaded"] else "blacklist nvidia\nblacklist nvidia-drm\n"),
        )


def _pve(host: HostState, scenario: Scenario) -> None:
    if (cluster := Cluster.of(host)) is not None:
        cluster.show(host)
    node = f"/etc/pve/nodes/{scenario.node}"
    for folder in (f"{node}/qemu-server", f"{node}/lxc", "/etc/pve/mapping", "/etc/pve/priv/lock"):
        host.rooted(folder).mkdir(parents=True, exist_ok=True)
    host.symlink("/etc/pve/local", f"nodes/{scenario.node}")
    host.symlink("/etc/pve/qemu-server", f"nodes/{scenario.node}/qemu-server")
    host.symlink("/etc/pve/lxc", f"nodes/{scenario.node}/lxc")
    host.write(
        "/root/.ssh/id_rsa.pub", f"ssh-rsa AAAA{scenario.stable_uuid('key').replace('-', '')} root@{scenario.node}\n"
    )
    share_keys(host)
    for name in ("config.db", "config.db-wal"):  # pmxcfs', which has all of /etc/pve in it
        host.write(f"/var/lib/pve-cluster/{name}", "", 0o600)
    host.write("/etc/pve/user.cfg", "user:root@pam:1:0::::::\n", 0o640)
    host.write(
        "/etc/pve/storage.cfg",
        (
            # Proxmox VE's installer lets it take disk images from 9.0 on (pve-installer, StorageConfig.pm).
            f"dir: local\n\tpath /var/lib/vz\n\tcontent iso,vztmpl,backup{',import' if is_pve9(host) else ''}\n\n"
            + (
                "zfspool: local-zfs\n\tpool rpool/data\n\tsparse\n\tcontent images,rootdir\n"
                if scenario.boot.is_zfs
                else "lvmthin: local-lvm\n\tthinpool data\n\tvgname pve\n\tcontent rootdir,images\n"
            )
        ),
        0o640,
    )
    for guest in scenario.guests:
        folder = "qemu-server" if guest.kind == "vm" else "lxc"
        host.write(f"{node}/{folder}/{guest.id}.conf", guest.conf, 0o640)


def without_subscription(root: Path) -> None:
    """What an owner without a subscription makes of apt's sources (pve-docs, pve-package-repos.adoc).

    Args:
        root: the host's.
    """
    for path in (root / "etc/apt/sources.list", root / "etc/apt/sources.list.d/proxmox.sources"):
        if path.exists():
            text = path.read_text(encoding="utf-8").replace(
                "https://enterprise.proxmox.com", "http://download.proxmox.com"
            )
            path.write_text(text.replace("pve-enterprise", "pve-no-subscription"), encoding="utf-8")


def _packages(host: HostState, scenario: Scenario) -> None:
    kernels = {f"proxmox-kernel-{kernel}-signed": kernel.removesuffix("-pve") for kernel in scenario.kernels}
    install_base(host, "pve", f"pve-{scenario.pve}", {**stock_packages(host), **kernels})
    if scenario.nvidia is not None:
        install_driver(host, Build(scenario.nvidia.version, "open" if scenario.nvidia.open else "proprietary"))
    if scenario.no_subscription:
        without_subscription(host.root)
        fetch_lists(host)  # as Proxmox VE does once a day


def _esps(host: HostState, scenario: Scenario) -> None:
    for device in host.machine["hardware"]["devices"]:
        for part in (part for disk in device["blocks"] for part in disk["partitions"]):
            if part["fstype"] == "vfat" and part["uuid"]:
                (host.esp / part["uuid"]).mkdir(exist_ok=True)
    for uuid in scenario.boot.esps:
        esp = host.esp / uuid
        if scenario.boot.loader == "systemd-boot":
            for folder in ("EFI/proxmox", "EFI/systemd", "EFI/BOOT", "loader/entries"):
                (esp / folder).mkdir(parents=True)
            (esp / "EFI/systemd/systemd-bootx64.efi").write_text("systemd-boot\n", encoding="utf-8")
            (esp / "EFI/BOOT/BOOTX64.EFI").write_text("systemd-boot\n", encoding="utf-8")
            (esp / "loader/loader.conf").write_text("timeout 3\ndefault proxmox-*\n", encoding="utf-8")
            continue
        (esp / "grub").mkdir(parents=True)
        if scenario.firmware.mode == "uefi":
            for name in ("EFI/proxmox/grubx64.efi", "EFI/proxmox/shimx64.efi", "EFI/BOOT/BOOTX64.EFI"):
                (esp / name).parent.mkdir(parents=True, exist_ok=True)
                (esp / name).write_text("GRUB\n", encoding="utf-8")
    if scenario.firmware.mode == "uefi" and not scenario.boot.esps:
        for name in ("EFI/proxmox/grubx64.efi", "EFI/proxmox/shimx64.efi", "EFI/BOOT/BOOTX64.EFI"):
            host.write(f"/boot/efi/{name}", "GRUB\n", 0o755)
