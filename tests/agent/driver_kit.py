"""A host that is nothing but a folder, with apt, dpkg, DKMS and NVIDIA's installer as functions: what each of them writes is a call before which a test may
cut it short, so that packages are left half installed as a killed dpkg leaves them (test_stops.py). What apt itself decides is tried with a real one
(apt_kit.py).

The driver is three packages of one version, and another one is somebody's own.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from remote_scripts.tools import disk
from remote_scripts.tools.done import Done
from remote_scripts.tools.run import Stand
from tests.agent.kit import Host

OLD, NEW = "580.159.03", "590.48.01"
KERNELS = ("6.8.12-1-pve", "6.14.8-2-pve")
#: Of the driver, in the order in which they are configured.
LIBRARY, TOOLS, MODULES = "libnvidia-compute", "nvidia-utils", "nvidia-dkms-open"
FAMILY = (LIBRARY, TOOLS, MODULES)
HEADERS, STRANGERS = "linux-headers-6.14.8-2-pve", "stranger"
NEEDS = {TOOLS: LIBRARY}
LIBRARIES = "/usr/lib/x86_64-linux-gnu"
STATUS, MARKS = "/var/lib/dpkg/status", "/var/lib/apt/extended_states"
VERSION_FILE = "/proc/driver/nvidia/version"
_DISK = disk.Disk()
# What is loaded, where `cuts` sees it.
_MEMORY = "/sys/module/nvidia/version"


@dataclass
class Package:
    """One of dpkg's."""

    name: str
    state: str
    version: str


class Machine:
    """What is there on a host.

    :param no_build: versions whose module isn't built.
    :param besides: packages that the repositories have beside the driver's, each with its files.
    """

    def __init__(
        self, host: Host, no_build: Sequence[str] = (), besides: Mapping[str, Mapping[str, str]] | None = None
    ) -> None:
        self.host = host
        self.no_build = no_build
        self.besides = besides or {}
        programs: dict[str, Callable[[Sequence[str], bytes], Done | int | str | None]] = {
            "apt-get": self._apt,
            "apt-cache": self._apt_cache,
            "apt-mark": self._apt_mark,
            "dpkg": self._dpkg,
            "dpkg-query": lambda _a, _i: self.host.read(STATUS),
            "dkms": self._dkms,
            "modinfo": self._modinfo,
            "modprobe": self._modprobe,
            "find": lambda _a, _i: 0,
            "dmesg": lambda _a, _i: "",
            "systemctl": lambda a, _i: "no\n" if a[0] == "show" else 3 if a[0] == "is-active" else 0,
            "update-initramfs": self._initramfs,
            "env": self._env,
            "tail": lambda _a, _i: 1,
            str(host.root / "usr/bin/nvidia-uninstall"): self._uninstall,
            "/usr/lib/apt/apt-helper": self._helper,
        }
        host.programs |= {name: self._on_a_disk(program) for name, program in programs.items()}

    def stock(self) -> None:
        """A host with two kernels, and a package of somebody's."""
        write = self.host.write
        write("/proc/sys/kernel/osrelease", f"{KERNELS[-1]}\n")
        write("/proc/sys/kernel/random/boot_id", "boot\n")
        for kernel in KERNELS:
            write(f"/boot/vmlinuz-{kernel}", "")
            write(f"/boot/initrd.img-{kernel}", "")
            (self.host.root / f"usr/lib/modules/{kernel}").mkdir(parents=True)
        write("/etc/modprobe.d/theirs.conf", "# theirs\n")
        of_apt = ("etc/apt/preferences.d", "var/lib/apt", "var/log")
        for folder in (*of_apt, "etc/systemd/system/multi-user.target.wants", "usr/bin", LIBRARIES[1:]):
            (self.host.root / folder).mkdir(parents=True, exist_ok=True)
        write(STATUS, f"{STRANGERS}\tinstalled\t1.0\n")
        write(MARKS, "")

    def boot(self) -> None:
        """The module that is installed for the kernel is loaded."""
        self.host.write("/proc/sys/kernel/osrelease", f"{KERNELS[-1]}\n")
        self.host.write("/proc/sys/kernel/random/boot_id", "boot\n")
        self._unload()
        version = self.module(KERNELS[-1]).partition(" ")[0]
        if version:
            self.load(version)

    # What is there.

    def packages(self) -> dict[str, Package]:
        lines = self.host.read(STATUS).splitlines()
        return {line.partition("\t")[0]: Package(*line.split("\t")) for line in lines}

    def versions(self) -> dict[str, str]:
        """Of what is wholly installed."""
        return {one.name: one.version for one in self.packages().values() if one.state == "installed"}

    def module(self, kernel: str) -> str:
        """Version and flavour; empty: none."""
        path = self.host.root / f"usr/lib/modules/{kernel}/nvidia.ko"
        return path.read_text() if path.exists() else ""

    def loaded(self) -> str:
        """The version that is loaded; empty: none."""
        text = self.host.read(VERSION_FILE) if self.host.exists(VERSION_FILE) else ""
        return text.split()[-1] if text else ""

    # Programs.

    def _on_a_disk(self, program: Stand) -> Stand:
        def run(arguments: Sequence[str], stdin: bytes) -> Done | int | str | None:
            try:
                return program(arguments, stdin)
            except OSError as error:  # the disk is full
                return Done(100, b"", f"E: {error.strerror}\n".encode())

        return run

    def _put(self, path: str, content: str) -> None:
        """As dpkg writes a file."""
        where = self.host.root / path.lstrip("/")
        _DISK.need_folder(where.parent)
        _DISK.write(where.with_name(f"{where.name}.dpkg-new"), content.encode(), 0o644, where)

    def _link(self, target: str, path: str) -> None:
        where = self.host.root / path.lstrip("/")
        temporary = where.with_name(f"{where.name}.dpkg-new")
        _DISK.link(target, temporary)
        _DISK.rename(temporary, where)

    def _remove(self, path: str) -> None:
        _DISK.remove(self.host.root / path.lstrip("/"))

    def _set(self, name: str, state: str, version: str) -> None:
        packages = self.packages()
        packages[name] = Package(name, state, version)
        if not state:
            del packages[name]
        self._put(STATUS, "".join(f"{p.name}\t{p.state}\t{p.version}\n" for _, p in sorted(packages.items())))

    def _auto(self) -> set[str]:
        return set(self.host.read(MARKS).split())

    def _apt_mark(self, arguments: Sequence[str], _stdin: bytes) -> str:
        if arguments[0] in ("showmanual", "showauto"):
            is_auto = arguments[0] == "showauto"
            return "".join(f"{name}\n" for name in self.versions() if (name in self._auto()) == is_auto)
        changed = self._auto() - {*arguments[1:]} | ({*arguments[1:]} if arguments[0] == "auto" else set())
        self._put(MARKS, "".join(f"{name}\n" for name in sorted(changed)))
        return ""

    def offered(self) -> dict[str, list[str]]:
        """What the repositories have, the newest first."""
        there = {**dict.fromkeys(FAMILY, [f"{NEW}-1", f"{OLD}-1"]), HEADERS: ["1"], STRANGERS: ["1.0"]}
        return there | dict.fromkeys(self.besides, ["1"])

    def _apt_cache(self, arguments: Sequence[str], _stdin: bytes) -> str:
        found, (act, *names) = self.offered(), _words(arguments)
        return "".join(
            f" {name} | {version} | http://x Packages\n"
            for name in (names if act == "madison" else ())
            for version in found.get(name, [])
        )

    def _helper(self, arguments: Sequence[str], _stdin: bytes) -> int:
        """Of a file that has a checksum, the installer's, its version is the content."""
        _act, url, path, *sha256 = _words(arguments)
        content = f"{url.rpartition('-')[2].removesuffix('.run')}\n" if sha256 else "key\n"
        self._put(path.removeprefix(str(self.host.root)), content)
        return 0

    def _apt(self, arguments: Sequence[str], _stdin: bytes) -> Done | int | str:
        simulated, (act, *names) = "-s" in arguments, _words(arguments)
        if act in ("indextargets", "update"):
            return ""
        if names == ["-f"]:
            self._configure()
            return 0
        if "--download-only" in arguments:
            return 0
        gone, come = self._planned(act, names)
        if simulated:
            return self._announced(gone, come)
        for name in gone:
            self._take_out(name, purge=act == "purge" or self.packages()[name].state == "config-files")
        for name, version in come.items():
            self._unpack(name, version)
        for name in [name for name in (word.partition("=")[0] for word in names) if name in self._auto()]:
            self._apt_mark(["manual", name], b"")
        return self._configure()

    def _planned(self, act: str, words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """What goes, and what comes or changes its version: what is named, for the layers name all that comes."""
        packages = self.packages()
        come: dict[str, str] = {}
        gone: list[str] = []
        while act == "autoremove":
            are_needed = {NEEDS[name] for name in packages if name in NEEDS and name not in gone}
            more = [name for name in packages if name in self._auto() - are_needed and name not in gone]
            if not more:
                return gone, come
            gone += more
        for word in words:
            name, _, pattern = word.partition("=")
            if act in ("remove", "purge") or word.endswith("-"):
                gone.append(name.rstrip("-"))
            else:
                come[name] = next(one for one in self.offered()[name] if fnmatch.fnmatchcase(one, pattern or "*"))
        gone = [
            name for name in gone if name in packages and (act == "purge" or packages[name].state != "config-files")
        ]
        gone += [name for name, needed in NEEDS.items() if needed in gone and name not in gone and name in packages]
        # What is unpacked is there for apt: it is configured, and not announced.
        away = ("config-files", "half-installed")
        there = {one.name: one.version for one in packages.values() if one.state not in away}
        return gone, {name: version for name, version in come.items() if there.get(name) != version}

    def _announced(self, gone: Sequence[str], come: dict[str, str]) -> str:
        packages, lines = self.packages(), [f"Remv {name} [{self.packages()[name].version}]" for name in gone]
        for name, version in come.items():
            is_there = name in packages and packages[name].state != "config-files"
            old = f" [{packages[name].version}]" if is_there else ""
            lines.append(f"Inst {name}{old} ({version} x [amd64])")
        return "".join(f"{line}\n" for line in lines)

    def _unpack(self, name: str, version: str) -> None:
        before = self.packages().get(name)
        self._set(name, "half-installed", before.version if before else version)
        upstream = version.partition("-")[0]
        for path, content in self._files(name, upstream).items():
            self._put(path, content)
        if name == LIBRARY:
            self._link(f"libnvidia-ml.so.{upstream}", f"{LIBRARIES}/libnvidia-ml.so.1")
            for library in (self.host.root / LIBRARIES[1:]).glob("libnvidia-ml.so.*"):
                if library.name not in ("libnvidia-ml.so.1", f"libnvidia-ml.so.{upstream}"):
                    self._remove(f"{LIBRARIES}/{library.name}")
        self._set(name, "unpacked", version)

    def _files(self, name: str, upstream: str) -> Mapping[str, str]:
        """What is in a package."""
        own = {
            LIBRARY: {f"{LIBRARIES}/libnvidia-ml.so.{upstream}": ""},
            TOOLS: {"/usr/bin/nvidia-smi": ""},
            MODULES: {"/usr/src/nvidia": f"{upstream} open"},
        }
        return own.get(name) or self.besides.get(name, {})

    def _configure(self) -> int:
        """What is unpacked."""
        status = 0
        for package in self.packages().values():
            if package.state in ("installed", "config-files", "half-installed"):
                continue
            if package.name == MODULES and self._build(KERNELS[-1]):
                self._set(package.name, "half-configured", package.version)
                status = 100
            else:
                self._set(package.name, "installed", package.version)
        return status

    def _take_out(self, name: str, *, purge: bool) -> None:
        package = self.packages()[name]
        self._set(name, "half-installed", package.version)
        built = {f"/usr/lib/modules/{kernel}/nvidia.ko" for kernel in KERNELS if name == MODULES}
        libraries = (self.host.root / LIBRARIES[1:]).glob("libnvidia-ml.so.*") if name == LIBRARY else ()
        named = {f"{LIBRARIES}/{library.name}" for library in libraries}
        if package.state != "config-files":  # else the files there are another's
            for path in sorted({*self._files(name, package.version.partition("-")[0]), *built, *named}):
                self._remove(path)
        self._set(name, "" if purge else "config-files", package.version)
        if purge:
            self._apt_mark(["manual", name], b"")

    def _dpkg(self, arguments: Sequence[str], _stdin: bytes) -> int:
        assert arguments[0] == "--configure"
        return self._configure()

    def _build(self, kernel: str) -> int:
        source = self.host.read("/usr/src/nvidia")
        if source.partition(" ")[0] in self.no_build:
            return 10
        self._put(f"/usr/lib/modules/{kernel}/nvidia.ko", source)
        return 0

    def _dkms(self, arguments: Sequence[str], _stdin: bytes) -> Done | int | str:
        if arguments[0] == "status":
            source = self.host.read("/usr/src/nvidia") if self.host.exists("/usr/src/nvidia") else ""
            return source and f"nvidia/{source.partition(' ')[0]}, x86_64: added\n"
        if not self.host.exists(f"/usr/lib/modules/{arguments[-1]}"):
            return Done(1, f"Error! Your kernel headers for kernel {arguments[-1]} cannot be found.\n".encode())
        return self._build(arguments[-1])

    def _modinfo(self, arguments: Sequence[str], _stdin: bytes) -> int | str:
        version = self.module(arguments[1]).partition(" ")[0]
        return f"version:  {version}\nlicense:  Dual MIT/GPL\n" if version else 1

    def load(self, version: str) -> None:
        self.host.write(VERSION_FILE, f"NVRM version: NVIDIA UNIX Open Kernel Module {version}\n")
        self.host.write(_MEMORY, version)

    def _unload(self) -> None:
        for path in (VERSION_FILE, _MEMORY):
            (self.host.root / path[1:]).unlink(missing_ok=True)

    def _modprobe(self, arguments: Sequence[str], _stdin: bytes) -> int:
        version = self.module(KERNELS[-1]).partition(" ")[0]
        if self.loaded():
            return 0
        if not version:
            return 1
        self.load(version)
        return 0

    def _initramfs(self, arguments: Sequence[str], _stdin: bytes) -> int:
        conf = self.host.root / "etc/modprobe.d/homelab-nvidia.conf"
        for kernel in KERNELS if "all" in arguments else KERNELS[-1:]:
            self._put(f"/boot/initrd.img-{kernel}", conf.read_text() if conf.exists() else "")
        return 0

    # NVIDIA's installer.

    def _env(self, arguments: Sequence[str], stdin: bytes) -> Done | int | str:
        if "--uninstall" in arguments:
            return self._uninstall((), b"")
        version = Path(arguments[2]).read_text().strip()
        for kernel in KERNELS:
            if version in self.no_build:
                return 1
            self._put(f"/usr/lib/modules/{kernel}/nvidia.ko", f"{version} open")
        self._put("/usr/bin/nvidia-uninstall", "")
        self._put(f"{LIBRARIES}/libnvidia-ml.so.{version}", "")
        self._link(f"libnvidia-ml.so.{version}", f"{LIBRARIES}/libnvidia-ml.so.1")
        self._put("/usr/bin/nvidia-smi", "")
        return 0

    def _uninstall(self, _arguments: Sequence[str], _stdin: bytes) -> int:
        """In the order of the installation, so that its program goes before libraries."""
        for kernel in KERNELS:
            self._remove(f"/usr/lib/modules/{kernel}/nvidia.ko")
        self._remove("/usr/bin/nvidia-uninstall")
        self._remove("/usr/bin/nvidia-smi")
        for path in [*(self.host.root / LIBRARIES[1:]).glob("libnvidia-ml.so.*")]:
            if path.name != "libnvidia-ml.so.1":
                self._remove(f"{LIBRARIES}/{path.name}")
        self._remove(f"{LIBRARIES}/libnvidia-ml.so.1")
        return 0


def _words(arguments: Sequence[str]) -> list[str]:
    """Without options."""
    words, given = [], iter(arguments)
    for word in given:
        if word == "-o":
            next(given)
        elif word == "-f" or not word.startswith("-"):
            words.append(word)
    return words


def after(host: Host, machine: Machine, *, booted: bool) -> Machine:
    """What a cut has left, gone on with.

    :param machine: the one that was cut short.
    """
    left = Machine(host, machine.no_build, machine.besides)
    if booted:
        left.boot()
        return left
    host.write("/proc/sys/kernel/osrelease", f"{KERNELS[-1]}\n")
    host.write("/proc/sys/kernel/random/boot_id", "boot\n")
    if host.exists(_MEMORY):
        left.load(host.read(_MEMORY))
    return left


def lasting(host: Host) -> dict[str, tuple[int, bytes | str | None]]:
    """What is there and stays, but for folders, which go as dpkg likes, what it leaves when it is killed, and marks of packages that are gone."""
    tree = {
        path: value for path, value in host.lasting().items() if value[1] is not None and not path.endswith(".dpkg-new")
    }
    mode, marks = tree[MARKS[1:]]
    assert isinstance(marks, bytes)
    there = {line.partition("\t")[0] for line in host.read(STATUS).splitlines()}
    marked = "".join(f"{name}\n" for name in marks.decode().split() if name in there)
    return tree | {MARKS[1:]: (mode, marked.encode())}
