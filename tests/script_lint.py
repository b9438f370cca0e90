"""The linters of everything that is sh: shellcheck and shfmt, on every file.

python -m tests.script_lint (of `make lint`): what they found, and 1 where there is something.
"""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
from pathlib import Path

from homelab.remote import scripts

PROJECT = Path(__file__).parents[1]
# Beside the interpreter: the linters come as wheels.
TOOLS = Path(sys.executable).parent

SOURCES = sorted(scripts.FOLDER.rglob("*.sh"))
# What runs in the metal tier's hosts.
METAL = sorted((PROJECT / "tests" / "metal" / "guest").iterdir())


def shellcheck(name: str, text: str, *options: str) -> str:
    """What it says of a text, with its name; nothing where all is well."""
    command = [str(TOOLS / "shellcheck"), *options, "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    return f"{name}: {done.stdout}{done.stderr}" if done.returncode else ""


def check_file(path: Path) -> str:
    """By itself, with what its comments allow."""
    return shellcheck(path.relative_to(PROJECT).as_posix(), path.read_text(), "--exclude=SC1091")


def check_format() -> str:
    """In one run, which names the files: a start of shfmt takes longer than a file."""
    files = [str(path) for path in (*SOURCES, *METAL)]
    done = subprocess.run(
        [str(TOOLS / "shfmt"), "-i", "2", "-ci", "-d", *files], capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def main() -> int:
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        found = [
            pool.submit(check_format),
            *(pool.submit(check_file, path) for path in (*SOURCES, *METAL)),
        ]
    said = [one.result() for one in found if one.result()]
    print("\n".join(said), end="")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
