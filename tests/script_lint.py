"""The linters of everything that is sh: shellcheck and shfmt, on every file; and of what is put on hosts what no linter knows.

python -m tests.script_lint (of `make lint`): what they found, and 1 where there is something.
"""

from __future__ import annotations

import concurrent.futures
import os
import re
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


#: What a line of what is put on hosts may not have -> why, but in the file that is named.
NOT_ON_HOSTS = {
    # After a redirection, a test, or as a command's argument.
    r"""(?:[<>]\s*"?|-[edfrsx]\s+"?|\b(?:cat|rm|mv|cp|find|readlink|stat|ls)\s+(?:-\S+\s+)*"?)/(?!dev/null)""": (
        "a path that is opened goes through $HOMELAB_ROOT",
        "",
    ),
    # BusyBox, in the test VM, goes forward alone.
    r"\bdone\b[^|]*<\"[^\"]*(/proc/|/sys/|/etc/pve/|\$PCI|\$PROCESS|\$PVE_LXC|\$NVIDIA_PROC|\$group|\$path|\$device)": (
        "a shell goes back after each line, and the kernel makes the file anew for the next one: it is read at once",
        "passthrough_init.sh",
    ),
}


def check_lines() -> str:
    """Plain sh, whose lines of code have nothing of NOT_ON_HOSTS."""
    said = ""
    for path in SOURCES:
        name, lines = path.relative_to(PROJECT).as_posix(), path.read_text().splitlines()
        said += "" if lines[0] == "#!/bin/sh" else f"{name}: it isn't plain sh\n"
        for number, line in enumerate(lines, start=1):
            for pattern, (why, spared) in NOT_ON_HOSTS.items():
                code = "" if line.lstrip().startswith("#") or path.name == spared else line.partition(" # ")[0]
                said += f"{name}:{number}: {why}\n" if re.search(pattern, code) else ""
    return said


def main() -> int:
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        found = [
            pool.submit(check_format),
            pool.submit(check_lines),
            *(pool.submit(check_file, path) for path in (*SOURCES, *METAL)),
        ]
    said = [one.result() for one in found if one.result()]
    print("\n".join(said), end="")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
