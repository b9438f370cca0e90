"""vainfo, which uses an Intel or AMD card through its node, and says what it has found.

It opens the node as the real one does, and needs the driver of user space that its package brings. What a card can do is not looked at.
"""

from __future__ import annotations

import sys

from . import container
from .container_programs import Opened
from .contents import LIBRARIES
from .program import Failure, Options, UsageError
from .state import HostState

#: A card's maker -> the drivers that libva tries for it, in its order, and what each calls itself (intel/libva, va/va.c; vainfo of each).
_VIDEO = {
    "0x8086": {"iHD": "Intel iHD driver for Intel(R) Gen Graphics", "i965": "Intel i965 driver for Intel(R) graphics"},
    "0x1002": {"radeonsi": "Mesa Gallium driver for AMD Radeon Graphics (radeonsi)"},
}


def _makers(system: HostState) -> dict[str, str]:
    """The nodes for computing that a system has -> the makers of their cards, as the kernel shows them."""
    kernel = container.outer(system) if "container" in system.machine else system
    found = {}
    folder = system.rooted("/dev/dri")
    for place in sorted(folder.glob("renderD*")) if folder.is_dir() else ():
        vendor = kernel.rooted(f"/sys/class/drm/{place.name}/device/vendor")
        if vendor.is_file():
            found[f"/dev/dri/{place.name}"] = vendor.read_text(encoding="utf-8").strip()
    return found


def main(system: HostState, _name: str, arguments: list[str]) -> int:
    """It."""
    options = Options(arguments, "a", ("display=", "device=", "all"))
    device = options.value("", "device")
    if options.value("", "display") != "drm" or device is None:
        raise UsageError("the lab's vainfo takes --display drm --device NODE")
    opened = Opened(system, device, "rw")
    if opened.error:
        raise Failure("Failed to open the given device!", 255)
    drivers = _VIDEO.get(_makers(system).get(device.removeprefix(str(system.root)), ""), {})
    print("libva info: VA-API version 1.22.0", file=sys.stderr)
    for driver, called in drivers.items():
        path = f"{LIBRARIES}/dri/{driver}_drv_video.so"
        print(f"libva info: Trying to open {path}", file=sys.stderr)
        place = system.rooted(path)
        if not place.is_file():
            print("libva info: va_openDriver() returns -1", file=sys.stderr)
            continue
        print("libva info: va_openDriver() returns 0", file=sys.stderr)
        version = place.read_text(encoding="utf-8").strip()
        print("vainfo: VA-API version: 1.22 (libva 2.22.0)")
        print(f"vainfo: Driver version: {called} - {version}")
        print("vainfo: Supported profile and entrypoints\n      VAProfileH264Main               : VAEntrypointVLD")
        return 0
    raise Failure("vaInitialize failed with error code -1 (unknown libva error),exit", 3)
