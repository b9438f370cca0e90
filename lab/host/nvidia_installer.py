"""NVIDIA's installer (NVIDIA-Linux-x86_64-VERSION.run) and nvidia-uninstall, as they work with --silent."""

from __future__ import annotations

import re
from pathlib import Path

from . import contents, dkms, kernel_files, network
from .account_programs import current_user
from .dpkg import installed
from .kernel_files import Build
from .nvidia import running_build
from .program import Failure, Options, UsageError, logged
from .state import HostState
from .versions import holds

_OPTIONS = (
    "silent", "no-questions", "dkms", "no-kernel-modules", "no-kernel-module", "no-nouveau-check", "no-nvidia-modprobe", "no-rpms",
    "no-backup", "no-check-for-alternate-installs", "no-libglx-indirect", "no-install-libglvnd", "no-opengl-files", "no-systemd",
    "no-drm", "no-peermem", "allow-installation-with-running-driver", "skip-module-load", "uninstall", "kernel-module-type=", "tmpdir=",
)  # fmt: skip
_LOG = "/var/log/nvidia-installer.log"
#: What an installation leaves of itself, by which it is found again.
_RECORD = "/var/lib/nvidia/log"
#: Packages with the libraries that it would install.
_PACKAGED = r"libnvidia-(compute|decode|encode|gl|fbc1|ml1).*|libcuda1|libnvcuvid1|lib(egl|glx)-nvidia0"
_GRAPHICS = ("libEGL_nvidia.so", "libGLX_nvidia.so", "libnvidia-fbc.so")
_STEMS = ("libnvidia-ml.so", "libcuda.so", "libnvidia-encode.so", "libnvcuvid.so")


def main(system: HostState, name: str, arguments: list[str]) -> int:
    """The installer, or its way back."""
    if name == "nvidia-uninstall":
        return logged(system, name, arguments, lambda: _uninstall(system))
    if arguments[:1] != ["--archive"]:
        raise UsageError("it is started by NVIDIA-Linux-x86_64-VERSION.run")
    archive, version, given = arguments[1], arguments[2], arguments[3:]
    words = ["silent" if word == "-s" else word for word in given]
    options = Options(words, "sM:m:", _OPTIONS)
    if system.rooted(archive).read_bytes() != network.installer(version):
        raise Failure(
            "Verifying archive integrity... Error in check sums.\nError in MD5 checksums: the archive is damaged."
        )
    print(
        f"Verifying archive integrity... OK\nUncompressing NVIDIA Accelerated Graphics Driver for Linux-x86_64 {version}",
        flush=True,
    )
    return logged(system, Path(archive).name, given, lambda: _install(system, version, options))


def _fail(system: HostState, text: str) -> Failure:
    system.write(_LOG, f"nvidia-installer log file '{_LOG}'\nERROR: {text}\n")
    return Failure(
        f"\nERROR: {text}\n\n\nERROR: Installation has failed.  Please see the file '{_LOG}' for details.  You may find "
        "suggestions on fixing installation problems in the README available on the Linux driver download page at www.nvidia.com.\n"
    )


def _install(system: HostState, version: str, options: Options) -> int:
    if current_user() != "root":
        raise Failure("\nERROR: nvidia-installer must be run as root\n")
    if options.has("uninstall"):
        return _uninstall(system)
    if network.fault(system, "disk-full") is not None:
        raise _fail(system, "Unable to write file '/usr/lib/x86_64-linux-gnu/libcuda.so': No space left on device")
    if installed(system).get("kmod") is None:
        raise _fail(
            system,
            "Unable to find the module utility `modprobe`; please make sure you have the package 'kmod' installed.",
        )
    packaged = any(re.fullmatch(_PACKAGED, name) for name in installed(system))
    if packaged and not options.has("no-check-for-alternate-installs"):
        raise _fail(system, "The NVIDIA driver appears to have been installed previously using a different installer.")
    if not options.has("no-kernel-modules", "no-kernel-module"):
        _install_modules(system, version, options)
    system.write(_RECORD, f"{version}\n")
    graphics = () if options.has("no-opengl-files") else _GRAPHICS
    contents.install_libraries(system, [*_STEMS, *graphics], version)
    for path in ("/usr/bin/nvidia-smi", "/usr/bin/nvidia-uninstall"):
        contents.install_program(system, path)
    if not options.has("no-nvidia-modprobe"):
        contents.install_program(system, "/usr/bin/nvidia-modprobe")
    system.write(
        _LOG,
        f"nvidia-installer log file '{_LOG}'\nInstallation of the NVIDIA Accelerated Graphics Driver (version: {version}) is now complete.\n",
    )
    print(
        f"\nInstallation of the NVIDIA Accelerated Graphics Driver for Linux-x86_64 (version: {version}) is now complete."
    )
    return 0


def _install_modules(system: HostState, version: str, options: Options) -> None:
    """Build for the running kernel, with --dkms so that later kernels get theirs."""
    running = system.running
    kernel = str(running.get("kernel", system.read("/proc/sys/kernel/osrelease", "").strip()))
    if "container" in system.machine:
        raise _fail(system, f"Unable to find the kernel source tree for the currently running kernel {kernel}.")
    if not options.has("no-nouveau-check") and "nouveau" in running.get("bound", {}).values():
        system.write(
            "/etc/modprobe.d/nvidia-installer-disable-nouveau.conf", "blacklist nouveau\noptions nouveau modeset=0\n"
        )
        raise _fail(
            system,
            "The Nouveau kernel driver is currently in use by your system.  This driver is incompatible with the NVIDIA "
            "driver, and must be disabled before proceeding.",
        )
    if running_build(system) is not None and not options.has("allow-installation-with-running-driver"):
        raise _fail(
            system,
            "An NVIDIA kernel module 'nvidia' appears to already be loaded in your kernel.  This may be because it is in use "
            "(for example, by an X server, a CUDA program, or the NVIDIA Persistence Daemon).",
        )
    if not kernel_files.has_headers(system, kernel):
        raise _fail(
            system,
            "Unable to find the kernel source tree for the currently running kernel.  Please make sure you have installed the "
            "kernel source files for your kernel and that they are properly configured.",
        )
    kind = options.value("kernel-module-type", "M") or ("kernel-open" if options.value("m") == "kernel-open" else None)
    flavour = {"open": "open", "kernel-open": "open", "proprietary": "proprietary", None: _default_type(version)}.get(
        kind
    )
    if flavour is None:
        raise UsageError(f"unknown kernel module type {kind!r}")
    _build(system, Build(version, flavour), kernel)


def _default_type(version: str) -> str:
    """Open by default from 560 on."""
    return "open" if holds(version, ">=", "560") else "proprietary"


def _build(system: HostState, build: Build, kernel: str) -> None:
    # Each file is noted when it is there (command-list.c of NVIDIA/nvidia-installer).
    system.write(_RECORD, f"{build.version}\n")
    dkms.add(system, build)
    try:
        dkms.install(system, build.version, kernel)
    except dkms.NotBuilt as error:
        dkms.remove(system, build.version)
        system.rooted(_RECORD).unlink()
        raise _fail(
            system, f'An error occurred while performing the step: "Building kernel modules". {error}'
        ) from error


def _uninstall(system: HostState) -> int:
    version = system.read(_RECORD, "").strip()
    if not version:
        print("There is no NVIDIA driver currently installed.")
        return 0
    if version in dkms.versions(system):
        dkms.remove(system, version)
    contents.remove_libraries(system, [*_STEMS, *_GRAPHICS], version)
    for name in ("nvidia-smi", "nvidia-modprobe", "nvidia-uninstall"):
        system.rooted(f"/usr/bin/{name}").unlink(missing_ok=True)
    system.rooted(_RECORD).unlink()
    print(
        f"Uninstallation of existing driver: NVIDIA Accelerated Graphics Driver for Linux-x86_64 ({version}) is complete."
    )
    return 0
