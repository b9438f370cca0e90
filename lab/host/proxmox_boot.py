"""proxmox-boot-tool's work: kernels and boot configuration on the EFI system partitions.

Follows proxmox-kernel-helper (scripts `zz-proxmox-boot` and `functions`): only the first line of
/etc/kernel/cmdline counts; kernels that are no longer wanted go, as do their own loader entries, and nothing
else on the partition is touched; with GRUB on the partition, grub.cfg is written there with /boot bound to it.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from .grub import mkconfig
from .program import Failure
from .state import HostState

ESP_LIST = "/etc/kernel/proxmox-boot-uuids"
PIN = "/etc/kernel/proxmox-boot-pin"
NEXT_BOOT_PIN = "/etc/kernel/next-boot-pin"
PIN_SNIPPET = "/etc/default/grub.d/proxmox-kernel-pin.cfg"
_UUID = re.compile(r"[0-9a-fA-F]{4}-[0-9a-fA-F]{4}")


def warn(host: HostState, text: str) -> None:
    """A line on stderr, as the tool's `warn`."""
    if not host.quiet:
        print(text, file=sys.stderr, flush=True)


def first_line(host: HostState, path: str) -> str:
    """The first line of a host file, empty when there is no such file."""
    return host.read(path, "").split("\n", 1)[0]


def kernels_to_boot(host: HostState) -> list[str]:
    """Kernels that are kept on the partitions: the running one, the latest two, pinned ones."""
    installed = host.kernels()
    wanted = set(installed[-2:])
    wanted.update(filter(None, (first_line(host, PIN), first_line(host, NEXT_BOOT_PIN))))
    running = host.running.get("kernel")
    if running in installed:
        wanted.add(running)
    return sorted(wanted)


def each_esp(host: HostState, work: Callable[[str, Path], None]) -> None:
    """Call `work` with the UUID and the folder of each partition in the list that is really there."""
    for raw in host.read(ESP_LIST).splitlines():
        uuid = raw.strip()
        if not uuid:
            continue
        if not _UUID.search(uuid):
            warn(host, f"WARN: {uuid} read from {ESP_LIST} does not look like a VFAT-UUID - skipping")
        elif not (host.esp / uuid).is_dir():
            warn(host, f"WARN: /dev/disk/by-uuid/{uuid} does not exist - clean '{ESP_LIST}'! - skipping")
        else:
            work(uuid, host.esp / uuid)


def is_uefi(host: HostState) -> bool:
    """Whether the machine was started by UEFI firmware."""
    return bool(host.machine["hardware"]["firmware"]["mode"] == "uefi")


def sync(host: HostState, environment: dict[str, str] | None = None) -> None:
    """What zz-proxmox-boot does after an initramfs or the command line changed.

    Raises:
        Failure: no root= on the command line, a full partition, GRUB's configuration fails, or a fault.
    """
    if not host.rooted(ESP_LIST).exists():
        warn(host, f"No {ESP_LIST} found, skipping ESP sync.")
        return
    if host.fault("proxmox-boot-tool"):
        raise Failure("mount: /var/tmp/espmounts: can't read superblock on the EFI system partition.")
    if host.rooted("/etc/kernel/cmdline").exists():
        cmdline = first_line(host, "/etc/kernel/cmdline")
        if "root=" not in cmdline:
            raise Failure("No root= parameter in /etc/kernel/cmdline found!")
    else:
        warn(host, "No /etc/kernel/cmdline found - falling back to /proc/cmdline")
        cmdline = re.sub(r"\binitrd=[0-9a-zA-Z\\/.-]*\s*", "", host.cmdline())
    each_esp(host, lambda uuid, esp: _update_esp(host, uuid, esp, cmdline, environment))


def _update_esp(host: HostState, uuid: str, esp: Path, cmdline: str, environment: dict[str, str] | None) -> None:
    grub = (esp / "EFI/proxmox/grubx64.efi").exists() or not is_uefi(host)
    if not grub and not (esp / "loader/loader.conf").exists():
        warn(host, f"/dev/disk/by-uuid/{uuid} contains no loader.conf - skipping")
        return
    if grub and not (esp / "grub").is_dir():
        warn(host, f"/dev/disk/by-uuid/{uuid} contains no grub directory - skipping")
        return
    warn(host, f"Copying and configuring kernels on /dev/disk/by-uuid/{uuid}")
    kernels = kernels_to_boot(host)
    for kernel in kernels:
        _copy_kernel(host, esp, kernel, cmdline, grub)
    pinned = first_line(host, NEXT_BOOT_PIN) or first_line(host, PIN)
    if grub:
        set_grub_default(host, pinned)
        _remove_old(host, esp.glob("vmlinuz-*"), kernels, lambda v: [esp / f"vmlinuz-{v}", esp / f"initrd.img-{v}"])
        mkconfig(host, esp / "grub/grub.cfg", environment, bound_boot=esp)
        warn(host, "done")
        return
    _set_loader_default(esp, pinned)
    _remove_old(
        host,
        (esp / "EFI/proxmox").iterdir(),
        kernels,
        lambda v: [esp / "EFI/proxmox" / v, esp / f"loader/entries/proxmox-{v}.conf"],
    )


def _copy_kernel(host: HostState, esp: Path, kernel: str, cmdline: str, grub: bool) -> None:
    image, initrd = (host.rooted(f"/boot/{name}-{kernel}") for name in ("vmlinuz", "initrd.img"))
    for what, path in (("linux-image", image), ("initrd-image", initrd)):
        if not path.is_file():
            warn(host, f"No {what} {host.unrooted(path)} found - skipping")
            return
    folder = esp if grub else esp / "EFI/proxmox" / kernel
    warn(host, f"\tCopying kernel {kernel}" if grub else f"\tCopying kernel and creating boot-entry for {kernel}")
    folder.mkdir(parents=True, exist_ok=True)
    for path in (image, initrd):
        _copy_file(host, esp, path, folder / path.name)
    if not grub:
        entries = esp / "loader/entries"
        entries.mkdir(parents=True, exist_ok=True)
        (entries / f"proxmox-{kernel}.conf").write_text(
            f"title    Proxmox Virtual Environment\nversion  {kernel}\noptions  {cmdline}\n"
            f"linux    /EFI/proxmox/{kernel}/vmlinuz-{kernel}\ninitrd   /EFI/proxmox/{kernel}/initrd.img-{kernel}\n",
            encoding="utf-8",
        )


def _copy_file(host: HostState, esp: Path, source: Path, target: Path) -> None:
    """cp: it empties the file that is there, and writes as much as there is room for."""
    data, size = source.read_bytes(), host.fault("esp-bytes")
    others = sum(on_vfat(path.stat().st_size) for path in esp.rglob("*") if path.is_file() and path != target)
    room = len(data) if size is None else max(0, int(size) - others)
    target.write_bytes(data[:room])
    if room < len(data):
        place = target.relative_to(esp.parent)
        raise Failure(f"cp: error writing '/var/tmp/espmounts/{place}': No space left on device")


def on_vfat(size: int) -> int:
    """What a file of this size takes of an ESP, which has clusters of 512 bytes."""
    return -(-size // 512) * 512


def _remove_old(host: HostState, found: Iterable[Path], kernels: list[str], files: Callable[[str], list[Path]]) -> None:
    for path in sorted(found):
        version = path.name.removeprefix("vmlinuz-")
        if version in kernels:
            continue
        warn(host, f"\tRemoving old version {version}")
        for old in files(version):
            if old.is_dir():
                shutil.rmtree(old)
            else:
                old.unlink(missing_ok=True)


def set_grub_default(host: HostState, kernel: str) -> None:
    """The pin as GRUB_DEFAULT in a drop-in; the root device's id is taken from /boot/grub/grub.cfg, which must
    therefore hold exactly one `gnulinux-advanced-` line: of several, all ids end up in the value."""
    if not kernel:
        host.rooted(PIN_SNIPPET).unlink(missing_ok=True)
        return
    text = host.read("/boot/grub/grub.cfg", "")
    ids = "\n".join(re.findall(r"gnulinux-advanced-(.+)['] \{$", text, re.M))
    host.write(PIN_SNIPPET, f'GRUB_DEFAULT="gnulinux-advanced-{ids}>gnulinux-{kernel}-advanced-{ids}"\n')


def _set_loader_default(esp: Path, kernel: str) -> None:
    path = esp / "loader/loader.conf"
    wanted = f"default proxmox-{kernel}.conf" if kernel else "default proxmox-*"
    lines = path.read_text(encoding="utf-8").splitlines()
    if any(line.startswith("default ") for line in lines):
        lines = [wanted if line.startswith("default ") else line for line in lines]
    else:
        lines.append(wanted)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
