"""Starts one simulated command: `python -I -S run.py [--container] NAME ARGS...`. PROGRAMS says which module has it."""

from __future__ import annotations

import importlib
import sys

#: Command name -> module of this package with a `main(host, name, args) -> exit status`.
PROGRAMS = {
    "lspci": "lspci",
    "update-grub": "boot_programs",
    "grub-mkconfig": "boot_programs",
    "grub-reboot": "boot_programs",
    "grub-set-default": "boot_programs",
    "grub-editenv": "boot_programs",
    "proxmox-boot-tool": "boot_programs",
    "update-initramfs": "boot_programs",
    "lsinitramfs": "boot_programs",
    "unmkinitramfs": "boot_programs",
    "efibootmgr": "boot_programs",
    "mokutil": "boot_programs",
    "bootctl": "boot_programs",
    "modprobe": "module_programs",
    "rmmod": "module_programs",
    "lsmod": "module_programs",
    "modinfo": "module_programs",
    "depmod": "module_programs",
    "uname": "system_programs",
    "dmesg": "system_programs",
    "journalctl": "system_programs",
    "hostname": "system_programs",
    "systemd-detect-virt": "system_programs",
    "ip": "system_programs",
    "lsb_release": "system_programs",
    "dpkg": "system_programs",
    "dpkg-query": "system_programs",
    "nvidia-smi": "nvidia_programs",
    "nvidia-modprobe": "nvidia_programs",
    "mknod": "node_programs",
    "stat": "node_programs",
    "ls": "node_programs",
    "test": "node_programs",
    "[": "node_programs",
    "uptime": "system_programs",
    "udevadm": "system_programs",
    "mount": "storage_programs",
    "umount": "storage_programs",
    "mountpoint": "storage_programs",
    "df": "storage_programs",
    "findmnt": "storage_programs",
    "lsblk": "storage_programs",
    "zpool": "storage_programs",
    "systemctl": "systemd_programs",
    "systemd-run": "systemd_programs",
    "reboot": "systemd_programs",
    "shutdown": "systemd_programs",
    "poweroff": "systemd_programs",
    "sudo": "account_programs",
    "id": "account_programs",
    "whoami": "account_programs",
    "pveversion": "guest_programs",
    "pvesh": "guest_programs",
    "pveum": "guest_programs",
    "qm": "guest_programs",
    "pct": "guest_programs",
}
#: Commands that a guest alone has: a Proxmox host has no sudo, and is root's.
GUEST_ONLY = frozenset({"sudo", "id", "whoami"})

#: The same for the programs that every container has.
CONTAINER_PROGRAMS = {
    **{name: "node_programs" for name in ("mknod", "stat", "ls", "test", "[")},
    **{name: "container_programs" for name in ("cat", "head", "dd", "su", "runuser", "setpriv", "id", "whoami")},
    **{name: "system_programs" for name in ("uname", "hostname")},
}
#: And for those that are installed in a container, or not.
INSTALLED_IN_CONTAINER = {"nvidia-smi": "nvidia_programs"}


def main() -> int:
    """Run the command that the launcher names, after `--container` one of a container."""
    programs, words = PROGRAMS, sys.argv[1:]
    if words[0] == "--container":
        programs, words = {**CONTAINER_PROGRAMS, **INSTALLED_IN_CONTAINER}, words[1:]
    name, arguments = words[0], words[1:]
    # At the end of the path: the package is found as `host`, and nothing beside it hides a standard module.
    sys.path.append(__file__.rpartition("/host/")[0])
    program = importlib.import_module("host.program")
    module = importlib.import_module(f"host.{programs[name]}")
    return int(program.run(module.main, name, arguments))


if __name__ == "__main__":
    sys.exit(main())
