"""DKMS of a lab's system: NVIDIA's modules from source, for every kernel whose headers are there.

What is registered lies in /usr/src/nvidia-VERSION and /var/lib/dkms/nvidia/VERSION, by whatever name (Debian's packages
have nvidia-current), what is built beside its kernel. A build fails where driver.yaml says that this driver doesn't build for this kernel, and under the fault dkms-fails.
"""

from __future__ import annotations

from . import kernel_files, network
from .kernel_files import DKMS_KEY, Build
from .program import Failure
from .state import HostState, kernel_release, version_key
from .versions import holds

NAME = "nvidia"
_TREE = f"/var/lib/dkms/{NAME}"
#: The certificate of the key that DKMS signs with; nobody has enrolled it.
KEY = "/var/lib/dkms/mok.pub"
_BAD_BUILD = 10


class NotBuilt(Failure):
    """A module can't be built; the text is dkms's own."""


def add(host: HostState, build: Build) -> None:
    """Put a driver's source there, and register it."""
    write_source(host, build)
    register(host, build.version)


def write_source(host: HostState, build: Build) -> None:
    """Put a driver's source there."""
    text = f'PACKAGE_NAME="{build.name}"\nPACKAGE_VERSION="{build.version}"\nAUTOINSTALL="yes"\n# flavour={build.flavour}\n'
    host.write(f"/usr/src/{NAME}-{build.version}/dkms.conf", text)


def register(host: HostState, version: str) -> None:
    """Register a driver's source, and make the key that modules are signed with."""
    host.symlink(f"{_TREE}/{version}/source", f"/usr/src/{NAME}-{version}")
    write_key(host)


def write_key(host: HostState) -> None:
    """Make the key that DKMS signs with, unless it is there."""
    if not host.rooted(KEY).exists():
        host.write(KEY, "lab certificate DKMS module signing key\n")


def remove(host: HostState, version: str) -> None:
    """Forget a driver: its modules, its source."""
    unregister(host, version)
    host.remove_tree(f"/usr/src/{NAME}-{version}")


def unregister(host: HostState, version: str) -> None:
    """Forget a driver, and its modules, but for its source."""
    for kernel in built(host, version):
        kernel_files.remove_nvidia(host, kernel)
    host.remove_tree(f"{_TREE}/{version}")
    if not versions(host):
        host.remove_tree(_TREE)


def versions(host: HostState) -> list[str]:
    """The drivers that are registered."""
    tree = host.rooted(_TREE)
    return sorted((path.name for path in tree.iterdir()), key=version_key) if tree.is_dir() else []


def built(host: HostState, version: str) -> list[str]:
    """The kernels for which a driver is built and installed."""
    tree = host.rooted(f"{_TREE}/{version}")
    there = [path.name for path in tree.iterdir() if (path / "x86_64/module").is_dir()] if tree.is_dir() else []
    return sorted(there, key=version_key)


def source_of(host: HostState, version: str) -> Build:
    """What a registered driver is built from.

    Raises:
        NotBuilt: no such driver is registered.
    """
    text = host.read(f"/usr/src/{NAME}-{version}/dkms.conf", "")
    if "# flavour=" not in text:
        raise NotBuilt(
            f"Error! Could not find module source directory.\nDirectory: /usr/src/{NAME}-{version} does not exist.", 2
        )
    name = text.partition('"')[2].partition('"')[0]
    return Build(version, text.rpartition("# flavour=")[2].strip(), DKMS_KEY, name)


def install(host: HostState, version: str, kernel: str) -> None:
    """Build a driver for a kernel, and put its modules beside that.

    Raises:
        NotBuilt: no headers, or the compiler gives up; make.log is where dkms says.
    """
    build = source_of(host, version)
    if not kernel_files.has_headers(host, kernel):
        raise NotBuilt(
            f"Error! Your kernel headers for kernel {kernel} cannot be found at /lib/modules/{kernel}/build or "
            f"/lib/modules/{kernel}/source.\nPlease install the linux-headers-{kernel} package or use the "
            "--kernelsourcedir option to tell DKMS where it's located.",
            21,
        )
    if reason := _reason_against(host, version, kernel):
        _write_log(host, version, kernel, reason)
        raise NotBuilt(
            f"Error! Bad return status for module build on kernel: {kernel} (x86_64)\n"
            f"Consult {_TREE}/{version}/build/make.log for more information.",
            _BAD_BUILD,
        )
    note_built(host, build, kernel)


def note_built(host: HostState, build: Build, kernel: str) -> None:
    """Have a driver's modules beside a kernel, in place of another version's."""
    for other in versions(host):
        if other != build.version:
            host.remove_tree(f"{_TREE}/{other}/{kernel}")
    host.write(f"{_TREE}/{build.version}/{kernel}/x86_64/module/nvidia.ko", f"{build.version} for {kernel}\n")
    kernel_files.write_nvidia(host, kernel, build)


def uninstall(host: HostState, version: str, kernel: str) -> None:
    """Take a driver's modules away from a kernel."""
    if kernel in built(host, version):
        host.remove_tree(f"{_TREE}/{version}/{kernel}")
        kernel_files.remove_nvidia(host, kernel)


def autoinstall(host: HostState, kernel: str) -> None:
    """Build what isn't built yet for a kernel; one without headers is passed over.

    Raises:
        NotBuilt: a build failed.
    """
    for version in versions(host):
        if kernel_files.has_headers(host, kernel) and kernel not in built(host, version):
            install(host, version, kernel)


def _reason_against(host: HostState, version: str, kernel: str) -> str | None:
    """The compiler's complaint, None when it has none."""
    value = network.fault(host, "dkms-fails")
    if value is not None and value in f"{version}/{kernel}":
        return (
            "nv.c:1234:5: error: implicit declaration of function 'lab_fault' [-Werror=implicit-function-declaration]"
        )
    release = kernel_release(kernel)
    for row in reversed(network.data(host)["driver"]["kernels"]):
        if release >= kernel_release(row["from"] + ".0") and not holds(version, ">=", str(row["least"])):
            return (
                "nvidia-drm/nvidia-drm-fb.c:180:40: error: too few arguments to function 'drm_helper_mode_fill_fb_struct'"
                if release >= (6, 17)
                else "nvidia/nv-vm.c:412:5: error: implicit declaration of function 'follow_pfn'; did you mean 'follow_pte'?"
            )
    return None


def _write_log(host: HostState, version: str, kernel: str, reason: str) -> None:
    host.write(
        f"{_TREE}/{version}/build/make.log",
        f"DKMS make.log for {NAME}-{version} for kernel {kernel} (x86_64)\n"
        f"make[1]: Entering directory '/usr/src/linux-headers-{kernel}'\n/var/lib/dkms/{NAME}/{version}/build/{reason}\n"
        f"make[3]: *** [/usr/src/linux-headers-{kernel}/scripts/Makefile.build:243: {reason.split(':')[0].replace('.c', '.o')}] Error 1\n"
        f"make: *** [Makefile:115: modules] Error 2\n",
    )
