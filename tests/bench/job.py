"""The host job that all three tools do: six files, what is generated of them, and what the running kernel must show.

Owns the folder that the peers work from. It is taken from a host after `up`, so that there is one truth: a peer that leaves other
bytes than the program isn't doing the same job.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import Lab
from remote_scripts.boot.loaders import found as loaders
from remote_scripts.tools.system import System
from tests.bench.errors import BenchError

# What the program writes on a host that boots with GRUB (docs/undo.md), beside its own records for `destroy`.
PATHS = (
    "/etc/default/grub.d/zz-homelab-iommu.cfg",
    "/etc/default/grub.d/zz-homelab-vfio.cfg",
    "/etc/grub.d/12_homelab",
    "/etc/initramfs-tools/hooks/homelab-vfio",
    "/etc/initramfs-tools/scripts/init-top/homelab-vfio",
    "/etc/modules-load.d/homelab-vfio.conf",
)


@dataclass(frozen=True)
class Job:
    """`folder` holds `files/etc/…` and, for the peers, `job.json` and `known_hosts`.

    `words`: that the files put on the kernel command line; `functions`: PCI address -> vendor:device of those on vfio-pci.
    """

    folder: Path
    words: list[str]
    functions: dict[str, str]

    @property
    def files(self) -> Path:
        """The files' contents and modes, under the paths that they have on a host."""
        return self.folder / "files"

    @property
    def facts(self) -> Path:
        """What pyinfra's inventory reads."""
        return self.folder / "job.json"

    @property
    def known_hosts(self) -> Path:
        """The host's key, pinned for the peers as it is for the program."""
        return self.folder / "known_hosts"

    def write_facts(self, lab: Lab) -> dict[str, Any]:
        """Writes `job.json` and `known_hosts` for a lab.

        :returns: what the former holds.
        """
        ssh = lab.connection
        facts = {
            "ssh": ssh,
            "known_hosts": str(self.known_hosts),
            "root": str(lab.root),
            "files": str(self.files),
            "words": self.words,
            "functions": self.functions,
        }
        self.facts.write_text(json.dumps(facts, indent=1), encoding="utf-8")
        self.known_hosts.write_text(f"[{ssh['host']}]:{ssh['port']} {ssh['hostKey']}\n", encoding="ascii")
        return facts

    def differences(self, root: Path) -> list[str]:
        """The paths whose content or mode on the host at `root` isn't the job's."""
        return [path for path in PATHS if _state(root, path) != _state(self.files, path)]


def collect(folder: Path, root: Path) -> Job:
    """The job as it was done on the host at `root`.

    :param folder: where to keep it; made when it isn't there.
    :raises BenchError: the host isn't as a host is after `up`.
    """
    missing = [path for path in PATHS if not (root / path[1:]).is_file()]
    functions = on_vfio(root)
    if missing or not functions:
        raise BenchError(
            "a host with the program's files, and functions on vfio-pci",
            f"missing: {', '.join(missing) or 'no file'}; on vfio-pci: {', '.join(functions) or 'nothing'}",
            "the peers are given the very files that `up` writes",
            "see `make up`; when the program writes other files now, correct PATHS in tests/bench/job.py and both peers",
        )
    job = Job(folder, words(root), functions)
    for path in PATHS:
        copy = job.files / path[1:]
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((root / path[1:]).read_bytes())
        copy.chmod((root / path[1:]).stat().st_mode & 0o7777)
    return job


def words(root: Path) -> list[str]:
    """What the files at `root` put on the kernel command line. The running kernel has the words of a boot on trial, too."""
    return " ".join(loaders.own(System(root)).values()).split()


def on_vfio(root: Path) -> dict[str, str]:
    """PCI address -> vendor:device of every function that vfio-pci has."""
    found = {}
    for device in sorted((root / "sys/bus/pci/devices").iterdir()):
        driver = device / "driver"
        if driver.is_symlink() and driver.readlink().name == "vfio-pci":
            vendor, product = ((device / name).read_text(encoding="ascii").strip() for name in ("vendor", "device"))
            found[device.name] = f"{vendor.removeprefix('0x')}:{product.removeprefix('0x')}"
    return found


def _state(root: Path, path: str) -> tuple[int, bytes] | None:
    file = root / path[1:]
    return (file.stat().st_mode & 0o7777, file.read_bytes()) if file.is_file() else None
