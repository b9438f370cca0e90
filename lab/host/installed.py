"""What a system has from its installation on: its packages, where apt gets more, the keys that it trusts."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Any

from . import contents, debs, dkms, dpkg, network
from .debs import Member
from .kernel_files import Build
from .node_programs import REAL_PATH
from .state import HostState, of_packages, of_root

#: What a driver on a Proxmox host is made of, as NVIDIA's repository for Debian has it.
_DRIVER = (
    *("nvidia-driver-cuda", "nvidia-kernel-support", "nvidia-modprobe", "libcuda1", "libnvidia-ml1"),
    *("firmware-nvidia-gsp", "nvidia-persistenced"),
)
_DKMS = {"open": "nvidia-kernel-open-dkms", "proprietary": "nvidia-kernel-dkms"}
_DRIVER_GROUP = "cuda-debian"
#: Debian 13's own begins with 590, so that people take an older driver from the one for Debian 12, and have apt accept
#: its key (NVIDIA/cuda-repo-management issue 38).
_BORROWED = "https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64"
#: Folders that every system has, whatever packages come and go: what the list of files of `coreutils` names.
_FOLDERS = (
    *(
        "/boot",
        "/etc/OpenCL/vendors",
        "/etc/apt/preferences.d",
        "/etc/apt/sources.list.d",
        "/etc/modprobe.d",
        "/etc/systemd/system",
    ),
    *("/usr/bin", "/usr/lib/modprobe.d", "/usr/lib/modules", "/usr/lib/systemd/system", "/usr/lib/udev/rules.d"),
    *("/usr/lib/x86_64-linux-gnu/dri", "/usr/local/bin", "/usr/sbin", "/usr/share/keyrings", "/usr/src", "/var/lib"),
)
_DPKG_FOLDERS = ("info", "updates", "triggers", "alternatives", "parts")
_APT_FOLDERS = ("/var/lib/apt/lists/partial", "/var/cache/apt/archives/partial", "/var/log/apt")


def install_base(host: HostState, kind: str, sources: str, more: dict[str, str] | None = None) -> None:
    """Write dpkg's database and apt's configuration of a new system; one that has them is left alone.

    Args:
        kind: which standard installation: a key of `installed` in repositories.yaml.
        sources: which repositories: a key of `sources` there.
        more: further packages, with their versions.
    """
    if host.rooted(dpkg.STATUS).exists():
        return
    for folder in ("apt.conf.d", "keyrings", "preferences.d", "sources.list.d", "trusted.gpg.d"):
        host.rooted(f"/etc/apt/{folder}").mkdir(parents=True, exist_ok=True)
    for place in (*_FOLDERS, *_APT_FOLDERS, *(f"{dpkg.FOLDER}/{name}" for name in _DPKG_FOLDERS)):
        host.rooted(place).mkdir(parents=True, exist_ok=True)
    for path in ("available", "lock", "lock-frontend", "triggers/Lock", "triggers/Unincorp", "status"):
        host.write(f"{dpkg.FOLDER}/{path}", "", 0o640 if "ock" in path else 0o644)
    host.write("/var/lib/apt/extended_states", "")
    host.write(f"{dpkg.FOLDER}/info/format", "1\n")
    known = network.data(host)
    origin = known["sources"][sources]
    if not host.rooted(origin["path"]).exists():
        host.write(origin["path"], origin["text"])
    for path, key in origin["keys"].items():
        host.write(path, network.key_named(host, key).binary())
    for name, version in {**dict.fromkeys(known["installed"][kind], "1"), **(more or {})}.items():
        note_package(host, name, version)
    standard = dict.fromkeys(_FOLDERS, Member(b""))
    dpkg.note(host, _paragraph("coreutils", "1"), standard)


def _paragraph(name: str, version: str) -> dict[str, str]:
    return debs.fields(name, {"version": version, "architecture": "amd64"})


def note_package(host: HostState, name: str, version: str) -> None:
    """Have a package in the database whose files are there already."""
    dpkg.note(host, _paragraph(name, version))


def unpack(host: HostState, name: str, record: dict[str, Any]) -> None:
    """Have a package as if it had been installed, but for what its scripts do."""
    found = debs.members(host, name, record)
    for path, member in found.items():
        if member.is_link:
            host.symlink(path, member.content.decode())
        else:
            host.write(path, member.content, member.mode)
    dpkg.note(host, debs.fields(name, record), found, debs.control_files(name, record))


def install_driver(host: HostState, build: Build) -> None:
    """A host on which somebody installed NVIDIA's driver: headers for every kernel, modules built, libraries, programs."""
    groups = network.data(host)["groups"]
    for kernel in host.kernels():
        install_headers(host, kernel)
    note_package(host, "proxmox-default-headers", "1")
    for name in ("gcc", "make"):
        note_package(host, name, "1")
    unpack(host, "dkms", groups["tools"]["packages"]["dkms"][0] | {"version": "3.0.10-8+deb12u1"})
    for name in (*_DRIVER, _DKMS[build.flavour]):
        record = _record(groups[_DRIVER_GROUP]["packages"][name], build.version)
        if record["gives"].get("blacklist"):  # the stock tree has a blacklist of its own, in /etc
            record["gives"] = {}
        unpack(host, name, record)
        if record["gives"].get("units"):
            contents.configure(host, record["gives"])
    dkms.register(host, build.version)
    if "trixie" in host.read("/etc/os-release", ""):
        keyring = "/etc/apt/keyrings/nvidia-3bf863cc.gpg"
        host.write(keyring, network.key_named(host, "cuda").binary())
        host.write("/etc/apt/sources.list.d/cuda-debian12-x86_64.list", f"deb [signed-by={keyring}] {_BORROWED}/ /\n")
    for kernel in host.kernels():
        dkms.note_built(host, build, kernel)


def install_headers(host: HostState, kernel: str) -> None:
    """Have a kernel's headers on a Proxmox host."""
    body = network.data(host)["groups"]["kernels-pve-8"]["templates"]["proxmox-headers-{k}"]
    unpack(host, *network.record_for_kernel("proxmox-headers-{k}", body, kernel))


def _record(records: list[dict[str, Any]], version: str) -> dict[str, Any]:
    """A package's record; that of another version, changed, where the repository hasn't just this one."""
    found = next((r for r in records if r["version"] == f"{version}-1"), records[-1])
    gives = {**found.get("gives", {})}
    return {**found, "version": f"{version}-1", "gives": gives | ({"version": version} if "version" in gives else {})}


def fetch_lists(host: HostState) -> None:
    """Have the lists of the system's repositories, where this machine has apt."""
    if program := shutil.which("apt-get", path=REAL_PATH):
        environment = os.environ | {"LAB_STATE": str(host.state)} | of_root(host.root) | of_packages(host.state)
        subprocess.run([program, "-qq", "update"], env=environment, capture_output=True, check=False)
