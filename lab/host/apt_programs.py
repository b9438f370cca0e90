"""apt's and dpkg's programs of a lab's system: this machine's own, which work on its tree (state.of_packages, launchers).

What they fetch is the lab's network (apt_method), what they install are the lab's packages (debs). What the network's faults
have done to a system's lists is brought about here, before a program starts.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess

from . import dpkg, network
from .account_programs import current_user
from .installed import fetch_lists
from .node_programs import REAL_PATH, real
from .program import Failure, logged
from .state import HostState, of_packages

_DEBIAN = re.compile(r"^ID=\"?(debian|ubuntu)", re.M)  # in os-release
_LOCK = f"{dpkg.FOLDER}/lock-frontend"
#: What of a program's words says that it changes something.
_CHANGING = {
    "apt-mark": re.compile(r"(hold|unhold|manual|auto)"),
    "dpkg": re.compile(r"(-[irP]|--(install|unpack|configure|remove|purge)|-a)"),
    **dict.fromkeys(
        ("apt", "apt-get"),
        re.compile(
            r"(update|install|reinstall|remove|purge|auto(remove|purge|clean)|clean|(dist-|full-)?upgrade|download)"
        ),
    ),
}
_SIMULATED = re.compile(r"-[a-z]*s|--(simulate|just-print|dry-run|no-act|recon|print-uris)")


def main(host: HostState, name: str, arguments: list[str]) -> int:
    """One of the programs."""
    if not _DEBIAN.search(host.read("/etc/os-release", "")):
        raise Failure(f"bash: line 1: {name}: command not found", 127)
    for key, value in of_packages(host.state).items():
        if os.environ.setdefault(key, value) != value and key != "APT_CONFIG":
            os.environ[key] = value
    program = shutil.which(name, path=REAL_PATH)
    if program is None:
        return _without(host, name, arguments)
    words = [_in_tree(host, word) for word in arguments]
    changing = _CHANGING.get(name)
    if changing is None or not any(map(changing.fullmatch, words)) or any(map(_SIMULATED.fullmatch, words)):
        _bring_about(host)
        if "indextargets" in words:  # the names of files that are told are the system's own
            done = subprocess.run([program, *words], stdout=subprocess.PIPE, text=True, check=False)
            print(done.stdout.replace(str(host.root), ""), end="")
            return done.returncode
        return real(name, words)
    if current_user() != "root" and "download" not in words:
        raise Failure(
            f"E: Could not open lock file {_LOCK} - open (13: Permission denied)\n"
            f"E: Unable to acquire the dpkg frontend lock ({_LOCK}), are you root?",
            100,
        )
    _bring_about(host)
    if name == "dpkg":
        words.insert(0, f"--log={host.root}/var/log/dpkg.log")
    return logged(host, name, arguments, lambda: real(name, words))


def _without(host: HostState, name: str, arguments: list[str]) -> int:
    """Where this machine has no such program, a system can be read: `dpkg-query -W [-f=FORMAT] [NAMES]`.

    Raises:
        Failure: it is more than that.
    """
    if name != "dpkg-query" or arguments[:1] != ["-W"]:
        raise Failure(
            f"{name}: this machine has no apt and dpkg, by which a lab's systems install packages: try it on Debian or Ubuntu",
            127,
        )
    form = next((word[3:] for word in arguments if word.startswith("-f=")), "${Package}\\t${Version}\\n")
    wanted = [word for word in arguments[1:] if not word.startswith("-")]
    for package in dpkg.installed(host).values():
        values = {
            "Package": package.name,
            "Version": package.version,
            "db:Status-Status": "installed",
            "Architecture": "amd64",
        }
        if package.name in wanted or not wanted:
            text = form.replace("\\n", "\n").replace("\\t", "\t")
            for key, value in values.items():
                text = text.replace(f"${{{key}}}", value)
            print(text, end="")
    return 0


def _in_tree(host: HostState, word: str) -> str:
    """A package's file by its path on this machine."""
    return str(host.rooted(word)) if word.startswith("/") and word.endswith(".deb") else word


# -- faults ----------------------------------------------------------------------------------------------------
def _bring_about(host: HostState) -> None:
    """Have a system that has lists know what there is: once for each time that the fault package-missing is set, or taken back."""
    note, value = host.state / "done-package-missing", network.fault(host, "package-missing")
    if value != (note.read_text(encoding="utf-8") if note.exists() else None):
        note.unlink(missing_ok=True)
        if value is not None:
            note.write_text(value, encoding="utf-8")
        if any(host.rooted("/var/lib/apt/lists").glob("*_Packages")):
            fetch_lists(host)
