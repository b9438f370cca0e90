"""A host with two kernels and a boot loader, in a folder. What makes its boot configuration is functions that derive what they make from the files
alone, and can be cut short half-way, too.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from remote_scripts.tools import disk
from remote_scripts.tools.done import Done
from tests import sampling
from tests.agent import disk_kit
from tests.agent.kit import Cut, Host, Refused, left_by, of_machine, watched

LOADERS = ("grub", "systemd-boot")
KERNELS = ("6.14.8-2-pve", "6.8.12-1-pve")
ESPS = ("AAAA-0001", "AAAA-0002")
INIT_TOP = "/etc/initramfs-tools/scripts/init-top/homelab-vfio"
MENU = "/boot/grub/grub.cfg"
HOME = "/var/lib/homelab"
TRIAL = f"{HOME}/trial"
#: The ESP of a host with GRUB, whose menu is in /boot.
ESP = "CCCC-0003"
CHOICE = f"/esp/{ESP}/homelab/grubenv"
LOADER_INFO = "/sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
ONE_SHOT = "/sys/firmware/efi/efivars/LoaderEntryOneShot-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
LSBLK = f"""\
KNAME="sda" PKNAME="" UUID="" PARTTYPE="" MOUNTPOINT=""
KNAME="sda2" PKNAME="sda" UUID="{ESP}" PARTTYPE="c12a7328-f81f-11d2-ba4b-00a0c93ec93b" MOUNTPOINT=""
KNAME="sda3" PKNAME="sda" UUID="x" PARTTYPE="" MOUNTPOINT="/"
"""
#: How the host was reached when the trial was armed.
WAY = "address 192.0.2.10\nport 22\ngateway 192.0.2.1\n"
_GRUB_WORDS = """
cd "$HOMELAB_ROOT/etc/default"
GRUB_CMDLINE_LINUX_DEFAULT=
for file in grub grub.d/*.cfg; do [ ! -e "$file" ] || . "./$file"; done
printf '%s\\n%s' "$GRUB_CMDLINE_LINUX_DEFAULT" "${HOMELAB_WORDS:-}"
"""

EACH_LOADER = pytest.mark.parametrize("loader", LOADERS)
SYSTEMD_BOOT = pytest.mark.parametrize("loader", ["systemd-boot"])


@pytest.fixture
def loader() -> str:
    """Of the test's host; others by a parameter of this name."""
    return "grub"


@pytest.fixture
def stocked_boot(host: Host, loader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with that boot loader, which nobody has reached over SSH."""
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    stock(host, loader)


def stock(host: Host, loader: str = "grub") -> None:
    """Files of its owner are where ours are going to be."""
    host.write("/usr/share/initramfs-tools/hook-functions", "")
    host.write("/etc/default/grub", 'GRUB_CMDLINE_LINUX_DEFAULT="quiet"\nGRUB_CMDLINE_LINUX=""\n')
    host.write("/etc/grub.d/10_linux", "#!/bin/sh\n", 0o755)
    host.write("/etc/modules-load.d/homelab-vfio.conf", "theirs, no newline", 0o640)
    host.write("/etc/initramfs-tools/hooks/homelab-vfio", "# theirs\n", 0o600)
    for folder in ("boot/grub", "var/tmp"):
        (host.root / folder).mkdir(parents=True, exist_ok=True)
    for kernel in KERNELS:
        host.write(f"/boot/vmlinuz-{kernel}", "kernel")
    if loader == "grub":
        (host.root / "esp" / ESP).mkdir(parents=True)
    else:
        host.write("/etc/kernel/proxmox-boot-uuids", "".join(f"{uuid}\n" for uuid in ESPS))
        host.write("/etc/kernel/cmdline", "root=ZFS=rpool/ROOT/pve-1 boot=zfs  quiet\n# a comment of theirs\n", 0o640)
        for uuid in ESPS:
            (host.root / "esp" / uuid / "loader/entries").mkdir(parents=True)
            host.write(f"/esp/{uuid}/loader/loader.conf", "timeout 3\ndefault proxmox-*\n")
        host.write(LOADER_INFO, b"\x06\0\0\0" + "systemd-boot 252\0".encode("utf-16-le"))
    run(host)
    made = ["grub-mkconfig", "-o", str(host.root / MENU[1:])] if loader == "grub" else ["proxmox-boot-tool", "refresh"]
    for command in (["update-initramfs", "-c", "-k", "all"], made):
        assert host.programs[command[0]](command[1:], b"") is None


def run(host: Host) -> None:
    """Boot what lasts: its programs, and what the kernel says."""
    host.write("/proc/cmdline", "quiet\n")
    host.write("/proc/sys/kernel/osrelease", f"{KERNELS[0]}\n")
    host.write("/proc/sys/kernel/random/boot_id", "boot\n")
    for uuid in (path.name for path in (host.root / "esp").glob("*")):
        link = host.root / "dev/disk/by-uuid" / uuid
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(host.root / "esp" / uuid)
    made = _Programs(host)
    host.programs |= {
        **dict.fromkeys(("systemctl", "chattr"), lambda _arguments, _stdin: 0),
        **dict.fromkeys(("ip", "ss"), lambda _arguments, _stdin: ""),
        "ping": lambda _arguments, _stdin: 1,
        "df": lambda _arguments, _stdin: "\nx 1 1 100000000 1% /",
        # Only it knows what GRUB's settings say.
        **of_machine("bash"),
        "grub-mkconfig": made.grub_mkconfig,
        "mount": made.mount,
        "umount": made.umount,
        "lsblk": lambda _arguments, _stdin: LSBLK,
        "update-initramfs": made.update_initramfs,
        "proxmox-boot-tool": made.proxmox_boot_tool,
    }


#: As iproute2 says it; what a filter leaves out as an empty entry, as some versions do.
NETWORK = {
    "route": '[{"dst":"default","gateway":"192.0.2.1","dev":"vmbr0","protocol":"kernel","flags":["onlink"]}]',
    "address": '[{},{"ifindex":2,"ifname":"vmbr0","operstate":"UP","addr_info":[{"family":"inet","local":"192.0.2.10"}]}]',
    "sport = :22": "LISTEN",
}


def network(arguments: Sequence[str], _stdin: bytes) -> str:
    """`ip`, and `ss`."""
    return next((NETWORK[word] for word in arguments if word in NETWORK), "")


def booted(host: Host, words: str, boot: str = "later") -> None:
    """Another boot, with these words, that is reached as the one before."""
    host.write("/proc/sys/kernel/random/boot_id", f"{boot}\n")
    host.write("/proc/cmdline", f"{words}\n")
    host.programs |= {"ip": network, "ping": lambda _arguments, _stdin: 0, "ss": network}


def configure(host: Host, words: str) -> None:
    """A host that was configured with these words, in the boot that tries them."""
    host.ask("apply", "cmdline", {"name": "vfio", "words": words, "rollback_after": 20})
    host.ask("apply", "initramfs", {"needed": True})
    note(host, WAY)
    starts(host)


#: What of the note says how the host is reached, and until when an `up` waits.
_OTHER = ("address", "port", "gateway", "until")


def note(host: Host, lines: str) -> None:
    """The trial's note with other lines of how the host is reached."""
    kept = [line for line in host.read(TRIAL).splitlines(keepends=True) if not line.startswith(_OTHER)]
    host.write(TRIAL, "".join(kept) + lines, 0o600)


_LINE = re.compile(r"^(?:\s*linux\s+\S+ root=/dev/x|options) +(.*)$", re.MULTILINE)


def trial_line(host: Host) -> str:
    """The command line of the entry that is on trial; empty: there is none."""
    for path in ("/boot/grub/custom.cfg", *(f"/esp/{uuid}/loader/entries/homelab-trial.conf" for uuid in ESPS)):
        if host.exists(path) and (match := _LINE.search(host.read(path))):
            return match[1]
    return ""


def choice(host: Host) -> str:
    """What the boot loader is told to start; empty: nothing but its default."""
    if host.exists(CHOICE):
        (value,) = re.findall(r"^homelab_trial=(.*)$", host.read(CHOICE), re.MULTILINE)
        return str(value)
    return "once" if host.exists(ONE_SHOT) else ""


def starts(host: Host, boot: str = "later") -> bool:
    """What the boot loader does next; whether it starts the trial."""
    chosen = choice(host)
    if chosen == "once" and host.exists(CHOICE):
        host.write(CHOICE, host.read(CHOICE).replace("=once\n", "=taken\n")[:1024])
    (host.root / ONE_SHOT[1:]).unlink(missing_ok=True)
    line = trial_line(host) if chosen in ("once", "keep") else ""
    booted(host, line or " ".join(configured_words(host)), boot)
    return bool(line)


def after(cut: Cut, host: Host, place: Path) -> Host:
    """The host after the cut, started again."""
    left = left_by(cut, host, place)
    run(left)
    return left


def lasting(host: Host) -> disk_kit.Tree:
    """All that a boot can read, ESPs included."""
    return disk_kit.tree(host.root)


def configured_words(host: Host) -> list[str]:
    """Of the first kernel, as they were generated."""
    if host.exists("/etc/kernel/proxmox-boot-uuids"):
        entry = host.read(f"/esp/{ESPS[0]}/loader/entries/proxmox-{KERNELS[0]}.conf")
        return entry.partition("options  ")[2].partition("\n")[0].split()
    return host.read(MENU).partition("root=/dev/x")[2].partition("\n")[0].split()


def spoil(host: Host) -> None:
    """What makes the boot configuration fails: GRUB's; an entry of systemd-boot that a full ESP has cut short."""
    host.write("/fail", "")
    for path in (host.root / f"esp/{ESPS[1]}/loader/entries").glob(f"proxmox-{KERNELS[0]}.conf"):
        path.write_text(path.read_text().replace("options", "# options"))


def mend(host: Host) -> None:
    """What `spoil` has done is made good."""
    (host.root / "fail").unlink()
    if host.exists("/etc/kernel/proxmox-boot-uuids"):
        host.programs["proxmox-boot-tool"](("refresh",), b"")


_GROWS = ("create", "write", "mkdir", "symlink", "link", "mknod")


def on_a_full_disk(
    host: Host, act: Callable[[Host], object], place: Path, where: str = r"/(?!run/)|/run/.*/esp-[^/]+/", step: int = 4
) -> Iterator[tuple[int, str, Host]]:
    """The host after each way in which `act` may find the disk full; what it said, empty where it said nothing. Last of all it isn't.

    :param where: which paths of the host are on that disk, a regular expression; by default all but what is in memory.
    :param step: one in so many ways is tried, from a drawn one on (tests/sampling.py).
    """
    step = 1 if sampling.EVERY else step
    for number in itertools.count(sampling.drawn(where).randrange(step), step):
        left = Host(place / str(number))
        shutil.rmtree(left.root)
        shutil.copytree(host.root, left.root, symlinks=True)
        for link in (left.root / "dev/disk/by-uuid").iterdir():
            link.unlink()
        run(left)
        for path in ("proc/cmdline", "proc/sys/kernel/random/boot_id"):
            shutil.copy(host.root / path, left.root / path)
        grew: list[str] = []
        with watched(functools.partial(_full, re.compile(str(left.root) + f"(?:{where})"), grew, number)):
            try:
                act(left)
                said = ""
            except Refused as refused:
                said = str(refused)
        yield number, said, left
        if len(grew) <= number:
            return


def _full(where: re.Pattern[str], grew: list[str], room: int, call: str, path: str) -> None:
    if call in _GROWS and where.match(path):
        grew.append(path)
        if len(grew) > room:
            raise OSError(28, "No space left on device", path)


class _Programs:
    def __init__(self, host: Host) -> None:
        self.host, self.root = host, host.root

    def fails(self, kernel: str = "") -> bool:
        """A file says so: for all kernels, or for this one alone."""
        file = self.root / "fail"
        return file.exists() and file.read_text() == kernel

    def write(self, path: str, content: bytes) -> None:
        """As a program does it, which flushes nothing."""
        disk.WATCH[-1]("point", str(self.root / path))
        (self.root / path).write_bytes(content)

    def mount(self, arguments: Sequence[str], _stdin: bytes) -> int:
        device, folder = map(Path, arguments)
        self.umount([str(folder)], b"")
        folder.rmdir()
        folder.symlink_to(device.readlink())
        return 0

    def umount(self, arguments: Sequence[str], _stdin: bytes) -> int:
        folder = Path(arguments[0])
        if folder.is_symlink():
            folder.unlink()
            folder.mkdir()
        return 0

    def grub_mkconfig(self, arguments: Sequence[str], _stdin: bytes) -> Done | None:
        """As of grub-common 2.12: it empties the file before it fills it."""
        if self.fails():
            return Done(1, b"no room\n")
        done = subprocess.run(
            ["sh", "-c", _GRUB_WORDS], env={"HOMELAB_ROOT": str(self.root)}, capture_output=True, text=True
        )
        default, _, words = done.stdout.partition("\n")
        lines = ['set default="0"']
        for kernel in KERNELS:
            lines += [f"menuentry 'Proxmox VE {kernel}' $menuentry_id_option 'gnulinux-{kernel}' {{"]
            lines += [f"\tlinux\t/boot/vmlinuz-{kernel} root=/dev/x {default}"]
            has_one = (self.root / f"boot/initrd.img-{kernel}").exists()
            lines += [f"\tinitrd\t/boot/initrd.img-{kernel}", "}"] if has_one else ["}"]
        for file in sorted((self.root / "etc/grub.d").iterdir()):
            if file.stat().st_mode & 0o100:
                lines += [f"# {file.name} {words}", file.read_text()]
        lines += ["source ${config_directory}/custom.cfg"]
        place = os.path.relpath(arguments[1], self.root)
        self.write(place, b"")
        self.write(place, ("\n".join(lines) + "\n").encode())
        return None

    def update_initramfs(self, arguments: Sequence[str], _stdin: bytes) -> Done | None:
        """It takes whatever lies in its folders. As of initramfs-tools 0.142: with `-u -k all` for kernels that have one already."""
        if self.fails():
            return Done(1, b"no room\n")
        mode, _, wanted = arguments
        for kernel in KERNELS if wanted == "all" else (wanted,):
            image = f"boot/initrd.img-{kernel}"
            if (mode, wanted) == ("-u", "all") and not (self.root / image).exists():
                continue
            if self.fails(kernel):
                return Done(1, b"no room\n")
            self.write(f"{image}.new", b"half of it")
            files = sorted(one for one in (self.root / "etc/initramfs-tools").rglob("*") if one.is_file())
            whole = b"".join(
                f"{one.stat().st_mode & 0o777:o} {one.relative_to(self.root)}\n".encode() + one.read_bytes()
                for one in files
            )
            self.write(f"{image}.new", whole)
            disk.WATCH[-1]("point", str(self.root / image))
            (self.root / f"{image}.new").replace(self.root / image)
        if self.host.exists("/etc/kernel/proxmox-boot-uuids"):
            return self.proxmox_boot_tool(["refresh"], b"")
        return None

    def proxmox_boot_tool(self, arguments: Sequence[str], _stdin: bytes) -> Done | None:
        if arguments[0] == "status":
            return Done(0, b"AAAA-0001 is configured with: uefi (versions: x)\n")
        if self.fails():
            return Done(1, b"no room\n")
        line = self.host.read("/etc/kernel/cmdline").partition("\n")[0].strip()
        for uuid in ESPS:
            for kernel in (one for one in KERNELS if (self.root / f"boot/initrd.img-{one}").exists()):
                for file in (files := [f"{name}-{kernel}" for name in ("vmlinuz", "initrd.img")]):
                    self.write(f"esp/{uuid}/{file}", (self.root / "boot" / file).read_bytes())
                text = f"title    Proxmox\nversion  {kernel}\noptions  {line}\nlinux    /{files[0]}\ninitrd   /{files[1]}\n"
                self.write(f"esp/{uuid}/loader/entries/proxmox-{kernel}.conf", text.encode())
        self.host.programs["sync"](["-f"], b"")
        return None
