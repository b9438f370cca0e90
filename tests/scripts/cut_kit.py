"""A host that is nothing but a folder, and what is on its disk when a script is cut short at any of its commands.

A script runs with a DEBUG trap that stops it before each of its commands, in functions and subshells too; but not where it only looks on
while a command is at work (lib/progress.sh), or passes on what is said. At each stop there are

- the files as they are: what a kill (SIGKILL) of bash leaves;
- two disks of a power cut: on one nothing is but what was flushed (`sync`), by the strictest reading of POSIX: a file's bytes by
  flushing the file, its name by flushing the directory. On the other every name is, as a journal may have it, and files whose bytes weren't
  flushed are empty.

update-grub, update-initramfs and proxmox-boot-tool are stand-ins that derive what they make from the files alone, and stop half-way, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import stat
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.script_input import QUICK_SYNC
from tests.scripts.conftest import Folder

#: Path -> mode, and content, link target or None for a directory.
Tree = Mapping[str, tuple[int, bytes | str | None]]

#: What lasts, and is compared: the rest is the running system's.
LASTING = ("etc", "boot", "usr", "var", "esp")

# `sync` by its name is no program there, which would take longer than all that it does; `within 60 sync` starts the stand-in.
_TRAP = """\
set -T
sync() {{ local IFS=" "; printf "sync %s\\n" "$*" >&{out}; read -rn1 -u{go} _; }}
trap '[[ ${{FUNCNAME[0]-}} == sync || $BASHPID == $$ && " ${{FUNCNAME[*]}} " == *" follow "* || " ${{FUNCNAME[*]}} " == *" as_it_comes "* ]] || {{ printf "point %s %s\\n" "$BASHPID" "${{FUNCNAME[0]-main}}" >&{out}; read -rn1 -u{go} _; }}' DEBUG
"""
# A stand-in of a script is stopped by it, where somebody counts: `stop point` as a program, and as a function for stand-ins in bash.
_STOP = '[ -z "${POINT_OUT:-}" ] || { echo "$*" >"/dev/fd/$POINT_OUT"; read -r _ <"/dev/fd/$POINT_GO"; }\n'
STOP_FUNCTION = f"stop() {{\n{_STOP}}}\n"

_COMMANDS = {
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
    flushing(folder)
    for name, text in _COMMANDS.items():
        folder.command(name, STOP_FUNCTION * ("stop point" in text) + text)
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
        done = folder.bash(command)
        assert done.returncode == 0, done.stderr


def _all_below(root: Path) -> Iterator[tuple[str, str, os.stat_result]]:
    """Name below ``root``, path and inode of everything that lasts, each folder before what is in it."""
    folders = list(reversed(LASTING))
    while folders:
        folder = folders.pop()
        with contextlib.suppress(FileNotFoundError), os.scandir(root / folder) as entries:
            for entry in sorted(entries, key=lambda one: one.name):
                yield f"{folder}/{entry.name}", entry.path, entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{folder}/{entry.name}")


#: Inode, size and time of a file -> its bytes.
Contents = dict[tuple[int, int, int], bytes]
#: In nanoseconds: of files changed later than that, a time doesn't say whether they were changed once more (a kernel's tick, and more).
_TICK = 100_000_000


def tree(root: Path, contents: Contents | None = None) -> Tree:
    """Everything that lasts below ``root``.

    :param contents: what was read before, of files that haven't changed.
    """
    found: dict[str, tuple[int, bytes | str | None]] = {}
    for key, path, about in _all_below(root):
        if stat.S_ISLNK(about.st_mode):
            found[key] = (0, Path(path).readlink().as_posix())
        elif stat.S_ISDIR(about.st_mode):
            found[key] = (about.st_mode & 0o7777, None)
        else:
            found[key] = (about.st_mode & 0o7777, content_of(path, about, contents))
    return found


def content_of(path: str, about: os.stat_result, contents: Contents | None) -> bytes:
    """A file's bytes, which may be among ``contents``."""
    kept = (about.st_ino, about.st_size, about.st_ctime_ns)
    if contents is not None and kept in contents:
        return contents[kept]
    found = Path(path).read_bytes()
    if contents is not None and about.st_ctime_ns < time.time_ns() - _TICK:
        contents[kept] = found
    return found


def restore(root: Path, wanted: Tree) -> None:
    """Make everything that lasts below ``root`` what ``wanted`` is."""
    for name in LASTING:
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir()
    write(root, wanted)


def write(root: Path, wanted: Tree) -> None:
    """Make all of ``wanted`` below ``root``, where none of it is yet but folders."""
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
    contents: Contents = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.flush_all()

    def flush_all(self) -> None:
        self.bytes_of, self.names_in = {}, {name: {} for name in LASTING}
        for key, path, about in _all_below(self.root):
            folder, _, name = key.rpartition("/")
            self.names_in[folder][name] = about.st_ino
            if stat.S_ISDIR(about.st_mode):
                self.names_in[key] = {}
            elif stat.S_ISREG(about.st_mode):
                self.bytes_of[about.st_ino] = content_of(path, about, self.contents)

    def flush(self, path: Path) -> None:
        about = path.lstat()
        if stat.S_ISDIR(about.st_mode):
            with os.scandir(path) as entries:
                names = {each.name: each.stat(follow_symlinks=False).st_ino for each in entries}
            self.names_in[path.relative_to(self.root).as_posix()] = dict(sorted(names.items()))
        elif stat.S_ISREG(about.st_mode):
            self.bytes_of[about.st_ino] = content_of(str(path), about, self.contents)

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
        there = {about.st_ino for _, _, about in _all_below(self.root)}
        for inode in [inode for inode in self.bytes_of if inode not in there and not self._is_named(inode)]:
            del self.bytes_of[inode]

    def _is_named(self, inode: int) -> bool:
        return any(inode in names.values() for names in self.names_in.values())

    def after_a_cut(self, now: Tree, *, names_as_now: bool) -> Tree:
        """The files after a power cut at this moment."""
        kinds: dict[int, tuple[int, str | None, bool]] = {}
        named: dict[str, dict[str, int]] = {name: {} for name in LASTING}
        for key, _, about in _all_below(self.root):
            inode, (mode, content) = about.st_ino, now[key]
            kinds[inode] = (mode, content if isinstance(content, str) else None, content is None)
            folder, _, name = key.rpartition("/")
            named[folder][name] = inode
            if content is None:
                named[key] = {}
        names_in = named if names_as_now else self.names_in
        found: dict[str, tuple[int, bytes | str | None]] = {}

        def walk(folder: str) -> None:
            for name, inode in names_in.get(folder, {}).items():
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
    for name, text in {"stop": _STOP, "sync": f'set -- sync "$@"\n{_STOP}'}.items():
        file = folder.commands / name
        file.write_text(f"#!/bin/sh\n{text}")
        file.chmod(0o755)


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
    quick = folder.environment
    environment = {name: quick[name] for name in quick if name not in QUICK_SYNC} | {
        "POINT_OUT": str(out),
        "POINT_GO": str(inward),
    }
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
    found: dict[frozenset[tuple[str, tuple[int, bytes | str | None]]], Cut] = {}

    def look(number: int) -> None:
        disk.forget_gone()
        disk.flush_cluster()
        now = tree(folder.root, disk.contents)
        states = {
            "killed": now,
            "power cut, unflushed lost": disk.after_a_cut(now, names_as_now=False),
            "power cut, unflushed empty": disk.after_a_cut(now, names_as_now=True),
        }
        for how, files in states.items():
            found.setdefault(frozenset(files.items()), Cut(number, how, files))

    with Changes(folder.root) as changes:
        run = start(folder, verb, script, output)
        number, has_changed = 0, True
        for event in run.events:
            number += 1
            if changes.any() or has_changed:
                look(number)
            if has_changed := event.startswith("sync"):
                disk.synced(event.split()[1:])
            run.go()
    assert run.process.wait() == status, output.read_text()
    look(number + 1)
    now = tree(folder.root)
    assert disk.after_a_cut(now, names_as_now=False) == now, "what was answered is not on the disk"
    return list(found.values())


class Changes:
    """Whether anything in these folders has changed since it was asked last, of which the kernel keeps count (inotify). Asked at every stop."""

    # inotify.h: what is written, its mode and times, and what is made, moved and removed in a folder.
    _MASK = 0x2 | 0x4 | 0x40 | 0x80 | 0x100 | 0x200
    _ONLY_FOLDERS, _MAKES, _IS_FOLDER, _OVERFLOW = 0x01000000, 0x80 | 0x100, 0x40000000, 0x4000
    _HEAD = struct.Struct("iIII")

    def __init__(self, root: Path, names: Sequence[str] = LASTING) -> None:
        self.root, self.names = root, names

    def __enter__(self) -> Changes:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._queue = _of_libc(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        self._folders: dict[int, str] = {}
        for name in self.names:
            self._watch(str(self.root / name))
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._queue)

    def _watch(self, folder: str) -> None:
        """Of a folder that is made while nobody watches what is above it, too: a script makes several at once."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            watch = self._libc.inotify_add_watch(self._queue, os.fsencode(folder), self._MASK | self._ONLY_FOLDERS)
            self._folders[_of_libc(watch)] = folder
            with os.scandir(folder) as entries:
                folders = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
            for each in folders:
                self._watch(each)

    def any(self) -> bool:
        """Since it was asked last, or entered."""
        found = False
        with contextlib.suppress(BlockingIOError):
            while True:
                events = os.read(self._queue, 1 << 16)
                found = True
                place = 0
                while place < len(events):
                    watch, mask, _, length = self._HEAD.unpack_from(events, place)
                    assert not mask & self._OVERFLOW, "more changes than the kernel counts"
                    name = events[place + self._HEAD.size :][:length].rstrip(b"\0")
                    if mask & self._IS_FOLDER and mask & self._MAKES:
                        self._watch(f"{self._folders[watch]}/{os.fsdecode(name)}")
                    place += self._HEAD.size + length
        return found


def _of_libc(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
