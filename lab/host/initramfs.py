"""Building initrd.img as initramfs-tools does (mkinitramfs(8), initramfs-tools(7)), from the host's own files.

What goes in: conf/, modprobe.d, the boot scripts with their ORDER files, conf/modules from
/etc/initramfs-tools/modules, the modules of MODULES=most, and whatever the executable hooks add.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

from . import archive, catalogue
from .catalogue import MODULES, normal
from .kernel import modules_on_disk
from .state import HostState, kernel_release, of_command_server, of_root

_STAGES = ("init-top", "init-premount", "local-top", "local-premount", "local-bottom", "init-bottom", "panic")


class MkinitramfsError(Exception):
    """mkinitramfs gives up; the text is what it prints."""


def build_image(host: HostState, kernel: str) -> bytes:
    """The image for one kernel version.

    Raises:
        MkinitramfsError: a hook fails, or a fault is set.
    """
    fault = host.fault("update-initramfs")
    if fault in ("fail", f"fail:{kernel}"):
        raise MkinitramfsError("mkinitramfs failure zstd -q -9 -T0 1")
    temporary = host.root / "var/tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="mkinitramfs_", dir=temporary))
    try:
        _fill(host, kernel, folder)
        return archive.pack(archive.collect(folder))
    finally:
        shutil.rmtree(folder)


def _fill(host: HostState, kernel: str, folder: Path) -> None:
    config = host.root / "etc/initramfs-tools"
    for name in ("conf/conf.d", "etc/modprobe.d", "scripts", f"usr/lib/modules/{kernel}"):
        (folder / name).mkdir(parents=True)
    _copy(config / "initramfs.conf", folder / "conf/initramfs.conf")
    _copy_all(config / "conf.d", folder / "conf/conf.d")
    for source in ("usr/lib/modprobe.d", "etc/modprobe.d"):
        _copy_all(host.root / source, folder / "etc/modprobe.d", ".conf")
    (folder / "conf/modules").write_text("", encoding="utf-8")
    wanted = _listed_modules(config / "modules", folder / "conf/modules")
    _scripts(host, folder)
    _run_hooks(host, kernel, folder)
    added = folder / "conf/.added-modules"
    if added.exists():
        wanted += added.read_text(encoding="utf-8").split()
        added.unlink()
    wanted += [name for name, info in MODULES.items() if info.initrd]
    _copy_modules(host, kernel, folder, wanted)


def _copy(source: Path, target: Path) -> None:
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
        target.chmod(stat.S_IMODE(source.stat().st_mode))


def _copy_all(source: Path, target: Path, suffix: str = "") -> None:
    if source.is_dir():
        for path in sorted(source.iterdir()):
            if path.name.endswith(suffix):
                _copy(path, target / path.name)


def _listed_modules(source: Path, target: Path) -> list[str]:
    """/etc/initramfs-tools/modules: each line is loaded early, so it goes to conf/modules as it stands."""
    names = []
    text = source.read_text(encoding="utf-8") if source.exists() else ""
    with target.open("a", encoding="utf-8") as out:
        for raw in text.splitlines():
            line = raw.partition("#")[0].strip()
            if line:
                out.write(line + "\n")
                names.append(line.split()[0])
    return names


def _script_folders(host: HostState, kind: str) -> list[Path]:
    return [host.root / "usr/share/initramfs-tools" / kind, host.root / "etc/initramfs-tools" / kind]


def _executables(folders: list[Path]) -> dict[str, Path]:
    """Executable files by name; one in /etc replaces one of the same name in /usr/share."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if path.is_file() and os.access(path, os.X_OK):
                found[path.name] = path
    return found


def _scripts(host: HostState, folder: Path) -> None:
    for stage in _STAGES:
        found = _executables([base / stage for base in _script_folders(host, "scripts")])
        if not found:
            continue
        for name, path in found.items():
            _copy(path, folder / "scripts" / stage / name)
        lines = []
        for name in in_order(found, host):
            lines += [f'/scripts/{stage}/{name} "$@"', "[ -e /conf/param.conf ] && . /conf/param.conf"]
        (folder / "scripts" / stage / "ORDER").write_text("\n".join(lines) + "\n", encoding="utf-8")


def in_order(scripts: dict[str, Path], host: HostState) -> list[str]:
    """Names in the order in which they run, as tsort(1) gives it to initramfs-tools.

    First those without prerequisites (`<script> prereqs`), by name; the others as soon as theirs have run. Scripts
    that wait for one another are left out, as tsort's loop members come out of order and nobody relies on them.
    """
    needs = {name: {p for p in _prerequisites(path, host) if p in scripts} for name, path in scripts.items()}
    order = [name for name in sorted(scripts) if not needs[name]]
    for done in order:  # grows while it is walked
        for name in sorted(scripts):
            if done in needs[name]:
                needs[name].discard(done)
                if not needs[name]:
                    order.append(name)
    return order


def _prerequisites(path: Path, host: HostState) -> list[str]:
    """What a script prints for `prereqs`. Scripts that say PREREQ="" and nothing else are not started for it."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if 'PREREQ=""' in text and "prereqs)" in text and "PREREQ=" not in text.replace('PREREQ=""', "", 1):
        return []
    result = subprocess.run(
        ["/bin/sh", str(path), "prereqs"],
        env=_hook_environment(host, "", path.parent),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return result.stdout.split()


def _hook_environment(host: HostState, kernel: str, folder: Path) -> dict[str, str]:
    return {
        "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        "LC_ALL": "C.UTF-8",
        **of_root(host.root),
        "LAB_STATE": str(host.state),
        **of_command_server(),
        "LAB_PYTHON": os.environ.get("LAB_PYTHON", ""),
        "DESTDIR": str(folder),
        "version": kernel,
        "verbose": "n",
        "MODULES": "most",
        "DPKG_ARCH": "amd64",
        "CONFDIR": f"{host.root}/etc/initramfs-tools",
        "TMPDIR": f"{host.root}/var/tmp",
        "HOME": "/",
        "MODULESDIR": f"{host.root}/usr/lib/modules/{kernel}",
    }


def _run_hooks(host: HostState, kernel: str, folder: Path) -> None:
    hooks = _executables(_script_folders(host, "hooks"))
    environment = _hook_environment(host, kernel, folder)
    for name in in_order(hooks, host):
        result = subprocess.run(
            [str(hooks[name])],
            env=environment,
            stdin=subprocess.DEVNULL,
            cwd=host.root,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        if result.returncode != 0:
            raise MkinitramfsError(
                f"{result.stderr}E: {host.unrooted(hooks[name])} failed with return {result.returncode}."
            )


def _copy_modules(host: HostState, kernel: str, folder: Path, wanted: list[str]) -> None:
    available = modules_on_disk(host.root, kernel)
    closure: list[str] = []

    def add(name: str) -> None:
        if name in closure or name not in MODULES or not catalogue.exists_in(name, kernel_release(kernel)):
            return
        for needed in MODULES[name].needs:
            add(needed)
        closure.append(name)
        for after in catalogue.SOFT_AFTER.get(name, ()):  # `modprobe --show-depends` lists these as well
            add(after)

    for name in wanted:
        add(normal(name))
    for name in closure:
        if name in available:
            path = f"usr/lib/modules/{kernel}/{MODULES[name].path}"
            _copy(host.root / path, folder / path)
