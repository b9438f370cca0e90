"""A system in a folder whose apt and dpkg are this machine's own, on repositories of tiny packages; its kernel, DKMS and NVIDIA's installer are small
scripts."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lab.host import debs
from lab.host.debs import Member
from remote_scripts.both.apt import Repository
from remote_scripts.both.nvidia_packages import Try, Wanted
from remote_scripts.both.software import Installer, Software
from remote_scripts.both.symptoms import Context, Flavour, Target
from remote_scripts.tools.system import System
from tests.agent.kit import Host

#: A test without these says so.
needs_apt = pytest.mark.skipif(
    not (shutil.which("apt-get") and shutil.which("dpkg-deb")), reason="this machine has no apt and dpkg"
)
KERNELS = ("6.8.0-85-generic", "6.8.0-86-generic")
RUNNING = KERNELS[-1]
OLD, NEW, LATER = "580.95.05", "580.105.08", "595.58.03"
#: Which NVIDIA's installer alone brings.
BY_RUN = "470.256.02"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
SOFTWARE = Software(context=Context(name="it"), lock_seconds=0)
PINNED = ("nvidia-*", "libnvidia-*")
CUDA = "usr/local/cuda-{}/bin/nvcc"


class Repo:
    """A flat repository of tiny packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows: list[str] = []
        folder.mkdir(parents=True)

    @property
    def line(self) -> str:
        return f"deb [trusted=yes] copy:{self.folder} ./"

    def add(
        self,
        name: str,
        version: str = "1.0",
        depends: str = "",
        files: Mapping[str, str] | None = None,
        scripts: Mapping[str, str] | None = None,
        **fields: str,
    ) -> None:
        """:param files: path -> content, or `-> TARGET` of a link."""
        given = {
            "Package": name,
            "Version": version,
            "Architecture": "amd64",
            "Maintainer": "x",
            "Installed-Size": "10",
        }
        given |= {"Depends": depends} if depends else {}
        given |= {key.replace("_", "-"): value for key, value in fields.items()} | {"Description": "tiny"}
        about = {"/control": Member(debs.text_of(given).encode())}
        for script, text in (scripts or {}).items():
            about[f"/{script}"] = Member(f"#!/bin/sh\n{text}\n".encode(), 0o755)
        members = {
            f"/{path}": Member(content.removeprefix("-> ").encode(), 0o755, content.startswith("-> "))
            for path, content in (files or {}).items()
        }
        deb = self.folder / f"{name}_{version}_{given['Architecture']}.deb"
        deb.write_bytes(content := debs.packed(about, members))
        where = {"Filename": f"./{deb.name}", "Size": str(len(content)), "SHA256": hashlib.sha256(content).hexdigest()}
        self._rows.append(debs.text_of({**given, **where}))
        (self.folder / "Packages").write_text("\n".join(self._rows))

    def without(self, version: str) -> None:
        """The repository has a version no more."""
        self._rows = [row for row in self._rows if f"Version: {version}" not in row]
        (self.folder / "Packages").write_text("\n".join(self._rows))

    def driver(self, version: str) -> None:
        """As NVIDIA packages it for Ubuntu: with the branch in the names up to 580, and without later. The package of the modules builds them for the
        running kernel."""
        number, branch = version.partition("-")[0], int(version.partition(".")[0])
        tail = f"-{branch}" if branch < 590 else ""

        def alone(name: str) -> dict[str, Any]:
            return dict.fromkeys(("Provides", "Conflicts", "Replaces"), name)

        libraries = {"libnvidia-ml.so.1": f"-> libnvidia-ml.so.{number}", f"libnvidia-ml.so.{number}": ""}
        encode = {"libnvidia-encode.so.1": f"-> libnvidia-encode.so.{number}", f"libnvidia-encode.so.{number}": ""}
        library = f"libnvidia-compute{tail}"
        self.add(library, version, files=_below(LIBRARIES, libraries), **alone("nv-compute"))
        same = f"{library} (= {version})"
        self.add(f"nvidia-utils{tail}", version, same, {"usr/bin/nvidia-smi": number}, **alone("nv-utils"))
        self.add(f"libnvidia-encode{tail}", version, same, _below(LIBRARIES, encode), **alone("nv-encode"))
        self.add(f"libnvidia-decode{tail}", version, same, **alone("nv-decode"))
        # What nothing conflicts with, as nvidia-firmware.
        self.add(f"nvidia-firmware-{number}", version)
        for flavour, name in (("open", f"nvidia-dkms{tail}-open"), ("proprietary", f"nvidia-dkms{tail}")):
            module = f"$DPKG_ROOT/usr/lib/modules/{RUNNING}/nvidia"
            scripts = {
                "postinst": f'[ "$1" = configure ] || exit 0\n[ -e "$DPKG_ROOT/fails/postinst-{number}" ] && exit 10\necho "{number} {flavour}" >"{module}"',
                "prerm": f'grep -l "^{number} {flavour}" "$DPKG_ROOT"/usr/lib/modules/*/nvidia 2>/dev/null | xargs -r rm -f\nexit 0',
            }
            source = {f"usr/src/nvidia-{number}": flavour}
            needs = f"dkms, nvidia-firmware-{number}"
            self.add(name, version, needs, source, scripts, **alone("nv-dkms"))


def sign(repo: Repo, signer: str, request: pytest.FixtureRequest) -> str:
    """Signs a repository, with a file `key` of two keys, `nvidia` and `other`; the fingerprint of the first one."""
    home = tempfile.mkdtemp(dir="/tmp")  # the path of its agent's socket is to be short
    request.addfinalizer(lambda: shutil.rmtree(home))
    gpg = ["gpg", "--homedir", home, "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]

    def said(*words: str, text: str = "") -> str:
        return subprocess.run([*gpg, *words], input=text, check=True, capture_output=True, text=True).stdout

    for name in ("nvidia", "other"):
        said("--quick-generate-key", name, "rsa2048")
    (repo.folder / "key").write_text(said("--armor", "--export", "nvidia") + said("--armor", "--export", "other"))
    packages = (repo.folder / "Packages").read_bytes()
    digest = f"{hashlib.sha256(packages).hexdigest()} {len(packages)}"
    release = f"Date: Thu, 26 Nov 2026 00:00:00 UTC\nSHA256:\n {digest} Packages\n"
    (repo.folder / "InRelease").write_text(said("-u", signer, "--clearsign", text=release))
    lines = said("--with-colons", "--list-keys", "nvidia").split("\n")
    return next(line for line in lines if line.startswith("fpr:")).strip(":").rpartition(":")[2]


def _below(folder: str, files: Mapping[str, str]) -> dict[str, str]:
    return {f"{folder}/{name}": content for name, content in files.items()}


def repositories(place: Path) -> dict[str, Repo]:
    """The distribution's own, NVIDIA's, and that of the container toolkit."""
    distribution, nvidia, toolkit = (Repo(place / name) for name in ("distribution", "nvidia", "toolkit"))
    for name in ("dpkg", "dkms", "build-essential", "docker-parts", "gdm", "curl", "ca-certificates", "hidden-needs"):
        distribution.add(name)
    # Debian's asks nothing when it is purged, and takes images and volumes with it.
    data = {
        "postinst": 'mkdir -p "$DPKG_ROOT/var/lib/docker"\necho mine >"$DPKG_ROOT/var/lib/docker/volume"',
        "postrm": '[ "$1" != purge ] || rm -rf "$DPKG_ROOT/var/lib/docker"',
    }
    files = {"usr/bin/dockerd": ""}
    distribution.add("docker.io", Recommends="docker-parts", Section="admin", files=files, scripts=data)
    postinst = '[ "$1" = configure ] && [ -e "$DPKG_ROOT/fails/stranger" ] && exit 1\nexit 0'
    distribution.add("stranger", scripts={"postinst": postinst})
    distribution.add("needs-dkms", depends="dkms")
    distribution.add("hates-nvidia", Conflicts="nv-dkms")
    for kernel in KERNELS:
        build = {f"usr/lib/modules/{kernel}/build/Makefile": ""}
        distribution.add(f"linux-headers-{kernel}", files=build, Recommends="hidden-needs")
    distribution.add("linux-headers-generic", depends=f"linux-headers-{RUNNING}")
    # Debian's of a newer kernel bring that.
    distribution.add("linux-image-newer")
    distribution.add("linux-headers-debian", depends="linux-image-newer")
    for version in (OLD, NEW, LATER):
        nvidia.driver(f"{version}-0ubuntu1")
    # What became of 570 in Ubuntu's archive: names that lead to the next branch.
    for name in ("libnvidia-compute-{}", "nvidia-utils-{}", "nvidia-dkms-{}-open"):
        nvidia.add(name.format(570), "570.211.01-0ubuntu1", name.format(580))
    for release in ("12.8", "12.9"):
        tail = release.replace(".", "-")
        says = f'#!/bin/sh\necho "Cuda compilation tools, release {release}, V{release}.93"\n'
        nvidia.add(f"cuda-nvcc-{tail}", f"{release}.1-1", files={CUDA.format(release): says})
        nvidia.add(f"cuda-toolkit-{tail}", f"{release}.1-1", f"cuda-nvcc-{tail}")
    nvidia.add("cuda-toolkit-11-8", "11.8.0-1", "nvidia-utils")
    for version in ("2.27.3-1+cuda12.9", "2.28.0-1+cuda13.0"):
        nvidia.add("libnccl2", version)
    toolkit.add("nvidia-container-toolkit", "1.20.0-1", files={"usr/bin/nvidia-ctk": ""})
    for version in (BY_RUN, "470.300.01"):
        _installer(place / f"NVIDIA-Linux-x86_64-{version}.run", version)
    return {"distribution": distribution, "nvidia": nvidia, "toolkit": toolkit}


def _installer(path: Path, version: str) -> None:
    """NVIDIA's: libraries, tools, an uninstaller, and modules for each kernel."""
    library = f"$HOMELAB_ROOT/{LIBRARIES}"
    path.write_text(
        f"""#!/bin/sh
own="{library}/libnvidia-ml.so.1 {library}/libnvidia-ml.so.{version} $HOMELAB_ROOT/usr/bin/nvidia-smi $HOMELAB_ROOT/usr/bin/nvidia-uninstall"
if [ "$1" = --uninstall ]; then rm -f $own "$HOMELAB_ROOT"/usr/lib/modules/*/nvidia; exit 0; fi
mkdir -p "{library}" "$HOMELAB_ROOT/usr/bin"
printf '#!/bin/sh\\nrm -f %s %s\\n' "$own" "$HOMELAB_ROOT/usr/lib/modules/*/nvidia" >"$HOMELAB_ROOT/usr/bin/nvidia-uninstall"
chmod 755 "$HOMELAB_ROOT/usr/bin/nvidia-uninstall"
[ -e "$HOMELAB_ROOT/fails/run-{version}" ] && {{ echo "ERROR: Unable to build the NVIDIA kernel module."; exit 1; }}
: >"{library}/libnvidia-ml.so.{version}"; ln -sf libnvidia-ml.so.{version} "{library}/libnvidia-ml.so.1"
echo {version} >"$HOMELAB_ROOT/usr/bin/nvidia-smi"
case "$*" in *--no-kernel-module*) exit 0;; esac
for folder in "$HOMELAB_ROOT"/usr/lib/modules/*; do echo "{version} proprietary" >"$folder/nvidia"; done
"""
    )


_SCRIPTS = {
    "dpkg": 'exec /usr/bin/dpkg --root="$HOMELAB_ROOT" --force-not-root --force-script-chrootless --force-unsafe-io --log=/dev/null "$@"',
    "dpkg-query": 'exec /usr/bin/dpkg-query --admindir="$HOMELAB_ROOT/var/lib/dpkg" "$@"',
    "dkms": '[ "$1" = status ] && exit 0\nwhile [ $# -gt 0 ]; do case "$1" in -v) v=$2;; -k) k=$2;; esac; shift; done\n'
    '[ -e "$HOMELAB_ROOT/fails/build-$v-$k" ] && { echo "Error! Bad return status for module build on kernel: $k"; exit 10; }\n'
    '[ -e "$HOMELAB_ROOT/usr/src/nvidia-$v" ] || { echo "Error! Could not find module source"; exit 3; }\n'
    'echo "$v $(cat "$HOMELAB_ROOT/usr/src/nvidia-$v")" >"$HOMELAB_ROOT/usr/lib/modules/$k/nvidia"',
    "modinfo": 'f="$HOMELAB_ROOT/usr/lib/modules/$2/nvidia"; [ -e "$f" ] || exit 1; read v k <"$f"; echo "version: $v"\n'
    '[ "$k" = open ] && echo "license: Dual MIT/GPL" || echo "license: NVIDIA"',
    "modprobe": f'p="$HOMELAB_ROOT/proc/driver/nvidia"; [ -e "$p/version" ] && exit 0; read v k <"$HOMELAB_ROOT/usr/lib/modules/{RUNNING}/nvidia" || exit 1\n'
    '[ -e "$HOMELAB_ROOT/fails/load-$v" ] && { echo "modprobe: ERROR: could not insert nvidia: No such device"; exit 1; }\n'
    '[ "$k" = open ] && k="Open Kernel Module for x86_64" || k="x86_64 Kernel Module"\n'
    'mkdir -p "$p"; echo "NVRM version: NVIDIA UNIX $k  $v  Release Build" >"$p/version"',
    "systemctl": '[ "$1" = is-active ] && exit 3; exit 0',
    "update-initramfs": '[ -e "$HOMELAB_ROOT/fails/initramfs" ] && exit 0; for k in "$HOMELAB_ROOT"/boot/vmlinuz-*; do echo made >>"$HOMELAB_ROOT/boot/initrd.img-${k##*vmlinuz-}"; done',
    "dmesg": "exit 0",
}
_FOLDERS = (
    *("var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/apt/lists/partial", "var/cache/apt/archives/partial"),
    *("var/log/apt", "etc/apt/sources.list.d", "etc/apt/preferences.d", "etc/apt/apt.conf.d", "usr/bin"),
    *("proc/sys/kernel/random", "etc/systemd/system/multi-user.target.wants", "etc/profile.d", "usr/share/keyrings"),
    *("tmp", "fails", "sys/bus/pci/devices", "etc/modprobe.d", LIBRARIES),
    *(f"usr/lib/modules/{kernel}" for kernel in KERNELS),
)
# As kernels' packages are protected: by files of the distribution, and by apt itself; and an owner's hook.
_AUTOREMOVE = """\
APT::NeverAutoRemove { "^linux-headers-.*"; };
APT::VersionedKernelPackages { "linux-.*"; };
APT::Never-MarkAuto-Sections { "metapackages"; };
"""


def stocked(place: Path, repos: Mapping[str, Repo]) -> Path:
    """The root of a stock system, whose lists are fetched."""
    root = Host(place).root
    for folder in _FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for path in ("var/lib/dpkg/status", "var/lib/dpkg/available", "var/lib/apt/extended_states"):
        (root / path).touch()
    (root / "var/lib/dpkg/arch").write_text("amd64\ni386\n")
    (root / "proc/sys/kernel/osrelease").write_text(f"{RUNNING}\n")
    (root / "proc/sys/kernel/random/boot_id").write_text("boot\n")
    for kernel in KERNELS:
        (root / f"boot/vmlinuz-{kernel}").touch()
        (root / f"boot/initrd.img-{kernel}").touch()
    (root / "etc/apt/sources.list.d/distribution.list").write_text(f"{repos['distribution'].line}\n")
    (root / "etc/apt/apt.conf.d/01autoremove").write_text(_AUTOREMOVE)
    for words in (("update",), ("install", "dpkg", "gdm")):
        apt = ["apt-get", "-qy", *words]
        subprocess.run(apt, check=True, capture_output=True, env=_environment(place, repos))
    (root / "etc/apt/apt.conf.d/hooks").write_text('APT::Update::Post-Invoke { "touch $HOMELAB_ROOT/hook"; };\n')
    return root


def _environment(place: Path, repos: Mapping[str, Repo]) -> dict[str, str]:
    """In which programs work on the system in this folder."""
    root, programs = place / "root", place / "bin"
    if not programs.exists():
        programs.mkdir()
        for name, text in _SCRIPTS.items():
            (programs / name).write_text(f"#!/bin/sh\n{text}\n")
            (programs / name).chmod(0o755)
        (place / "apt.conf").write_text(
            f'Dir "{root}";\nDir::State::status "{root}/var/lib/dpkg/status";\nDir::Bin::methods "/usr/lib/apt/methods";\n'
            f'Dir::Bin::dpkg "{programs}/dpkg";\nAPT::Sandbox::User "root";\nAPT::Architectures {{ "amd64"; "i386"; }};\nAPT::Cache-HashTableSize "1000";\nDPkg::Path "";\n'
        )
    return os.environ | {
        "HOMELAB_ROOT": str(root),
        "REPOS": str(repos["nvidia"].folder.parent),
        "APT_CONFIG": str(place / "apt.conf"),
        "PATH": f"{programs}:{os.environ['PATH']}",
    }


class Machine:
    """A stock system of its own.

    :param stock: one that is copied.
    """

    def __init__(self, place: Path, stock: Path, repos: Mapping[str, Repo], patch: pytest.MonkeyPatch) -> None:
        self.root, self.repos = place / "root", repos
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", stock, self.root], check=True)
        for name, value in _environment(place, repos).items():
            patch.setenv(name, value)

    def system(self) -> System:
        return System(self.root)

    def apt(self, *words: str) -> str:
        return subprocess.run(["apt-get", "-y", "-q", *words], capture_output=True, text=True, check=True).stdout

    def add_source(self, name: str) -> None:
        """An owner's own entry for a repository."""
        (self.root / "etc/apt/sources.list.d/theirs.list").write_text(f"{self.repos[name].line}\n")
        self.apt("update")

    def fail(self, *names: str) -> None:
        """What fails from now on, and nothing else."""
        shutil.rmtree(self.root / "fails")
        (self.root / "fails").mkdir()
        for name in names:
            (self.root / "fails" / name).touch()

    def versions(self) -> dict[str, str]:
        """Of what is wholly installed; what is there otherwise has its state."""
        form = "-f=${Package} ${db:Status-Status} ${Version}\n"
        said = subprocess.run(["dpkg-query", "-W", form], capture_output=True, text=True, check=False).stdout
        rows = map(str.split, said.splitlines())
        return {name: version if state == "installed" else state for name, state, version in rows}

    def marks(self) -> dict[str, set[str]]:
        said = {
            mark: subprocess.run(["apt-mark", f"show{mark}"], capture_output=True, text=True, check=True).stdout
            for mark in ("auto", "manual")
        }
        return {mark: {*text.split()} for mark, text in said.items()}

    def kill(self, run: int) -> None:
        """A run, and whatever works on this system."""
        os.kill(run, signal.SIGKILL)
        root = f"HOMELAB_ROOT={self.root}".encode()
        for _ in range(3):  # what is being started meanwhile
            for path in Path("/proc").glob("[0-9]*/environ"):
                with contextlib.suppress(OSError):
                    if root in path.read_bytes().split(b"\0"):
                        os.kill(int(path.parent.name), signal.SIGKILL)

    def boot(self) -> None:
        """What is installed for the kernel is loaded."""
        (self.root / "proc/driver/nvidia/version").unlink(missing_ok=True)
        subprocess.run(["modprobe", "nvidia"], check=False, capture_output=True)

    @property
    def loaded(self) -> str:
        path = self.root / "proc/driver/nvidia/version"
        return path.read_text().split("  ")[1] if path.exists() else ""

    def modules(self) -> set[str]:
        """Of all kernels."""
        paths = [self.root / f"usr/lib/modules/{kernel}/nvidia" for kernel in KERNELS]
        return {path.read_text().strip() if path.exists() else "" for path in paths}

    def lasting(self) -> dict[str, tuple[int, int, int]]:
        """Each file below /etc and /var, with its times and size, ctime included; but for homelab's log."""
        found = {}
        for folder in ("etc", "var", "usr", "boot"):
            for path in sorted((self.root / folder).rglob("*")):
                about = path.lstat()
                found[str(path.relative_to(self.root))] = (about.st_mtime_ns, about.st_ctime_ns, about.st_size)
        return found

    def content(self) -> dict[str, bytes]:
        """What lasts, without what apt and dpkg note for themselves, and the lists."""
        own = ("var/lib/dpkg", "var/lib/apt", "var/cache/apt", "var/log", "var/backups/homelab", "boot/initrd")
        return {
            str(path.relative_to(self.root)): path.read_bytes() if path.is_file() else b""
            for folder in ("etc", "var", "usr", "boot")
            for path in sorted((self.root / folder).rglob("*"))
            if not path.is_dir() and not str(path.relative_to(self.root)).startswith(own)
        }

    # What is asked.

    def wanted(self, driver: str = "580", target: Target = "vm", **more: Any) -> Wanted:
        """A request for packages of a driver; its flavour, its capabilities (`video`), further fields."""
        flavour: Flavour | None = None if target == "lxc" else more.pop("flavour", "open")
        branch = int(driver.partition(".")[0])
        tail = f"-{branch}" if branch < 590 else ""
        modules = {"open": f"nvidia-dkms{tail}-open", "proprietary": f"nvidia-dkms{tail}"}
        packages = (*([modules[flavour]] if flavour else []), f"libnvidia-compute{tail}", f"nvidia-utils{tail}")
        if more.pop("video", False):
            packages += (f"libnvidia-encode{tail}",)
            more = {"libraries": ("libnvidia-encode.so.1",)} | more
        kernels = KERNELS if target == "host" else (RUNNING,)
        headers = ("dkms", *(f"linux-headers-{kernel}" for kernel in kernels), "linux-headers-generic")
        if cuda := more.get("cuda"):
            tail = cuda.replace(".", "-")
            more = {"beside": (f"cuda-toolkit-{tail}", "build-essential"), "nvcc": f"/{CUDA.format(cuda)}"} | more
        wanted = Wanted(
            target=target,
            software=SOFTWARE,
            tries=(Try(driver=driver, flavour=flavour, packages=packages),),
            repositories=tuple(self.repository(name) for name in ("nvidia", "toolkit")),
            pinned=PINNED,
            headers=() if target == "lxc" else headers,
        )
        return replace(wanted, **more)

    def repository(self, name: str) -> Repository:
        folder = self.repos[name].folder
        (folder / "key").touch()
        return Repository(
            list_file=f"/etc/apt/sources.list.d/homelab-{name}.list",
            line=self.repos[name].line,
            key_url=f"copy:{folder}/key",
            keyring=f"/usr/share/keyrings/homelab-{name}.asc",
        )

    def by_run(self, driver: str = "470", target: Target = "vm") -> Try:
        """A way by NVIDIA's installer."""
        path = self.repos["nvidia"].folder.parent / f"NVIDIA-Linux-x86_64-{BY_RUN}.run"
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        arguments = ("--silent", *(("--no-kernel-module",) if target == "lxc" else ()))
        run = Installer(version=BY_RUN, url=f"copy:{path}", sha256=sha256, arguments=arguments)
        flavour: Flavour | None = None if target == "lxc" else "proprietary"
        return Try(driver=driver, flavour=flavour, packages=("build-essential",), run=run)
