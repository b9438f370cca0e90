"""The linters of everything that is bash: shellcheck and shfmt, on every file, and on every script as it is sent.

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

# Arguments as the headers list them; the files among them are linted by themselves.
ARGUMENTS = {
    "in_container.sh": ("CTID", "SCRIPT"),
}  # fmt: skip
# Of a part of the library; its header names them.
OF_PACKAGES = ("NAME", "SYMPTOMS", "PROXY", "LOCK_SECONDS", "DOWNLOAD_SECONDS", "INSTALL_SECONDS", "LOCKED")
SOURCES = sorted(scripts.FOLDER.rglob("*.sh"))
# Plain sh, on a host.
INSTALLED = sorted((scripts.FOLDER / "files").glob("*.sh"))
# What runs in the metal tier's hosts.
METAL = sorted((PROJECT / "tests" / "metal" / "guest").iterdir())

# SC2329/SC2317: functions of the library that this script doesn't call. SC2034: variables that it doesn't read.
# SC2153, SC2154: what arguments assign. SC2119, SC2120: arguments that other scripts give to a function of the library.
EXCLUDED = "SC2329,SC2317,SC2034,SC2153,SC2154,SC2119,SC2120"
# Which other findings a file's comments allow, at their places.
ALLOWED = sorted({code for path in SOURCES for code in re.findall(r"# shellcheck disable=(SC\d+)", path.read_text())})


def shellcheck(name: str, text: str, *options: str) -> str:
    """What it says of a text, with its name; nothing where all is well."""
    command = [str(TOOLS / "shellcheck"), *options, "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    return f"{name}: {done.stdout}{done.stderr}" if done.returncode else ""


def check_file(path: Path) -> str:
    """By itself, with what its comments allow."""
    name = path.relative_to(PROJECT).as_posix()
    if path in INSTALLED:
        return shellcheck(name, path.read_text(), "--exclude=SC1091")
    if path in METAL:
        return shellcheck(name, path.read_text())
    return shellcheck(name, path.read_text(), "--shell=bash", f"--exclude={EXCLUDED}")


def check_sent(name: str) -> str:
    """What files do to each other: an array that is text elsewhere, a variable that is lost in a subshell. Comments aren't sent.

    Which values reach a line, which is two thirds of shellcheck's time, is asked for each file alone.
    """
    of_packages = OF_PACKAGES if "packages/running" in scripts.library_of(name) else ()
    sent = scripts.compose(name, **dict.fromkeys((*ARGUMENTS[name], *of_packages), "x"))
    options = ("--shell=bash", f"--exclude={','.join((EXCLUDED, *ALLOWED))}", "--extended-analysis=false")
    return shellcheck(f"{name}, as it is sent", sent, *options)


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
            *(pool.submit(check_sent, name) for name in sorted(ARGUMENTS)),
            *(pool.submit(check_file, path) for path in (*SOURCES, *METAL)),
        ]
    said = [one.result() for one in found if one.result()]
    print("\n".join(said), end="")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
