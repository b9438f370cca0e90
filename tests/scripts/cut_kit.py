"""A host that is nothing but a folder, and what is on its disk when a script is cut short at any of its commands.

A script runs with a DEBUG trap that stops it before each of its commands, in functions and subshells too; but not where it only looks on
while a command is at work (lib/progress.sh). At each stop there are

- the files as they are: what a kill (SIGKILL) of bash leaves;
- two disks of a power cut: on one nothing is but what was flushed (`sync`), by the strictest reading of POSIX: a file's bytes by
  flushing the file, its name by flushing the directory. On the other every name is, as a journal may have it, and files whose bytes weren't
  flushed are empty.

update-grub, update-initramfs and proxmox-boot-tool are stand-ins that derive what they make from the files alone, and stop half-way, too.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.scripts.conftest import Folder

#: Path -> mode, and content, link target or None for a directory.
Tree = Mapping[str, tuple[int, bytes | str | None]]

#: What lasts, and is compared: the rest is the running system's.
LASTING = ("etc", "boot", "usr", "var", "esp")

_TRAP = """\
set -T
trap '[[ $BASHPID == $$ && " ${{FUNCNAME[*]}} " == *" follow "* ]] || {{ printf "point %s %s\\n" "$BASHPID" "${{FUNCNAME[0]-main}}" >&{out}; read -rn1 -u{go} _; }}' DEBUG
"""
# Answers at once where nobody counts.
_STOP = 'if [[ -n ${POINT_OUT:-} ]]; then printf "%s\\n" "$*" >&"$POINT_OUT"; read -rn1 -u"$POINT_GO" _; fi\n'

_COMMANDS = {
    "stop": _STOP,
    "sync": 'stop sync "$@"',
    "systemctl": "",
    "ip": "",
    "ping": "exit 1",
    # Of every file that the real one reads, as it reads them.
    "update-grub": """\
set -e
[[ ! -e $ROOT/fail ]] || { echo "no room" >&2; exit 1; }
cd "$ROOT/etc/default"
GRUB_CMDLINE_LINUX_DEFAULT=
for file in grub grub.d/*.cfg; do [[ ! -e $file ]] || . ./"$file"; done
{
  for kernel in "$ROOT"/boot/vmlinuz-*; do
    echo "	linux	/boot/${kernel##*/} root=/dev/x $GRUB_CMDLINE_LINUX_DEFAULT"
  done
  for file in "$ROOT"/etc/grub.d/*; do [[ ! -x $file ]] || { echo "# ${file##*/} $HOMELAB_WORDS"; cat "$file"; }; done
} >"$ROOT/boot/grub/grub.cfg.new"
stop point
: >"$ROOT/boot/grub/grub.cfg"
stop point
cat "$ROOT/boot/grub/grub.cfg.new" >"$ROOT/boot/grub/grub.cfg"
rm "$ROOT/boot/grub/grub.cfg.new"
""",
    # It takes whatever lies in its folders, and whatever is in modules-load.d.
    "update-initramfs": """\
set -e
[[ ! -e $ROOT/fail ]] || { echo "no room" >&2; exit 1; }
for kernel in "$ROOT"/boot/vmlinuz-*; do
  image=$ROOT/boot/initrd.img-${kernel##*/vmlinuz-}
  cd "$ROOT/etc"
  echo "half of it" >"$image.new"
  stop point
  { find initramfs-tools -type f | sort | while read -r file; do stat -c '%a %n' "$file"; cat "$file"; done; } >"$image.new"
  stop point
  mv "$image.new" "$image"
done
[[ ! -e $ROOT/etc/kernel/proxmox-boot-uuids ]] || proxmox-boot-tool refresh
""",
    "proxmox-boot-tool": """\
set -e
if [[ $1 == status ]]; then echo "AAAA-0001 is configured with: uefi (versions: x)"; exit; fi
[[ ! -e $ROOT/fail ]] || { echo "no room" >&2; exit 1; }
read -r line <"$ROOT/etc/kernel/cmdline"
for esp in "$ROOT"/esp/*; do
  for kernel in "$ROOT"/boot/vmlinuz-*; do
    version=${kernel##*/vmlinuz-}
    stop point
    cp "$ROOT/boot/initrd.img-$version" "$esp/initrd.img-$version"
    printf 'title    Proxmox\\nversion  %s\\noptions  %s\\nlinux    /vmlinuz\\n' "$version" "$line" >"$esp/loader/entries/proxmox-$version.conf"
  done
done
sync -f
""",
    "mount": 'rmdir "$2" && ln -s "$(readlink "$1")" "$2"',
    "umount": 'sync -f; rm "$1" && mkdir "$1"',
    "df": 'echo; echo "x 1 1 100000000 1% /"',
}


def stock(folder: Folder, loader: str) -> None:
    """Make of an empty folder a host with two kernels, and files of its owner where ours are going to be."""
    for name, text in _COMMANDS.items():
        folder.command(name, text)
    for path in (
        "sys",
        "esp",
        "dev/disk/by-uuid",
        "boot/grub",
        "etc/initramfs-tools/hooks",
        "var/tmp",
        "usr/share/initramfs-tools",
    ):
        (folder.root / path).mkdir(parents=True, exist_ok=True)
    folder.write("/usr/share/initramfs-tools/hook-functions", "")
    folder.write("/proc/cmdline", "quiet\n")
    folder.write("/proc/sys/kernel/random/boot_id", "boot\n")
    folder.write("/etc/default/grub", 'GRUB_CMDLINE_LINUX_DEFAULT="quiet"\nGRUB_CMDLINE_LINUX=""\n')
    folder.write("/etc/grub.d/10_linux", "#!/bin/sh\n", 0o755)
    folder.write("/etc/modules-load.d/homelab-vfio.conf", "theirs, no newline", 0o640)
    folder.write("/etc/initramfs-tools/hooks/homelab-vfio", "# theirs\n", 0o600)
    for kernel in ("6.8.12-1-pve", "6.14.8-2-pve"):
        folder.write(f"/boot/vmlinuz-{kernel}", "")
    if loader == "systemd-boot":
        folder.write("/etc/kernel/proxmox-boot-uuids", "AAAA-0001\nAAAA-0002\n")
        folder.write("/etc/kernel/cmdline", "root=ZFS=rpool/ROOT/pve-1 boot=zfs  quiet\n# a comment of theirs\n", 0o640)
        name = "LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
        folder.write(f"/sys/firmware/efi/efivars/{name}", "systemd-boot 252")
        for uuid in ("AAAA-0001", "AAAA-0002"):
            (folder.root / "esp" / uuid / "loader/entries").mkdir(parents=True)
            (folder.root / "dev/disk/by-uuid" / uuid).symlink_to(folder.root / "esp" / uuid)
    for command in ("update-initramfs", "proxmox-boot-tool refresh" if loader == "systemd-boot" else "update-grub"):
        done = folder.bash(command, parts=())
        assert done.returncode == 0, done.stderr


def tree(root: Path) -> Tree:
    """Everything that lasts below ``root``."""
    found: dict[str, tuple[int, bytes | str | None]] = {}
    for name in LASTING:
        for path in sorted((root / name).rglob("*")):
            about, key = path.lstat(), path.relative_to(root).as_posix()
            if stat.S_ISLNK(about.st_mode):
                found[key] = (0, path.readlink().as_posix())
            elif stat.S_ISDIR(about.st_mode):
                found[key] = (about.st_mode & 0o7777, None)
            else:
                found[key] = (about.st_mode & 0o7777, path.read_bytes())
    return found


def restore(root: Path, wanted: Tree) -> None:
    """Make everything that lasts below ``root`` what ``wanted`` is."""
    for name in LASTING:
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir()
    for key, (mode, content) in wanted.items():
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.symlink_to(content)
            continue
        if content is None:
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(content)
        path.chmod(mode)


@dataclass
class Disk:
    """What is on the disk, as far as it was flushed. Files are known by their inode."""

    root: Path
    bytes_of: dict[int, bytes] = field(default_factory=dict)
    names_in: dict[str, dict[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.flush_all()

    def flush_all(self) -> None:
        self.bytes_of, self.names_in = {}, {}
        for name in LASTING:
            for path in (self.root / name, *(self.root / name).rglob("*")):
                self.flush(path)

    def flush(self, path: Path) -> None:
        about = path.lstat()
        if stat.S_ISDIR(about.st_mode):
            self.names_in[path.relative_to(self.root).as_posix()] = {
                each.name: each.stat(follow_symlinks=False).st_ino for each in os.scandir(path)
            }
        elif stat.S_ISREG(about.st_mode):
            self.bytes_of[about.st_ino] = path.read_bytes()

    def synced(self, arguments: list[str]) -> None:
        """What `sync ARGUMENT...` does. A file system as a whole is everything here."""
        if not arguments or arguments[0] == "-f":
            self.flush_all()
            return
        for argument in arguments:
            path = Path(argument)
            if (
                path.is_relative_to(self.root)
                and path.relative_to(self.root).parts[:1]
                and path.relative_to(self.root).parts[0] in LASTING
            ):
                self.flush(path)

    def flush_cluster(self) -> None:
        """What is written in the file system of a cluster is on every node at once."""
        shared = self.root / "etc/pve"
        for path in (shared, *shared.rglob("*")) if (shared / "corosync.conf").exists() else ():
            self.flush(path)

    def forget_gone(self) -> None:
        """An inode number is given again."""
        there = {path.lstat().st_ino for name in LASTING for path in (self.root / name).rglob("*")}
        for inode in [inode for inode in self.bytes_of if inode not in there and not self._is_named(inode)]:
            del self.bytes_of[inode]

    def _is_named(self, inode: int) -> bool:
        return any(inode in names.values() for names in self.names_in.values())

    def after_a_cut(self, now: Tree, *, names_as_now: bool) -> Tree:
        """The files after a power cut at this moment."""
        kinds: dict[int, tuple[int, str | None, bool]] = {}
        for key, (mode, content) in now.items():
            inode = (self.root / key).lstat().st_ino
            kinds[inode] = (mode, content if isinstance(content, str) else None, content is None)
        found: dict[str, tuple[int, bytes | str | None]] = {}

        def walk(folder: str) -> None:
            names = self.names_in.get(folder, {})
            if names_as_now:
                names = {each.name: each.stat(follow_symlinks=False).st_ino for each in os.scandir(self.root / folder)}
            for name, inode in sorted(names.items()):
                key = f"{folder}/{name}"
                mode, target, is_folder = kinds.get(inode, (self._modes.get(key, 0o600), None, key in self.names_in))
                if target is not None:
                    found[key] = (0, target)
                elif is_folder:
                    found[key] = (mode, None)
                    walk(key)
                else:
                    found[key] = (mode, self.bytes_of.get(inode, b""))

        for name in LASTING:
            walk(name)
        self._modes.update({key: mode for key, (mode, _) in found.items()})
        return found

    _modes: dict[str, int] = field(default_factory=dict)


def flushing(folder: Folder) -> None:
    """`sync` is a moment of its own there."""
    for name in ("stop", "sync"):
        folder.command(name, _COMMANDS[name])


@dataclass
class Run:
    """A script that stops before each of its commands."""

    folder: Folder
    process: subprocess.Popen[bytes]
    events: Iterator[str]
    go: Callable[[], None]
    output: Path

    def kill(self, event: str) -> None:
        """SIGKILL for bash, and for the subshell that has stopped; what they have started goes on to its end."""
        for pid in {self.process.pid, int(event.split()[1]) if event.split()[1:] else self.process.pid}:
            os.kill(pid, signal.SIGKILL)
        self.go()
        for _ in self.events:
            self.go()
        self.process.wait()


def start(folder: Folder, verb: str, script: str, output: Path) -> Run:
    """Start ``script`` with stops."""
    points, out = os.pipe()
    inward, go = os.pipe()
    environment = {**folder.environment, "POINT_OUT": str(out), "POINT_GO": str(inward)}
    text = output.with_suffix(".sh")
    text.write_text(_TRAP.format(out=out, go=inward) + script)
    with text.open("rb") as standard_input, output.open("wb") as standard_output:
        process = subprocess.Popen(
            ["bash", "-s", "--", verb],
            stdin=standard_input,
            stdout=standard_output,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=(out, inward),
        )
    os.close(out)
    os.close(inward)

    def events() -> Iterator[str]:
        with os.fdopen(points) as lines:
            yield from (line.strip() for line in lines)
        os.close(go)

    def on() -> None:
        with contextlib.suppress(BrokenPipeError):  # it was killed, and nothing else waits
            os.write(go, b"\n")

    return Run(folder, process, events(), on, output)


@dataclass(frozen=True)
class Cut:
    """One moment in a script, and what is on the disk after it was cut short there."""

    number: int
    how: str
    files: Tree


def cuts(folder: Folder, verb: str, script: str, output: Path, *, status: int = 0) -> list[Cut]:
    """Run ``script`` to its end, and return every state of the disk that a kill or a power cut can leave, each once.

    The last three are those of the end: they must be one.
    """
    disk = Disk(folder.root)
    run = start(folder, verb, script, output)
    found: dict[str, Cut] = {}
    previous = None

    def look(number: int) -> None:
        nonlocal previous
        fingerprint = _fingerprint(folder.root)
        if fingerprint == previous:
            return
        previous = fingerprint
        disk.forget_gone()
        disk.flush_cluster()
        now = tree(folder.root)
        states = {
            "killed": now,
            "power cut, unflushed lost": disk.after_a_cut(now, names_as_now=False),
            "power cut, unflushed empty": disk.after_a_cut(now, names_as_now=True),
        }
        for how, files in states.items():
            found.setdefault(repr(files), Cut(number, how, files))

    number = 0
    for event in run.events:
        number += 1
        look(number)
        if event.startswith("sync"):
            disk.synced(event.split()[1:])
            previous = None
        run.go()
    assert run.process.wait() == status, output.read_text()
    look(number + 1)
    now = tree(folder.root)
    assert disk.after_a_cut(now, names_as_now=False) == now, "what was answered is not on the disk"
    return list(found.values())


def _fingerprint(root: Path) -> int:
    """Changes with what lasts; asked at every stop."""
    found: list[tuple[int, ...]] = []
    folders = [str(root / name) for name in LASTING]
    for folder in folders:
        about = os.lstat(folder)
        found.append((about.st_ino, about.st_mtime_ns, about.st_mode))
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    about = entry.stat(follow_symlinks=False)
                    found.append((about.st_ino, about.st_mtime_ns, about.st_size, about.st_mode))
    return hash(tuple(found))
