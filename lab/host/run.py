"""Starts one simulated command: `python -I -S run.py [--container] NAME ARGS...`. PROGRAMS says which module has it."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

_CONTAINER = "--container"
#: Of it, each is a process of its own, as on a host: no command server does it.
HOST_PYTHON = "lab-python"

#: What every system with packages has: a host, a VM, a container.
OF_PACKAGES = {
    **{name: "apt_programs" for name in ("apt", "apt-get", "apt-cache", "apt-mark", "dpkg", "dpkg-query")},
    "lab-apt-method": "apt_method",
    "lab-package": "contents",
    **{name: "download_programs" for name in ("curl", "sha256sum")},
    "nvidia-installer": "nvidia_installer",
}
#: Command name -> module of this package with a `main(host, name, args) -> exit status`.
PROGRAMS = {
    **OF_PACKAGES,
    "lspci": "lspci",
    "update-grub": "boot_programs",
    "grub-mkconfig": "boot_programs",
    "proxmox-boot-tool": "boot_programs",
    "update-initramfs": "boot_programs",
    "lsinitramfs": "boot_programs",
    "mokutil": "boot_programs",
    "unshare": "boot_programs",
    "modprobe": "module_programs",
    "rmmod": "module_programs",
    "modinfo": "module_programs",
    "uname": "system_programs",
    "dmesg": "system_programs",
    "journalctl": "system_programs",
    "hostname": "system_programs",
    "ip": "system_programs",
    "ss": "system_programs",
    "ping": "system_programs",
    "mknod": "node_programs",
    "dd": "container_programs",
    "setpriv": "container_programs",
    "python3": "library_programs",
    "perl": "library_programs",
    "stat": "node_programs",
    "tail": "efi_programs",
    "mount": "storage_programs",
    "umount": "storage_programs",
    "df": "storage_programs",
    "lsblk": "storage_programs",
    "systemctl": "systemd_programs",
    "systemd-run": "systemd_programs",
    "reboot": "systemd_programs",
    "sudo": "account_programs",
    "pveversion": "guest_programs",
    "pvesh": "guest_programs",
    "lab-sysfs-write": "sysfs_writes",
    HOST_PYTHON: "host_python",
    "lab-pvedaemon": "guest_programs",
    "qm": "guest_programs",
    "pct": "guest_programs",
    "lxc-attach": "guest_programs",
    "pvenode": "guest_programs",
    "pvecm": "guest_programs",
}
#: Commands that a guest alone has from the start: a Proxmox host has no sudo until somebody installs it.
GUEST_ONLY = frozenset({"sudo"})

#: The same for the programs that every container has.
CONTAINER_PROGRAMS = {
    **{name: "node_programs" for name in ("mknod", "stat", "test")},
    **{name: "container_programs" for name in ("cat", "head", "dd", "setpriv", "getent")},
    **{name: "system_programs" for name in ("uname", "hostname")},
    **OF_PACKAGES,
    **{name: "module_programs" for name in ("modprobe", "modinfo")},
    **{name: "library_programs" for name in ("python3", "perl")},
    "systemctl": "systemd_programs",
}
#: And for those that a package or an installer puts into a system's tree.
INSTALLED = {
    **{name: "nvidia_programs" for name in ("nvidia-smi", "nvidia-modprobe")},
    **{name: "cuda_programs" for name in ("nvcc", "cuda-program")},
    **{name: "runtime_programs" for name in ("nvidia-ctk", "docker", "podman", "ctr", "containerd", "dockerd")},
    **{
        name: "runtime_programs"
        for name in ("nvidia-container-runtime", "nvidia-container-runtime-hook", "nvidia-container-cli")
    },
    "vainfo": "card_programs",
    "dkms": "dkms_programs",
    "sudo": "account_programs",
    "nvidia-uninstall": "nvidia_installer",
}

#: Whether of a container -> command name -> module.
_MODULES = {False: {**PROGRAMS, **INSTALLED}, True: {**CONTAINER_PROGRAMS, **INSTALLED}}


def main() -> int:
    """Run the command that the launcher names."""
    words = sys.argv[1:]
    name, *arguments = words[1:] if words[0] == _CONTAINER else words
    module, program = module_of(words), importlib.import_module("host.program")
    return int(program.run(module.main, name, arguments))


def module_of(words: list[str]) -> ModuleType:
    """The module that has a launcher's command: `NAME ARGUMENTS...`, after `--container` one of a container."""
    inside = words[0] == _CONTAINER
    return importlib.import_module(f"host.{_MODULES[inside][words[int(inside)]]}")


if __name__ == "__main__":
    # At the end of the path: the package is found as `host`, and nothing beside it hides a standard module.
    sys.path.append(__file__.rpartition("/host/")[0])
    sys.exit(main())
