"""The disk of the emulated host: a Debian of this machine's own mirror, made once and kept in the cache.

No loop device, no grub-install and no root are needed: mmdebstrap makes the system in a folder, mke2fs puts the folder into a file, and
the boot sectors are written beside it. Then the system is booted once, for what takes a running kernel: its initramfs and GRUB's menu.
The partition table: 1, the root file system; 2, an ESP, with GRUB for UEFI.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from homelab.errors import HomelabError
from lab.engine.install import cache_folder
from tests.metal import prerequisites
from tests.metal.prerequisites import call

GUEST = Path(__file__).resolve().parent / "guest"
#: A kernel module, built against the image's kernel; in the image it lies in /var/lib/driver, where nothing loads it.
DRIVER = GUEST.parent / "driver"

#: What the scripts call is in a Proxmox VE anyway; lxc and qemu-system-x86 stand in for what its own packages depend on.
PACKAGES = (
    "openssh-server", "pciutils", "grub-pc", "grub-efi-amd64-bin", "initramfs-tools", "kmod", "udev", "systemd-sysv", "dbus",
    "iproute2", "zstd", "procps", "busybox", "lxc", "qemu-system-x86", "seabios", "dosfstools", "systemd-boot-efi", "efibootmgr",
    "python3", "lvm2", "shim-signed", "grub-efi-amd64-signed",
)  # fmt: skip

#: Run on the system's first boot, since a running kernel is what these look at.
FIRST_BOOT = "update-initramfs -u -k all && update-grub && sync"

# Where an image is made. One run at a time does so: what another left there had failed.
_BUILD_FOLDER = "/var/tmp"
_BUILD_PREFIX = "homelab-metal-"

SECTOR = 512
ROOT_START = 2048  # sectors
ROOT_SECTORS = 3584 * 2048
ESP_SECTORS = 256 * 2048


@dataclass(frozen=True)
class Image:
    """A disk that is never written to: machines run on overlays. ``key``: logs in as root; ``host_key``: the host's public one."""

    folder: Path

    @property
    def disk(self) -> Path:
        return self.folder / "disk.raw"

    @property
    def key(self) -> Path:
        return self.folder / "id"

    @property
    def host_key(self) -> str:
        return " ".join((self.folder / "host_key.pub").read_text().split()[:2])


def folder() -> Path:
    return cache_folder() / "metal"


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One emulated machine at a time on this one: waits for another run to end. Ends with the process, whatever happens."""
    folder().mkdir(parents=True, exist_ok=True)
    with (folder() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def ensure(first_boot: Callable[[Image], None]) -> Image:
    """The image, made if there is none of this recipe.

    :param first_boot: boots an image that is being made, writing to its disk itself.
    :raises HomelabError: something is missing on this machine, or mmdebstrap failed.
    """
    target = Image(folder() / recipe())
    if target.folder.is_dir():
        return target
    prerequisites.check()
    say(f"building the host's image in {target.folder} (once; some minutes)")
    log = target.folder.with_suffix(".log")
    for failed in Path(_BUILD_FOLDER).glob(f"{_BUILD_PREFIX}*"):
        shutil.rmtree(failed, ignore_errors=True)
    build = Path(tempfile.mkdtemp(prefix=_BUILD_PREFIX, dir=_BUILD_FOLDER))
    try:
        _make(build, log, first_boot, target.folder)
    except Exception as error:
        error.add_note(f"what was made, with the first boot's console, is kept until the next try: {build}")
        raise
    shutil.rmtree(build)
    return target


def _make(build: Path, log: Path, first_boot: Callable[[Image], None], target: Path) -> None:
    # With user namespaces, mmdebstrap's root is another user here.
    build.chmod(0o755)
    made = build / "image"
    made.mkdir()
    made.chmod(0o777)
    with log.open("wb") as file:
        done = _bootstrap(build, made, file)
    if done != 0:
        raise HomelabError(
            wanted="a Debian in a folder, made by mmdebstrap",
            found=f"exit status {done}; {log} ends with:\n{log.read_text(errors='replace')[-2000:]}",
            why="without the image there is no host to boot",
            next="mend what it says (often: the mirror that apt is configured with), and run it again",
        )
    made.chmod(0o755)
    _partition(made)
    first_boot(Image(made))
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copytree(made, unfinished, copy_function=_copy_sparse)
    unfinished.rename(target)


def recipe() -> str:
    """A name for what the image is made of: this file, what runs in it, the release and where it comes from."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in (GUEST / "build.sh", DRIVER / "Kbuild", DRIVER / "nvidia.c"):
        digest.update(path.read_bytes())
    release, sources = mirror()
    digest.update("\n".join([release, *sources]).encode())
    return f"{release}-{digest.hexdigest()[:12]}"


def mirror() -> tuple[str, list[str]]:
    """The Debian release to install, and its sources as this machine's own apt has them; bookworm and mmdebstrap's own elsewhere."""
    sources: list[str] = []
    suite = "bookworm"
    if shutil.which("apt-get"):
        wanted = "$(ORIGIN)|$(CODENAME)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)"
        done = subprocess.run(
            ["apt-get", "indextargets", "--format", wanted, "Created-By: Packages"], capture_output=True, text=True
        )
        lines = [line.split("|") for line in done.stdout.splitlines()]
        suites = {fields[1] for fields in lines if fields[0] == "Debian" and "-" not in fields[1]}
        suite = suite if suite in suites else min(suites, default=suite)
        sources = [
            f"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {uri} {release} {component}"
            for origin, codename, uri, release, component in lines
            if origin == "Debian" and codename.partition("-")[0] == suite and component == "main"
        ]
    return suite, sorted(set(sources))


def say(text: str) -> None:
    """To the terminal, past pytest's capture."""
    print(text, file=sys.__stderr__, flush=True)


def _bootstrap(build: Path, made: Path, log: BinaryIO) -> int:
    key = made / "id"
    call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "metal", "-f", str(key))
    (made / "root.ext4").touch()
    (made / "root.ext4").chmod(0o666)
    hook = build / "hook"
    # The bind mount leaves out /proc, /sys and /dev, which mmdebstrap has mounted in the system's folder.
    hook.write_text(
        f"""#!/bin/sh
set -eu
cp {GUEST}/build.sh "$1/build.sh"
mkdir "$1/var/lib/driver"
cp {DRIVER}/Kbuild {DRIVER}/nvidia.c "$1/var/lib/driver"
chroot "$1" bash /build.sh '{" ".join(PACKAGES)}' '{key.with_suffix(".pub").read_text().strip()}'
rm "$1/build.sh"
cp "$1"/out/* {made}/
rm -r "$1/out"
mkdir {made}/plain
mount --bind "$1" {made}/plain
mke2fs -q -F -t ext4 -b 4096 -L root -d {made}/plain {made}/root.ext4 {ROOT_SECTORS // 8}
umount {made}/plain
rmdir {made}/plain
"""
    )
    hook.chmod(0o755)
    release, sources = mirror()
    command = ["mmdebstrap", "--quiet", "--variant=minbase", "--format=null", f"--customize-hook={hook}"]
    if forwarded := _apt_options():
        options = build / "apt.conf"
        options.write_text("".join(f"{line}\n" for line in forwarded))
        command.append(f"--aptopt={options}")
    return subprocess.run(
        [*command, release, "-", *sources],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=prerequisites.environment(),
    ).returncode


def _apt_options() -> list[str]:
    """What this machine's apt was told about its mirror: a proxy, and whether dates count."""
    if not shutil.which("apt-config"):
        return []
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    wanted = ("Acquire::http::Proxy", "Acquire::https::Proxy", "Acquire::Check-")
    return [line for line in dump.splitlines() if line.startswith(wanted) and not line.endswith('"";')]


def _partition(made: Path) -> None:
    disk = made / "disk.raw"
    esp_start = ROOT_START + ROOT_SECTORS
    with disk.open("wb") as file:
        file.truncate((esp_start + ESP_SECTORS) * SECTOR)
    table = f"label: dos\nstart={ROOT_START}, size={ROOT_SECTORS}, type=83, bootable\nstart={esp_start}, size={ESP_SECTORS}, type=ef\n"
    call("sfdisk", "--quiet", str(disk), input=table)
    boot, core = (made / "boot.img").read_bytes(), (made / "core.img").read_bytes()
    with disk.open("r+b") as file:
        file.write(boot[:440])
        file.seek(SECTOR)
        file.write(core)
    esp = made / "esp"
    with esp.open("wb") as file:
        file.truncate(ESP_SECTORS * SECTOR)
    call("mkfs.vfat", "-F", "32", "-n", "ESP", str(esp))
    call("mmd", "-i", str(esp), "::EFI", "::EFI/BOOT")
    call("mcopy", "-i", str(esp), str(made / "grubx64.efi"), "::EFI/BOOT/BOOTX64.EFI")
    _copy_sparse(made / "root.ext4", disk, ROOT_START * SECTOR)
    _copy_sparse(esp, disk, esp_start * SECTOR)
    for name in ("root.ext4", "esp", "boot.img", "core.img", "grubx64.efi"):
        (made / name).unlink()


def _copy_sparse(source: str | Path, target: str | Path, offset: int = 0) -> None:
    """A copy that leaves out what is zero; of a whole file (offset 0) with its mode."""
    with Path(source).open("rb") as read, Path(target).open("r+b" if offset else "wb") as write:
        position = offset
        while block := read.read(1 << 20):
            if block.strip(b"\0"):
                write.seek(position)
                write.write(block)
            position += len(block)
        if not offset:
            write.truncate(position)
            Path(target).chmod(stat.S_IMODE(Path(source).stat().st_mode))
