"""What a system has from its installation on: its packages, where apt gets more, the keys that it trusts."""

from __future__ import annotations

from typing import Any

from . import contents, dkms, network
from .dpkg import Database, Package, package_of
from .kernel_files import Build, write_headers
from .state import HostState

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


def install_base(host: HostState, kind: str, sources: str, more: dict[str, str] | None = None) -> None:
    """Write dpkg's database and apt's configuration of a new system; one that has them is left alone.

    Args:
        kind: which standard installation: a key of `installed` in repositories.yaml.
        sources: which repositories: a key of `sources` there.
        more: further packages, with their versions.
    """
    if host.rooted("/var/lib/dpkg/status").exists():
        return
    for folder in ("apt.conf.d", "keyrings", "preferences.d", "sources.list.d", "trusted.gpg.d"):
        host.rooted(f"/etc/apt/{folder}").mkdir(parents=True, exist_ok=True)
    known = network.data(host)
    origin = known["sources"][sources]
    if not host.rooted(origin["path"]).exists():
        host.write(origin["path"], origin["text"])
    for path, key in origin["keys"].items():
        host.write(path, network.key_named(host, key).binary())
    database = Database(host)
    for name, version in {**dict.fromkeys(known["installed"][kind], "1"), **(more or {})}.items():
        database.packages[name] = Package(name, version, fields={"Architecture": "amd64"})
    database.save()


def note_package(host: HostState, name: str, version: str, group: str = "") -> None:
    """Have a package in the database whose files are there already."""
    database = Database(host)
    database.packages[name] = Package(name, version, group=group, fields={"Architecture": "amd64"})
    database.save()


def forget_package(host: HostState, name: str) -> None:
    """Take a package out of the database."""
    database = Database(host)
    database.packages.pop(name, None)
    database.save()


def install_driver(host: HostState, build: Build) -> None:
    """A host on which somebody installed NVIDIA's driver: headers for every kernel, modules built, libraries, programs."""
    for kernel in host.kernels():
        write_headers(host, kernel)
        note_package(host, f"proxmox-headers-{kernel}", kernel.removesuffix("-pve"))
    note_package(host, "proxmox-default-headers", "1")
    note_package(host, "dkms", "3.0.10-8+deb12u1", "tools")
    contents.install_program(host, "/usr/sbin/dkms")
    database = Database(host)
    for name in (*_DRIVER, _DKMS[build.flavour]):
        record = _record(host, name, build.version)
        gives = record.get("gives", {})
        if not gives.get("blacklist"):  # the stock tree has a blacklist of its own, in /etc
            contents.unpack(host, name, gives)
        database.packages[name] = package_of(name, record, _DRIVER_GROUP)
    database.save()
    if "trixie" in host.read("/etc/os-release", ""):
        keyring = "/etc/apt/keyrings/nvidia-3bf863cc.gpg"
        host.write(keyring, network.key_named(host, "cuda").binary())
        host.write("/etc/apt/sources.list.d/cuda-debian12-x86_64.list", f"deb [signed-by={keyring}] {_BORROWED}/ /\n")
    for kernel in host.kernels():
        dkms.note_built(host, build, kernel)


def _record(host: HostState, name: str, version: str) -> dict[str, Any]:
    """A package's record; that of another version, changed, where the repository hasn't just this one."""
    records = network.data(host)["groups"][_DRIVER_GROUP]["packages"][name]
    found: dict[str, Any] = next((r for r in records if r["version"] == f"{version}-1"), records[-1])
    gives = {**found["gives"], "version": version} if "version" in found.get("gives", {}) else found.get("gives", {})
    return {"version": f"{version}-1", "architecture": "amd64", "gives": gives}
