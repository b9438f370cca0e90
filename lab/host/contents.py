"""What packages do to a system when they are unpacked, configured and removed: the keys of `gives` in packages.yaml."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from . import dkms, kernel_files, launchers, network, units
from .kernel_files import KERNEL_KEY, Build
from .nvidia import UDEV_RULES
from .program import Failure
from .state import HostState

LIBRARIES = "/usr/lib/x86_64-linux-gnu"
_UNIT_FILES = "/usr/lib/systemd/system"
_BLACKLIST = "/usr/lib/modprobe.d/nvidia-graphics-drivers.conf"
_PINNED = "nvidia-* libnvidia-* xserver-xorg-video-nvidia* cuda-drivers* libcuda1 libnvcuvid1 firmware-nvidia-*"
_UNITS = {
    "docker.service": "[Unit]\nDescription=Docker Application Container Engine\nAfter=containerd.service\n[Service]\nExecStart=/usr/bin/dockerd -H fd://\n[Install]\nWantedBy=multi-user.target\n",
    "containerd.service": "[Unit]\nDescription=containerd container runtime\n[Service]\nExecStart=/usr/bin/containerd\n[Install]\nWantedBy=multi-user.target\n",
    "nvidia-persistenced.service": "[Unit]\nDescription=NVIDIA Persistence Daemon\nStopWhenUnneeded=true\n[Service]\nType=forking\nExecStart=/usr/bin/nvidia-persistenced --user nvidia-persistenced --no-persistence-mode --verbose\n",
}
#: Libraries whose interface isn't the first.
_SONAMES = {"libEGL_nvidia.so": 0, "libGLX_nvidia.so": 0, "libcudnn.so": 9, "libnccl.so": 2}
#: What the toolkit's package puts into its configuration (nvidia-container-runtime, config.toml).
TOOLKIT_CONFIG = "/etc/nvidia-container-runtime/config.toml"
_TOOLKIT_TEXT = """\
#accept-nvidia-visible-devices-as-volume-mounts = false
#accept-nvidia-visible-devices-envvar-when-unprivileged = true
disable-require = false
supported-driver-capabilities = "compat32,compute,display,graphics,ngx,utility,video"
#swarm-resource = "DOCKER_RESOURCE_GPU"

[nvidia-container-cli]
#debug = "/var/log/nvidia-container-toolkit.log"
environment = []
#ldcache = "/etc/ld.so.cache"
ldconfig = "@/sbin/ldconfig.real"
load-kmods = true
#no-cgroups = false
#path = "/usr/bin/nvidia-container-cli"
#root = "/run/nvidia/driver"
#user = "root:video"

[nvidia-container-runtime]
#debug = "/var/log/nvidia-container-runtime.log"
log-level = "info"
mode = "auto"
runtimes = ["runc", "crun"]

[nvidia-container-runtime.modes]

[nvidia-container-runtime.modes.cdi]
annotation-prefixes = ["cdi.k8s.io/"]
default-kind = "nvidia.com/gpu"
spec-dirs = ["/etc/cdi", "/var/run/cdi"]
"""


#: What isn't done by putting files there, but by a package's scripts.
DONE = ("dkms", "headers", "kernel", "modules", "units", "alternative", "toolkit")


def main(host: HostState, name: str, arguments: list[str]) -> int:
    """lab-package: what a script of a package does. Its arguments: the script, its first argument, what the package gives."""
    script, why, gives = arguments[0], arguments[1], json.loads(arguments[2])
    if script == "postinst" and why == "configure":
        for line in configure(host, gives):
            print(line, flush=True)
    elif script == "prerm":
        remove(host, gives)
    elif script == "postrm" and why == "purge" and "toolkit" in gives:
        host.rooted(TOOLKIT_CONFIG).unlink(missing_ok=True)
    return 0


# -- what is unpacked ------------------------------------------------------------------------------------------
def unpack(host: HostState, name: str, gives: dict[str, Any]) -> None:
    """Put a package's files there."""
    for path in gives.get("programs", []):
        install_program(host, path)
    for stem in gives.get("libraries", []):
        _write_library(host, stem, gives["version"])
    if gives.get("kernel-common"):
        host.write(
            UDEV_RULES,
            'ACTION=="add", DEVPATH=="/module/nvidia", SUBSYSTEM=="module", RUN+="/sbin/modprobe nvidia-uvm"\n',
        )
    if gives.get("kernel-common") or gives.get("blacklist"):
        host.write(
            _BLACKLIST, "blacklist nouveau\nblacklist nova_core\nblacklist nova_drm\noptions nvidia-drm modeset=1\n"
        )
    if "dkms" in gives:
        dkms.write_source(host, _build_of(gives))
    if "headers" in gives:
        kernel_files.write_headers(host, gives["headers"])
    if "pin" in gives:
        text = f"Package: {_PINNED}\nPin: version {gives['pin']}\nPin-Priority: 1000\n"
        host.write("/etc/apt/preferences.d/nvidia-driver-pinning", text)
    if "key" in gives:
        host.write(gives["key"]["path"], network.key_named(host, gives["key"]["key"]).binary())
    for path, text in {**gives.get("files", {}), **gives.get("parts", {})}.items():
        host.write(path, text)
    for unit in gives.get("units", []):
        host.write(f"{_UNIT_FILES}/{unit}", _UNITS[unit])
    if release := gives.get("alternative"):
        about = f'{{"cuda": {{"name": "CUDA SDK", "version": "{release}"}}}}\n'
        host.write(f"/usr/local/cuda-{release}/version.json", about)


def _build_of(gives: dict[str, Any]) -> Build:
    return Build(gives["version"], gives["dkms"], name=gives.get("named") or dkms.NAME)


def install_program(host: HostState, path: str) -> None:
    """Put one of the lab's programs into a system's tree."""
    name = path.rpartition("/")[2]
    # nvcc is asked by its path which toolkit it belongs to.
    text = f'#!/bin/sh\nexport LAB_PROGRAM="$0"\nexec "$LAB_STATE/bin/{launchers.INSTALLED}/{name}" "$@"\n'
    host.write(path, text, 0o755)


def install_libraries(host: HostState, stems: list[str], version: str) -> None:
    """Put NVIDIA's libraries there, in place of those of another version.

    Their version is that of the file, as for the loader.
    """
    for stem in stems:
        remove_libraries(host, [stem])
        _write_library(host, stem, version)


def _write_library(host: HostState, stem: str, version: str) -> None:
    host.write(f"{LIBRARIES}/{stem}.{version}", f"{stem} {version}\n")
    host.symlink(f"{LIBRARIES}/{_soname(stem)}", f"{stem}.{version}")


def _soname(stem: str) -> str:
    return f"{stem}.{_SONAMES.get(stem, 1)}"


def remove_libraries(host: HostState, stems: list[str], version: str | None = None) -> None:
    """Take libraries away.

    Args:
        version: only if they are of it; None: of whatever version they are.
    """
    folder = host.rooted(LIBRARIES)
    for stem in stems:
        pattern = re.compile(rf"{re.escape(stem)}\.(\d+\.[\d.]+)")
        found = [path for path in folder.glob(f"{stem}.*") if pattern.fullmatch(path.name)] if folder.is_dir() else []
        for path in found:
            if version in (None, path.name.removeprefix(f"{stem}.")):
                path.unlink()
                link = folder / _soname(stem)
                if link.is_symlink() and not link.exists():
                    link.unlink()


def _modules(host: HostState, wanted: dict[str, str]) -> None:
    """Modules that were built and signed with the kernel."""
    build = Build(wanted["version"], wanted["flavour"], KERNEL_KEY)
    kernel_files.write_nvidia(host, wanted["kernel"], build, _modules_folder(wanted))


def _modules_folder(wanted: dict[str, str]) -> str:
    return f"kernel/nvidia-{wanted['version'].split('.')[0]}-{wanted['flavour']}"


# -- what is configured ----------------------------------------------------------------------------------------
def configure(host: HostState, gives: dict[str, Any]) -> list[str]:
    """Do what a package's postinst does, and return what it says.

    Raises:
        Failure: it fails, with its words and its exit status.
    """
    said: list[str] = []
    if "dkms" in gives:
        dkms.register(host, gives["version"])
        said += _build_all(host, gives["version"])
    if "kernel" in gives:
        kernel_files.write_kernel(host, gives["kernel"])
    if "modules" in gives:
        _modules(host, gives["modules"])
    for kernel in filter(None, (gives.get("headers"), gives.get("kernel"))):
        dkms.autoinstall(host, kernel)
    if "kernel" in gives:
        run_hooks(host, "postinst.d", gives["kernel"])
    for unit in gives.get("units", []):
        _start_unit(host, unit)
    if release := gives.get("alternative"):
        host.symlink("/usr/local/cuda", f"cuda-{release}")
    if "toolkit" in gives and not host.rooted(TOOLKIT_CONFIG).exists():
        host.write(TOOLKIT_CONFIG, _TOOLKIT_TEXT)
    return said


def _build_all(host: HostState, version: str) -> list[str]:
    said = [f"Loading new nvidia-{version} DKMS files..."]
    kernels = [kernel for kernel in host.kernels() if kernel_files.has_headers(host, kernel)]
    running = host.read("/proc/sys/kernel/osrelease", "").strip()
    if running not in kernels:
        said.append(
            f"Module build for kernel {running} was skipped since the\nkernel headers for this kernel do not seem to be installed."
        )
    for kernel in kernels:
        said.append(f"Building for {kernel}")
        dkms.install(host, version, kernel)
    return said


def run_hooks(host: HostState, folder: str, kernel: str, environment: Mapping[str, str] | None = None) -> None:
    """Run the hooks in /etc/kernel that a kernel package runs.

    Args:
        environment: that of the system's commands; None for this process's own.

    Raises:
        Failure: one fails.
    """
    import subprocess

    base = host.rooted(f"/etc/kernel/{folder}")
    for hook in sorted(base.iterdir()) if base.is_dir() else []:
        if not os.access(hook, os.X_OK):
            continue
        done = subprocess.run(
            [str(hook), kernel, f"/boot/vmlinuz-{kernel}"],
            env=environment,
            cwd=host.root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise Failure(
                f"run-parts: {host.unrooted(hook)} exited with return code {done.returncode}: {done.stdout}{done.stderr}",
                done.returncode,
            )


def _start_unit(host: HostState, unit: str) -> None:
    """One with an [Install] section is enabled and started, as Debian's packages do."""
    if "[Install]" in _UNITS[unit]:
        host.symlink(f"/etc/systemd/system/multi-user.target.wants/{unit}", f"{_UNIT_FILES}/{unit}")
        if host.running or "container" in host.machine:
            units.note_state(host, unit, "active")


# -- what is removed -------------------------------------------------------------------------------------------
def remove(host: HostState, gives: dict[str, Any]) -> None:
    """Do what a package's prerm does: take away what isn't one of its files."""
    if "dkms" in gives:
        dkms.unregister(host, gives["version"])
    if "kernel" in gives:
        kernel_files.remove_kernel(host, gives["kernel"])
        run_hooks(host, "postrm.d", gives["kernel"])
        kernel_files.remove_modules(host, gives["kernel"])
    if "modules" in gives:
        kernel_files.remove_nvidia(host, gives["modules"]["kernel"], _modules_folder(gives["modules"]))
    for unit in gives.get("units", []):
        host.rooted(f"/etc/systemd/system/multi-user.target.wants/{unit}").unlink(missing_ok=True)
        if host.running:
            units.note_state(host, unit, "inactive")
    link = host.rooted("/usr/local/cuda")
    if "alternative" in gives and link.is_symlink() and str(link.readlink()) == f"cuda-{gives['alternative']}":
        link.unlink()
