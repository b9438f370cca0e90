"""`python -m pip`: real pip, but what `pip list` says is kept for as long as nothing is installed.

Pulumi's language host asks for that list in each of its runs, of which the tests make hundreds: it is a fifth of what a run costs that
changes nothing. What is kept is said by sitecustomize.py, before Python gets as far as here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import sitecustomize  # type: ignore[import-not-found]  # this folder's neighbour, by PYTHONPATH


def real() -> subprocess.CompletedProcess[bytes]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    stdout = subprocess.PIPE if listed else None
    return subprocess.run([sys.executable, "-m", "pip", *sys.argv[1:]], env=environment, stdout=stdout, check=False)


listed = sys.argv[1:2] == ["list"]
done = real()
if listed and done.returncode == 0:
    kept = Path(sitecustomize.pip_list())
    kept.parent.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_suffix(f".{os.getpid()}")
    temporary.write_bytes(done.stdout)
    temporary.replace(kept)
if listed:
    sys.stdout.buffer.write(done.stdout)
sys.exit(done.returncode)
