"""homelab as another project has it: its wheel, installed into an environment of that project's own."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

from tests.conftest import PROJECT


def wheel(folder: Path) -> Path:
    """Builds it there, without a network."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=PROJECT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def install(built: Path, environment: Path) -> Path:
    """Makes an environment with the wheel in it, and this one's packages for what it needs; says where its programs lie."""
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip())
    (packages / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(packages)
    return python.parent
