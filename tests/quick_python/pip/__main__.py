"""`python -m pip`: real pip, but what `pip list` says is kept for as long as nothing is installed.

Pulumi's language host asks for that list in each of its runs, of which the tests make hundreds: it is a fifth of what a run costs that
changes nothing.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
from pathlib import Path


def real() -> subprocess.CompletedProcess[bytes]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    stdout = subprocess.PIPE if listed else None
    return subprocess.run([sys.executable, "-m", "pip", *sys.argv[1:]], env=environment, stdout=stdout, check=False)


listed = sys.argv[1:2] == ["list"]
if not listed:
    sys.exit(real().returncode)
installed = Path(sysconfig.get_path("purelib"))
key = repr((sys.argv[1:], str(installed), installed.stat().st_mtime_ns)).encode()
kept = Path(os.environ["PIP_ONCE"], hashlib.sha256(key).hexdigest())
if not kept.exists():
    done = real()
    if done.returncode != 0:
        sys.exit(done.returncode)
    kept.parent.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_suffix(f".{os.getpid()}")
    temporary.write_bytes(done.stdout)
    temporary.replace(kept)
sys.stdout.buffer.write(kept.read_bytes())
