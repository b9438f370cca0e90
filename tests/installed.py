"""homelab as another project has it: its wheel, installed into an environment of that project's own."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from tests.conftest import PROJECT


def wheel(folder: Path) -> Path:
    """Builds it there, without a network."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=PROJECT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def install(built: Path, environment: Path) -> Path:
    """Makes an environment into which pip installs the wheel; what the wheel needs is this one's. Says where its programs lie."""
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip())
    (packages / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--quiet", "--disable-pip-version-check", "--no-input"]
    # No registry is asked; and what isn't compiled here is compiled as it is used.
    subprocess.run([*pip, "install", "--no-index", "--no-deps", "--no-compile", str(built)], check=True)
    return python.parent
