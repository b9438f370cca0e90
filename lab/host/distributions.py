"""The distributions that the lab's VMs have installed: what of them shows in /etc/os-release and of their kernels.

Names and versions are those of the cloud images of autumn 2025, for Ubuntu 26.04 of autumn 2026 (packages.ubuntu.com/resolute-updates). The kernels are the images' own kind (`-generic`,
`-amd64`); a scenario may name another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Distribution:
    """One release: fields as in os-release(5), the kernel and the user of a fresh installation, `uname -v`'s beginning."""

    id: str
    name: str
    version_id: str
    version: str
    pretty_name: str
    codename: str
    kernel: str
    user: str
    build: str

    def os_release(self) -> str:
        """The text of /etc/os-release."""
        lines = [
            f'PRETTY_NAME="{self.pretty_name}"',
            f'NAME="{self.name}"',
            f'VERSION_ID="{self.version_id}"',
            f'VERSION="{self.version}"',
            f"VERSION_CODENAME={self.codename}",
            f"ID={self.id}",
        ]
        if self.id == "ubuntu":
            lines += ["ID_LIKE=debian", f"UBUNTU_CODENAME={self.codename}"]
        return "".join(f"{line}\n" for line in lines)


def _ubuntu(version_id: str, point: str, codename: str, animal: str, kernel: str) -> Distribution:
    pretty, version = f"Ubuntu {point} LTS", f"{point} LTS ({animal})"
    build = "#1-Ubuntu SMP PREEMPT_DYNAMIC"
    return Distribution("ubuntu", "Ubuntu", version_id, version, pretty, codename, kernel, "ubuntu", build)


def _debian(version_id: str, codename: str, kernel: str) -> Distribution:
    version = f"{version_id} ({codename})"
    pretty, build = f"Debian GNU/Linux {version}", "#1 SMP PREEMPT_DYNAMIC Debian"
    return Distribution("debian", "Debian GNU/Linux", version_id, version, pretty, codename, kernel, "debian", build)


DISTRIBUTIONS = {
    "ubuntu-24.04": _ubuntu("24.04", "24.04.3", "noble", "Noble Numbat", "6.8.0-86-generic"),
    "ubuntu-22.04": _ubuntu("22.04", "22.04.5", "jammy", "Jammy Jellyfish", "5.15.0-160-generic"),
    "ubuntu-26.04": _ubuntu("26.04", "26.04", "resolute", "Resolute Raccoon", "7.0.0-29-generic"),
    "debian-12": _debian("12", "bookworm", "6.1.0-40-amd64"),
    "debian-13": _debian("13", "trixie", "6.12.48+deb13-amd64"),
}
DEFAULT = "ubuntu-24.04"


def system(
    distribution: str = DEFAULT,
    kernel: str | None = None,
    user: str | None = None,
    secure_boot: bool | None = None,
    mok_enrolled: bool = False,
) -> dict[str, Any]:
    """What machine.json has of a VM's system; without arguments that of a VM about which nobody said anything.

    Args:
        distribution: a key of DISTRIBUTIONS.
        kernel: version, such as 6.8.0-86-generic; None: the distribution's.
        user: the account besides root; None: the distribution's.
        secure_boot: None: on if its efidisk has pre-enrolled keys, as OVMF decides.
        mok_enrolled: whether somebody has enrolled DKMS's key at its console.
    """
    known = DISTRIBUTIONS[distribution]
    return {
        "distribution": distribution,
        "kernel": kernel or known.kernel,
        "user": user or known.user,
        "secure_boot": secure_boot,
        "mok_enrolled": mok_enrolled,
    }
