"""What this tier needs of the machine that it runs on: said in one message, before anything is begun.

`python -m tests.metal.prerequisites` says it; `--install` installs it first, as root on a Debian.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from homelab.errors import HomelabError

#: Program -> the Debian package that has it.
PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "sfdisk": "fdisk",
    "mke2fs": "e2fsprogs",
    "mkfs.vfat": "dosfstools",
    "mcopy": "mtools",
    "ssh": "openssh-client",
    "setpriv": "util-linux",
}
#: Files that are no programs -> their package.
FILES = {
    "/usr/share/OVMF/OVMF_CODE_4M.fd": "ovmf",
    "/usr/share/seabios/bios-256k.bin": "seabios",
    "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
}
#: Where programs are that an ordinary user's PATH may lack.
SYSTEM_PATH = "/usr/sbin:/sbin"


def path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{SYSTEM_PATH}"


def environment() -> dict[str, str]:
    """For what is started here."""
    return {**os.environ, "PATH": path()}


def call(*command: str, input: str = "") -> None:
    """Runs a program that does what it is told and says nothing.

    :raises subprocess.CalledProcessError: it fails; what it said is in the error's note.
    """
    done = subprocess.run(command, env=environment(), input=input, text=True, capture_output=True)
    if done.returncode:
        error = subprocess.CalledProcessError(done.returncode, command)
        error.add_note(f"{done.stdout}{done.stderr}")
        raise error


def missing_packages() -> list[str]:
    programs = [package for name, package in PROGRAMS.items() if shutil.which(name, path=path()) is None]
    return sorted({*programs, *(package for name, package in FILES.items() if not Path(name).exists())})


def may_bootstrap() -> bool:
    """Whether this user may run mmdebstrap: root, or one with user namespaces and ids below them (/etc/subuid)."""
    if os.geteuid() == 0:
        return True
    if shutil.which("newuidmap") is None:
        return False
    done = subprocess.run(
        ["unshare", "--user", "--map-auto", "--map-root-user", "--mount", "true"], capture_output=True
    )
    return done.returncode == 0


def check(*, image: bool = True) -> None:
    """:param image: whether the image must be built, too.

    :raises HomelabError: what is missing, all of it.
    """
    if sys.platform != "linux":
        raise _lacking([f"this is {sys.platform}"], "run them on a Linux machine")
    found, steps = [], []
    if packages := missing_packages():
        found.append(f"missing: {', '.join(packages)}")
        steps.append(f"apt-get install {' '.join(packages)}")
    if image and not may_bootstrap():
        found.append(
            "neither root nor a user with ids of its own below it (/etc/subuid, package uidmap): mmdebstrap can't run"
        )
        steps.append(
            "run it as root, or: apt-get install uidmap, and give this user a line in /etc/subuid and /etc/subgid"
        )
    if found:
        raise _lacking(found, "; ".join(steps))


def _lacking(found: Sequence[str], step: str) -> HomelabError:
    return HomelabError(
        wanted="a machine on which the metal tier can run: Linux, QEMU, and what makes a Debian image",
        found="; ".join(found),
        why="it boots a real kernel; without one it would prove nothing, and it isn't passed over in silence",
        next=step,
    )


def main(tier: str, missing: Callable[[], list[str]], check: Callable[[], None]) -> None:
    """Says what is missing, after it has installed what it can, where that is asked for.

    :param missing: packages.
    """
    try:
        if "--install" in sys.argv[1:] and (packages := missing()) and os.geteuid() == 0 and shutil.which("apt-get"):
            environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
            subprocess.run(["apt-get", "-qq", "update"], env=environment, check=True)
            command = ["apt-get", "-qq", "-y", "--no-install-recommends", "install", *packages]
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        check()
    except (HomelabError, subprocess.CalledProcessError) as error:
        sys.exit(f"the {tier} tier was not run\n{error}")


if __name__ == "__main__":
    main("metal", missing_packages, check)
