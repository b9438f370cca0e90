"""What this tier needs of the machine that it runs on: `python -m tests.windows.prerequisites` says it; `--install` installs it first, as root on a Debian."""

from __future__ import annotations

import os
import shutil
import sys

from homelab.errors import HomelabError
from tests.metal.prerequisites import main

#: Program -> the Debian package that has it. Debian's wine64 isn't on PATH.
PROGRAMS = {
    "wine64": "wine64",
    "x86_64-w64-mingw32-gcc": "gcc-mingw-w64-x86-64",
    "mvn": "maven",
    "go": "golang",
}
PATH = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/lib/wine"


def missing_packages() -> list[str]:
    return sorted(package for name, package in PROGRAMS.items() if shutil.which(name, path=PATH) is None)


def check() -> None:
    """:raises HomelabError: what is missing, all of it."""
    packages = missing_packages()
    if sys.platform != "linux" or packages:
        raise HomelabError(
            wanted="a Linux on which programs of Windows can be made and run under Wine",
            found=f"missing: {', '.join(packages)}" if packages else f"this is {sys.platform}",
            why="without Wine and a Python for Windows nothing of Windows is shown",
            next=f"apt-get install {' '.join(packages)}" if packages else "run it on a Linux machine",
        )


if __name__ == "__main__":
    main("Windows", missing_packages, check)
